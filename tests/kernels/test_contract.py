"""What a kernel must be: a ``Kernel`` that can be built, and whose weight has the shape and the type of its layer."""

import re
from functools import partial

import pytest
import torch
from torch import nn

import lconvnet as lc
from lconvnet.kernels import BCOP, OSSN, RKL2NE, RKO, SVCM, DenseKernel, FixedBCOP, Kernel, Orthogonal, Promise
from lconvnet.kernels.base import draw_orthogonal_
from lconvnet.layers import LipschitzConv2d, LipschitzLinear
from lconvnet.ops.orthogonalize import polar_eigh
from lconvnet.ops.polynomials import bjorck, polar_express
from lconvnet.ops.whitening import cholesky


class Given(Kernel):
    """A kernel that returns what it is given, whatever it is built for."""

    def __init__(self, *sizes, weight, **options):
        super().__init__()
        self.weight = nn.Parameter(weight) if isinstance(weight, torch.Tensor) and weight.is_floating_point() else None
        self.other = weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self):
        return self.other if self.weight is None else self.weight * self.scale


conv = partial(LipschitzConv2d, 4, 6, 4, 2)  # the equivalent stride-1 kernel is (6, 16, 2, 2)
dense = partial(LipschitzLinear, 4, 6)
CONV, DENSE = torch.zeros(1, 4, 8, 8), torch.zeros(2, 4)
WRONG = {
    "1x1 for 2x2": (conv, CONV, torch.ones(6, 16, 1, 1), r"returned .*float\d+ of shape \(6, 16, 1, 1\)"),
    "strided shape": (conv, CONV, torch.ones(6, 4, 4, 4), r"returned .*float\d+ of shape \(6, 4, 4, 4\)"),
    "outputs": (conv, CONV, torch.ones(5, 16, 2, 2), r"returned .*float\d+ of shape \(5, 16, 2, 2\)"),
    "one output": (conv, CONV, torch.ones(1, 16, 2, 2), r"returned .*float\d+ of shape \(1, 16, 2, 2\)"),
    "larger": (conv, CONV, torch.ones(6, 16, 3, 3), r"returned .*float\d+ of shape \(6, 16, 3, 3\)"),
    "oblong": (conv, CONV, torch.ones(6, 16, 2, 1), r"returned .*float\d+ of shape \(6, 16, 2, 1\)"),
    "matrix": (conv, CONV, torch.ones(6, 16), r"returned .*float\d+ of shape \(6, 16\)"),
    "complex": (conv, CONV, torch.ones(6, 16, 2, 2, dtype=torch.complex64), "returned .*complex(64|128) of shape"),
    "integer": (conv, CONV, torch.ones(6, 16, 2, 2, dtype=torch.int64), "returned .*int64 of shape"),
    "no tensor": (conv, CONV, None, "returned None"),
    "pair": (dense, DENSE, (1, 2), r"returned \(1, 2\)"),
    "transposed": (dense, DENSE, torch.ones(4, 6), r"returned .*float\d+ of shape \(4, 6\)"),
    "vector": (dense, DENSE, torch.ones(4), r"returned .*float\d+ of shape \(4,\)"),
    "one row": (dense, DENSE, torch.ones(1, 4), r"returned .*float\d+ of shape \(1, 4\)"),
    "batch": (dense, DENSE, torch.ones(2, 6, 4), r"returned .*float\d+ of shape \(2, 6, 4\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_weight_of_another_shape_is_refused_by_model_and_bake(case):
    build, x, weight, found = WRONG[case]
    layer = build(kernel=partial(Given, weight=weight)).eval()
    expected = r"shape \(6, 16, 2, 2\)" if build is conv else r"shape \(6, 4\)"
    message = f"kernel Given {found}.*Lipschitz.* is a finite floating-point tensor of {expected}"
    for use in (lambda: layer(x), lambda: layer.weight, layer.exact_weight):
        with pytest.raises(ValueError, match=message):
            use()
    with pytest.raises(ValueError, match=r"layer '0' \(Lipschitz\w+\): kernel Given returned"):
        lc.bake(nn.Sequential(layer))


def test_an_engine_that_returns_another_shape_is_refused():
    layer = dense(kernel=partial(Orthogonal, engine=lambda W: W[:1]))
    with pytest.raises(ValueError, match=r"kernel Orthogonal returned torch.float32 of shape \(1, 4\)"):
        layer(DENSE)


def test_sizes_changed_later_are_the_declared_ones():
    layer = dense()
    layer.out_features = 5
    for use in (lambda: layer(DENSE), layer.bake):
        with pytest.raises(ValueError, match=r"\(6, 4\).*shape \(5, 4\)"):
            use()


class Fixed(Kernel):
    """A kernel without parameters, promise or optional arguments."""

    def __init__(self, in_channels, out_channels, kernel_size=None):
        super().__init__()
        self.shape = (
            (out_channels, in_channels) if kernel_size is None else (out_channels, in_channels, *[kernel_size] * 2)
        )

    def forward(self):
        return torch.ones(self.shape) / torch.Size(self.shape).numel()


@pytest.mark.parametrize(("build", "x"), [(conv, torch.rand(2, 4, 8, 8)), (dense, torch.rand(2, 4))])
def test_a_kernel_without_parameters_promise_or_options_is_accepted(build, x):
    layer = build(kernel=Fixed).eval()
    assert layer.kernel.promise is Promise.APPROXIMATE
    # the same float32 weight in another order of summation
    torch.testing.assert_close(lc.bake(nn.Sequential(layer))(x), layer(x), rtol=0, atol=1e-6)


class Plain(nn.Module):
    def __init__(self, *sizes, **options):
        super().__init__()
        self.W = nn.Parameter(torch.eye(6, 4))

    def forward(self):
        return self.W


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        (
            Plain,
            {},
            r"kernel Plain built a Plain, which says nothing of its norm: derive it from lconvnet\.kernels\.Kernel",
        ),
        (Fixed, {"dtype": torch.float64}, "kernel Fixed cannot be built by .*dtype=torch.float64.*unexpected keyword"),
        (
            Fixed,
            {"input_size": 8},
            r"kernel Fixed cannot be built by .*input_size=\(4, 4\).*unexpected keyword argument",
        ),
        (Orthogonal, {}, r"kernel Orthogonal cannot be built by Orthogonal\(16, 6, 2\): too many positional arguments"),
        (BCOP(4, 6, 4), {}, "kernel is a built BCOP: pass its constructor"),
        ("bcop", {}, "kernel 'bcop' cannot be built by .*is not a callable object"),
        (lambda *sizes, **options: None, {}, "built a NoneType"),
    ],
)
def test_what_is_not_a_kernel_is_refused_in_one_sentence(kernel, options, message):
    with pytest.raises(ValueError, match=message) as error:
        conv(kernel=kernel, **options)
    assert "\n" not in str(error.value)


