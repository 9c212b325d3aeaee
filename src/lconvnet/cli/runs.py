"""The commands `lconvnet train | evaluate`: arguments in, functions called, results shown.

Standard output carries results only, and with --json exactly one line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from lconvnet.cli import options, output
from lconvnet.experiments import estimation, execute, generation
from lconvnet.experiments.config import Experiment, GanExperiment, WassersteinExperiment
from lconvnet.experiments.loading import load_any
from lconvnet.experiments.other_data import evaluate_on
from lconvnet.experiments.run_folder import RunFolder, find_run
from lconvnet.gan import Record
from lconvnet.gan.reporting import summary
from lconvnet.gan.state import generator_path
from lconvnet.importing import adopt
from lconvnet.ops.rounding import decimal, rounded_down, rounded_up
from lconvnet.training.reporting import validated
from lconvnet.wasserstein import Estimate


def train_command(
    cfg: Path,
    weights: options.From = None,
    resume: options.Resume = False,
    test: Annotated[bool, typer.Option("--test", help="Evaluate the run afterwards.")] = False,
    no_attacks: options.NoAttacks = False,
    out: options.Out = None,
    data_dir: options.DataDir = None,
    changes: options.Set = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train the experiment CFG describes; checkpoints, record and model.safetensors go to its folder or to
    --out. With --from it starts from the weights of another run, such as one that is to be trained for longer."""
    given = options.overrides(changes, data_dir)
    train(cfg, given, out=out, weights=weights, resume=resume, as_json=as_json and not test, quiet=quiet)
    if test:
        place = options.overrides(None, data_dir)
        evaluate(RunFolder(out or cfg.parent), place, attacks=not no_attacks, as_json=as_json, quiet=quiet)


