"""What changes on a GPU: the engines, the waiting of the host, the arithmetic, and the device of certificates.

``LCONVNET_DEVICE=cpu`` runs on the CPU what needs no CUDA, to try the tests themselves.
"""

import copy
import math
import os
from contextlib import contextmanager
from functools import partial

import pytest
import torch

import lconvnet as lc
from benchmarks.steps import captured, training_step
from lconvnet import kernels, layers, models
from lconvnet.losses import Hinge, OffsetCrossEntropy
from lconvnet.ops.fourier import circular_singular_values
from lconvnet.ops.orthogonalize import orthogonal_linear, orthogonalize, polar_eigh
from lconvnet.ops.polynomials import bjorck, polar_express, residual
from lconvnet.ops.whitening import cholesky
from lconvnet.tasks.estimates import critic_values, difference

DEVICE = torch.device(os.environ.get("LCONVNET_DEVICE", "cuda"))
pytestmark = [
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]
only_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="only CUDA has it")

ENGINES = {
    "default": None,
    "polar_eigh": polar_eigh,
    "polar_express": polar_express,
    "cholesky": cholesky,
    "bjorck": partial(bjorck, order=1, iterations=30),
}
SIDE = 8
DENSE = {
    **{name: partial(kernels.Orthogonal, engine=engine) for name, engine in ENGINES.items()},
    "spectral_norm": kernels.SpectralNorm,
    "l2ne": kernels.L2NE,
}
CONVS = {
    "bcop": kernels.BCOP,
    "rko": kernels.RKO,
    "ossn": kernels.OSSN,
    "svcm": partial(kernels.SVCM, passes=5),
    "rkl2ne": kernels.RKL2NE,
}
# A float32 sum of some hundred products is off by 1e-6, an orthogonalisation by that times a condition number of ten;
# in float64 round-off is 2^29 times less.
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-11}


