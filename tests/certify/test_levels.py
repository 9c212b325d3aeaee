"""What each level accounts for: in exact rationals, under attacks on the rounding, and at the speed of float32."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from lconvnet import bake, models
from lconvnet.bounds import lipschitz_bound
from lconvnet.certify import certified_accuracy, certify
from lconvnet.certify.certifier import _lowered, refuse_other_sums, runs_as_sums
from lconvnet.layers import MaxMin, Scale


def rational(tensor):
    """A tensor as nested lists of fractions."""
    return [rational(row) for row in tensor] if tensor.ndim else Fraction(float(tensor))


def affine(W, b, x):
    return [sum((w * v for w, v in zip(row, x, strict=True)), c) for row, c in zip(W, b, strict=True)]


def exact_logits(network, image):
    """Logits of a network of dense layers and MaxMin in rationals."""
    x = rational(image)
    for layer in network:
        if isinstance(layer, nn.Linear):
            x = affine(rational(layer.weight), rational(layer.bias), x)
        else:
            half = len(x) // 2
            pairs = list(zip(x[:half], x[half:], strict=True))
            x = [max(p) for p in pairs] + [min(p) for p in pairs]
    return x


def dense(*sizes, dtype=torch.float32):
    layers = [nn.Linear(a, b, dtype=dtype) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*[part for layer in layers for part in (layer, MaxMin())][:-1]).requires_grad_(False)


@pytest.mark.parametrize("level", ["analytic", "sound"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_radius_is_below_the_exact_one(level, dtype):
    """Linear networks, whose exact radius is rational up to a root: r^2 |w_i - w_j|^2 <= m^2 and close."""
    for _ in range(20):
        network, images = dense(6, 4, dtype=dtype), torch.rand(4, 6)
        found = certify(network, images, level=level)
        W = rational(network[0].weight)
        for n, image in enumerate(images):
            logits, label = exact_logits(network, image), int(found.label[n])
            assert logits[label] == max(logits)
            squares = [
                (logits[label] - logits[j]) ** 2 / sum((a - b) ** 2 for a, b in zip(W[label], W[j], strict=True))
                for j in range(4)
                if j != label
            ]
            assert Fraction(float(found.radius[n])) ** 2 <= min(squares)
            lost = math.sqrt(min(squares)) - float(found.radius[n])
            assert lost < (1e-5 if dtype == torch.float32 and level == "sound" else 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_margins_of_deep_networks_carry_the_radius(dtype):
    """m_exact - r Lambda >= what float networks may be off by, with Lambda from singular values: in fractions."""
    for _ in range(5):
        network, images = dense(6, 8, 8, 3, dtype=dtype), torch.rand(5, 6)
        for level in ("analytic", "sound"):
            found = certify(network, images, level=level)
            norms = [float(torch.linalg.matrix_norm(layer.weight.double(), 2)) for layer in network[::2]]
            for n, image in enumerate(images):
                logits, label = exact_logits(network, image), int(found.label[n])
                if not found.radius[n]:
                    continue
                margins = [logits[label] - logits[j] for j in range(3) if j != label]
                W = network[-1].weight.double()
                apart = [float((W[label] - W[j]).norm()) for j in range(3) if j != label]
                slopes = [min(math.sqrt(2) * math.prod(norms), a * math.prod(norms[:-1])) for a in apart]
                # norms from LAPACK are off by 1e-15 relatively; the bound's own slack (Gram iteration) is below 1e-3
                most = min(float(m) / s for m, s in zip(margins, slopes, strict=True))
                assert 0.999 * most - 1e-4 < found.radius[n] < most * (1 + 1e-14)


def test_levels_are_ordered_and_named():
    network, images = bake(models.small_convnet(1, 8, 3)), torch.rand(20, 1, 8, 8)
    found = {level: certify(network, images, level=level) for level in ("estimate", "analytic", "sound")}
    assert [one.level for one in found.values()] == ["estimate", "analytic", "sound"]
    assert bool((found["sound"].radius < found["analytic"].radius).all())
    # nearly orthogonal layers, whose norms both find; float32 costs about 128 * 2^-24 of |abs(W)| = 8 times the image
    torch.testing.assert_close(found["estimate"].radius, found["analytic"].radius, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["sound"].radius, found["analytic"].radius, rtol=0, atol=5e-3)
    assert bool((found["analytic"].label == found["sound"].label).all())
    with pytest.raises(ValueError, match="'estimate', which certifies nothing"):
        certified_accuracy(found["estimate"], found["estimate"].label, 0.1)


class Promoting(nn.Module):
    """Half float32, half float64."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.register_buffer("gain", torch.ones(2, dtype=torch.float64))

    def forward(self, x):
        return self.first(x) * self.gain


