"""What a run was trained on: the experiment as it was, its images, which must still be those of the training, and
those of the runs that its first weights came from. How a run starts from the weights of another (`--from`).

A test image that an ancestor was trained on, or chosen by, is not a test image of the run that goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lconvnet import atomic, saving
from lconvnet.data import NAMES, DataError, Images, Splits
from lconvnet.data import load as load_data
from lconvnet.data.sets import digests
from lconvnet.experiments.config import Experiment
from lconvnet.experiments.loading import AnyExperiment, load_any, parse, parse_any
from lconvnet.experiments.reading import parse_overrides
from lconvnet.experiments.run_folder import RunFolder, evaluation_values, find_run, recorded_settings
from lconvnet.training import Record, is_first_process, is_started, load_record
from lconvnet.training.checkpoint import load, load_weights, read_best
from lconvnet.training.settings import describe_model, describe_splits, differences

Weights = Mapping[str, Mapping[str, Any]]
WITH_ARTICLE = {"classification": "a classifier", "wasserstein": "a Wasserstein estimate", "gan": "a generator"}


def begin_from(
    source: Path, folder: RunFolder, experiment: AnyExperiment, networks: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """Put the weights of the run `source` into networks, by the section that describes each; return facts on them.

    Of a classifier they are those of the best epoch, of others the last ones, before any baking. Where the run in
    `folder` has begun, nothing is read. Raises ValueError if no such run exists, or its networks are others.
    """
    if is_started(folder.path):
        return {"run": str(source)}
    run = find_run(source)
    settings = recorded_settings(run)
    if settings.get("imported", {}).get("baked"):
        raise ValueError(f"{run.path} holds an imported network in its baked form, from which no training can start")
    _require_same_networks(run, settings, experiment, networks)
    path, weights, facts = _read(run, experiment)
    for section, network in networks.items():
        if other := _shapes(weights[section], network):
            raise ValueError(
                f"{run.path} holds weights of other shapes ({other[0]}); --from takes a run of this network"
            )
        load_weights(network, dict(weights[section]), path)
    if is_first_process():
        atomic.write_json(_intent(folder), {"run": str(source)})  # for a kill before the first checkpoint
    return {"run": str(source), "file": path.name, **facts, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def require_source(source: Path | None, folder: RunFolder) -> None:
    """Raise ValueError, before anything is written, if no run exists to start from, or if a run that was to start from
    another is begun without it."""
    if is_started(folder.path):
        return
    if source:
        find_run(source)
    elif _intent(folder).exists():
        raise ValueError(
            f"{folder.path} was stopped before its first checkpoint and was to start from the weights of another run; "
            f"name it again with --from ({_intent(folder)} says which), or choose another folder with --out"
        )


def _intent(folder: RunFolder) -> Path:
    return folder.path / "checkpoints" / "from.json"


def _read(run: RunFolder, experiment: AnyExperiment) -> tuple[Path, Weights, dict[str, Any]]:
    if experiment.task == "classification":
        weights, epoch = read_best(run.best)
        return run.best, {"model": weights}, {"epoch": epoch}
    saved = load(run.last, experiment.task)
    return run.last, saved.kept, {"epoch": saved.progress.epoch} if experiment.task == "gan" else {}


def _require_same_networks(
    run: RunFolder, settings: Mapping[str, Any], experiment: AnyExperiment, networks: Mapping[str, nn.Module]
) -> None:
    """Raise ValueError for another task, and for another network, by the first key that differs."""
    stated = _stated(run, settings)
    if stated is None:
        _require_same_architecture(run, settings, networks)
        return
    if stated.task != experiment.task:
        raise ValueError(
            f"{run.path} is a run of {WITH_ARTICLE[stated.task]}, not of {WITH_ARTICLE[experiment.task]}; "
            "--from takes a run of the same task"
        )
    old, new = (one.model_dump(mode="json", include=set(networks)) for one in (stated, experiment))
    if other := list(differences(old, new)):
        raise ValueError(f"{run.path} has another network ({other[0]}); --from takes a run of this network")


def _require_same_architecture(run: RunFolder, settings: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> None:
    """The same of a run that was trained from Python, of which only a fingerprint is known."""
    for section, network in networks.items():
        recorded = (settings.get(section) or {}).get("architecture")
        if recorded != describe_model(network)["architecture"]:
            raise ValueError(
                f"{run.path} was trained from Python with another {section}, or says nothing of it; "
                "load its weights into yours with lconvnet.training.load_best"
            )


def _stated(run: RunFolder, settings: Mapping[str, Any]) -> AnyExperiment | None:
    """The experiment a run was trained with; None where it was trained from Python."""
    recorded = settings.get("settings") or {}
    if "model" in recorded:
        return parse_any(recorded)
    return load_any(run.config) if run.is_configured and not recorded else None


def _shapes(weights: Mapping[str, Any], network: nn.Module) -> list[str]:
    old, new = ({name: list(value.shape) for name, value in state.items()} for state in (weights, network.state_dict()))
    return list(differences(old, new))


IMPORTED = ("directory",)  # imported weights know nothing of where their images lie but the name
TRAINED = ("directory", "name")


def trained_experiment(folder: RunFolder, overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment a run was trained with, evaluated as its cfg.yaml and `overrides` say.

    Raises ValueError for an override of anything that was fixed by the training.
    """
    settings = load_record(folder.path).settings
    places = IMPORTED if "imported" in settings else TRAINED
    require_open(folder, overrides, places)
    recorded = settings.get("settings")
    if not isinstance(recorded, dict) or "model" not in recorded:
        raise ValueError(f"{folder.path} was not trained from a configuration; evaluate it with lconvnet.certify")
    described = evaluation_values(folder)
    moved = {key: value for key, value in described.get("data", {}).items() if key in places}
    data = {**recorded.get("data", {}), **moved}
    return parse({**recorded, **described, "data": data}, overrides)


