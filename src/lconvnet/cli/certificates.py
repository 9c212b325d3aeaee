"""The commands `lconvnet certify | verify`: radii of single images, in files that others can check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

from lconvnet import atomic, data, extras, saving
from lconvnet.bounds import Bound, lipschitz_bound
from lconvnet.certify import Certificates, Level, certified_accuracy, certify
from lconvnet.certify.files import certificate_documents, encoded, finite
from lconvnet.cli import options, output
from lconvnet.experiments.other_data import read_images
from lconvnet.experiments.run_folder import RunFolder, find_run
from lconvnet.experiments.trained_on import splits_like
from lconvnet.ops.images import check_eps
from lconvnet.training import is_started

Eps = Annotated[
    list[float] | None,
    typer.Option("--eps", parser=options.number, metavar="EPS", help="Say whether each radius exceeds EPS."),
]
Data = Annotated[str | None, typer.Option("--data", help="Certify images of a data set, by name or path.")]
Split = Annotated[str, typer.Option("--split", help="Of the data set: train, validation or test.")]
First = Annotated[int | None, typer.Option("--first", min=1, help="Only so many images of the split.")]
Chosen = Annotated[Level, typer.Option("--level", help="What radii account for.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for one certificate (JSON) per image.")]


@dataclass(frozen=True)
class Subjects:
    """Images with their names and any warnings about them; images of a data set also with their true labels."""

    images: Tensor
    sources: list[dict[str, Any]]
    labels: Tensor | None = None
    note: str = ""


def certify_command(
    model: Path,
    images: Annotated[list[Path] | None, typer.Argument(help="Image files: png, jpg, npy.")] = None,
    name: Data = None,
    split: Split = "test",
    first: First = None,
    level: Chosen = "analytic",
    out: Out = None,
    eps: Eps = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Certify image files or images of a data set: MODEL is a run folder or a model.safetensors.

    A set is read and divided as in the run, so its test images are not among the run's training images.
    """
    radii = [check_eps(value) for value in eps or ()]
    run = find_run(model) if model.is_dir() or is_started(model.parent) else None
    path = run.model if run and model.is_dir() else model
    if run and not path.exists():
        raise ValueError(
            f"{path} is not written yet, for {run.path} is not finished: lconvnet train {run.config} --resume goes on, "
            f"lconvnet evaluate {run.path} writes the best network so far"
        )
    description, network = saving.describe(path), saving.load(path)
    if description.input_shape is None:
        raise ValueError(f"{path} does not say the shape of its images; save it with input_shape=(C, H, W)")
    if bool(images) == (name is not None):
        raise ValueError("name image files, or a data set with --data, and not both")
    if name is None:
        files = images or []
        subjects = Subjects(read_images(files, description.input_shape), [{"image": str(path)} for path in files])
    else:
        subjects = _subjects(name, split, first, data_dir, run, description)
    bound = lipschitz_bound(network, input_shape=description.input_shape, diagnose=level == "estimate")
    found, written = _certified(network, subjects, bound, level, out)
    rows = _rows(found, subjects, description.class_names, radii)
    console = output.PlainConsole(stderr=as_json)
    output.show_certificates(rows, found.level, bound.upper, console)
    measured = _accuracies(found, subjects, radii)
    output.show_accuracies(measured, len(found), subjects.note, console)
    files = {} if out is None else {"certificates_written": written, "out": str(out)}
    if out is not None:
        console.print(f"{written} of {len(found)} images certified: {out}")
    if as_json:
        output.show_json({"level": found.level, "bound": bound.upper, "certificates": rows, **measured, **files})


def verify_command(
    certificate: Annotated[Path, typer.Argument(help="A certificate, or a folder of them.")],
    model: Annotated[Path, typer.Argument(help="The model.safetensors that they are about, or its run folder.")],
) -> None:
    """Prove certificates again by other means: exit code 0 only if all are proved, 4 if one is not."""
    extras.require("flint", "verify")
    from lconvnet_verify.__main__ import main

    raise typer.Exit(main([str(certificate), str(find_run(model).model if model.is_dir() else model)]))