def test_unknown_levels_and_mixed_dtypes():
    network = dense(4, 2, 2)
    with pytest.raises(ValueError, match="level='certain' is unknown"):
        certify(network, torch.rand(1, 4), level="certain")
    with pytest.raises(ValueError, match="2 dtypes"):
        certify(Promoting().eval(), torch.rand(1, 2), level="sound")
    assert certify(Promoting().eval(), torch.rand(1, 2)).level == "analytic"
    network = bake(models.small_convnet(1, 8, 3))
    bound = lipschitz_bound(network, input_shape=(1, 8, 8), diagnose=False)
    with pytest.raises(ValueError, match="no lower bounds"):
        certify(network, torch.rand(1, 1, 8, 8), level="estimate", bound=bound)


def test_float64_networks_lose_next_to_nothing():
    network, images = bake(models.small_convnet(1, 8, 3)).double(), torch.rand(20, 1, 8, 8)
    analytic, sound = (certify(network, images, level=level) for level in ("analytic", "sound"))
    torch.testing.assert_close(sound.radius, analytic.radius, rtol=0, atol=1e-11)
    assert bool((sound.radius < analytic.radius).all())


def test_a_constant_beyond_the_range_of_float32_is_refused():
    """1e-44 keeps three bits in float32, and 1e39 is infinite there: both are exact enough in float64."""
    for factor in (1e-44, 1e39):
        network = nn.Sequential(nn.Linear(2, 2), Scale(factor)).requires_grad_(False)
        assert certify(network, torch.rand(1, 2)).radius.item() > 0
        with pytest.raises(ValueError, match="beyond the range"):
            certify(network, torch.rand(1, 2), level="sound")


