"""Training and evaluation of a run. Both read the configuration and fill the run folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lconvnet import saving
from lconvnet.baking import bake
from lconvnet.bounds import Bound, lipschitz_bound
from lconvnet.certify import Certificates, certified_accuracy
from lconvnet.data import Images, Splits
from lconvnet.experiments import robustness
from lconvnet.experiments.config import Experiment, settings
from lconvnet.experiments.evaluation import Evaluation
from lconvnet.experiments.loading import load
from lconvnet.experiments.options import AUGMENTATIONS
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.session import session, training
from lconvnet.experiments.trained_on import begin_from, inherited_note, note_on, own_images, trained_experiment
from lconvnet.extras import require
from lconvnet.training import CheckpointError, Epoch, Record, fit, is_first_process, is_started, load_best, load_record

logger = logging.getLogger("lconvnet")


@dataclass(frozen=True)
class Trained:
    """The result of a training: its record, the baked network of the best epoch with its bound, and the saved file."""

    record: Record[Epoch]
    network: nn.Module
    bound: Bound
    path: Path


@dataclass(frozen=True)
class Evaluated:
    """The result of an evaluation: certificates of all test images, and the content of results.yaml."""

    certificates: Certificates
    bound: Bound
    results: Mapping[str, Any]
    path: Path


def train(
    experiment: Experiment,
    folder: RunFolder,
    *,
    source: Path | None = None,
    weights: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Trained:
    """Train the experiment in its folder and save the baked network of the epoch that is best on validation.

    The folder's cfg.yaml gets the complete configuration. If cfg.yaml is the `source` of the experiment, it stays and
    must state this experiment, because nothing else says what was trained. The seed is set before the network is built.
    The first weights are those of the run `weights`, if given (see `trained_on`). With `resume` a run continues from
    its last checkpoint, or starts if there is none. Without it a folder that holds a run is refused. Of several
    processes only the first returns. Raises ValueError for errors that the user can correct, and
    `lconvnet.training.Interrupted` after a checkpoint if asked to stop.
    """
    own = source if source and source.resolve() == folder.config.resolve() else None
    if own:
        _require_stated(own, experiment)  # before anything is written
    with training(experiment, folder, "train", weights=weights, resume=resume) as longer:
        if own:
            _require_stated(own, experiment)  # from here on no other process can replace it
        splits = experiment.data.load(seed=experiment.seed)
        if is_first_process():
            logger.info("read %r", splits)
        model = experiment.model.build(splits.image_shape, splits.classes, seed=experiment.seed)
        first = begin_from(weights, folder, experiment, {"model": model}) if weights else None
        if first and not is_started(folder.path):
            first["note"] = note_on(splits, weights)
            if first["note"] and is_first_process():
                logger.warning("%s", first["note"])
        if not own:
            folder.keep_config(experiment)
        record = fit(
            model,
            splits,
            loss=experiment.loss,
            optimizer=experiment.optimizer,
            schedule=experiment.schedule,
            seed=experiment.seed,
            directory=folder.path,
            resume=resume,
            augment=AUGMENTATIONS[experiment.data.augment],
            eps=sorted(experiment.evaluation.eps, reverse=True),
            progress=progress,
            settings=settings(longer),
            origin=first,
            **dict(longer.training),
        )
        if not is_first_process():
            raise SystemExit(0)  # the first process saves and reports the result
        return _save_best(model, record, splits, folder)


def _require_stated(path: Path, experiment: Experiment) -> None:
    """Raise ValueError unless the configuration states this experiment: nothing else would say what was trained."""
    if other := RunFolder(path.parent).unlike(_stated(load(path)), _stated(experiment)):
        raise ValueError(
            f"{path} states another experiment than asked for ({'; '.join(other[:5])}); --set needs a folder of its "
            f"own: lconvnet train CFG --out FOLDER --set ...{'' if is_started(path.parent) else ', or change the file'}"
        )


def evaluate(
    folder: RunFolder,
    overrides: Sequence[str] = (),
    *,
    attacks: bool = True,
    report: robustness.Report = lambda what, done, count: None,
) -> Evaluated:
    """Measure the best epoch of a run on the test images. Write results.yaml and examples.parquet, and
    model.safetensors unless it holds that network already.

    Each batch is recorded when it is done, and a second call continues from there. The images must be those of the
    training; otherwise test images might be among the trained ones. An unfinished run is measured with a warning.
    record.json says what was trained, cfg.yaml how to evaluate; `overrides` may change `evaluation` and
    `data.directory`. Raises ValueError for errors that the user can correct, and `crosscheck.ContradictionError` if an
    attack breaks a certificate.
    """
    require("pyarrow.parquet", "data")
    experiment = trained_experiment(folder, overrides)
    for attack in experiment.evaluation.attacks if attacks else ():
        attack.made_with()
    with session(folder, "evaluate"):
        return _evaluate(experiment, folder, attacks=attacks, report=report)


def _evaluate(experiment: Experiment, folder: RunFolder, *, attacks: bool, report: robustness.Report) -> Evaluated:
    record, splits = load_record(folder.path), own_images(experiment, folder)
    trained = saved_network(record, folder) if record.is_baked else _baked(experiment, record, splits, folder)
    about = {"data": f"{len(splits.test)} test images of {splits.name}, {_chosen(record, len(splits.validation))}"}
    note = "; ".join(filter(None, (splits.note, inherited_note(record, splits))))
    about |= {"note": note} if note else {}
    return measure(trained, splits.test, experiment, folder, about, attacks=attacks, report=report)


def measure(
    trained: Trained,
    images: Images,
    experiment: Experiment,
    folder: RunFolder,
    about: Mapping[str, Any],
    *,
    attacks: bool,
    report: robustness.Report,
) -> Evaluated:
    """Measure a network on images as the evaluation says, with records and results in `folder`; `about` is added to the
    results."""
    subject = robustness.EvaluationTarget(
        trained.network,
        trained.bound,
        images,
        folder,
        experiment.evaluation.batch_size,
        experiment.seed,
        report,
    )
    certificates = lipschitz = robustness.certify_all(subject)
    for eps in experiment.evaluation.linear_bounds:
        certificates = robustness.certify_linearly(subject, certificates, eps)
    outcomes = _attack(subject, certificates, experiment.evaluation) if attacks else []
    loss = robustness.mean_loss(subject, experiment.loss)
    labels, pixels = images.labels, images.images[0].numel()
    measured = robustness.accuracies(certificates, labels, outcomes, experiment.evaluation, pixels=pixels)
    made = {"evaluation": experiment.evaluation.model_dump(mode="json")} if attacks else {}
    for eps, row in measured["adv_robustness"].items() if experiment.evaluation.linear_bounds else ():
        row["lb_lipschitz"] = certified_accuracy(lipschitz, labels, eps)
    results = _results(trained, images, certificates, loss) | dict(about) | measured | made
    folder.write_evaluation(results, robustness.columns(certificates, labels, outcomes, experiment.evaluation))
    return Evaluated(certificates, trained.bound, results, folder.results)


def _baked(experiment: Experiment, record: Record[Epoch], splits: Splits, folder: RunFolder) -> Trained:
    model = experiment.model.build(splits.image_shape, splits.classes, seed=experiment.seed)
    _load_recorded_best(model, record, folder)
    return _save_best(model, record, splits, folder)


def saved_network(record: Record[Epoch], folder: RunFolder) -> Trained:
    """Return the network of model.safetensors: the baked best epoch, or an imported network, whose weights may differ
    from our kernels' in the last digit. Raises ValueError if it is missing or of another epoch."""
    if not folder.model.exists():
        way = "import it again" if record.is_baked else f"lconvnet evaluate {folder.path} writes it"
        raise CheckpointError(f"{folder.model}, the network of this run, is missing; {way}")
    description = saving.describe(folder.model)
    epoch = description.notes.get("epoch", record.kept_epoch)
    if epoch != record.kept_epoch:
        raise CheckpointError(
            f"{folder.model} is of epoch {epoch}, the record names {record.kept_epoch} as the best; "
            f"lconvnet evaluate {folder.path} writes it anew"
        )
    network = saving.load(folder.model)
    bound = lipschitz_bound(network, input_shape=description.input_shape, diagnose=False)
    return Trained(record, network, bound, folder.model)


