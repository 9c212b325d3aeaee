"""A user's image folder: one folder a class, optionally below `train/`, `validation/` and `test/`."""

from pathlib import Path

from lconvnet.data.errors import DataError
from lconvnet.data.rows import Rows, Source

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
ROLES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


def read_image_folder(root: Path) -> Source:
    """List the images below `root`, in the order of their paths; nothing is decoded yet.

    With a folder `train`, every other folder must be a role too; without, the folders of `root` are the
    classes.
    Raises `DataError` for a missing class level, an empty class folder, or roles beside classes.
    """
    folders = {path.name: path for path in _visible(root) if path.is_dir()}
    if "train" not in folders:
        if "test" in folders:
            raise DataError(f"{root} has a folder test but no folder train: add {root / 'train'}/<class>/<image>")
        rows, skipped = _read_classes(root)
        return Source({"train": rows}, _remarks(skipped))
    unknown = sorted(set(folders) - set(ROLES))
    if unknown:
        raise DataError(f"{root} has the folder {unknown[0]!r} beside train: move it into train/, or remove it")
    roles: dict[str, Rows] = {}
    skipped = 0
    for name, folder in folders.items():
        if ROLES[name] in roles:
            raise DataError(f"{root} has two folders of {ROLES[name]} images, one is {name!r}: merge them")
        roles[ROLES[name]], more = _read_classes(folder)
        skipped += more
    return Source(roles, _remarks(skipped))


def _read_classes(folder: Path) -> tuple[Rows, int]:
    classes = sorted(path for path in _visible(folder) if path.is_dir())
    if not classes:
        raise DataError(
            f"{folder} has no class folders, so the labels are missing: use <class>/<image>.png or *.parquet"
        )
    rows = Rows([], [], [])
    skipped = 0
    labels: list[str] = []
    for path in classes:
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.startswith(".")]
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        if not images:
            kinds = ", ".join(sorted(SUFFIXES))
            raise DataError(f"class folder {path} has no images ({kinds}): add some, or remove the folder")
        skipped += len(files) - len(images)
        rows.cells.extend(images)
        rows.origins.extend(map(str, images))
        labels.extend([path.name] * len(images))
    return Rows(rows.cells, labels, rows.origins), skipped


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot list {folder} ({error.strerror}): check the path and its permissions") from error


def _remarks(skipped: int) -> tuple[str, ...]:
    return (f"{skipped} files without an image suffix skipped",) if skipped else ()