@pytest.mark.parametrize("level", ["analytic", "sound"])
@pytest.mark.parametrize("exponent", [-498, -530, -540, -545, -565])
def test_weights_whose_squares_underflow(level, exponent):
    """W = s I: the exact radius is 0.5 / sqrt(2), whatever s."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False, dtype=torch.float64)).requires_grad_(False)
    network[0].weight.copy_(2.0**exponent * torch.eye(2, dtype=torch.float64))
    found = certify(network, torch.tensor([[1.0, 0.5]], dtype=torch.float64), level=level)
    assert 0.35 < float(found.radius) <= 0.5 / math.sqrt(2)


@pytest.mark.parametrize("role", ["weight", "bias"])
def test_subnormal_numbers_are_refused_where_hardware_may_flush_them(role):
    network = nn.Sequential(Scale(1e30), nn.Linear(2, 2)).requires_grad_(False)
    getattr(network[1], role).fill_(1e-39)
    images = torch.rand(1, 2)
    with pytest.raises(ValueError, match=rf"'1.{role}' holds subnormal numbers"):
        certify(network, images, level="sound")
    certify(network, images)


def test_a_subnormal_constant_is_refused():
    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("c", torch.full((2,), 1e-39))

        def forward(self, x):
            return x * self.c

    with pytest.raises(ValueError, match=r"'0.c' holds subnormal numbers"):
        certify(nn.Sequential(Times()).eval(), torch.rand(1, 2), level="sound")


def test_a_pixel_that_is_flushed_is_part_of_the_rounding():
    """1e-39 times 1e30 is 1e-9, or 0 where subnormal numbers are read as 0; the bias is half of that. The norm of
    an image counts such pixels, and every operation rounds relative to it."""
    network = nn.Sequential(Scale(1e30), nn.Linear(2, 2)).requires_grad_(False)
    network[1].weight.copy_(torch.eye(2))
    network[1].bias.copy_(torch.tensor([0.0, 5e-10]))
    image = torch.tensor([[1e-39, 0.0]])
    assert int(network(image).argmax()) == 0
    assert float(certify(network, image, level="sound").radius) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pixel_that_is_flushed_where_nothing_is_rounded(dtype):
    """The logits are the pixels: (0, tiny / 8) is answered by 1, and by 0 where subnormal numbers are read as 0."""
    network, tiny = nn.Sequential(nn.Flatten(), nn.ReLU()).eval(), torch.finfo(dtype).tiny
    for second, certified in ((tiny / 8, False), (8 * tiny, True)):
        image = torch.tensor([[0.0, second]], dtype=dtype)
        found = certify(network, image, level="sound")
        assert bool(found.radius > 0) is certified and int(found.label) == 1
        if torch.set_flush_denormal(True):
            try:
                assert bool(network(image).argmax() == 1) is certified
            finally:
                torch.set_flush_denormal(False)


def normalising(**values):
    """Two channels that are normalised, as logits."""
    norm = nn.BatchNorm1d(2).eval().requires_grad_(False)
    for name, value in values.items():
        getattr(norm, name).copy_(torch.tensor(value))
    return norm


def test_a_negative_variance_is_refused():
    with pytest.raises(ValueError, match=r"'0' \(BatchNorm1d\) has running_var=-9.99.*e-06, which is not a variance"):
        certify(nn.Sequential(normalising(running_var=[-1e-5 * (1 - 2**-10), 1.0])), torch.rand(1, 2))


def test_gains_beyond_the_range_are_refused():
    """alpha = 1e-30 / 1e17 is 0 in float32, and the network answers 1 where that in real arithmetic answers 0."""
    norm = normalising(weight=[1e-30, 0.0], running_var=[1e34, 1e34], bias=[0.0, 5e-11])
    images = torch.tensor([[1.0, 0.0]])
    with pytest.raises(ValueError, match=r"'1' has the gain 1\..*e-47, beyond the range of its dtype"):
        certify(nn.Sequential(Scale(1e37), norm), images, level="sound")
    for name, value in (("weight", 2e38), ("running_var", 2e38)):
        with pytest.raises(ValueError, match="beyond the range of its dtype"):
            certify(nn.Sequential(normalising(**{name: [value, value]})), images, level="sound")


def test_variances_of_dead_channels_do_no_harm():
    """They decay towards 0 through the subnormal numbers, beside an eps."""
    network = nn.Sequential(normalising(running_var=[1e-40, 0.0]))
    assert float(certify(network, torch.tensor([[1.0, 0.5]]), level="sound").radius) > 0.3
    network[0].eps = 0.0
    network[0].running_var.copy_(torch.tensor([1e-40, 1.0]))
    with pytest.raises(ValueError, match="'0.running_var' holds subnormal"):
        certify(network, torch.tensor([[1.0, 0.5]]), level="sound")


def test_a_window_whose_sum_overflows_is_not_certified():
    """256 entries of 1e37 overflow in float32, although the average divides by more than that."""
    pool = nn.AvgPool2d(16, divisor_override=2**60)
    network = nn.Sequential(Scale(1e37), pool, nn.Flatten(), nn.Linear(1, 2)).requires_grad_(False)
    network[3].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    network[3].bias.copy_(torch.tensor([0.0, 6e21]))
    images = torch.ones(1, 1, 16, 16)
    assert not network(images).isfinite().all()
    assert float(certify(network, images, level="sound").radius) == 0


def test_an_inverse_beyond_the_range_is_refused():
    class Divided(nn.Module):
        def forward(self, x):
            return x / 1.2e38

    class DividedByTensor(nn.Module):
        """On a GPU torch multiplies by the inverse of a number on the CPU."""

        def __init__(self):
            super().__init__()
            self.register_buffer("c", torch.tensor(1.2e38))

        def forward(self, x):
            return x / self.c

    for kind in (Divided, DividedByTensor):
        with pytest.raises(ValueError, match="the inverse constant 8.3.*e-39, beyond the range"):
            certify(nn.Sequential(kind()).eval(), torch.rand(1, 2), level="sound")


def test_images_that_overflow_are_not_certified():
    """Hidden values up to half of the largest float32: beyond, float32 may overflow, real numbers never do."""
    network = nn.Sequential(*dense(2, 2, 2)).requires_grad_(False)
    for factor, largest in ((1e30, math.inf), (1.5e38, 2.0**127 / 1.5e38), (3e38, 0.0)):
        network[0].weight.copy_(torch.eye(2) * factor)
        network[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]) / 1e30)
        for layer in (network[0], network[2]):
            layer.bias.zero_()
        image = torch.tensor([[1.0, 0.125]])
        found = certify(network, image, level="sound").radius.item()
        assert (found > 0) is (largest > 0)
        assert found + float(image.norm()) < largest or not found
        assert certify(network, image, level="analytic").radius.item() > 0.4


@pytest.mark.parametrize("level", ["analytic", "sound"])
def test_decisions_at_eps_are_those_of_float64(level):
    """Float32 decides most images, float64 the rest; radii stay below those of float64."""
    network, images = bake(models.small_convnet(1, 8, 10)), torch.rand(300, 1, 8, 8)
    whole = certify(network, images, level=level)
    ordered = whole.radius.sort().values
    for place in (30, 150, 270):  # between two radii: a batch of others changes the last digits of float64
        value = float(ordered[place : place + 2].mean())
        quick = certify(network, images, level=level, eps=(value,))
        assert bool(((quick.radius > value) == (whole.radius > value)).all())
        assert bool((quick.radius <= whole.radius * (1 + 1e-9)).all())
        assert bool((quick.label == whole.label).all())
        assert float((quick.radius < whole.radius * (1 - 1e-9)).double().mean()) > 0.5, "float32 had no part in it"
    torch.testing.assert_close(quick.radius, whole.radius, rtol=0, atol=1e-2)


def test_float32_decides_nothing_where_its_sums_are_not_known():
    """With reduced precision switched on, or images that float32 cannot hold, float64 evaluates everything."""
    network, images = bake(models.small_convnet(1, 8, 3)), torch.rand(20, 1, 8, 8)
    whole = certify(network, images)
    quick = certify(network, images, eps=(0.1,))
    assert bool((quick.radius != whole.radius).any())
    doubles = torch.rand(20, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(
        certify(network, doubles, eps=(0.1,)).radius, certify(network, doubles).radius, rtol=0, atol=0
    )
    torch.set_float32_matmul_precision("medium")
    try:
        torch.testing.assert_close(certify(network, images, eps=(0.1,)).radius, whole.radius, rtol=0, atol=0)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
def test_float32_decides_nothing_where_the_environment_lowers_its_precision(monkeypatch, name):
    """oneDNN may then multiply float32 in bfloat16, where the processor can: ``attr-fpmath:bf16`` in its log."""
    network, images = bake(models.small_convnet(1, 8, 3)), torch.rand(20, 1, 8, 8)
    whole = certify(network, images).radius
    for value, exact in (("STRICT", False), ("BF16", True), ("any", True)):
        monkeypatch.setenv(name, value)
        assert bool((certify(network, images, eps=(0.1,)).radius == whole).all()) is exact


def cancelling(offset: float) -> nn.Sequential:
    """``(y, x)``; in float32 both are rounded to multiples of the spacing at ``offset`` on the way."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    network[0].weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    network[0].bias.fill_(offset)
    network[1].weight.copy_(torch.eye(2))
    network[1].bias.fill_(-offset)
    return network


