"""What the commands can do with an experiment of any task: train it, measure it, report its progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lconvnet import gan
from lconvnet.experiments import estimation, execute
from lconvnet.experiments.config import Experiment, GanExperiment, WassersteinExperiment, settings
from lconvnet.experiments.loading import AnyExperiment
from lconvnet.experiments.other_data import evaluate_on
from lconvnet.experiments.reading import read
from lconvnet.experiments.robustness import Report
from lconvnet.experiments.run_folder import RunFolder, recorded
from lconvnet.experiments.session import training
from lconvnet.experiments.trained_on import begin_from
from lconvnet.ops.rounding import decimal, rounded_down, rounded_up
from lconvnet.tasks.generation import FILE
from lconvnet.training import Record
from lconvnet.training.checks import is_free
from lconvnet.training.settings import LENGTH, Place, differences, identity
from lconvnet.wasserstein import Estimate


def train_generator(
    experiment: GanExperiment,
    folder: RunFolder,
    *,
    weights: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> gan.Record[gan.Epoch]:
    """Train the generator of an experiment in its folder, or continue, on the GPU if there is one.

    With `resume` a finished run returns its record again if it has at least the epochs asked for; otherwise it
    continues. The first weights are those of the run `weights`, if given. Raises ValueError for errors that the user
    can correct, `lconvnet.training.Interrupted` after a checkpoint if asked to stop, and `Diverged`.
    """
    with training(experiment, folder, "train", weights=weights, resume=resume) as longer:
        images = experiment.data.load()
        channels, height, width = map(int, images.images.shape[1:])
        shape, device = (channels, height, width), "cuda" if torch.cuda.is_available() else "cpu"
        generator = experiment.generator.build(shape, seed=experiment.seed).to(device)
        critic = experiment.critic.build(shape, seed=experiment.seed).to(device)
        networks = {"generator": generator, "critic": critic}
        first = begin_from(weights, folder, experiment, networks) if weights else None
        folder.keep_config(experiment)
        return gan.train_gan(
            generator,
            critic,
            images,
            objective=experiment.critic.objective(),
            generator_optimizer=experiment.optimizer,
            critic_optimizer=experiment.optimizer,
            seed=experiment.seed,
            directory=folder.path,
            resume=resume,
            progress=progress,
            origin=first,
            **dict(longer.training),
        )


def finished_record(experiment: GanExperiment, folder: RunFolder) -> gan.Record[gan.Epoch]:
    """Return the record of a finished training. Raises ValueError if it is unfinished, or of another one."""
    folder.keep_config(experiment)
    found = recorded(folder)
    done = len(found.epochs) if found else 0
    if found is None or done < experiment.training.epochs:
        raise folder.unfinished(f"{done} of {experiment.training.epochs} epochs")
    return found


Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Asked:
    """The options of a command: the first four for a training, the others for an evaluation."""

    source: Path | None = None
    weights: Path | None = None
    resume: bool = False
    progress: bool = True
    changes: Sequence[str] = ()
    attacks: bool = True
    report: Report = lambda what, done, count: None
    directory: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a command: a sentence, or the content of a results file as a table, and facts for machines."""

    facts: Mapping[str, Any]
    text: str = ""
    table: Mapping[str, Any] | None = None
    path: Path = Path()


def _not_a_classifier(name: str, folder: RunFolder, asked: Asked) -> Outcome:
    raise ValueError(f"--data {name}: {folder.path} is not a classifier, so there are no accuracies to measure")


