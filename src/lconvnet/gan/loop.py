"""The training loop: critic steps, then one of the generator (Arjovsky et al. 2017, algorithm 1).

Everything that happens in a step follows from (seed, step) and the state in the checkpoint, so a run that was killed
and resumed is, bit for bit, the run that was not.
"""

from __future__ import annotations

import math
import time
from functools import partial

import torch

from lconvnet.gan.checkpoint import Progress
from lconvnet.gan.objective import generator_loss
from lconvnet.gan.record import Epoch
from lconvnet.gan.reporting import Display
from lconvnet.gan.state import Run, diverged, require_finite, save
from lconvnet.gan.streams import RealSamples, latents
from lconvnet.training.folder import interrupted
from lconvnet.training.interruption import Interruption
from lconvnet.training.randomness import derive_seed, generator, seed_global
from lconvnet.training.state import divergence


def train(run: Run, interruption: Interruption, display: Display) -> None:
    """Train from where `run` stands to the end. Raises `Interrupted` or `Diverged`."""
    while run.progress.epoch < run.plan.epochs:
        started, first = time.perf_counter(), run.progress.step
        _train_epoch(run, interruption, display)
        seconds = time.perf_counter() - started
        epoch = _finish_epoch(run)
        display.epoch(epoch)
        if run.folder:
            run.folder.log_timing({"epoch": epoch.epoch, "first_step": first, "seconds": round(seconds, 4)})
        if run.plan.on_epoch:
            run.plan.on_epoch(epoch)
        _stop_if(interruption, run)


def _train_epoch(run: Run, interruption: Interruption, display: Display) -> None:
    """The remaining generator steps of the current epoch."""
    progress, plan = run.progress, run.plan
    run.generator.train()
    run.critic.train()
    while progress.step < plan.steps_per_epoch:
        for turn in range(plan.critic_steps):
            _critic_step(run, run.step * plan.critic_steps + turn)
        _generator_step(run, run.step)
        progress.step += 1
        display.step(progress)
        if progress.step < plan.steps_per_epoch and (
            interruption.requested or progress.step % plan.checkpoint_every == 0
        ):
            save(run)
            _stop_if(interruption, run)


def _critic_step(run: Run, step: int) -> None:
    """One optimiser step of the critic on real batch number `step` and as many generated images."""
    plan, device = run.plan, next(run.generator.parameters()).device
    seed_global(derive_seed(plan.seed, "critic", 0, step), device)  # `train_gan` gives the caller's state back
    z = latents(run.generator, plan.batch_size, plan.seed, "critic-latents", step)
    real = RealSamples(run.images, plan.seed).sample(plan.batch_size, step).to(z)
    with torch.no_grad():
        fake = run.generator(z)
    run.critic_optimizer.zero_grad()
    with divergence(partial(require_finite, run)):
        loss, difference = plan.objective.critic_loss(
            run.critic, real, fake, generator(plan.seed, "interpolation", 0, step)
        )
    loss.backward()
    run.critic_optimizer.step()
    plan.objective.constrain_(run.critic)
    run.progress.critic_loss += _finite(run, loss, "the critic's loss")
    run.progress.difference += float(difference)


def _generator_step(run: Run, step: int) -> None:
    """One optimiser step of the generator; the critic only passes the gradient on."""
    plan, device = run.plan, next(run.generator.parameters()).device
    seed_global(derive_seed(plan.seed, "generator", 0, step), device)
    z = latents(run.generator, plan.batch_size, plan.seed, "generator-latents", step)
    run.generator_optimizer.zero_grad()
    run.critic.requires_grad_(False)
    try:
        with divergence(partial(require_finite, run)):
            loss = generator_loss(run.critic, run.generator(z))
        loss.backward()
    finally:
        run.critic.requires_grad_(True)
    run.generator_optimizer.step()
    run.progress.generator_loss += _finite(run, loss, "the generator's loss")


def _finite(run: Run, loss: torch.Tensor, what: str) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        require_finite(run)
        raise diverged(run, f"{what} is {value}")
    return value


def _finish_epoch(run: Run) -> Epoch:
    """Average, bound, record and save."""
    progress, plan = run.progress, run.plan
    turns = plan.steps_per_epoch * plan.critic_steps
    epoch = Epoch(
        epoch=progress.epoch + 1,
        step=(progress.epoch + 1) * plan.steps_per_epoch,
        critic_loss=progress.critic_loss / turns,
        generator_loss=progress.generator_loss / plan.steps_per_epoch,
        difference=progress.difference / turns,
        lipschitz=plan.objective.lipschitz(run.critic, run.generator.image_shape),
    )
    run.record = run.record.add(epoch)
    run.progress = Progress(epoch=epoch.epoch)
    save(run)
    return epoch


def _stop_if(interruption: Interruption, run: Run) -> None:
    if not interruption.requested:
        return
    done = f"{run.progress.epoch} epochs and {run.progress.step} steps"
    raise interrupted(interruption.requested, done, run.folder)