def attacked(network, images, found, generator) -> torch.Tensor:
    """Whether a perturbation of norm below the radius, measured in float64, makes float32 answer otherwise: towards the
    boundary, as far as the radius goes, in as many random roundings."""
    toward = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)[found.label] / math.sqrt(2)
    toward = -toward.flip(1)  # label 0 is y: lower y, raise x
    length = found.radius[:, None] * (1 - torch.rand(len(images), 1, generator=generator, dtype=torch.float64) ** 8)
    other = (images.double() + length * toward + 1e-9 * torch.randn(images.shape, generator=generator)).float()
    inside = (other.double() - images.double()).norm(dim=1) < found.radius
    return inside & (network(other).argmax(dim=1) != found.label)


def tries(offset, level, count, generator):
    """Attack random images near the boundary; returns successes and attacks."""
    network = cancelling(offset)
    first = torch.rand(count, 1, generator=generator)
    gap = (torch.rand(count, 1, generator=generator) - 0.5) * 64 * offset * 2.0**-23
    images = torch.cat([first, (first + gap).clamp(0, 1)], dim=1)
    found = certify(network, images, level=level)
    found = replace(found, label=network(images).argmax(dim=1))
    return attacked(network, images, found, generator), found.radius > 0


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_rounding_attacks_break_estimates_and_nothing_sound(count):
    generator = torch.Generator().manual_seed(0)
    for offset in (16.0, 1024.0, 65536.0):
        broken, _ = tries(offset, "estimate", count, generator)
        assert int(broken.sum()) > count / 100
        broken, positive = tries(offset, "sound", count, generator)
        assert int(broken.sum()) == 0
        assert int(positive.sum()) > count / 4  # there was something to attack


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_attacks_just_below_the_sound_radius_of_a_network_never_succeed(count):
    """Along the gradient of the closest pair, by 1 - 2^-20 of the radius: the float32 answer stays."""
    torch.manual_seed(0)
    network, images = bake(models.small_convnet(1, 8, 3)), torch.rand(count, 1, 8, 8)
    found = certify(network, images, level="sound")
    x = images.clone().requires_grad_()
    top = network(x).topk(2).values
    (gradient,) = torch.autograd.grad((top[:, 1] - top[:, 0]).sum(), x)
    direction = gradient.double().flatten(1)
    step = found.radius[:, None] * (1 - 2.0**-20) * direction / direction.norm(dim=1, keepdim=True)
    other = (images.double() + step.reshape(images.shape)).float()
    inside = (other.double() - images.double()).flatten(1).norm(dim=1) < found.radius
    assert int(inside.sum()) > count / 2
    assert bool((network(other).argmax(dim=1) == found.label)[inside].all())