@dataclass(frozen=True)
class Task:
    """A task as the commands see it. All experiments passed to one are of this task.

    Attributes:
        product: the file that a training saves.
        train: train, or continue, and report the result; for a finished run, report it again.
        evaluate: measure the trained network, or report the earlier measurement; it trains nothing.
        finished: the message for a run with nothing left to do, perhaps ""; None if something is left. Its arguments
            say whether to `test`, and with `attacks`.
        network: the bare network for images of a shape, without preceding layers such as an upsampling, which have no
            weights.
        evaluate_on: measure the trained network on images of another folder.
        require_stated: raise ValueError if the settings of a record and the experiment differ.
        outdated: the fault of a finished training's results; empty if there is none.
        imported_settings: the configuration's part in the record of an imported run.
        unsampled: why imported weights cannot be measured in place; empty if they can.
    """

    product: str
    train: Callable[[Any, RunFolder, Asked], Outcome]
    evaluate: Callable[[Any, RunFolder, Asked], Outcome]
    finished: Callable[[Any, RunFolder, bool, bool], str | None]
    network: Callable[[Any, Shape, int], nn.Sequential]
    evaluate_on: Callable[[str, RunFolder, Asked], Outcome] = _not_a_classifier
    require_stated: Callable[[Any, Record[Any] | None], None] = lambda experiment, record: None
    outdated: Callable[[Any, RunFolder], str] = lambda experiment, folder: ""
    imported_settings: Callable[[Any], dict[str, Any]] = lambda experiment: experiment.model_dump(mode="json")
    unsampled: str = estimation.UNSAMPLED


def _train_classifier(experiment: Experiment, folder: RunFolder, asked: Asked) -> Outcome:
    found = execute.train(experiment, folder, source=asked.source, weights=asked.weights, resume=asked.resume,
                          progress=asked.progress)  # fmt: skip
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


def _evaluate_classifier(experiment: Experiment | None, folder: RunFolder, asked: Asked) -> Outcome:
    return _measured(execute.evaluate(folder, asked.changes, attacks=asked.attacks, report=asked.report))


def _evaluate_classifier_on(name: str, folder: RunFolder, asked: Asked) -> Outcome:
    return _measured(
        evaluate_on(name, folder, asked.changes, directory=asked.directory, attacks=asked.attacks, report=asked.report)
    )


def _measured(found: execute.Evaluated) -> Outcome:
    results, rows = found.results, found.results["adv_robustness"]
    attacked = {str(eps): {key: value for key, value in row.items() if "-ub" in key} for eps, row in rows.items()}
    facts = {"clean": results["accuracy"], "certified": {str(eps): row["lb"] for eps, row in rows.items()}}
    facts |= {"bound": found.bound.upper, "level": found.certificates.level}
    facts |= {key: results[key] for key in ("loss", "epoch", "finished", "data", "note") if key in results}
    facts |= {"attacks": {eps: row for eps, row in attacked.items() if row}}
    facts |= {key: results[key] for key in results if key.startswith("adv_robustness_")}
    return Outcome({**facts, "results": str(found.path)}, table=results, path=found.path)


def _require_stated(experiment: Experiment, record: Record[Any] | None) -> None:
    """Settings absent from the record are younger than it and are ignored; a length without effect may differ."""
    trained = record.settings.get("settings") if record else None
    if isinstance(trained, dict):
        stated = {"settings": _shared(json.loads(json.dumps(settings(experiment))), trained)}
        lengths = (int((trained.get("training") or {}).get("epochs", 0)), experiment.training.epochs)
        outside = LENGTH if is_free(experiment.schedule, *lengths) else frozenset[Place]()
        both = (identity(one, outside=outside)["settings"] for one in ({"settings": trained}, stated))
        if other := list(differences(*both)):
            raise ValueError(
                f"cfg.yaml states another experiment than was trained ({'; '.join(other[:5])}); change it back, or "
                "train in another folder"
            )


def _shared(values: Any, like: Any) -> Any:
    """Return nested values without the keys that are not in `like`."""
    if not isinstance(values, dict) or not isinstance(like, dict):
        return values
    return {key: _shared(value, like[key]) for key, value in values.items() if key in like}


def _classifier_finished(experiment: Experiment, folder: RunFolder, test: bool, attacks: bool) -> str | None:
    record = recorded(folder)
    enough = record and ("imported" in record.settings or len(record.epochs) >= experiment.training.epochs)
    if not (record and record.finished and enough):
        return None
    results = results_of(folder, record)
    measured = results and (not attacks or _answers(results, experiment))
    return "" if measured or not test else None


