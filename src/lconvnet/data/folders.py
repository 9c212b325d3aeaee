"""Folders of data: the files below a folder, and the classes and parts of an image folder.

Classes are folders. The parts of the set are folders above or below them, or absent. The same rules recognise parts
(`train`, `validation`, `test`) in the names of folders, files and columns. They allow for case, accents, width,
synonyms (`Training`, `dev`, `testing`), decoration (`train_images`, `test-00000-of-00002`, `imagesVal`), and text that
siblings share (`seg_train` beside `seg_test`, `tr` beside `te`).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

from lconvnet.data.sets import DataError
from lconvnet.data.tables import Rows, Source
from lconvnet.visible import walk

_WORDS = {
    "train": r"train|training|trn",
    "validation": r"val|valid|validate|validating|validation|dev|devel|development",
    "test": r"test|tests|testing|tst|eval|evaluate|evaluation|holdout|heldout",
}
_SHORT = {"tr": "train", "va": "validation", "vl": "validation", "val": "validation", "te": "test", "ts": "test"}
_DECORATION = r"(?:images?|imgs?|pictures?|pics?|photos?|samples?|examples?|datasets?|data|subset|sets?|splits?|parts?|"
_DECORATION += r"partition|folders?|dirs?|files?|rows?|shards?|raw|new|full|all|of|x|\d+)"
_PART = {role: re.compile(rf"{_DECORATION}*(?:{words}){_DECORATION}*") for role, words in _WORDS.items()}
_INSIDE = re.compile(r"(.*?)(train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?)(.*)")
_BETWEEN = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=\D)(?=\d)")


@lru_cache(maxsize=4096)
def role_of(name: str) -> str | None:
    """Return the part that a name alone states, or None.

    >>> [role_of(name) for name in ("TRAIN", "test_set", "val2017", "train-00000-of-00002", "bullet train", "latest")]
    ['train', 'test', 'validation', 'train', None, None]
    """
    squeezed = re.sub(r"[\W_]+", "", _plain(name).casefold())
    return next((role for role, pattern in _PART.items() if pattern.fullmatch(squeezed)), None)


def roles_of(names: Iterable[str]) -> dict[str, str]:
    """Return the parts among the names of siblings.

    Names that only begin or end with a part count if all of them do and share the rest. Raises `DataError` if siblings
    seem to be several parts but also differ otherwise.

    >>> roles_of(["seg_train", "seg_test"]), roles_of(["bullet train", "steam train"])
    ({'seg_train': 'train', 'seg_test': 'test'}, {})
    """
    names = list(names)
    short = {name: _SHORT[key] for name in names if (key := name.casefold()) in _SHORT}
    if len(short) == len(names) and {"train", "test"} <= set(short.values()):
        return short
    said = {name: role for name in names if (role := role_of(name))}
    hinted = {name: hint for name in names if (hint := _hint(name))}
    if said:
        return said
    for found in (hinted, {name: inside for name in names if (inside := _inside(name))}):
        if len(found) == len(names) and len({rest for _, rest in found.values()}) == 1:
            return {name: role for name, (role, _) in found.items()}
    if len({role for role, _ in hinted.values()}) > 1:
        raise DataError(f"{listed(hinted)} seem to be parts of a data set, but not all there is: {WAY_OUT}")
    return {}


def hint_of(name: str) -> str | None:
    """Return the part that a name states, alone or among other words such as `pets_test`, or None."""
    return hint[0] if (hint := _hint(name)) else None


def listed(names: Iterable[str]) -> str:
    """Return the first few names for an error message."""
    return ", ".join(map(repr, sorted(names)[:6]))


WAY_OUT = (
    "name parts train, validation and test and move the rest into them; a class of such a name goes into train/ "
    "beside the other classes (called train), or is renamed"
)


def _plain(name: str) -> str:
    """Return a name without accents and in letters of ordinary width."""
    return "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))


def _hint(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the only part among the words of a name, and its other words without decoration."""
    words = [word.casefold() for word in _BETWEEN.split(_plain(name)) if word]
    roles: Sequence[str | None] = [role_of(word) for word in words]
    found = {role for role in roles if role}
    if len(found) != 1:
        return None
    rest = [word for word, role in zip(words, roles, strict=True) if not role and not re.fullmatch(_DECORATION, word)]
    return found.pop(), tuple(rest)