HALVES = [torch.bfloat16, torch.float16]
LAYERS = {
    "orthogonal": (lambda: lc.layers.OrthogonalLinear(6, 4), (2, 6)),
    "cholesky": (lambda: lc.layers.CholeskyLinear(6, 4), (2, 6)),
    "l2ne": (lambda: lc.layers.L2NELinear(6, 4), (2, 6)),
    "spectral-norm": (lambda: lc.layers.SpectralNormLinear(6, 4), (2, 6)),
} | {
    kernel.__name__: (lambda kernel=kernel: LipschitzConv2d(2, 4, 3, kernel=kernel, input_size=6), (1, 2, 6, 6))
    for kernel in (BCOP, FixedBCOP, OSSN, RKL2NE, RKO, SVCM)
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_in_half_precision_work_as_plain_ones_do_and_bake_to_the_same(name, dtype):
    build, shape = LAYERS[name]
    layer, x = build().to(dtype), torch.randn(shape).to(dtype)
    y = layer.train()(x)
    assert y.dtype == layer.weight.dtype == dtype
    if not layer.kernel.frozen:
        y.float().sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())
    y = layer.eval()(x)
    # sums of at most 18 terms and a bias below 1 in half precision, the weight rounded once in both
    assert torch.allclose(lc.bake(layer)(x).float(), y.float(), atol=32 * torch.finfo(dtype).eps)
    assert torch.linalg.matrix_norm(layer.weight.double().flatten(1), 2) < 1 + 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", LAYERS)
def test_layers_can_be_built_without_numbers_and_drawn_later(name):
    build, shape = LAYERS[name]
    with torch.device("meta"):
        layer = build()
    with pytest.raises(ValueError, match="model is on the meta device, where weights have no numbers: load them"):
        lc.bake(layer)
    layer.to_empty(device="cpu").reset_parameters()
    assert layer(torch.randn(shape)).isfinite().all()


class Eye(Kernel):
    """A kernel without parameters, of a dtype of its own."""

    def __init__(self, inputs, outputs, value=1.0):
        super().__init__()
        self.size, self.value, self.calls = (outputs, inputs), value, 0

    def forward(self):
        self.calls += 1
        return torch.eye(*self.size) * self.value


def test_the_weight_of_a_kernel_without_parameters_has_the_dtype_of_its_layer():
    layer = LipschitzLinear(6, 4, kernel=Eye).double()
    x = torch.rand(2, 6, dtype=torch.float64)
    layer.kernel.calls = 0
    y = layer(x)
    assert layer.kernel.calls == 1
    assert y.dtype == torch.float64 and torch.equal(lc.bake(layer)(x), y)


