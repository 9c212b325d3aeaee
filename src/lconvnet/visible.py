"""What a person sees in a folder: nothing hidden, and nothing that an operating system put there for itself.

Notebooks, version control, archives and desktops leave copies of files in folders such as `.ipynb_checkpoints`, `.git`,
`__MACOSX` or `@eaDir`. They are neither images nor runs. The folder that somebody names may itself be hidden.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

LITTER = frozenset(
    {
        "__macosx",
        "__pycache__",
        "$recycle.bin",
        "#recycle",
        "@eadir",
        "desktop.ini",
        "ehthumbs.db",
        "lost+found",
        "system volume information",
        "thumbs.db",
    }
)


def is_visible(name: str) -> bool:
    """Whether a file or folder of this name is anybody's.

    >>> [name for name in ("cat.png", "._cat.png", ".git", "__MACOSX", "Thumbs.db") if is_visible(name)]
    ['cat.png']
    """
    return not name.startswith(".") and name.casefold() not in LITTER


def walk(
    folder: Path, *, links: bool = False, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[Path], list[Path]]]:
    """Yield every folder in and below one, with what is visible in it: its folders, and its files, in a fixed order.

    With `links` those to folders are followed, and a circle of them is the caller's to break.
    """
    for above, folders, files in os.walk(folder, followlinks=links, onerror=onerror):
        place = Path(above)
        folders[:] = sorted(filter(is_visible, folders))
        yield place, [place / name for name in folders], [place / name for name in sorted(filter(is_visible, files))]


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the visible files in and below a folder, links to folders not followed, in a fixed order."""
    for _, _, files in walk(folder):
        yield from files