class Buffers(nn.Module):
    """A network whose numbers are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(2, 2, device="meta"))


@pytest.mark.parametrize("network", [nn.Linear(2, 2, device="meta"), Buffers()], ids=["parameters", "buffers"])
def test_sums_of_an_unknown_accelerator_are_not_taken_for_plain_ones(network):
    """The meta device stands for one: nothing is computed. Float64 is never rounded to less."""
    with pytest.raises(ValueError, match="float32 on 'meta'.*something else than the device 'meta'"):
        refuse_other_sums(network)
    assert not runs_as_sums(network)
    refuse_other_sums(network.double())


@pytest.mark.parametrize("lowered", ["torch.backends.cudnn.enabled = True", "precision"])
def test_what_cuda_must_not_be_allowed(lowered, monkeypatch):
    """cuDNN is on by default; products of less than float32 are off."""
    monkeypatch.setattr(torch.backends.cudnn, "enabled", lowered != "precision")
    torch.set_float32_matmul_precision("high" if lowered == "precision" else "highest")
    try:
        (found,) = _lowered("cuda")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert lowered in found
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    assert not _lowered("cuda")


def test_sound_wants_plain_sums_on_a_cpu_too(monkeypatch):
    network, images = bake(models.small_convnet(1, 8, 3)), torch.rand(20, 1, 8, 8)
    claims = [certify(network, images, level="sound"), certify(network, images)]
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    with pytest.raises(ValueError, match="float32 on 'cpu'.*ONEDNN_DEFAULT_FPMATH_MODE = 'bf16'"):
        certify(network, images, level="sound")
    assert torch.equal(certify(network, images).radius, claims[1].radius)
    doubles = certify(network.double(), images.double(), level="sound")
    assert torch.equal(doubles.label, claims[0].label)