def test_a_weight_that_is_not_finite_is_not_baked():
    model = nn.Sequential(LipschitzLinear(6, 4, kernel=partial(Eye, value=torch.nan)))
    with pytest.raises(ValueError, match=r"layer '0' .*kernel Eye returned NaN or infinity"):
        lc.bake(model)


ENGINES = {
    "default": None,
    "polar_eigh": polar_eigh,
    "cholesky": cholesky,
    "polar_express": polar_express,
    "bjorck": bjorck,
}
BROKEN = {
    **{
        f"dense-{name}": partial(LipschitzLinear, 6, 4, kernel=partial(Orthogonal, engine=engine))
        for name, engine in ENGINES.items()
    },
    **{
        f"bcop-{name}": partial(LipschitzConv2d, 2, 4, 3, kernel=partial(BCOP, engine=engine))
        for name, engine in ENGINES.items()
    },
    **{name: build for name, (build, _) in LAYERS.items()},
}


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("name", BROKEN)
def test_every_tensor_that_is_not_finite_is_refused_by_name_and_layer(name, value):
    x = torch.rand((2, 6) if isinstance(BROKEN[name]().kernel, DenseKernel) else (1, 2, 6, 6))
    for index, (path, _) in enumerate([*BROKEN[name]().named_parameters(), *BROKEN[name]().named_buffers()]):
        layer = BROKEN[name]()
        [*layer.parameters(), *layer.buffers()][index].data.view(-1)[-1] = value
        refused = rf"{type(layer).__name__}\({re.escape(layer.extra_repr())}\): {path} holds NaN or infinity: load"
        makes_the_weight = path != "bias" and path in dict(layer.named_parameters())
        for use in (layer.exact_weight, *([partial(layer, x), lambda: layer.weight] if makes_the_weight else ())):  # noqa: B023
            with pytest.raises(ValueError, match=f"^{refused}"):
                use()
        with pytest.raises(ValueError, match=f"^layer '0' .*{refused}"):
            lc.bake(nn.Sequential(layer))


def test_a_kernel_that_returns_nan_is_refused_at_a_call():
    layer = LipschitzLinear(6, 4, kernel=partial(Eye, value=torch.nan), bias=False)
    with pytest.raises(
        ValueError, match=r"kernel Eye returned NaN or infinity: the weight of LipschitzLinear \(6, 4\)"
    ):
        layer(torch.rand(2, 6))


class Random(Eye):
    def forward(self):
        return super().forward() + 1e-3 * torch.rand(self.size)


def test_a_random_kernel_is_not_baked():
    model = nn.Sequential(LipschitzLinear(6, 4, kernel=Random))
    with pytest.raises(ValueError, match=r"layer '0' .*kernel Random returned two weights in two calls for the same"):
        lc.bake(model)


@pytest.mark.parametrize("order", [1, 5])
def test_what_rounding_makes_of_a_singular_matrix_is_no_reason_not_to_bake(order):
    """Fifty steps raise what rounding leaves in a vanishing direction by any factor: float32 and float64 differ."""
    layer = LipschitzLinear(16, 16, kernel=partial(Orthogonal, engine=partial(bjorck, order=order, iterations=50)))
    layer.kernel.V.data.copy_(torch.randn(16, 1) @ torch.randn(1, 16))
    bound = lc.lipschitz_bound(lc.bake(nn.Sequential(layer)))
    assert bound.upper <= 1 + 1e-5


def test_a_kernel_that_says_nothing_is_sound_on_the_torus_only():
    with pytest.raises(ValueError, match="padding_mode='zeros' is not sound with Fixed"):
        conv(kernel=Fixed, padding_mode="zeros")
    for kernel in (BCOP, FixedBCOP, RKO, RKL2NE):
        assert kernel.sound_padding == {"circular", "zeros"}


def test_only_what_a_transform_forbids_is_blamed_on_it():
    layer = lc.layers.SpectralNormLinear(4, 3)
    loss = lambda W: torch.func.functional_call(layer, {"kernel.W": W}, (torch.ones(4),)).sum()  # noqa: E731
    with pytest.raises(ValueError, match="SpectralNorm writes 'u' at every call .*this transform of torch.func"):
        torch.func.grad(loss)(torch.ones(3, 4))
    with torch.inference_mode():
        layer = lc.layers.SpectralNormLinear(4, 3)
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
        layer(torch.ones(4))


def test_matrices_of_any_batch_and_layout_are_drawn():
    for W in (torch.zeros(2, 3, 4, 5), torch.zeros(3, 2, 5, 4).transpose(0, 1).mT, torch.zeros(5, 4).mT):
        draw_orthogonal_(W)
        gram = W.shape[-1] * W @ W.mT
        assert torch.allclose(gram, torch.eye(4).expand_as(gram), atol=1e-5)  # sums of five products in float32
