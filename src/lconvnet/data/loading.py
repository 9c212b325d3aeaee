"""From a name or a path to `Splits`: find the files, decode once, split once.

*The test images never depend on the seed*: a model trained with one seed and evaluated with another has not
seen them. Files come class after class, so that the first images would be of one class; but where a set was published
in an order, the stored parts are put into a stratified one, every head of which holds each class in its share.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lconvnet.data.decoding import Shape, decode
from lconvnet.data.digits import read_digits
from lconvnet.data.errors import DataError
from lconvnet.data.folders import read_image_folder
from lconvnet.data.locating import NAMED, locate
from lconvnet.data.options import Options, checked
from lconvnet.data.parquet import read_parquet, read_parquet_folder
from lconvnet.data.rows import Rows, Source, class_names_of, encode, files_of, require_text, take
from lconvnet.data.sets import Images, Splits, remarks
from lconvnet.data.splitting import held_out, size, stratified_order
from lconvnet.data.tree import tree_of

_TEST_SEED = 0


def load(
    name_or_path: str | Path,
    *,
    directory: str | Path | None = None,
    validation: int | float | None = None,
    test: int | float | None = None,
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    limit: int | None = None,
) -> Splits:
    """Load a data set as uint8 tensors and split it; equal files and arguments give equal splits.

    Args:
        name_or_path: "digits" (embedded), "mnist", "cifar10", "stl10", a parquet file, a folder of parquet
            files, or a folder of images with one folder a class. Parts that are called `train`, `validation` and
            `test`, in any case and usual synonym, stay apart: folders above or below those of the classes, names of
            parquet files or their folders, or their column `split`. What may be a part or a class is refused; what is
            hidden is left out.
        directory: where `<directory>/<name>/` holds a named set; else the environment variable
            `LCONVNET_DATA`, else the hub. A relative path that does not exist is looked up here too.
        validation: count or fraction of the training images held out, stratified by class, by `seed`; by
            default a tenth and at most 5,000; 0 trains on all of them. A fraction is one of all stored
            images but a stored test part. Only for data without validation images of its own.
        test: the same for test images, by default a fifth and at most 10,000, never depending on `seed`. Only
            for data without test images of its own.
        image_size: height and width (one number for both) to scale and centre-crop to; by default sizes must
            agree.
        channels: 1 or 3 to convert to; by default all images must be grey or all colour.
        limit: keep at most so many images, chosen once and stratified, for training and validation, and as
            many for testing (quick trials); the test images are then some of the full set's test images.

    Raises:
        DataError: (a `ValueError`) for an unknown name, missing or corrupt files, unusable labels or
        arguments.

    >>> splits = load("digits")
    >>> len(splits.train), len(splits.validation), len(splits.test), splits.image_shape, splits.classes
    (3500, 500, 1000, (1, 28, 28), 10)
    """
    options = checked(
        validation=validation, test=test, seed=seed, image_size=image_size, channels=channels, limit=limit
    )
    if not isinstance(name_or_path, str | Path):
        raise DataError(
            f"data is a {type(name_or_path).__name__}: give a name, a path, or lconvnet.data.Splits made of three "
            "lconvnet.data.Images"
        )
    name = str(name_or_path)
    if name == "digits":
        return _embedded(options)
    path = locate(name, directory)
    source = _read(path)
    names = _classes(source, name, path)
    title = name if name in NAMED else path.resolve().stem
    require_text(title, "data")
    parts, jpeg = _decode(source, names, title, options, None if name in NAMED else path)
    note = "; ".join(filter(None, (_lossy(jpeg, parts, name in NAMED), *source.remarks)))
    parts = parts if name in NAMED and options.limit is None else _mixed(parts, source.roles)
    splits = _split(parts, note, options, carved="test" not in source.roles)
    return splits if name in NAMED else replace(splits, note="; ".join(filter(None, (note, *remarks(splits)))))


def load_labelled(
    name_or_path: str | Path,
    *,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    directory: str | Path | None = None,
    image_size: int | None = None,
) -> tuple[Images, str]:
    """Return labelled images for a network that knows these classes and takes this shape `(C, H, W)`, and a note.

    They are the test images of a named set, or of a folder or parquet file that has such a part, perhaps alone, and all
    images of any other. The note says which classes are missing. Classes are matched by name; channels are converted,
    and with `image_size` the size. Their order is seeded and stratified.

    Raises:
        DataError: as `load`, and where the network has other classes, or another size of images.
    """
    name = str(name_or_path)
    if name == "digits":
        raise DataError(
            "'digits' are divided by a run's own options: evaluate the run itself, or name a folder of images"
        )
    path = locate(name, directory)
    source = _read(path, to_train=False)
    if "test" not in source.roles and set(source.roles) != {"train"}:
        raise DataError(f"{path} has {' and '.join(source.roles)} images, none of them test: name a folder of classes")
    rows = _named(source.roles.get("test") or source.roles["train"], NAMED[name][1] if name in NAMED else None)
    missing = _missing(rows, class_names, path)
    decoded = decode(
        rows.cells,
        rows.origins,
        image_size=(image_size, image_size) if image_size else None,
        channels=image_shape[0],
        shape=Shape(*image_shape, origin="the network", resizing=""),
    )
    files = () if name in NAMED else files_of(rows, path)
    images = Images(
        decoded.images, encode(rows, class_names), len(class_names), path.resolve().stem, class_names, files
    )
    others = sum(len(part) for part in source.roles.values()) - len(rows)
    left = f"{others} images of its other parts are left out" if others else ""
    note = "; ".join(filter(None, (_lossy(decoded.jpeg, {"": images}, False), left, missing, *source.remarks)))
    return images.subset(stratified_order(images.labels, seed=_TEST_SEED)), note


def _read(path: Path, *, to_train: bool = True) -> Source:
    """Rows of a parquet file, or of whatever a folder holds."""
    if path.is_file():
        return read_parquet(path, to_train=to_train)
    tree = tree_of(path)
    return (read_parquet_folder if tree.parquet() else read_image_folder)(tree, to_train=to_train)


def _classes(source: Source, name: str, path: Path) -> tuple[str, ...]:
    if name not in NAMED:
        return class_names_of(source.roles["train"])
    known = NAMED[name][1]
    if "test" not in source.roles:
        raise DataError(f"data {name!r} in {path} has no test images (test-*.parquet): fetch them")
    names = class_names_of(source.roles["train"], known=known)
    if len(names) != len(known):
        raise DataError(f"data {name!r} in {path} has {len(names)} classes, not {len(known)}: is it another data set?")
    return names


def _named(rows: Rows, known: tuple[str, ...] | None) -> Rows:
    """The rows with the names of their classes as labels."""
    names = rows.class_names or known
    labels = [str(label) if isinstance(label, str) or names is None else _at(names, label) for label in rows.labels]
    return Rows(rows.cells, labels, rows.origins)


def _at(names: tuple[str, ...], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def _missing(rows: Rows, class_names: tuple[str, ...], path: Path) -> str:
    """Say which of these classes no image is of; raise `DataError` where one is of another."""
    found = set(map(str, rows.labels))
    extra, missing = sorted(found - set(class_names)), [name for name in class_names if name not in found]
    if extra:
        parts = (f"{what} {', '.join(names[:10])}" for what, names in (("also", extra), ("not", missing)) if names)
        raise DataError(f"{path} has other classes than the network: {', and '.join(parts)}; name them alike")
    return f"no image of class {', '.join(map(repr, missing[:10]))}" if missing else ""


def _embedded(options: Options) -> Splits:
    if options.image_size not in (None, (28, 28)) or options.channels not in (None, 1):
        raise DataError(
            f"image_size={options.image_size}, channels={options.channels}: digits are 28x28 grey; drop both"
        )
    digits = read_digits()
    selected = _select({"train": digits.labels}, "digits", options)
    parts = {role: digits.subset(index) for role, (_, index) in selected.items()}
    return _split(_mixed(parts, {"train"}), "", options, carved=True)


def _mixed(parts: dict[str, Images], stored: Collection[str]) -> dict[str, Images]:
    """The images of each part in a seeded order that spreads the classes evenly; but those still to be divided."""
    kept = () if "validation" in stored else ("train",)
    return {
        role: part if role in kept else part.subset(stratified_order(part.labels, seed=_TEST_SEED))
        for role, part in parts.items()
    }


def _select(labels: dict[str, Tensor], title: str, options: Options) -> dict[str, tuple[str, Tensor]]:
    """Return, for each role, the stored part and the indices in it: takes out the test images, then limits."""
    for role, asked in (("test", options.test), ("validation", options.validation)):
        if role in labels and asked is not None:
            raise DataError(f"{role}={asked}, but {title!r} has {role} images of its own: drop the argument")
    selected = {role: (role, torch.arange(len(part))) for role, part in labels.items()}
    if "test" not in labels:
        total = len(labels["train"])
        count = size("test", options.test, stored=total, available=total, default=min(total // 5, 10_000))
        held, rest = held_out(labels["train"], count, seed=_TEST_SEED)
        selected |= {"train": ("train", rest), "test": ("train", held)}
    for role, (stored, index) in selected.items():
        if options.limit is not None and options.limit < len(index):
            kept, _ = held_out(labels[stored][index], options.limit, seed=_TEST_SEED)
            selected[role] = (stored, index[kept])
    return selected


def _decode(
    source: Source, names: tuple[str, ...], title: str, options: Options, path: Path | None
) -> tuple[dict[str, Images], int]:
    """Return the images of each role, called by their files where they have a `path`, and how many of all were JPEG
    files."""
    labels = {role: encode(rows, names) for role, rows in source.roles.items()}
    selected = _select(labels, title, options)
    parts: dict[str, Images] = {}
    shape: Shape | None = None
    jpeg = 0
    for role in sorted(selected, key=lambda role: role != "train"):
        stored, index = selected[role]
        rows = take(source.roles[stored], index.tolist())
        decoded = decode(
            rows.cells, rows.origins, image_size=options.image_size, channels=options.channels, shape=shape
        )
        shape, jpeg = decoded.shape, jpeg + decoded.jpeg
        files = files_of(rows, path) if path else ()
        parts[role] = Images(decoded.images, labels[stored][index], len(names), title, names, files)
    return parts, jpeg


def _lossy(jpeg: int, parts: dict[str, Images], lossless_original: bool) -> str:
    total = sum(map(len, parts.values()))
    share = "" if jpeg == total else f" ({jpeg} of {total} images)"
    kind = "recompressed" if lossless_original else "compressed"
    return f"JPEG-{kind} pixels{share}" if jpeg else ""


def _split(parts: dict[str, Images], note: str, options: Options, *, carved: bool) -> Splits:
    """Take the validation images out; `carved`: the test images came from the same stored part."""
    train, test = parts["train"], parts["test"]
    validation = parts.get("validation")
    if validation is None:
        stored = len(train) + (len(test) if carved else 0)
        default = min(stored // 10, 5_000)
        count = size("validation", options.validation, stored=stored, available=len(train), default=default, least=0)
        held, rest = held_out(train.labels, count, seed=options.seed)
        train, validation = train.subset(rest), train.subset(held)
    empty = (torch.bincount(train.labels, minlength=train.classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(
            f"class {train.class_names[empty[0]]!r} has no training image left: hold out fewer, or add some"
        )
    return Splits(train, validation, test, train.name, note)
