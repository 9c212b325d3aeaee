"""What the three objectives compute, against independent computations, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import nn

from lconvnet import bake, gan, models
from lconvnet.layers import BCOPConv2d, CholeskyLinear, MaxMin
from lconvnet.tasks.objectives import difference, gradient_penalty
from tests.gan import tiny


def smooth_critic() -> nn.Sequential:
    """Twice differentiable everywhere, so that finite differences converge."""
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.Flatten(), nn.Linear(12, 1)).double()


def test_the_gradient_penalty_by_finite_differences_of_the_critic() -> None:
    critic, images, step = smooth_critic(), torch.rand(3, 1, 4, 4, dtype=torch.float64), 1e-5
    expected = 0.0
    with torch.no_grad():
        for image in images:
            square = 0.0
            for place in range(16):
                move = torch.zeros(16, dtype=torch.float64)
                move[place] = step
                both = torch.stack([image + move.view(1, 4, 4), image - move.view(1, 4, 4)])
                square += float((critic(both)[0] - critic(both)[1]) / (2 * step)) ** 2
            expected += (math.sqrt(square) - 1) ** 2 / 3
    # Truncation step^2 and cancellation eps / step, both below 1e-9 of values around 1.
    assert gradient_penalty(critic, images).item() == pytest.approx(expected, abs=1e-8)


def test_the_gradient_of_the_penalty_by_finite_differences_of_the_weights() -> None:
    critic, images, step = smooth_critic(), torch.rand(3, 1, 4, 4, dtype=torch.float64), 1e-6
    gradient_penalty(critic, images).backward()
    weight = critic[0].weight
    for index in [(0, 0, 0, 0), (2, 0, 1, 2)]:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[index] += sign * step
            values.append(gradient_penalty(critic, images).item())
            with torch.no_grad():
                weight[index] -= sign * step
        assert weight.grad is not None
        assert weight.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-8)


def test_wgan_gp_of_a_linear_critic_in_closed_form() -> None:
    """f(x) = <w, x> + b: the penalty is (|w| - 1)^2 wherever it is taken, the difference <w, mean - mean>."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).double()
    real, fake = torch.rand(2, 5, 1, 4, 4, dtype=torch.float64)
    loss, value = gan.GradientPenalty(weight=7.0).critic_loss(critic, real, fake, torch.Generator())
    w = critic[1].weight.detach().flatten()
    expected = float(w @ (real.flatten(1).mean(0) - fake.flatten(1).mean(0)))
    assert value.item() == pytest.approx(expected, abs=1e-14)
    assert loss.item() == pytest.approx(7 * (float(w.norm()) - 1) ** 2 - expected, abs=1e-13)
    loss.backward()
    slope = 14 * (float(w.norm()) - 1) * w / w.norm() - (real.flatten(1).mean(0) - fake.flatten(1).mean(0))
    assert torch.allclose(critic[1].weight.grad.flatten(), slope, atol=1e-13)


def test_the_penalty_is_taken_between_real_and_generated_images() -> None:
    """f(x) = |x|^2 / 2 has gradient x: the penalty shows where it was taken, each image at its own share."""

    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).square().sum(1) / 2

    real, fake = torch.ones(6, 1, 1, 1).double() * 3, torch.ones(6, 1, 1, 1).double() * 5
    loss, value = gan.GradientPenalty(weight=1.0).critic_loss(Square(), real, fake, torch.Generator().manual_seed(3))
    share = torch.rand(6, 1, 1, 1, generator=torch.Generator().manual_seed(3)).double()
    assert len(share.unique()) == 6
    expected = sum((e * 3 + (1 - e) * 5 - 1) ** 2 for e in share.flatten().tolist()) / 6
    assert (loss + value).item() == pytest.approx(expected, rel=1e-12)


def test_the_difference_is_one_of_plain_means() -> None:
    critic, real, fake = tiny.plain_critic(), torch.rand(4, *tiny.SHAPE), torch.rand(6, *tiny.SHAPE)
    apart = critic(real).mean().item() - critic(fake).mean().item()
    assert difference(critic, real, fake).item() == pytest.approx(apart, abs=1e-6)  # float32 means
    for objective in (gan.WeightClipping(), gan.LipschitzCritic()):
        loss, value = objective.critic_loss(critic, real, fake, torch.Generator())
        assert loss.item() == -value.item() == pytest.approx(-apart, abs=1e-6)


@pytest.mark.parametrize("bound", [0.01, 0.003])
def test_clipping_keeps_every_weight_in_range_and_reaches_it(bound: float) -> None:
    critic = tiny.plain_critic()
    tiny.train("clipping", objective=gan.WeightClipping(bound), critic=critic)
    largest = {name: parameter.abs().max().item() for name, parameter in critic.named_parameters()}
    limit = float(torch.tensor(bound))  # in float32
    assert max(largest.values()) == limit
    assert all(value <= limit for value in largest.values())