def splits_like(folder: RunFolder, name: str, directory: str | None = None) -> tuple[Splits, str]:
    """Return the images of a set, read and divided as those of a run were, and what must be said of them, if anything.

    The run's own images are thereby divided as they were, and none that it was trained on is a test image. Raises
    ValueError if its own set holds other images by now.
    """
    record = load_record(folder.path)
    if "model" not in (record.settings.get("settings") or {}):  # trained from Python: only the images tell
        splits = load_data(name, directory=directory)
        _require_same_images(record, splits, folder)
        return splits, ""
    experiment = trained_experiment(folder)
    own = experiment.data
    place = own.directory if directory is None else directory
    splits = own.model_copy(update={"name": name, "directory": place}).load(seed=experiment.seed)
    if name == own.name or Path(name).resolve() == Path(own.name).resolve():
        _require_same_images(record, splits, folder)
    if not _changed(record, splits, folder):
        return splits, str((record.settings.get("from") or {}).get("note", ""))
    total = sum(map(len, (splits.train, splits.validation, splits.test)))
    return splits, (
        f"{name} is not the set that {folder.path} was trained on ({own.name}), but divided in the same way: "
        f"{len(splits.test)} of its {total} images are test images; for all of them lconvnet evaluate {folder.path} "
        f"--data {name}"
    )


def require_open(folder: RunFolder, overrides: Sequence[str], open_keys: Sequence[str] = IMPORTED) -> None:
    """Raise ValueError for an override of anything that was fixed by a run's training, but where its images lie."""
    places = [f"data.{key}" for key in open_keys]
    for section, values in parse_overrides(overrides).items():
        keys = [f"data.{key}" for key in values] if section == "data" and hasattr(values, "keys") else [section]
        fixed = [key for key in keys if key not in ("evaluation", *places)]
        if fixed:
            raise ValueError(
                f"--set {fixed[0]}=... was fixed when the run in {folder.path} was trained; only evaluation.*, "
                f"{' and '.join(places)} can change now, train another run for the rest"
            )


def own_images(experiment: Experiment, folder: RunFolder) -> Splits:
    """Return the images of a run, wherever they lie now. Raises ValueError if they are others by now."""
    try:
        splits = experiment.data.load(seed=experiment.seed)
    except DataError as error:
        moved = not Path(experiment.data.name).exists() and experiment.data.name not in NAMES
        way_out = "; if they moved, say where they are now with --set data.name=PATH" if moved else ""
        raise ValueError(f"{error}{way_out}") from error
    _require_same_images(load_record(folder.path), splits, folder)
    return splits


