"""What the commands can do with an experiment, whatever its task is: train it, measure it, tell how far it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from lconvnet import gan
from lconvnet.experiments import estimation, execute, generation
from lconvnet.experiments.config import Experiment, GanExperiment, WassersteinExperiment, settings
from lconvnet.experiments.loading import AnyExperiment
from lconvnet.experiments.other_data import evaluate_on
from lconvnet.experiments.reading import read
from lconvnet.experiments.robustness import Report
from lconvnet.experiments.run_folder import RunFolder, recorded
from lconvnet.ops.rounding import decimal, rounded_down, rounded_up
from lconvnet.training import Record
from lconvnet.training.settings import LENGTH, differences, identity
from lconvnet.wasserstein import Estimate

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Outcome:
    """What a command found: a sentence, or the content of a results file as a table, and facts for machines."""

    facts: Mapping[str, Any]
    text: str = ""
    table: Mapping[str, Any] | None = None
    path: Path = Path()


class Task(Protocol):
    """The side of a task that the commands see; an experiment is always one of this task.

    Attributes:
        product: the file that a training saves.
        unsampled: why imported weights cannot be measured in place; empty if they can.
    """

    product: str
    unsampled: str

    def train(
        self, experiment: Any, folder: RunFolder, *, source: Path, weights: Path | None, resume: bool, progress: bool
    ) -> Outcome:
        """Train, or go on, and say what came out; a finished run is told again."""
        ...

    def evaluate(
        self, experiment: Any, folder: RunFolder, changes: Sequence[str], *, attacks: bool, report: Report
    ) -> Outcome:
        """Measure what was trained, or tell how it was; nothing is trained."""
        ...

    def evaluate_on(
        self, name: str, folder: RunFolder, changes: Sequence[str], *, directory: str | None, attacks: bool,
        report: Report,
    ) -> Outcome:  # fmt: skip
        """Measure what was trained on images of another folder."""
        ...

    def require_stated(self, experiment: Any, record: Record[Any] | None) -> None:
        """Raise ValueError if a record tells of other settings than the experiment states."""
        ...

    def finished(self, experiment: Any, folder: RunFolder, *, test: bool = True, attacks: bool = True) -> str | None:
        """What to say of a run of which nothing is left to do, perhaps ""; None if something is."""
        ...

    def outdated(self, experiment: Any, folder: RunFolder) -> str:
        """What is wrong with the results of a finished training; empty if nothing is."""
        ...

    def imported_settings(self, experiment: Any) -> dict[str, Any]:
        """What the record of an imported run says of its configuration."""
        ...

    def network(self, experiment: Any, shape: Shape, outputs: int) -> nn.Sequential:
        """The network by itself: what stands before it, such as an upsampling, has no weights."""
        ...


class Classification:
    """Classifiers: trained, then certified and attacked on test images."""

    product, unsampled = "model.safetensors", ""

    def train(
        self,
        experiment: Experiment,
        folder: RunFolder,
        *,
        source: Path,
        weights: Path | None,
        resume: bool,
        progress: bool,
    ) -> Outcome:
        found = execute.train(experiment, folder, source=source, weights=weights, resume=resume, progress=progress)
        record, best, bound = found.record, found.record.best, found.bound
        text = (
            f"kept epoch {best.epoch} of {len(record.epochs)} by {record.chosen_by} ({best.validated()}); "
            f"Lipschitz bound {rounded_up(bound.upper, 9)} ({bound.level}); saved {found.path}"
        )
        certified = {str(eps): value for eps, value in best.certified.items()}
        facts = {"epoch": best.epoch, "chosen_by": record.chosen_by}
        facts |= {"validation": {"clean": best.clean, "certified": certified}, "bound": bound.upper}
        note = record.settings.get("from", {}).get("note")
        facts |= {"note": note} if note else {}
        return Outcome({**facts, "level": bound.level, "model": str(found.path), "run": str(folder.path)}, text)

    def evaluate(
        self, experiment: Experiment, folder: RunFolder, changes: Sequence[str], *, attacks: bool, report: Report
    ) -> Outcome:
        return self._told(execute.evaluate(folder, changes, attacks=attacks, report=report))

    def evaluate_on(
        self,
        name: str,
        folder: RunFolder,
        changes: Sequence[str],
        *,
        directory: str | None,
        attacks: bool,
        report: Report,
    ) -> Outcome:
        return self._told(evaluate_on(name, folder, changes, directory=directory, attacks=attacks, report=report))

    def _told(self, found: execute.Evaluated) -> Outcome:
        results, rows = found.results, found.results["adv_robustness"]
        certified = {str(eps): row["lb"] for eps, row in rows.items()}
        attacked = {str(eps): {key: value for key, value in row.items() if "-ub" in key} for eps, row in rows.items()}
        facts = {"clean": results["accuracy"], "certified": certified}
        facts |= {"bound": found.bound.upper, "level": found.certificates.level}
        facts |= {key: results[key] for key in ("loss", "epoch", "finished", "data", "note") if key in results}
        facts |= {"attacks": {eps: row for eps, row in attacked.items() if row}}
        facts |= {key: results[key] for key in results if key.startswith("adv_robustness_")}
        return Outcome({**facts, "results": str(found.path)}, table=results, path=found.path)

    def require_stated(self, experiment: Experiment, record: Record[Any] | None) -> None:
        """Settings that the record does not know are younger than it is; the length is compared with what is done."""
        trained = record.settings.get("settings") if record else None
        if isinstance(trained, dict):
            stated = {"settings": _shared(json.loads(json.dumps(settings(experiment))), trained)}
            both = (identity(one, outside=LENGTH)["settings"] for one in ({"settings": trained}, stated))
            if other := list(differences(*both)):
                raise ValueError(
                    f"cfg.yaml states another experiment than was trained ({'; '.join(other[:5])}); change it back, or "
                    "train in another folder"
                )

    def finished(
        self, experiment: Experiment, folder: RunFolder, *, test: bool = True, attacks: bool = True
    ) -> str | None:
        record = recorded(folder)
        enough = record and ("imported" in record.settings or len(record.epochs) >= experiment.training.epochs)
        if not (record and record.finished and enough):
            return None
        if not test:
            return ""
        results = results_of(folder, record)
        measured = results and (not attacks or _answers(results, experiment))
        return "" if measured else None

    def outdated(self, experiment: Experiment, folder: RunFolder) -> str:
        results = _read(folder)
        other = "evaluation" in results and not _answers(results, experiment)  # older ones do not say
        return "results.yaml answers another evaluation than cfg.yaml asks for" if other else ""

    def imported_settings(self, experiment: Experiment) -> dict[str, Any]:
        return settings(experiment)

    def network(self, experiment: Experiment, shape: Shape, outputs: int) -> nn.Sequential:
        return experiment.model.build(shape, outputs, seed=0)


class _Unlabelled:
    """What critics and generators share: there is no accuracy of theirs."""

    unsampled = estimation.UNSAMPLED

    def evaluate_on(
        self, name: str, folder: RunFolder, changes: Sequence[str], *, directory: str | None, attacks: bool,
        report: Report,
    ) -> Outcome:  # fmt: skip
        raise ValueError(f"--data {name}: {folder.path} is not a classifier, so there are no accuracies to measure")

    def require_stated(self, experiment: Any, record: Record[Any] | None) -> None:
        """Nothing: training compares what decides."""

    def outdated(self, experiment: Any, folder: RunFolder) -> str:
        return ""

    def imported_settings(self, experiment: AnyExperiment) -> dict[str, Any]:
        return experiment.model_dump(mode="json")


class Wasserstein(_Unlabelled):
    """Critics: trained to certify a distance."""

    product = "model.safetensors"

    def train(
        self, experiment: WassersteinExperiment, folder: RunFolder, *, source: Path, weights: Path | None, resume: bool,
        progress: bool,
    ) -> Outcome:  # fmt: skip
        found = estimation.run(experiment, folder, weights=weights, resume=resume, progress=progress)
        return self._told(found, folder)

    def evaluate(
        self, experiment: WassersteinExperiment, folder: RunFolder, changes: Sequence[str], *, attacks: bool,
        report: Report,
    ) -> Outcome:  # fmt: skip
        return self._told(estimation.evaluate(experiment, folder, progress=False), folder)

    def _told(self, found: Estimate, folder: RunFolder) -> Outcome:
        low, high = found.interval
        interval = f"at {decimal(found.confidence)} from {rounded_down(low, 4)} to {rounded_up(high, 4)}"
        text = (
            f"estimate {rounded_down(found.lower_bound, 4)} of a lower bound on the Wasserstein-1 distance "
            f"({interval}, assuming {found.assumes}), {found.units}; "
            f"Lipschitz bound {rounded_up(found.lipschitz, 9)} ({found.level}); {folder.results}"
        )
        facts = {"lower_bound": found.lower_bound, "interval": found.interval, "units": found.units}
        facts |= {"guaranteed": found.guaranteed, "assumes": found.assumes, "bound": found.lipschitz}
        return Outcome({**facts, "results": str(folder.results), "run": str(folder.path)}, text)

    def finished(
        self, experiment: WassersteinExperiment, folder: RunFolder, *, test: bool = True, attacks: bool = True
    ) -> str | None:
        results = _read(folder)
        if "distance" not in results or not folder.model.exists():
            return None
        low, high = results["distance_interval"]
        return f"distance {rounded_down(results['distance'], 4)} ({rounded_down(low, 4)} to {rounded_up(high, 4)})"

    def network(self, experiment: WassersteinExperiment, shape: Shape, outputs: int) -> nn.Sequential:
        return experiment.critic.model_copy(update={"upsampling": 1}).build(shape, seed=0)


class Generation(_Unlabelled):
    """Generators: trained against a critic."""

    product = "generator.safetensors"

    def train(
        self, experiment: GanExperiment, folder: RunFolder, *, source: Path, weights: Path | None, resume: bool,
        progress: bool,
    ) -> Outcome:  # fmt: skip
        return self._told(generation.run(experiment, folder, weights=weights, resume=resume, progress=progress), folder)

    def evaluate(
        self, experiment: GanExperiment, folder: RunFolder, changes: Sequence[str], *, attacks: bool, report: Report
    ) -> Outcome:
        return self._told(generation.finished_record(experiment, folder), folder)

    def _told(self, record: gan.Record[gan.Epoch], folder: RunFolder) -> Outcome:
        last, path = record.epochs[-1], folder.path / self.product
        text = f"{last.epoch} epochs, {last.step} steps of the generator ({last.summary()}); saved {path}"
        facts = {"epochs": last.epoch, "steps": last.step, "difference": last.difference, "bound": last.lipschitz}
        return Outcome({**facts, "generator": str(path), "run": str(folder.path)}, text)

    def finished(
        self, experiment: GanExperiment, folder: RunFolder, *, test: bool = True, attacks: bool = True
    ) -> str | None:
        record = recorded(folder)
        return self.product if record and len(record.epochs) >= experiment.training.epochs else None

    def network(self, experiment: GanExperiment, shape: Shape, outputs: int) -> nn.Sequential:
        return experiment.critic.build(shape, seed=0)


TASKS: Mapping[str, Task] = {"classification": Classification(), "wasserstein": Wasserstein(), "gan": Generation()}


def task_of(experiment: AnyExperiment | None) -> Task:
    """The task of an experiment; what has no configuration is a classifier."""
    return TASKS[experiment.task if experiment else "classification"]


def results_of(folder: RunFolder, record: Record[Any] | None) -> dict[str, Any]:
    """Return results.yaml, empty if there is none of the finished training."""
    results = _read(folder)
    return results if record and results.get("finished") and results.get("epoch") == record.kept_epoch else {}


def _read(folder: RunFolder) -> dict[str, Any]:
    try:
        return dict(read(folder.results))
    except (ValueError, OSError):
        return {}


def _answers(results: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether results.yaml is of the evaluation that is asked for."""
    return results.get("evaluation") == experiment.evaluation.model_dump(mode="json")


def _shared(values: Any, like: Any) -> Any:
    """Return nested values without the keys that are not in `like`."""
    if not isinstance(values, dict) or not isinstance(like, dict):
        return values
    return {key: _shared(value, like[key]) for key, value in values.items() if key in like}
