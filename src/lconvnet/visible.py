"""What a person sees: the visible files of a folder, and the printable characters of a text.

Notebooks, version control, archives and desktops leave copies of files in folders such as `.ipynb_checkpoints`, `.git`,
`__MACOSX` or `@eaDir`. They are neither images nor runs. The folder that the user names may itself be hidden.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

LITTER = frozenset({
    "__macosx", "__pycache__", "$recycle.bin", "#recycle", "@eadir", "desktop.ini", "ehthumbs.db", "lost+found",
    "system volume information", "thumbs.db",
})  # fmt: skip


def printable(text: str) -> str:
    r"""Return a text on one line, with every unprintable character as its escape.

    >>> printable("a\x1b[31m\n")
    'a\\x1b[31m\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_visible(name: str) -> bool:
    """Return whether a file or folder of this name is meant to be seen.

    >>> [name for name in ("cat.png", "._cat.png", ".git", "__MACOSX", "Thumbs.db") if is_visible(name)]
    ['cat.png']
    """
    return not name.startswith(".") and name.casefold() not in LITTER


def walk(
    folder: Path, *, links: bool = False, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[Path], list[Path]]]:
    """Yield every folder in and below one with its visible folders and files, in a fixed order.

    If `links` is true, links to folders are followed, and the caller has to break cycles.
    """
    for above, folders, files in os.walk(folder, followlinks=links, onerror=onerror):
        place = Path(above)
        folders[:] = sorted(filter(is_visible, folders))
        yield place, [place / name for name in folders], [place / name for name in sorted(filter(is_visible, files))]


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the visible files in and below a folder in a fixed order; links to folders are not followed."""
    for _, _, files in walk(folder):
        yield from files
