"""The training data of a run: its experiment as it was trained, its images, which must be unchanged, and those of the
runs that its first weights came from. Also the start of a run from the weights of another (`--from`).

A test image that trained or chose an ancestor is not a test image of the run that continues from it.
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
    """Put the weights of the run `source` into networks, by the section that describes each; return facts about them.

    For a classifier these are the weights of the best epoch, for others the last ones, before any baking. If the run in
    `folder` has begun, nothing is read. Raises ValueError if there is no such run, or if its networks differ.
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
        atomic.write_json(_intent(folder), {"run": str(source)})  # in case of a kill before the first checkpoint
    return {"run": str(source), "file": path.name, **facts, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def require_source(source: Path | None, folder: RunFolder) -> None:
    """Raise ValueError, before anything is written, if there is no run to start from. Also raise it if a run that was
    to start from another begins without it."""
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
    """Raise ValueError for another task, and for another network, with the first key that differs."""
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
    """The same check for a run that was trained from Python and has only a fingerprint."""
    for section, network in networks.items():
        recorded = (settings.get(section) or {}).get("architecture")
        if recorded != describe_model(network)["architecture"]:
            raise ValueError(
                f"{run.path} was trained from Python with another {section}, or says nothing of it; "
                "load its weights into yours with lconvnet.training.load_best"
            )


def _stated(run: RunFolder, settings: Mapping[str, Any]) -> AnyExperiment | None:
    """The experiment of a run's training; None if it was trained from Python."""
    recorded = settings.get("settings") or {}
    if "model" in recorded:
        return parse_any(recorded)
    return load_any(run.config) if run.is_configured and not recorded else None


def _shapes(weights: Mapping[str, Any], network: nn.Module) -> list[str]:
    old, new = ({name: list(value.shape) for name, value in state.items()} for state in (weights, network.state_dict()))
    return list(differences(old, new))


IMPORTED = ("directory",)  # imported weights know only the name of their images, not the directory
TRAINED = ("directory", "name")


def trained_experiment(folder: RunFolder, overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment that a run was trained with; cfg.yaml and `overrides` set its evaluation.

    Raises ValueError for an override of a setting that the training has fixed.
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
    """Return the images of a set, read and divided like those of a run, and a warning about them, if any.

    The run's own images are divided as in its training, so none of its training images is a test image. Raises
    ValueError if its own set now holds other images.
    """
    record = load_record(folder.path)
    if "model" not in (record.settings.get("settings") or {}):  # trained from Python: only the images are known
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
    """Raise ValueError for an override of a setting that a run's training has fixed, except the place of its images."""
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
    """Return the images of a run, from their present location. Raises ValueError if they have changed."""
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
    """The differences between these images and those of a training; for imported weights there is nothing to
    compare."""
    if "imported" in record.settings:
        return []
    recorded, found = record.settings.get("data") or {}, describe_splits(splits)
    if "test" not in recorded:  # older runs recorded only the other parts
        del found["test"]
    parts = [_difference(part, recorded.get(part) or {}, facts) for part, facts in found.items()]
    changed = [line for line in parts if line]
    names = saving.describe(folder.model).class_names if changed and folder.model.exists() else None
    if names and tuple(names) != splits.class_names:
        changed = [f"classes: {', '.join(names)}, now {', '.join(splits.class_names)}", *changed]
    return changed


def _difference(part: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The differences in one part, in words; empty if its pixels and labels are the same."""
    if recorded == found:
        return ""
    before, now = recorded.get("images", "unknown"), found["images"]
    return f"{part}: {before} images, now {now}" if before != now else f"{part}: other pixels, labels or order"


def source_of(record: Record) -> str | None:
    """The run that the first weights came from; None if they were drawn."""
    return _origin(record).get("run")


def inherited_note(record: Record, splits: Splits) -> str:
    """The warning about a trained run's own held-out images, as recorded at its start or as found now."""
    origin = _origin(record)
    return str(origin["note"]) if "note" in origin else note_on(splits, source_of(record))


def note_on(splits: Splits, source: str | Path | None) -> str:
    """A sentence with the number of held-out images that trained or chose the run `source`, or those before it."""
    seen, unknown = seen_by(source, describe_splits(splits))
    parts = {"validation": splits.validation, "test": splits.test}
    counts = {name: count(part, seen) for name, part in parts.items()}
    found = " and ".join(f"{number} of {len(parts[name])} {name} images" for name, number in counts.items() if number)
    said = f"{found} were trained on or chosen by in the runs that the first weights came from" if found else ""
    return "; ".join(filter(None, (said, unknown)))


def seen_by(source: str | Path | None, known: Mapping[str, Any]) -> tuple[set[bytes], str]:
    """Digests of the images that trained or chose the run `source` and those before it, and the reason, if any, why
    they are not all known. Images already described in `known` are not read."""
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
    """Digests of the images that train or choose a run."""
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