def _attack(
    subject: robustness.EvaluationTarget, certificates: Certificates, evaluation: Evaluation
) -> list[robustness.Outcome]:
    """Run the attacks of the evaluation, each on all test images or on the first few."""
    outcomes = []
    for attack in evaluation.attacks:
        count = min(evaluation.mini_test_size, len(subject.images)) if attack.mini else len(subject.images)
        runs = attack.runs(evaluation)
        outcomes += [robustness.attack_all(subject, certificates, attack, eps, count) for eps in runs]
    return outcomes


def _stated(experiment: Experiment) -> dict[str, Any]:
    """The part of a run's experiment that cfg.yaml must state: all but the devices and the location of the images."""
    return settings(experiment) | {"evaluation": experiment.evaluation.model_dump(mode="json")}


def _load_recorded_best(model: nn.Module, record: Record[Epoch], folder: RunFolder) -> None:
    epoch = load_best(model, folder.path)
    if epoch != record.kept_epoch:
        raise CheckpointError(
            f"{folder.path}: checkpoints/best.safetensors holds epoch {epoch}, record.json names {record.kept_epoch} "
            "as the best; the run was stopped between the two, continue it with --resume, or restore the files"
        )
    if not record.finished:
        logger.warning(
            "%s is not finished (%d epochs done): this is its best so far, epoch %d; continue with --resume",
            folder.path,
            len(record.epochs),
            epoch,
        )


def _save_best(model: nn.Module, record: Record[Epoch], splits: Splits, folder: RunFolder) -> Trained:
    network = bake(model).cpu()  # in this order, because the device chooses the engine
    bound = lipschitz_bound(network, input_shape=splits.image_shape)
    notes = {"data": splits.name, "epoch": record.kept_epoch}
    shape = splits.image_shape
    data = saving.encode(network, bound=bound, input_shape=shape, class_names=splits.class_names, notes=notes)
    folder.write_model(data)
    return Trained(record, network, bound, folder.model)


def _chosen(record: Record[Epoch], held: int) -> str:
    """How the epoch was chosen."""
    if "imported" in record.settings:
        return "epoch chosen by whoever trained the imported weights"
    return f"epoch chosen on {held} others ({record.chosen_by})" if held else "the last epoch, no validation images"


def _results(trained: Trained, images: Images, certificates: Certificates, loss: float) -> dict[str, Any]:
    bound = trained.bound
    linear = {name for name, part in trained.network.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    norms = {f"sanity_check/{part.name}-l2-norm": part.upper for part in bound.layers if part.name in linear}
    return {
        "accuracy": float((certificates.label == images.labels).double().mean()),
        "loss": loss,
        **norms,
        "sanity_check/layer-l-constant": float(bound.upper),
        "epoch": trained.record.kept_epoch,
        "finished": trained.record.finished,
        "level": certificates.level,
    }