def evaluate_command(
    run: Path,
    other: options.OtherData = None,
    no_attacks: options.NoAttacks = False,
    data_dir: options.DataDir = None,
    changes: options.Set = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a trained run on the test images and write its results.yaml and examples.parquet; the same command goes
    on with an interrupted evaluation, and trains nothing. RUN may hold weights that others published (runs/baselines).
    With --data the images of another folder are measured, into a folder of their own below RUN.
    """
    given = options.overrides(changes, data_dir if other is None else None)
    adopt(run, given)
    folder = find_run(run)
    if other is None:
        evaluate(folder, given, attacks=not no_attacks, as_json=as_json, quiet=quiet)
    else:
        evaluate_other(folder, other, given, data_dir, attacks=not no_attacks, as_json=as_json, quiet=quiet)


def train(
    cfg: Path,
    changes: Sequence[str],
    *,
    out: Path | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
    weights: Path | None = None,
) -> None:
    """Train and say what came out."""
    output.configure_logging(quiet)
    experiment, folder = load_any(cfg, changes), RunFolder(out or cfg.parent)
    if isinstance(experiment, Experiment):
        found = execute.train(experiment, folder, source=cfg, weights=weights, resume=resume, progress=not quiet)
        show_trained(found, folder, as_json=as_json)
    else:
        train_critic(experiment, folder, weights=weights, resume=resume, as_json=as_json, quiet=quiet)


def train_critic(
    experiment: WassersteinExperiment | GanExperiment,
    folder: RunFolder,
    *,
    weights: Path | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a critic, or a generator against one, and say what came out; a finished run is told again."""
    if isinstance(experiment, GanExperiment):
        record = generation.run(experiment, folder, weights=weights, resume=resume, progress=not quiet)
        show_generator(record, folder, as_json=as_json)
    else:
        found = estimation.run(experiment, folder, weights=weights, resume=resume, progress=not quiet)
        show_estimate(found, folder, as_json=as_json)


def evaluate_critic(
    experiment: WassersteinExperiment | GanExperiment, folder: RunFolder, *, as_json: bool, quiet: bool
) -> None:
    """Measure what a trained critic certifies, or tell how a generator was trained; nothing is trained."""
    if isinstance(experiment, GanExperiment):
        show_generator(generation.told(experiment, folder), folder, as_json=as_json)
    else:
        show_estimate(estimation.evaluate(experiment, folder, progress=not quiet), folder, as_json=as_json)


def show_trained(trained: execute.Trained, folder: RunFolder, *, as_json: bool) -> None:
    """Say which epoch was kept, and what it achieves on the validation images."""
    best = trained.record.best
    certified = {str(eps): value for eps, value in best.certified.items()}
    output.PlainConsole(stderr=as_json).print(
        f"kept epoch {best.epoch} of {len(trained.record.epochs)} by {trained.record.chosen_by} ({validated(best)}); "
        f"Lipschitz bound {rounded_up(trained.bound.upper, 9)} ({trained.bound.level}); saved {trained.path}"
    )
    if as_json:
        validation = {"clean": best.clean, "certified": certified}
        facts = {"epoch": best.epoch, "chosen_by": trained.record.chosen_by, "validation": validation}
        note = trained.record.settings.get("from", {}).get("note")
        facts |= {"bound": trained.bound.upper, **({"note": note} if note else {})}
        output.show_json({**facts, "level": trained.bound.level, "model": str(trained.path), "run": str(folder.path)})


def show_estimate(found: Estimate, folder: RunFolder, *, as_json: bool) -> None:
    """Say what a critic certifies."""
    low, high = found.interval
    interval = f"at {decimal(found.confidence)} from {rounded_down(low, 4)} to {rounded_up(high, 4)}"
    output.PlainConsole(stderr=as_json).print(
        f"estimate {rounded_down(found.lower_bound, 4)} of a lower bound on the Wasserstein-1 distance ({interval}, "
        f"assuming {found.assumes}), {found.units}; "
        f"Lipschitz bound {rounded_up(found.lipschitz, 9)} ({found.level}); {folder.results}"
    )
    if as_json:
        facts = {"lower_bound": found.lower_bound, "interval": found.interval, "units": found.units}
        facts |= {"guaranteed": found.guaranteed, "assumes": found.assumes}
        output.show_json({**facts, "bound": found.lipschitz, "results": str(folder.results), "run": str(folder.path)})


def show_generator(record: Record, folder: RunFolder, *, as_json: bool) -> None:
    """Say how a generator's training ended."""
    last, path = record.epochs[-1], generator_path(folder.path)
    output.PlainConsole(stderr=as_json).print(
        f"{last.epoch} epochs, {last.step} steps of the generator ({summary(last)}); saved {path}"
    )
    if as_json:
        facts = {"epochs": last.epoch, "steps": last.step, "difference": last.difference, "bound": last.lipschitz}
        output.show_json({**facts, "generator": str(path), "run": str(folder.path)})


def evaluate(folder: RunFolder, changes: Sequence[str], *, attacks: bool, as_json: bool, quiet: bool) -> None:
    """Evaluate a classifier or a critic, or tell how a generator was trained."""
    output.configure_logging(quiet)
    experiment = load_any(folder.config, changes) if folder.is_configured else None
    if experiment is None or isinstance(experiment, Experiment):
        evaluate_classifier(folder, changes, attacks=attacks, as_json=as_json, quiet=quiet)
    else:
        evaluate_critic(experiment, folder, as_json=as_json, quiet=quiet)


def evaluate_classifier(
    folder: RunFolder, changes: Sequence[str], *, attacks: bool, as_json: bool, quiet: bool
) -> None:
    """Evaluate and show the table of results."""
    with output.evaluation_progress(quiet) as report:
        found = execute.evaluate(folder, changes, attacks=attacks, report=report)
    show_evaluated(found, as_json=as_json)


def evaluate_other(
    folder: RunFolder,
    name: str,
    changes: Sequence[str],
    data_dir: str | None,
    *,
    attacks: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Evaluate a classifier on images of another folder."""
    output.configure_logging(quiet)
    if folder.is_configured and not isinstance(load_any(folder.config), Experiment):
        raise ValueError(f"--data {name}: {folder.path} is not a classifier, so there are no accuracies to measure")
    with output.evaluation_progress(quiet) as report:
        found = evaluate_on(name, folder, changes, directory=data_dir, attacks=attacks, report=report)
    show_evaluated(found, as_json=as_json)


def show_evaluated(found: execute.Evaluated, *, as_json: bool) -> None:
    """Show what an evaluation found."""
    output.show_results(found.results, found.path, output.PlainConsole(stderr=as_json))
    if as_json:
        rows: Mapping[float, Mapping[str, float]] = found.results["adv_robustness"]
        certified = {str(eps): row["lb"] for eps, row in rows.items()}
        found_ub = {str(eps): {k: v for k, v in row.items() if "-ub" in k} for eps, row in rows.items()}
        attacked = {eps: row for eps, row in found_ub.items() if row}
        facts = {
            key: found.results[key] for key in ("loss", "epoch", "finished", "data", "note") if key in found.results
        }
        others = {section: found.results[section] for section in list(output.SECTIONS)[1:] if section in found.results}
        bound = {"bound": found.bound.upper, "level": found.certificates.level}
        clean = {"clean": found.results["accuracy"], "certified": certified}
        output.show_json({**clean, **bound, **facts, "attacks": attacked, **others, "results": str(found.path)})
