"""Images from outside a run: a labelled folder (`lconvnet evaluate RUN --data FOLDER`), and single files.

Records and results go to other-data/NAME-FINGERPRINT/ below the run, under separate names. The run's own evaluation is
not touched, and no table confuses the two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lconvnet import atomic, saving
from lconvnet.data import Images, load_labelled
from lconvnet.data.decoding import Shape, decode, read_npy
from lconvnet.experiments import robustness
from lconvnet.experiments.config import Experiment
from lconvnet.experiments.execute import Evaluated, measure, saved_network
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.session import session
from lconvnet.experiments.trained_on import (
    count,
    own_images,
    seen_by,
    source_of,
    trained_experiment,
    trained_or_chosen,
)
from lconvnet.extras import require
from lconvnet.training import Record, load_record
from lconvnet.training.settings import describe_images, describe_splits

FOLDER, RESULTS = "other-data", "accuracy.yaml"


def evaluate_on(
    name: str,
    folder: RunFolder,
    overrides: Sequence[str] = (),
    *,
    directory: str | None = None,
    attacks: bool = True,
    report: robustness.Report = lambda what, done, count: None,
) -> Evaluated:
    """Measure the saved network of a run on the labelled images of a folder, parquet file or named set.

    Their classes are matched with the run's by name, and they are converted like the run's images. They are compared
    with the run's training images, and any overlap is noted. `overrides` may change `evaluation`. Raises ValueError for
    errors that the user can correct, and `crosscheck.ContradictionError` if an attack breaks a certificate.
    """
    require("pyarrow.parquet", "data")
    experiment, record = trained_experiment(folder, overrides), load_record(folder.path)
    for attack in experiment.evaluation.attacks if attacks else ():
        attack.made_with()
    trained = saved_network(record, folder)
    description = saving.describe(folder.model)
    shape = description.input_shape
    if description.class_names is None or shape is None or len(shape) != 3:
        raise ValueError(f"{folder.model} does not name its classes, so images of other folders cannot be matched")
    images, note = load_labelled(
        name,
        class_names=description.class_names,
        image_shape=shape,
        directory=directory,
        image_size=experiment.data.image_size,
    )
    notes = filter(None, (note, _trained_on(images, experiment, record, folder)))
    about = {"data": f"{len(images)} images of {images.name} ({name})", "note": "; ".join(notes)}
    about = {key: value for key, value in about.items() if value}
    place = _place(folder, images)
    folder.refuse_links()
    with atomic.confined(folder.path), session(place, "evaluate"):
        return measure(trained, images, experiment, place, about, attacks=attacks, report=report)


def _place(folder: RunFolder, images: Images) -> RunFolder:
    title = re.sub(r"[^\w.-]+", "-", images.name).strip(".-") or "images"
    return RunFolder(folder.path / FOLDER / f"{title}-{describe_images(images)['sha256'][:8]}", RESULTS)


def _trained_on(images: Images, experiment: Experiment, record: Record, folder: RunFolder) -> str:
    """A sentence with the number of images that the run, or one it started from, was trained on or chosen by. It says
    "not known" if the run's own images are gone."""
    unknown = "whether the network was trained on any of them is not known"
    if "imported" in record.settings:
        return f"{unknown}: its weights were imported"
    try:
        own = own_images(experiment, folder)
    except ValueError as error:
        return f"{unknown}: {error}"
    source = source_of(record)
    before, missing = seen_by(source, describe_splits(own))
    seen = count(images, before | trained_or_chosen(own))
    who = "the run, or one that it started from," if source else "the run"
    found = f"{seen} of them are among the images that {who} was trained on or chosen by" if seen else ""
    return "; ".join(filter(None, (found, missing)))


def read_images(paths: Sequence[str | Path], shape: tuple[int, ...]) -> Tensor:
    """Return float32 images (N, C, H, W) in [0, 1], each of the network's shape (C, H, W).

    Grey and colour are converted to the network's channels. A size is never changed, because the certificate holds for
    the pixels that the network sees. Raises ValueError for a file that is missing, unreadable, or of another size, and
    for an array with NaN or values outside [0, 1].
    """
    return torch.cat([_read(Path(path), shape) for path in paths])


def _read(path: Path, shape: tuple[int, ...]) -> Tensor:
    if path.is_dir():
        raise ValueError(f"image {str(path)!r} is a folder; name its files, or the folder with --data")
    if not path.is_file():
        raise ValueError(f"image {str(path)!r} does not exist; name a png, jpg or npy file")
    if path.suffix == ".npy":
        return _read_array(path, shape)[None]
    if len(shape) != 3:
        raise ValueError(f"image {str(path)!r} is a picture; the network takes inputs of shape {shape}, as npy files")
    expected = Shape(*shape, origin="the network", resizing="")
    return decode([path], [str(path)], channels=shape[0], shape=expected).images.float() / 255


def _read_array(path: Path, shape: tuple[int, ...]) -> Tensor:
    array = read_npy(path)
    if array.shape != shape or array.dtype.kind != "f":
        raise ValueError(
            f"image {str(path)!r} is {array.dtype} of shape {array.shape}; the network takes floats of shape {shape}"
        )
    values = torch.from_numpy(array.astype(np.float32))
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"image {str(path)!r} has NaN or values outside [0, 1]; scale the pixels to [0, 1]")
    return values
