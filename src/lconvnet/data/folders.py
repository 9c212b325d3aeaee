"""A user's image folder: one folder a class, the parts of the set above or below the classes, or not told apart."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from lconvnet.data.errors import DataError
from lconvnet.data.parts import WAY_OUT, hint_of, listed, role_of
from lconvnet.data.rows import Rows, Source
from lconvnet.data.tree import SUFFIXES, Tree

Labelled = tuple[Path, str]
"""An image and its class."""


def read_image_folder(tree: Tree, *, to_train: bool = True) -> Source:
    """Take the images of PART/CLASS, CLASS/PART or CLASS, each in the order of their paths; nothing is decoded yet.

    A folder that is alone stands for what is in it. Only what is to be trained on needs a training part.

    Raises `DataError` for a missing class level, an empty class folder, parts beside classes, an image in a folder that
    is called another part than the one it would be in, several classes that hold the same folders, and images whose own
    names say several parts.
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
            _refuse_other_part(tree, path, role, name)
    if to_train and "train" not in roles:
        raise DataError(
            f"{top} has {' and '.join(roles)} images, but no folder train: add train/<class>/<image> or <class>/train"
        )
    called = {role: _called(tree, role, images) for role, images in roles.items()}
    remarks = _remarks(tree, sum(map(len, roles.values())), called.get("train", 0))
    return Source({role: _rows(images) for role, images in roles.items()}, remarks)


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
    """The images of every class folder of a folder."""
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
    """Folders that hold the same folders and no images of their own may be parts of any name, or those in them are."""
    inner = {path: _inner(tree, path) for path in classes if not tree.own_images(path)}
    for one, other in combinations(inner, 2):
        if (both := inner[one] & inner[other]) and len(inner[one] | inner[other]) > 1:
            raise DataError(
                f"{one} and {other.name!r} both hold folders {listed(both)} and no images of their own, so either may "
                f"be parts of a data set: {WAY_OUT}; images of classes go into the class folders themselves"
            )


def _inner(tree: Tree, folder: Path) -> set[str]:
    """The folders in and below a folder that hold images."""
    return {path.parent.relative_to(folder).as_posix().casefold() for path in tree.images(folder)}


def _opened(tree: Tree, folder: Path, role: str | None = None) -> Path:
    """The folder, or the one in it that is alone there and holds folders in its turn, unless that is another part."""
    while len(tree.folders[folder]) == 1 and not tree.own_images(folder):
        (inner,) = tree.folders[folder]
        if not tree.folders[inner] or tree.roles(folder).get(inner.name, role) != role:
            break
        folder = inner
    return folder


def _refuse_other_part(tree: Tree, path: Path, role: str, name: str) -> None:
    """Nothing is trained on that is called a test: of all folders only that of a class may be called train."""
    for part in path.relative_to(tree.root).parts[:-1]:
        said = role_of(part)
        if said not in (None, role) and not (said == "train" and part == name):
            raise DataError(f"{path} lies in a folder {part!r}, but would be one of the {role} images: {WAY_OUT}")


def _called(tree: Tree, role: str, images: list[Labelled]) -> int:
    """How many images of a part are called another one than train.

    Refuses parts in one folder, `train_0.png` beside `test_0.png`: several, said by the names of most images.
    """
    said = Counter(hint_of(path.stem) for path, _ in images)
    named = sorted(filter(None, said))
    if len(named) > 1 and 2 * said[None] < len(images):
        raise DataError(
            f"{tree.root} has {role} images whose names say {' and '.join(named)}, such as {images[0][0].name}: move "
            "each part into its own folder train, validation or test, or rename the images"
        )
    return said["validation"] + said["test"]


def _rows(images: list[Labelled]) -> Rows:
    paths = [path for path, _ in images]
    return Rows(list(paths), [name for _, name in images], list(map(str, paths)))


def _remarks(tree: Tree, taken: int, called: int) -> tuple[str, ...]:
    """What is left out, files of other kinds and images that lie in no class, and names that say another part."""
    images = len(tree.images(tree.root))
    counts = {"files without an image suffix skipped": tree.count() - images}
    counts |= {"images outside of the class folders skipped": images - taken}
    counts |= {"images to train on are called validation or test": called}
    return tuple(f"{count} {what}" for what, count in counts.items() if count)