def _inside(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the part inside a name without separators, such as `mnisttrain`, and the text around it."""
    found = _INSIDE.fullmatch(_plain(name).casefold())
    return (role_of(found[2]) or "", (found[1], found[3])) if found else None


SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
Labelled = tuple[Path, str]
"""An image and its class."""


@dataclass(frozen=True)
class Tree:
    """The visible folders and files of every folder below `root`, sorted."""

    root: Path
    folders: dict[Path, list[Path]]
    files: dict[Path, list[Path]]

    def images(self, folder: Path) -> list[Path]:
        """Return the images in and below a folder, in the order of their paths."""
        return self._below(folder, SUFFIXES)

    def own_images(self, folder: Path) -> list[Path]:
        """Return the images in a folder itself."""
        return [path for path in self.files[folder] if path.suffix.lower() in SUFFIXES]

    def parquet(self) -> list[Path]:
        """Return all parquet files, in the order of their paths. Raises `DataError` if there are also image files."""
        files = self._below(self.root, {".parquet"})
        if files and self.images(self.root):
            raise DataError(f"{self.root} holds both {files[0].name} and image files: name the folder of one kind")
        return files

    def roles(self, folder: Path) -> dict[str, str]:
        """Return the parts among the folders of a folder, by name."""
        return roles_of(path.name for path in self.folders[folder])

    def said_of(self, file: Path) -> set[str]:
        """Return the parts that the names of a parquet file and of the folders above it state."""
        siblings = roles_of(other.stem for other in self.files[file.parent] if other.suffix == file.suffix)
        above = [folder for folder in file.parents if self.root in folder.parents]
        found = [self.roles(folder.parent).get(folder.name) for folder in above]
        return {role for role in (siblings.get(file.stem), *found) if role}

    def _below(self, folder: Path, suffixes: Collection[str]) -> list[Path]:
        found, left = list[Path](), [folder]
        while left:
            place = left.pop()
            found += [path for path in self.files[place] if path.suffix.lower() in suffixes]
            left += self.folders[place]
        return sorted(found, key=lambda path: path.parts)  # by part and by case, on any system


def tree_of(root: Path) -> Tree:
    """List everything below `root`; links are followed.

    Raises `DataError` for a folder that cannot be read, for a folder that links reach twice or in a cycle, for a file
    that would count twice under two names, and for a link that leads to no file or folder.
    """

    def unreadable(error: OSError) -> None:
        raise DataError(f"cannot list {error.filename} ({error.strerror}): check the path and its permissions")

    tree, known = Tree(root, {}, {}), dict[tuple[int, int], Path]()

    def first(path: Path) -> Path:
        """Return the first path that led to the same folder or file."""
        status = path.stat()
        return known.setdefault((status.st_dev, status.st_ino), path)

    for folder, folders, files in walk(root, links=True, onerror=unreadable):
        if (other := first(folder)) != folder or (folder.is_symlink() and folder.resolve() in root.resolve().parents):
            link = next((path for path in (folder, other) if path.is_symlink()), folder)
            raise DataError(f"{link} links to a folder that holds it or is read already: remove the link")
        tree.folders[folder] = folders
        for file in files:
            if file.is_symlink() and not file.is_file():
                way = f"is a link that leads to no file or folder ({file.readlink()}): remove or mend it"
                raise DataError(f"{file} {way}")
        tree.files[folder] = [file for file in files if file.is_file()]
        for file in tree.files[folder]:
            if file.suffix.lower() in {*SUFFIXES, ".parquet"} and (other := first(file)) != file:
                link = next((path for path in (file, other) if path.is_symlink()), None)
                way = f"remove the link {link}" if link else "remove one of them"
                raise DataError(f"{other} and {file} are one file, which would count twice: {way}")
    return tree


def read_image_folder(tree: Tree, *, to_train: bool = True) -> Source:
    """Take the images of PART/CLASS, CLASS/PART or CLASS, each in the order of their paths; nothing is decoded yet.

    A folder that is alone in another stands for its content. A training part is required only if `to_train` is true.

    Raises `DataError` for a missing class level, an empty class folder, parts beside classes, an image in a folder
    whose name states a part other than the image's, several classes that hold the same folders, and images whose own
    names state several parts.
    """
    top = _opened(tree, tree.root)
    names = tree.roles(top)
    if names:
        roles = _part_class(tree, top, names)
    elif any(tree.roles(folder) for folder in tree.folders[top]):
        roles = _class_part(tree, top)
    else:
        roles = {"train": list(_classes(tree, top))}
    for role, images in roles.items():
        for path, name in images:
            for part in path.relative_to(tree.root).parts[:-1]:
                # Never train on a folder that is called a test. Only the folder of a class may be called train.
                if (said := role_of(part)) not in (None, role) and not (said == "train" and part == name):
                    where = f"lies in a folder {part!r}, but would be one of the {role} images"
                    raise DataError(f"{path} {where}: {WAY_OUT}")
    if to_train and "train" not in roles:
        raise DataError(
            f"{top} has {' and '.join(roles)} images, but no folder train: add train/<class>/<image> or <class>/train"
        )
    called = {role: _called(tree, role, images) for role, images in roles.items()}
    all_images = len(tree.images(tree.root))
    counts = {
        "files without an image suffix skipped": sum(map(len, tree.files.values())) - all_images,
        "images outside of the class folders skipped": all_images - sum(map(len, roles.values())),
        "images to train on are called validation or test": called.get("train", 0),
    }
    rows = {
        role: Rows([path for path, _ in images], [name for _, name in images], [str(path) for path, _ in images])
        for role, images in roles.items()
    }
    return Source(rows, tuple(f"{count} {what}" for what, count in counts.items() if count))


def _part_class(tree: Tree, top: Path, names: dict[str, str]) -> dict[str, list[Labelled]]:
    roles: dict[str, list[Labelled]] = {}
    for folder in tree.folders[top]:
        if folder.name not in names:
            raise DataError(f"{top} has the folder {folder.name!r} beside {', '.join(names)}: {WAY_OUT}")
        role = names[folder.name]
        if role in roles:
            raise DataError(f"{top} has two folders of {role} images, one is {folder.name!r}: merge them")
        roles[role] = list(_classes(tree, _opened(tree, folder, role)))
    return roles


def _class_part(tree: Tree, top: Path) -> dict[str, list[Labelled]]:
    roles: dict[str, list[Labelled]] = {}
    for folder in tree.folders[top]:
        names = tree.roles(folder)
        others = [path.name for path in tree.folders[folder] if path.name not in names and tree.images(path)]
        if others or tree.own_images(folder):
            what = f"the folder {others[0]!r}" if others else "images"
            raise DataError(f"{folder} has {what} beside parts, here or in other classes: {WAY_OUT}")
        if len(set(names.values())) < len(names):
            raise DataError(f"{folder} has two folders of one part, among {listed(names)}: merge them")
        for name, role in names.items():
            roles.setdefault(role, []).extend((path, folder.name) for path in tree.images(folder / name))
    return {role: images for role, images in roles.items() if images}


def _classes(tree: Tree, folder: Path) -> Iterator[Labelled]:
    """Yield the images of every class folder of a folder."""
    if not tree.folders[folder]:
        raise DataError(
            f"{folder} has no class folders, so the labels are missing: use <class>/<image>.png or *.parquet; {WAY_OUT}"
        )
    _refuse_alike(tree, tree.folders[folder])
    for path in tree.folders[folder]:
        images = tree.images(path)
        if not images:
            kinds = ", ".join(sorted(SUFFIXES))
            raise DataError(f"class folder {path} has no images ({kinds}): add some, or remove the folder")
        if hint_of(path.name) and not tree.own_images(path):
            raise DataError(f"{path} seems to be a part of a data set, not a class, for it holds folders: {WAY_OUT}")
        yield from ((image, path.name) for image in images)


def _refuse_alike(tree: Tree, classes: list[Path]) -> None:
    """Refuse folders that hold the same folders and no images of their own: either level may be the parts."""
    inner = {
        path: {image.parent.relative_to(path).as_posix().casefold() for image in tree.images(path)}
        for path in classes
        if not tree.own_images(path)
    }
    for one, other in combinations(inner, 2):
        if (both := inner[one] & inner[other]) and len(inner[one] | inner[other]) > 1:
            raise DataError(
                f"{one} and {other.name!r} both hold folders {listed(both)} and no images of their own, so either may "
                f"be parts of a data set: {WAY_OUT}; images of classes go into the class folders themselves"
            )


def _opened(tree: Tree, folder: Path, role: str | None = None) -> Path:
    """Return the folder, or the only one in it if that holds folders in turn and its name states no other part."""
    while len(tree.folders[folder]) == 1 and not tree.own_images(folder):
        (inner,) = tree.folders[folder]
        if not tree.folders[inner] or tree.roles(folder).get(inner.name, role) != role:
            break
        folder = inner
    return folder


def _called(tree: Tree, role: str, images: list[Labelled]) -> int:
    """Return how many images of a part have names that state validation or test.

    Refuses several parts in one folder, such as `train_0.png` beside `test_0.png`, if most images have names that state
    one.
    """
    said = Counter(hint_of(path.stem) for path, _ in images)
    named = sorted(filter(None, said))
    if len(named) > 1 and 2 * said[None] < len(images):
        raise DataError(
            f"{tree.root} has {role} images whose names say {' and '.join(named)}, such as {images[0][0].name}: move "
            "each part into its own folder train, validation or test, or rename the images"
        )
    return said["validation"] + said["test"]
