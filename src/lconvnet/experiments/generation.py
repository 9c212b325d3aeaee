"""What a run with `task: gan` does: train a generator on images, with the files of `lconvnet.gan.train_gan`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lconvnet import gan
from lconvnet.experiments.config import GanExperiment
from lconvnet.experiments.origin import begin_from, require_source
from lconvnet.experiments.run_folder import RunFolder
from lconvnet.experiments.session import session

OUTSIDE = {"data": {"directory"}, "training": {"epochs", "checkpoint_every"}}


def run(
    experiment: GanExperiment,
    folder: RunFolder,
    *,
    weights: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> gan.Record:
    """Train the generator of an experiment in its folder, or go on with it, on the GPU where there is one.

    With `resume` a finished run returns its record again, whether it has as many epochs as asked for or more, and one
    that is asked for more goes on. The first weights are those of the run `weights`, if given. Raises ValueError
    for what the user can put right, `lconvnet.training.Interrupted` after a checkpoint when asked to stop, and
    `Diverged`.
    """
    if not resume:
        _refuse_more(experiment, folder)
        folder.refuse_if_used()
    require_source(weights, folder)
    training = experiment.training.model_dump()
    training["epochs"] = max(training["epochs"], _done(folder))
    with session(folder, "train"):
        images = experiment.data.load()
        shape = (int(images.images.shape[1]), int(images.images.shape[2]), int(images.images.shape[3]))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = experiment.generator.build(shape, seed=experiment.seed).to(device)
        critic = experiment.critic.build(shape, seed=experiment.seed).to(device)
        networks = {"generator": generator, "critic": critic}
        first = begin_from(weights, folder, experiment, networks) if weights else None
        folder.state_config(experiment, OUTSIDE)
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
            **training,
        )


def told(experiment: GanExperiment, folder: RunFolder) -> gan.Record:
    """Return the record of a finished training. Raises ValueError where it is not finished, or is of another one."""
    folder.state_config(experiment, OUTSIDE)
    found = recorded(folder)
    if found is None or len(found.epochs) < experiment.training.epochs:
        raise folder.unfinished(f"{_done(folder)} of {experiment.training.epochs} epochs")
    return found


def recorded(folder: RunFolder) -> gan.Record | None:
    """Return the record of a generator's training, None where the folder holds none."""
    try:
        return gan.Record.from_dict(json.loads((folder.path / "record.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _refuse_more(experiment: GanExperiment, folder: RunFolder) -> None:
    """Raise ValueError, with both ways, where a run that has epochs is asked for more without `resume`."""
    asked, done = experiment.training.epochs, _done(folder)
    if 0 < done < asked:
        raise ValueError(
            f"training.epochs is {asked}, and {folder.path} has done {done}; go on with it (--resume), or start a new "
            f"run from its weights: lconvnet train CFG --from {folder.path} --out NEW --set training.epochs=..."
        )


def _done(folder: RunFolder) -> int:
    found = recorded(folder)
    return len(found.epochs) if found else 0
