"""The visible folders and files below a folder that holds data, listed once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lconvnet.data.errors import DataError
from lconvnet.data.parts import roles_of
from lconvnet.visible import walk

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

READ = SUFFIXES | {".parquet"}


@dataclass(frozen=True)
class Tree:
    """What lies below `root`: of every folder its folders and its files, sorted."""

    root: Path
    folders: dict[Path, list[Path]]
    files: dict[Path, list[Path]]

    def images(self, folder: Path) -> list[Path]:
        """The images in and below a folder, in the order of their paths."""
        return _sorted(path for path in self._below(folder) if path.suffix.lower() in SUFFIXES)

    def parquet(self) -> list[Path]:
        """All parquet files, in the order of their paths; raises `DataError` where there are image files, too."""
        files = _sorted(path for path in self._below(self.root) if path.suffix.lower() == ".parquet")
        if files and self.images(self.root):
            raise DataError(f"{self.root} holds both {files[0].name} and image files: name the folder of one kind")
        return files

    def own_images(self, folder: Path) -> list[Path]:
        """The images in a folder itself."""
        return [path for path in self.files[folder] if path.suffix.lower() in SUFFIXES]

    def roles(self, folder: Path) -> dict[str, str]:
        """The parts among the folders of a folder, by name."""
        return roles_of(path.name for path in self.folders[folder])

    def said_of(self, file: Path) -> set[str]:
        """The parts that a parquet file and the folders that it lies in are called: one, or none."""
        siblings = roles_of(other.stem for other in self.files[file.parent] if other.suffix == file.suffix)
        above = [folder for folder in file.parents if self.root in folder.parents]
        found = [self.roles(folder.parent).get(folder.name) for folder in above]
        return {role for role in (siblings.get(file.stem), *found) if role}

    def count(self) -> int:
        """The number of all files."""
        return sum(map(len, self.files.values()))

    def _below(self, folder: Path) -> Iterator[Path]:
        yield from self.files[folder]
        for inner in self.folders[folder]:
            yield from self._below(inner)


def tree_of(root: Path) -> Tree:
    """List everything below `root`; links are followed.

    Raises `DataError` for a folder that cannot be read, for one that links lead to twice, or for ever, for a file that
    has two names there, links of either kind, for both would count, and for a link to neither a file nor a folder.
    """

    def unreadable(error: OSError) -> None:
        raise DataError(f"cannot list {error.filename} ({error.strerror}): check the path and its permissions")

    tree, known = Tree(root, {}, {}), dict[tuple[int, int], Path]()
    for folder, folders, files in walk(root, links=True, onerror=unreadable):
        first = _first(known, folder)
        if first != folder or (folder.is_symlink() and folder.resolve() in root.resolve().parents):
            link = next((path for path in (folder, first) if path.is_symlink()), folder)
            raise DataError(f"{link} links to a folder that holds it or is read already: remove the link")
        tree.folders[folder] = folders
        tree.files[folder] = [file for file in files if _is_file(file)]
        for file in tree.files[folder]:
            if file.suffix.lower() in READ and (other := _first(known, file)) != file:
                link = next((path for path in (file, other) if path.is_symlink()), None)
                way = f"remove the link {link}" if link else "remove one of them"
                raise DataError(f"{other} and {file} are one file, which would count twice: {way}")
    return tree


def _first(known: dict[tuple[int, int], Path], path: Path) -> Path:
    """The first path that led to the same folder or file."""
    status = path.stat()
    return known.setdefault((status.st_dev, status.st_ino), path)


def _is_file(path: Path) -> bool:
    """Whether this is a file or a link to one; refuses a link to what is neither a file nor a folder."""
    if path.is_symlink() and not path.is_file():
        raise DataError(f"{path} is a link that leads to no file or folder ({path.readlink()}): remove or mend it")
    return path.is_file()


def _sorted(paths: Iterator[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.parts)  # by part and by case, wherever it runs