def _subjects(
    name: str, split: str, first: int | None, data_dir: str | None, run: RunFolder | None, model: saving.Description
) -> Subjects:
    """The first images of a split."""
    splits, note = splits_like(run, name, data_dir) if run else (data.load(name, directory=data_dir), "")
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    if split not in parts:
        raise ValueError(f"--split={split} is none of {', '.join(parts)}")
    if run is None and not (split == "test" and name in data.NAMES[1:]):
        note = "no run says how the images were divided: those shown may be among the trained ones"
    part = parts[split]
    if splits.image_shape != model.input_shape:
        raise ValueError(
            f"data {name!r} has images of shape {splits.image_shape}, the network takes {model.input_shape}"
        )
    if model.class_names and tuple(model.class_names) != splits.class_names:
        known, found = (", ".join(names[:6]) for names in (model.class_names, splits.class_names))
        raise ValueError(f"data {name!r} has the classes {found}, the network knows {known}; name image files instead")
    inputs, labels = data.batch(part, range(min(first or len(part), len(part))))
    called = part.files or [f"{name}/{split}/{i}" for i in range(len(part))]
    sources = [{"image": image, "true_label": true} for image, true in zip(called, labels.tolist(), strict=False)]
    return Subjects(inputs, sources, labels, note)


def _accuracies(found: Certificates, subjects: Subjects, eps: Sequence[float]) -> dict[str, Any]:
    """Clean accuracy, and certified accuracy at each eps, of images with true labels."""
    if subjects.labels is None or not len(found):
        return {}
    clean = float((found.label == subjects.labels).double().mean())
    proved = () if found.level == "estimate" else eps
    certified = {str(radius): certified_accuracy(found, subjects.labels, radius) for radius in proved}
    note = {"note": subjects.note} if subjects.note else {}
    return {"accuracy": clean, "certified_accuracy": certified, **note}


def _certified(
    network: nn.Module, subjects: Subjects, bound: Bound, level: Level, out: Path | None
) -> tuple[Certificates, int]:
    """Certify and write the certificates. An equal certificate is rewritten; one with other content is refused."""
    if out is None:
        return certify(network, subjects.images, level=level, bound=bound), 0
    found, certificates = certificate_documents(
        network, subjects.images, bound=bound, level=level, sources=subjects.sources
    )
    first = next(certificates)
    _refuse_others(out, first, subjects)
    out.mkdir(parents=True, exist_ok=True)
    for i, certificate in enumerate(chain([first], certificates)):
        if found.radius[i] > 0:
            atomic.write_json(out / f"{i:05}.json", certificate, indent=None)
    return found, int((found.radius > 0).sum())


def _refuse_others(out: Path, first: Mapping[str, Any], subjects: Subjects) -> None:
    """Refuse a folder with certificates of another network, level or image: they would be lost or mixed."""
    common = {key: first[key] for key in ("format", "level", "network")}
    for path in sorted(out.glob("[0-9]" * 5 + ".json")):
        i, wanted = int(path.stem), common
        if i < len(subjects.sources):
            wanted = common | {"source": subjects.sources[i], "input": encoded(subjects.images[i])}
        try:
            found = json.loads(path.read_bytes())
            same = all(found[key] == value for key, value in wanted.items())
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            same = False
        if not same:
            raise ValueError(f"--out {out}: {path.name} is of another network, level or image; name another folder")


def _rows(
    found: Certificates, subjects: Subjects, names: Sequence[str] | None, eps: Sequence[float]
) -> list[dict[str, Any]]:
    """The values to show per image; if its true label is known, also whether the answer is right."""
    rows = []
    for i, source in enumerate(subjects.sources):
        label, row = int(found.label[i]), dict(source)
        if "true_label" in row:
            true = row["true_label"]
            row |= {"true_class": names[true] if names else None, "correct": label == true}
        rows.append(
            {
                **row,
                "label": label,
                "class": names[label] if names else None,
                "margin": float(found.margin[i]),
                "radius": finite(float(found.radius[i]), subjects.images[i].numel()),
                "reason": str(found.reason[i]),
                "certified": {str(e): found.level != "estimate" and bool(found.radius[i] > e) for e in eps},
            }
        )
    return rows
