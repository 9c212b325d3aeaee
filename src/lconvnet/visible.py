"""What a person sees: of a folder nothing hidden, of a text nothing that moves a cursor.

Notebooks, version control, archives and desktops leave copies of files in folders such as `.ipynb_checkpoints`, `.git`,
`__MACOSX` or `@eaDir`. They are neither images nor runs. The folder that somebody names may itself be hidden.
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
    r"""Return a text with every character that is not printable as its escape, so that it is one line.

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
    """Yield every folder in and below one, with what is visible in it: its folders, and its files, in a fixed order.

    With `links`, links to folders are followed, and the caller has to break a circle of them.
    """
    for above, folders, files in os.walk(folder, followlinks=links, onerror=onerror):
        place = Path(above)
        folders[:] = sorted(filter(is_visible, folders))
        yield place, [place / name for name in folders], [place / name for name in sorted(filter(is_visible, files))]


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the visible files in and below a folder, links to folders not followed, in a fixed order."""
    for _, _, files in walk(folder):
        yield from files