def _require_same_images(record: Record, splits: Splits, folder: RunFolder) -> None:
    if changed := _changed(record, splits, folder):
        raise ValueError(
            f"{folder.path} was trained on other images ({'; '.join(changed)}), so test images may be among the "
            "trained ones; restore the images as they were, say where they are now with --set data.name=PATH, "
            f"measure others with lconvnet evaluate {folder.path} --data PATH, or train another run"
        )


def _changed(record: Record, splits: Splits, folder: RunFolder) -> list[str]:
    """What differs between these images and those of a training; of imported weights nobody wrote that down."""
    if "imported" in record.settings:
        return []
    recorded, found = record.settings.get("data") or {}, describe_splits(splits)
    if "test" not in recorded:  # of older runs only the others are known
        del found["test"]
    parts = [_difference(part, recorded.get(part) or {}, facts) for part, facts in found.items()]
    changed = [line for line in parts if line]
    names = saving.describe(folder.model).class_names if changed and folder.model.exists() else None
    if names and tuple(names) != splits.class_names:
        changed = [f"classes: {', '.join(names)}, now {', '.join(splits.class_names)}", *changed]
    return changed


def _difference(part: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What differs in one part, in words; nothing if its pixels and labels are the same."""
    if recorded == found:
        return ""
    before, now = recorded.get("images", "unknown"), found["images"]
    return f"{part}: {before} images, now {now}" if before != now else f"{part}: other pixels, labels or order"


def source_of(record: Record) -> str | None:
    """The run that the first weights came from; None if they were drawn."""
    return _origin(record).get("run")


def inherited_note(record: Record, splits: Splits) -> str:
    """What must be said of a trained run's own held-out images: as recorded when it began, or as it is found now."""
    origin = _origin(record)
    return str(origin["note"]) if "note" in origin else note_on(splits, source_of(record))


def note_on(splits: Splits, source: str | Path | None) -> str:
    """How many held-out images the run `source`, and those before it, were trained on or chosen by, in words."""
    seen, unknown = seen_by(source, describe_splits(splits))
    parts = {"validation": splits.validation, "test": splits.test}
    counts = {name: count(part, seen) for name, part in parts.items()}
    found = " and ".join(f"{number} of {len(parts[name])} {name} images" for name, number in counts.items() if number)
    said = f"{found} were trained on or chosen by in the runs that the first weights came from" if found else ""
    return "; ".join(filter(None, (said, unknown)))


def seen_by(source: str | Path | None, known: Mapping[str, Any]) -> tuple[set[bytes], str]:
    """The images that the run `source`, and those before it, were trained on or chosen by, as digests, and what keeps
    one from being known, if anything. Nothing is read of a run whose images are those described in `known`."""
    seen = set[bytes]()
    try:
        for record, run in _lineage(source):
            if _same(record.settings.get("data"), known):
                continue
            if "imported" in record.settings:
                raise ValueError(f"those of {run.path} were imported")
            seen |= trained_or_chosen(own_images(trained_experiment(run), run))
    except ValueError as error:
        return seen, f"whether the first weights were trained on others of them is not known: {error}"
    return seen, ""


def count(images: Images, seen: set[bytes]) -> int:
    """How many images are among those seen."""
    return sum(digest in seen for digest in digests(images)) if seen else 0


def trained_or_chosen(own: Splits) -> set[bytes]:
    """Digests of the images that a run is trained on or chosen by."""
    return {digest for part in (own.train, own.validation) for digest in digests(part)}


def _lineage(source: str | Path | None) -> Iterator[tuple[Record, RunFolder]]:
    """A run and those before it, each once."""
    met = set[Path]()
    while source is not None and (run := find_run(source)).path.resolve() not in met:
        met.add(run.path.resolve())
        record = load_record(run.path)
        yield record, run
        source = source_of(record)


def _same(recorded: Any, known: Mapping[str, Any]) -> bool:
    held = recorded if isinstance(recorded, Mapping) else {}
    return all(part in held and held[part] == known.get(part) for part in ("train", "validation"))


def _origin(record: Record) -> Mapping[str, Any]:
    origin = record.settings.get("from")
    return origin if isinstance(origin, Mapping) else {}
