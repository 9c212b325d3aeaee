"""A run with `task: wasserstein`: it trains a critic and reports the certified distance.

The folder gets the files of `lconvnet.wasserstein.estimate`, model.safetensors (the baked critic) and results.yaml
with the original's keys: `loss` is minus the critic's mean difference, before the division by its constant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from lconvnet import atomic, gan, saving, wasserstein
from lconvnet.experiments.config import WassersteinExperiment
from lconvnet.experiments.robustness import ContradictionError
from lconvnet.experiments.run_folder import RunFolder, recorded
from lconvnet.experiments.session import training
from lconvnet.experiments.trained_on import begin_from
from lconvnet.models import DCGANGenerator
from lconvnet.tasks.images import generated
from lconvnet.training import is_first_process
from lconvnet.wasserstein import Estimate

ROUNDING = 1e-6  # relative, of exact transport in float64
UNSAMPLED = "are a critic's, and cannot be evaluated without the samples that it was trained between"


class Generated:
    """The images of a generator network as a sampler."""

    def __init__(self, generator: DCGANGenerator) -> None:
        self.generator = generator

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """`(count, C, H, W)` in [0, 1], from standard normal latent vectors."""
        return generated(self.generator, torch.randn(count, self.generator.latent, generator=generator))


def run(
    experiment: WassersteinExperiment,
    folder: RunFolder,
    *,
    weights: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Estimate:
    """Train the critic of an experiment in its folder, or continue, and write its certified estimate.

    The first weights are those of the run `weights`, if given. With `resume` a finished run returns its estimate again.
    Raises ValueError for errors that the user can correct, `lconvnet.training.Interrupted` after a checkpoint if asked
    to stop, and `Diverged`.
    """
    with training(experiment, folder, "estimate", weights=weights, resume=resume):
        real = experiment.data.load().images
        channels, height, width = map(int, real.shape[1:])
        critic = experiment.critic.build((channels, height, width), seed=experiment.seed)
        first = begin_from(weights, folder, experiment, {"critic": critic}) if weights else None
        folder.keep_config(experiment)
        found = wasserstein.estimate(
            real,
            distribution(experiment.generated),
            critic=critic,
            optimizer=experiment.optimizer,
            schedule=experiment.schedule,
            seed=experiment.seed,
            confidence=experiment.evaluation.confidence,
            held_out=experiment.evaluation.samples,
            directory=folder.path,
            resume=resume,
            progress=progress,
            origin=first,
            **dict(experiment.training),
        )
        if is_first_process():
            count = experiment.evaluation.transport
            _write(found, compare(found, count) if count else {}, folder, (channels, height, width), experiment)
    return found


def evaluate(experiment: WassersteinExperiment, folder: RunFolder, *, progress: bool = True) -> Estimate:
    """Measure and write the certified estimate of a folder's trained critic again.

    Raises ValueError if the training is unfinished, or if the critic was imported: its samples are not available.
    """
    folder.refuse_if_imported(UNSAMPLED)
    found = recorded(folder)  # training writes this file last
    if found is None or found.settings.get("steps", 0) < experiment.training.steps:
        raise folder.unfinished(f"of {experiment.training.steps} steps")
    return run(experiment, folder, resume=True, progress=progress)


def distribution(path: str) -> Generated | str:
    """Return an argument for `wasserstein.estimate`: for a generator's .safetensors its sampler, else the path."""
    return Generated(gan.load_generator(path)) if path.endswith(".safetensors") else path


def compare(found: Estimate, count: int) -> dict[str, Any]:
    """Return the exact transport between the first held-out samples of each side, and the critic's certified value on
    them.

    Raises `crosscheck.ContradictionError` if the value of the critic, which is 1-Lipschitz, is larger.
    """
    exact = wasserstein.transport(*(side[:count] for side in found.samples))
    high, low = (side[:count].mean() for side in found.values)
    certified = float(high - low)
    if certified > exact * (1 + ROUNDING):
        raise ContradictionError(
            f"the critic certifies a distance of {certified!r} between {count} samples of each side whose exact "
            f"transport is {exact!r}: its Lipschitz bound {found.lipschitz!r} is wrong; report this"
        )
    return {"transport": {"samples": count, "exact": exact, "certified": certified}}


def _write(
    found: Estimate,
    compared: dict[str, Any],
    folder: RunFolder,
    shape: tuple[int, int, int],
    experiment: WassersteinExperiment,
) -> None:
    notes = {"task": experiment.task, "units": found.units}
    folder.write_model(saving.encode(found.critic, bound=found.bound, input_shape=shape, notes=notes))
    text = yaml.safe_dump(results(found) | compared, sort_keys=False, allow_unicode=True, width=1000)
    if not folder.results.exists() or folder.results.read_text(encoding="utf-8") != text:
        atomic.write_text(folder.results, text)


def results(found: Estimate) -> dict[str, Any]:
    """Return the content of results.yaml: the original's keys, then ours.

    `distance` is the critic's mean difference over L, which estimates a lower bound. `distance_interval` is its
    confidence interval with its assumptions, `assumes`. `distance_guaranteed` is the interval for every number of
    samples. All are in `units`.
    """
    weighted = {name for name, part in found.critic.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    norms = {f"sanity_check/{part.name}-l2-norm": part.upper for part in found.bound.layers if part.name in weighted}
    return {
        "loss": -found.lower_bound * found.lipschitz,
        **norms,
        "sanity_check/layer-l-constant": float(found.lipschitz),
        "distance": found.lower_bound,
        "distance_interval": list(found.interval),
        "distance_guaranteed": found.guaranteed and list(found.guaranteed),
        "assumes": found.assumes,
        "confidence": found.confidence,
        "units": found.units,
        "training_distance": found.training,
        "held_out": list(found.held_out),
        "level": found.level,
        "finished": True,
    }