@pytest.mark.slow
def test_the_value_of_a_lipschitz_critic_is_below_its_certificate_times_the_exact_transport() -> None:
    images = tiny.digits()
    generator, critic = tiny.generator(), models.dcgan_critic(1, 32)
    record = tiny.train("lipschitz", images=images, generator=generator, critic=critic, steps_per_epoch=6)
    real = gan.RealSamples(images, 0).sample(48, 0)
    fake = gan.GeneratedSamples(generator, 0).sample(48, 0)
    cost = cdist(real.flatten(1).double().numpy(), fake.flatten(1).double().numpy())
    transport = cost[linear_sum_assignment(cost)].mean()
    network = bake(critic)
    value = difference(network.double(), real.double(), fake.double()).item()
    bound = record.epochs[-1].lipschitz
    assert bound is not None and 1 - 1e-6 <= bound <= 1 + 1e-5  # orthogonal layers, in float32
    assert bound == gan.LipschitzCritic().lipschitz(critic, tiny.SHAPE)
    # Any 1-Lipschitz function is below; a dozen steps already find a good part of it.
    assert 0.2 * transport < value <= bound * transport
    assert value == pytest.approx(float(np.mean(network(real.double()).numpy()) - network(fake.double()).mean()))


def test_projected_kernels_are_projected_after_every_step() -> None:
    critic = tiny.lipschitz_critic()
    with torch.no_grad():
        for parameter in critic[2].kernel.parameters():
            parameter.mul_(5)
    before = gan.LipschitzCritic().lipschitz(critic, tiny.SHAPE)
    gan.LipschitzCritic().constrain_(critic)
    after = gan.LipschitzCritic().lipschitz(critic, tiny.SHAPE)
    assert after < 0.5 * before


class Strange(nn.Module):
    """A critic that returns what it is told to."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape, self.w = shape, nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w * x.new_ones(len(x), *self.shape)


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(128, 1))


def frozen() -> nn.Module:
    critic = tiny.plain_critic()
    next(critic.parameters()).requires_grad_(False)
    return critic


class Once(torch.autograd.Function):
    """The identity, differentiable once."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad.clone()


class OnceModule(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Once.apply(x)


@pytest.mark.parametrize(
    ("objective", "critic", "message"),
    [
        (
            gan.WeightClipping(),
            tiny.lipschitz_critic,
            r"has a LipschitzConv2d \('0'\).*constrained already: weight clip",
        ),
        (
            gan.GradientPenalty(),
            lambda: nn.Sequential(*tiny.plain_critic(), OnceModule()),
            "cannot be differentiated twice, which a gradient penalty needs",
        ),
        (gan.LipschitzCritic(), tiny.plain_critic, r"unconstrained parameter 'conv1\.weight': build it of this"),
        (
            gan.LipschitzCritic(),
            lambda: nn.Sequential(BCOPConv2d(1, 2, 4, 4), MaxMin(), nn.Flatten(), nn.Linear(128, 1)),
            r"unconstrained parameter '3\.weight'",
        ),
        (
            gan.LipschitzCritic(),
            lambda: nn.Sequential(nn.Softshrink(), nn.Flatten(), CholeskyLinear(1024, 1)),
            "Softshrink",
        ),
        (gan.GradientPenalty(), normalised, r"BatchNorm2d \('1'\), which mixes the images of a batch"),
        (gan.WeightClipping(), normalised, r"BatchNorm2d \('1'\), which mixes the images of a batch"),
        (gan.WeightClipping(), lambda: Strange(3), r"outputs of shape \(2, 3\) for two images: one value"),
        (gan.WeightClipping(), lambda: nn.Sequential(nn.Conv2d(3, 1, 32), nn.Flatten()), "cannot take images of shape"),
        (gan.WeightClipping(), nn.Identity, "critic has parameters that are frozen, or none"),
        (gan.WeightClipping(), frozen, "critic has parameters that are frozen, or none"),
    ],
)
def test_critics_that_do_not_fit_are_refused(objective, critic, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.train(objective=objective, critic=critic())


def test_constrained_layers_may_be_penalised() -> None:
    critic = nn.Sequential(BCOPConv2d(1, 4, 4, 4), MaxMin(), nn.Flatten(), CholeskyLinear(256, 1))
    assert len(tiny.train(objective=gan.GradientPenalty(), critic=critic).epochs) == 2


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_bad_constants_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"bound=.*: must be positive and finite; 0\.01 in the paper"):
        gan.WeightClipping(value)
    with pytest.raises(ValueError, match=r"weight=.*: must be positive and finite; 10 in the paper"):
        gan.GradientPenalty(value)


def test_the_published_optimisers() -> None:
    parameters = [nn.Parameter(torch.zeros(1))]
    adam, rmsprop = gan.GradientPenalty().optimizer(parameters), gan.WeightClipping().optimizer(parameters)
    assert isinstance(adam, torch.optim.Adam) and isinstance(rmsprop, torch.optim.RMSprop)
    assert (adam.defaults["lr"], adam.defaults["betas"], rmsprop.defaults["lr"]) == (1e-4, (0.0, 0.9), 5e-5)