def set_tf32(allowed: bool) -> None:
    """Whether matrix products and convolutions of float32 may be rounded to ten bits."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.fixture(autouse=True)
def _float32_is_float32():
    convolutions = torch.backends.cudnn.allow_tf32
    products = torch.get_float32_matmul_precision()
    set_tf32(False)
    yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def without_waiting():
    """An error for everything that makes the host wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def moved_from_start(module, amount=0.2):
    """Free parameters away from the orthogonal ones that they start with: condition numbers of about five."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += amount * parameter.std(correction=0) * torch.randn_like(parameter)
    return module


def relative(found, expected):
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())


# ---------------------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (160, 200)], ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_dense_weights_are_those_of_the_cpu(name, shape, dtype):
    kernel = moved_from_start(DENSE[name](*shape))
    there, exact = copy.deepcopy(kernel).to(DEVICE, dtype), copy.deepcopy(kernel).double()
    W = there()
    assert W.device.type == DEVICE.type and W.dtype == dtype
    assert relative(W, exact()) < CLOSE[dtype]
    if isinstance(kernel, kernels.Orthogonal):
        assert float(residual(W.detach())) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("channels", [(3, 8), (16, 5), (140, 12)], ids=str)
@pytest.mark.parametrize("name", CONVS)
def test_convolution_weights_are_those_of_the_cpu(name, channels, dtype):
    kernel = moved_from_start(CONVS[name](*channels, 3, input_size=(SIDE, SIDE)))
    there, exact = copy.deepcopy(kernel).to(DEVICE, dtype), copy.deepcopy(kernel).double()
    K = there()
    assert K.device.type == DEVICE.type and K.dtype == dtype
    assert relative(K, exact()) < CLOSE[dtype]
    if name == "bcop":
        values = circular_singular_values(K.detach().cpu(), (SIDE, SIDE))
        assert float((values - 1).abs().max()) < CLOSE[dtype]
    if name == "rko":
        assert float(residual(3 * K.detach().flatten(1))) < CLOSE[dtype]


@pytest.mark.parametrize("engine", ["default", "polar_eigh", "cholesky"])
@pytest.mark.parametrize("shape", [(64, 200), (200, 64)], ids=str)
def test_a_dense_factor_is_applied_as_it_is_formed(engine, shape):
    W = moved_from_start(kernels.Orthogonal(shape[1], shape[0])).V.detach()
    x = torch.randn(32, shape[1])
    exact = x.double() @ orthogonalize(W.double(), ENGINES[engine]).mT
    found = orthogonal_linear(x.to(DEVICE), W.to(DEVICE), engine=ENGINES[engine])
    assert relative(found, exact) < CLOSE[torch.float32]


@only_cuda
def test_what_is_not_finite_is_nan_and_stops_nobody():
    with without_waiting():
        found = cholesky(torch.full((4, 8), math.nan, device=DEVICE))
    assert bool(found.isnan().any())


@only_cuda
@pytest.mark.parametrize("engine", ENGINES)
def test_singular_matrices_of_any_scale_are_finite(engine):
    """Zeros, rank 1 and two equal rows; `polar_eigh` waits for the host by itself."""
    twice = torch.randn(6, 9)
    twice[1] = twice[0]
    for W in (torch.zeros(6, 9), torch.randn(6, 1) @ torch.randn(1, 9), twice, 1e30 * twice, 1e-30 * twice):
        leaf = W.to(DEVICE).requires_grad_()
        U = orthogonalize(leaf, ENGINES[engine])
        (U * torch.linspace(-1, 1, 54, device=DEVICE).view(6, 9)).sum().backward()
        assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
        assert float(torch.linalg.matrix_norm(U.detach().double(), 2)) <= 1 + 1e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_baked_is_what_was_trained_near_singular_matrices(engine):
    """Engines lose a vanishing direction each in its own way."""
    U, s, Vh = torch.linalg.svd(torch.randn(48, 48))
    for smallest in (1e-2, 1e-3, 1e-4):
        layer = layers.LipschitzLinear(48, 48, kernel=partial(kernels.Orthogonal, engine=ENGINES[engine]))
        s[-1] = smallest * s[0]
        layer.kernel.V.data = (U * s) @ Vh
        x = torch.nn.functional.normalize(torch.randn(64, 48), dim=1).to(DEVICE)
        # what float32 makes of a Gram matrix near singular, in the vanishing direction
        assert (layer.to(DEVICE)(x) - lc.bake(layer)(x)).norm(dim=1).max() < 2e-2
        assert (layer.weight - lc.bake(layer).weight).norm() < 2e-2


@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (2, 1), (4, 2)])
def test_layers_and_their_gradients_are_those_of_the_cpu(kernel_size, stride, padding_mode):
    layer = layers.BCOPConv2d(4, 6, kernel_size, stride, padding_mode=padding_mode).double()
    there = copy.deepcopy(layer).to(DEVICE)
    results = []
    for module in (layer, there):
        x = torch.linspace(0, 1, 2 * 4 * SIDE**2, dtype=torch.float64).reshape(2, 4, SIDE, SIDE)
        x = x.to(next(module.parameters()).device).requires_grad_()
        y = module(x)
        y.square().sin().sum().backward()
        results.append([y, x.grad, *(p.grad for p in module.parameters())])
    assert all(relative(b, a) < CLOSE[torch.float64] for a, b in zip(*results, strict=True))


# ------------------------------------------------------------------------------------------------------------- steps

LINEARS = {"orthogonal": layers.OrthogonalLinear, "cholesky": layers.CholeskyLinear}
CONV_LAYERS = {
    "bcop": layers.BCOPConv2d,
    "bcop-fixed": layers.FixedBCOPConv2d,
    "rko": layers.RKOConv2d,
    "rkl2ne": layers.RKL2NEConv2d,
    "ossn": layers.OSSNConv2d,
    "svcm": layers.SVCMConv2d,
}
NETWORKS = {
    **{
        f"mlp-{name}": lambda part=part: models.mlp(3 * 256, 4, (64, 64), linear=part) for name, part in LINEARS.items()
    },
    **{
        f"small-{name}": lambda part=part: models.small_convnet(3, 16, 4, linear=part) for name, part in LINEARS.items()
    },
    **{
        f"large-{name}": lambda part=part: models.large_convnet(3, 16, 4, linear=part) for name, part in LINEARS.items()
    },
    **{
        f"critic-{name}": lambda part=part: models.dcgan_critic(3, 32, width=8, linear=part)
        for name, part in LINEARS.items()
    },
    **{name: lambda conv=conv: models.small_convnet(3, 16, 4, conv=conv) for name, conv in CONV_LAYERS.items()},
    "spectral-norm": partial(models.mlp, 3 * 16**2, 4, (64,), linear=layers.SpectralNormLinear),
    "qw": partial(models.qw_convnet, 3, 16, 4, (4, 8), 6),
}
LOSSES = {"hinge": Hinge(eps=1.0), "offset": OffsetCrossEntropy(eps=1.0)}


def images_for(name, count=16, dtype=torch.float32):
    side = 32 if name.startswith("critic") else 16
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, side, side, generator=generator, dtype=dtype)
    return images, torch.randint(4, (count,), generator=generator)


def loss_of(name, loss=LOSSES["offset"]):
    """The loss of a network of that name as a function of network, images and labels."""
    if not name.startswith("critic"):
        return lambda model, images, labels: loss(model(images), labels)

    def critic_loss(model, images, labels):
        values = critic_values(model, images)
        return -difference(values[: len(values) // 2], values[len(values) // 2 :])

    return critic_loss


def gradients(model, name, device, dtype):
    model = copy.deepcopy(model).to(device, dtype)
    images, labels = images_for(name)
    loss = loss_of(name)(model, images.to(device, dtype), labels.to(device))
    loss.backward()
    return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_the_cpu(name):
    model = moved_from_start(NETWORKS[name](), 0.1)
    exact = gradients(model, name, "cpu", torch.float64)
    doubles = gradients(model, name, DEVICE, torch.float64)
    # round-off times condition numbers of the matrices, of up to a hundred
    assert max(relative(b, a) for a, b in zip(exact, doubles, strict=True)) < 1e-9
    floats = gradients(model, name, DEVICE, torch.float32)
    # the same in float32, and few pixels where rounding decides which of two channels is larger
    assert max(relative(b, a) for a, b in zip(exact, floats, strict=True)) < 2e-2


@only_cuda
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_step_waits_for_the_host(name, loss):
    model = NETWORKS[name]().to(DEVICE)
    images, labels = (tensor.to(DEVICE) for tensor in images_for(name))
    step = training_step(model, partial(loss_of(name, LOSSES[loss]), model, images, labels))
    step()
    step()
    with without_waiting():
        step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("linear", LINEARS)
def test_bf16_autocast_keeps_the_weights_orthogonal(linear):
    model = moved_from_start(models.small_convnet(1, 16, 4, linear=LINEARS[linear]), 0.1).to(DEVICE)
    images, labels = torch.rand(16, 1, 16, 16, device=DEVICE), torch.randint(4, (16,), device=DEVICE)
    plain = model(images)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        logits = model(images)
        weights = [layer.kernel() for layer in model if isinstance(layer, layers.LipschitzLinear)]
        kernel = model.conv2.kernel()
    OffsetCrossEntropy(eps=0.5)(logits.float(), labels).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    # bf16 rounds each of eight factors by 2^-9; the weights stay those of float32
    assert 1e-5 < relative(logits, plain) < 0.05
    assert max(float(residual(W.detach())) for W in weights) < CLOSE[torch.float32]
    values = circular_singular_values(kernel.detach().cpu(), (4, 4))
    assert float((values - 1).abs().max()) < CLOSE[torch.float32]


@pytest.mark.parametrize("linear", LINEARS)
def test_what_is_baked_does_not_depend_on_tf32(linear):
    model = moved_from_start(models.small_convnet(1, 16, 4, linear=LINEARS[linear])).to(DEVICE)
    exact = lc.bake(model)
    set_tf32(True)
    baked = lc.bake(model)
    assert all(torch.equal(a, b) for a, b in zip(exact.parameters(), baked.parameters(), strict=True))
    dense = [layer.weight for layer in baked if isinstance(layer, torch.nn.Linear)]
    # float64 weights, each entry rounded once to float32
    assert max(float(residual(W)) for W in dense) < 1e-6
    assert 1 <= lc.lipschitz_bound(baked, input_shape=(1, 16, 16), diagnose=False).upper < 1 + 1e-6


# ----------------------------------------------------------------------------------------------------------- compiled


@pytest.mark.parametrize("name", ["small-orthogonal", "critic-cholesky", "ossn"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_compiled_steps_and_evaluation(name):
    torch._dynamo.reset()
    model = NETWORKS[name]().to(DEVICE)
    other = copy.deepcopy(model)
    images, labels = (tensor.to(DEVICE) for tensor in images_for(name))
    compiled = torch.compile(model, fullgraph=True, backend="inductor" if DEVICE.type == "cuda" else "aot_eager")
    for run in (compiled, other):
        loss_of(name)(run, images, labels).backward()
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    # float32 sums in another order, and few pixels where rounding decides which of two channels is larger
    assert max(relative(a.grad, b.grad) for a, b in pairs if b.grad is not None) < 2e-2
    model.eval()
    other.eval()
    with torch.no_grad():
        assert relative(compiled(images), other(images)) < CLOSE[torch.float32]
        for module in (model, other):
            for parameter in module.parameters():
                parameter.add_(0.01)
        assert relative(compiled(images), other(images)) < CLOSE[torch.float32]  # no weight of the past


# ------------------------------------------------------------------------------------------------------- certificates


def trained(linear=layers.OrthogonalLinear):
    """A network that tells four noisy patterns apart, and 64 images of them."""
    model = models.small_convnet(1, 16, 4, linear=linear)
    generator = torch.Generator().manual_seed(2)
    patterns = torch.rand(4, 1, 16, 16, generator=generator)
    labels = torch.arange(64) % 4
    noise = torch.rand(64, 1, 16, 16, generator=generator)
    images = (0.7 * patterns[labels] + 0.3 * noise).to(DEVICE)
    model = model.to(DEVICE)
    step = training_step(model, lambda: OffsetCrossEntropy(eps=1.0)(model(images), labels.to(DEVICE)), 1e-2)
    for _ in range(20):
        step()
    return model.eval(), images


def test_evaluation_is_of_the_current_parameters():
    model, images = trained()
    with torch.no_grad():
        first = model(images)
        assert relative(model(images), first) < 1e-6
        assert relative(lc.bake(model)(images), first) < CLOSE[torch.float32]
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))  # no version counter moves
        moved = model(images)
        assert relative(moved, first) > 1e-3
        assert relative(lc.bake(model)(images), moved) < CLOSE[torch.float32]
        model.to("cpu")
        assert model.linear1.weight.device.type == "cpu"


@only_cuda
def test_evaluation_does_not_wait_for_the_host():
    model, images = trained()
    with torch.no_grad():
        model(images)
        with without_waiting():
            model(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_certificates_are_those_of_the_cpu(dtype):
    model, images = trained()
    there = lc.bake(model).to(dtype)
    here, images = copy.deepcopy(there).cpu(), images.to(dtype)
    assert next(there.parameters()).device.type == DEVICE.type
    bounds = [lc.lipschitz_bound(network, input_shape=(1, 16, 16)) for network in (here, there)]
    assert bounds[0].upper == bounds[1].upper and bounds[0].fingerprint == bounds[1].fingerprint
    found, expected = (lc.certify(net, x) for net, x in ((there, images), (here, images.cpu())))
    assert found.radius.device.type == "cpu" and float(found.radius.median()) > 0.1
    assert torch.equal(found.label, expected.label)
    # both evaluate in float64, with sums of some hundred products in another order
    torch.testing.assert_close(found.radius, expected.radius, rtol=0, atol=1e-11)
    decided = lc.certify(there, images, eps=(0.3, 0.8))
    assert all(torch.equal(decided.radius > eps, expected.radius > eps) for eps in (0.3, 0.8))


def test_sound_certificates_of_float64_are_those_of_the_cpu():
    """In float64 no GPU rounds products to fewer bits."""
    model, images = trained()
    there, images = lc.bake(model).double(), images.double()
    found = lc.certify(there, images, level="sound")
    expected = lc.certify(copy.deepcopy(there).cpu(), images.cpu(), level="sound")
    analytic = lc.certify(there, images)
    assert torch.equal(found.label, expected.label)
    torch.testing.assert_close(found.radius, expected.radius, rtol=0, atol=1e-11)
    assert bool((found.radius <= analytic.radius).all())


@only_cuda
def test_sound_certificates_of_float32_want_plain_sums(monkeypatch):
    model, images = trained()
    there = lc.bake(model)
    with pytest.raises(ValueError, match=r"torch\.backends\.cudnn\.enabled = True"):
        lc.certify(there, images, level="sound")
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    found = lc.certify(there, images, level="sound")
    expected = lc.certify(copy.deepcopy(there).cpu(), images.cpu(), level="sound")
    # what is taken off for rounding, below 1e-3, goes with the norm of the image, a float32 sum of 256 squares
    torch.testing.assert_close(found.radius, expected.radius, rtol=0, atol=1e-8)
    set_tf32(True)
    with pytest.raises(ValueError, match="precision = 'tf32'|precision\\(\\) = 'high'"):
        lc.certify(there, images, level="sound")


def test_the_evaluation_keeps_within_its_error():
    """Float64 logits on the device against those of the CPU, in the error that a certificate takes off."""
    from lconvnet.bounds import tensors_of, trace
    from lconvnet.certify.certifier import budget, image_norms, logits_of

    model, images = trained()
    set_tf32(True)  # which is about float32 only
    network, images = lc.bake(model).double(), images.double()
    traced, bound = trace(network, (1, 16, 16)), lc.lipschitz_bound(network, input_shape=(1, 16, 16), diagnose=False)
    found, expected = logits_of(network, images), logits_of(copy.deepcopy(network).cpu(), images.cpu())
    error = found - expected
    allowed = budget(traced.graph, bound, tensors_of(network), torch.float64).at(image_norms(images), found.argmax(1))
    apart = (error.gather(1, found.argmax(1)[:, None]) - error).abs()
    assert bool((apart <= 2 * allowed).all())  # both may be off
    assert float(allowed.max()) < 1e-10


# ----------------------------------------------------------------------------------------------------------- training


def random_splits(count=256):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (count, 1, 12, 12), dtype=torch.uint8, generator=generator)
    part = lc.data.Images(pixels, torch.randint(4, (count,), generator=generator), 4, "random")
    return lc.data.Splits(part, part.subset(range(64)), part.subset(range(32)), "random")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_fit_on_the_device(precision, tmp_path):
    model = models.small_convnet(1, 12, 4, linear=layers.OrthogonalLinear)
    record = lc.fit(
        model,
        random_splits(),
        loss=Hinge(eps=0.3),
        epochs=1,
        batch_size=64,
        directory=tmp_path,
        accelerator=DEVICE.type,
        precision=precision,
        progress=False,
        tensorboard=False,
    )
    assert record.finished and len(record.epochs) == 1
    assert math.isfinite(record.best.loss) and record.best.lipschitz < 1 + 1e-4
    assert next(model.parameters()).device.type == DEVICE.type


def test_a_run_is_resumed_on_the_device(tmp_path):
    options = {"loss": Hinge(eps=0.3), "batch_size": 64, "accelerator": DEVICE.type, "progress": False}
    options |= {"tensorboard": False, "directory": tmp_path, "epochs": 2}

    class Enough(Exception):
        pass

    def stop(epoch):
        raise Enough

    with pytest.raises(Enough):
        lc.fit(models.small_convnet(1, 12, 4), random_splits(), on_epoch=stop, **options)
    record = lc.fit(models.small_convnet(1, 12, 4), random_splits(), resume=True, **options)
    assert record.finished and len(record.epochs) == 2


def learned(real, fake, *, width, depth, steps):
    """What a critic that has seen all samples at every step certifies between them."""
    x, centre = torch.cat([real, fake]).to(DEVICE), torch.cat([real, fake]).mean(0).to(DEVICE)
    torch.manual_seed(0)
    critic = models.mlp(real.shape[1], 1, (width,) * depth).to(DEVICE)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        values = critic_values(critic, x - centre)
        (-difference(values[: len(real)], values[len(real) :])).backward()
        optimizer.step()
        schedule.step()
    network = lc.bake(critic.cpu())
    bound = lc.lipschitz_bound(network, input_shape=(real.shape[1],), diagnose=False)
    values = network.double()((x - centre).cpu().double()).squeeze(1)
    return float(values[: len(real)].mean() - values[len(real) :].mean()) / bound.upper


@only_cuda
@pytest.mark.slow
def test_a_deep_critic_learns_nine_tenths_of_the_transport_in_ten_dimensions():
    """A minute here, an hour on a CPU: 0.8585 is the distance of the distributions, the rest is learned by heart."""
    pytest.importorskip("ot", reason="exact transport needs POT")
    real, fake = (torch.randn(1000, 10, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    exact = lc.wasserstein.transport(real + 1, fake)
    found = learned(real + 1, fake, width=512, depth=8, steps=4000)
    assert 0.9 * exact <= found <= exact * (1 + 1e-6)


# ------------------------------------------------------------------------------------------- graphs, last: they may
# leave the device in a state that fails what follows


def noting(model, loss, images, labels):
    """The loss as a function without arguments, and a list of its values, which keeps no graph alive."""
    values = []

    def noted():
        value = loss(model, images, labels)
        values.append(value.detach())
        return value

    return noted, values


@only_cuda
@pytest.mark.parametrize("name", NETWORKS)
def test_a_captured_step_is_the_step(name):
    model = NETWORKS[name]().to(DEVICE)
    other = copy.deepcopy(model)
    batch = [tensor.to(DEVICE) for tensor in images_for(name)]
    noted, found = noting(model, loss_of(name), *batch)
    replay = captured(training_step(model, noted, capturable=True), warm_up=3)
    noted, expected = noting(other, loss_of(name), *batch)
    step = training_step(other, noted)
    for _ in range(6):
        step()
    for value in expected[3:]:
        replay()
        # float32 steps with other convolution routines; every replay writes the last value found
        assert math.isclose(float(found[-1]), float(value), rel_tol=1e-3, abs_tol=1e-3)
    # Adam divides by the root of its second moment: gradients of nothing but round-off move a weight by the rate each
    assert max(relative(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)) < 0.05


@only_cuda
def test_evaluation_does_not_lag_replayed_steps():
    """A replay writes parameters without a trace on them."""
    model = NETWORKS["small-cholesky"]().to(DEVICE)
    images, labels = (tensor.to(DEVICE) for tensor in images_for("small"))
    noted, _ = noting(model, loss_of("small"), images, labels)
    replay = captured(training_step(model, noted, capturable=True))
    with torch.no_grad():
        before = model.eval()(images)
        for _ in range(20):
            replay()
        found = model(images)
        expected = copy.deepcopy(model)(images)
    assert relative(found, expected) < CLOSE[torch.float32] < relative(found, before)