def _outdated(experiment: Experiment, folder: RunFolder) -> str:
    results = _read(folder)
    other = "evaluation" in results and not _answers(results, experiment)  # older results lack the key
    return "results.yaml answers another evaluation than cfg.yaml asks for" if other else ""


def _train_critic(experiment: WassersteinExperiment, folder: RunFolder, asked: Asked) -> Outcome:
    return _certified(
        estimation.run(experiment, folder, weights=asked.weights, resume=asked.resume, progress=asked.progress), folder
    )


def _evaluate_critic(experiment: WassersteinExperiment, folder: RunFolder, asked: Asked) -> Outcome:
    return _certified(estimation.evaluate(experiment, folder, progress=False), folder)


def _certified(found: Estimate, folder: RunFolder) -> Outcome:
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


def _critic_finished(experiment: WassersteinExperiment, folder: RunFolder, test: bool, attacks: bool) -> str | None:
    results = _read(folder)
    record, asked = recorded(folder), experiment.training.steps
    short = record is not None and record.settings.get("steps", asked) < asked
    if short or "distance" not in results or not folder.model.exists():
        return None
    low, high = results["distance_interval"]
    return f"distance {rounded_down(results['distance'], 4)} ({rounded_down(low, 4)} to {rounded_up(high, 4)})"


def _train_generator(experiment: GanExperiment, folder: RunFolder, asked: Asked) -> Outcome:
    return _generated(
        train_generator(experiment, folder, weights=asked.weights, resume=asked.resume, progress=asked.progress), folder
    )


def _tell_generator(experiment: GanExperiment, folder: RunFolder, asked: Asked) -> Outcome:
    return _generated(finished_record(experiment, folder), folder)


def _generated(record: gan.Record[gan.Epoch], folder: RunFolder) -> Outcome:
    last, path = record.epochs[-1], folder.path / FILE
    text = f"{last.epoch} epochs, {last.step} steps of the generator ({last.summary()}); saved {path}"
    facts = {"epochs": last.epoch, "steps": last.step, "difference": last.difference, "bound": last.lipschitz}
    return Outcome({**facts, "generator": str(path), "run": str(folder.path)}, text)


def _generator_finished(experiment: GanExperiment, folder: RunFolder, test: bool, attacks: bool) -> str | None:
    record = recorded(folder)
    return FILE if record and len(record.epochs) >= experiment.training.epochs else None


TASKS: Mapping[str, Task] = {
    "classification": Task(
        product="model.safetensors",
        train=_train_classifier,
        evaluate=_evaluate_classifier,
        finished=_classifier_finished,
        network=lambda experiment, shape, outputs: experiment.model.build(shape, outputs, seed=0),
        evaluate_on=_evaluate_classifier_on,
        require_stated=_require_stated,
        outdated=_outdated,
        imported_settings=settings,
        unsampled="",
    ),
    "wasserstein": Task(
        product="model.safetensors",
        train=_train_critic,
        evaluate=_evaluate_critic,
        finished=_critic_finished,
        network=lambda experiment, shape, _: experiment.critic.model_copy(update={"upsampling": 1}).build(
            shape, seed=0
        ),
    ),
    "gan": Task(
        product=FILE,
        train=_train_generator,
        evaluate=_tell_generator,
        finished=_generator_finished,
        network=lambda experiment, shape, _: experiment.critic.build(shape, seed=0),
    ),
}


def task_of(experiment: AnyExperiment | None) -> Task:
    """The task of an experiment; without a configuration, that of a classifier."""
    return TASKS[experiment.task if experiment else "classification"]


def results_of(folder: RunFolder, record: Record[Any] | None) -> dict[str, Any]:
    """Return results.yaml; empty if the finished training has none."""
    results = _read(folder)
    return results if record and results.get("finished") and results.get("epoch") == record.kept_epoch else {}


def _read(folder: RunFolder) -> dict[str, Any]:
    try:
        return dict(read(folder.results))
    except (ValueError, OSError):
        return {}


def _answers(results: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether results.yaml is from the evaluation of this experiment."""
    return results.get("evaluation") == experiment.evaluation.model_dump(mode="json")
