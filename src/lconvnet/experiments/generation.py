"""What a run with `task: gan` does: train a generator on images, with the files of `lconvnet.gan.train_gan`."""

from __future__ import annotations

from pathlib import Path

import torch

from lconvnet import gan
from lconvnet.experiments.config import GanExperiment
from lconvnet.experiments.origin import begin_from
from lconvnet.experiments.run_folder import RunFolder, recorded
from lconvnet.experiments.session import training


def run(
    experiment: GanExperiment,
    folder: RunFolder,
    *,
    weights: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> gan.Record[gan.Epoch]:
    """Train the generator of an experiment in its folder, or go on with it, on the GPU if there is one.

    With `resume` a finished run returns its record again, whether it has as many epochs as asked for or more, and one
    that is asked for more goes on. The first weights are those of the run `weights`, if given. Raises ValueError
    for what the user can put right, `lconvnet.training.Interrupted` after a checkpoint when asked to stop, and
    `Diverged`.
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
    """Return the record of a finished training. Raises ValueError if it is not finished, or is of another one."""
    folder.keep_config(experiment)
    found = recorded(folder)
    done = len(found.epochs) if found else 0
    if found is None or done < experiment.training.epochs:
        raise folder.unfinished(f"{done} of {experiment.training.epochs} epochs")
    return found
