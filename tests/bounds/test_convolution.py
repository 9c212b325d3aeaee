"""Convolution bounds against the dense Jacobian of the module: every padding, stride, group and dilation."""

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet.bounds import lipschitz_bound

SLACK = 1e-11  # outward rounding of these small sizes


def dense(network, shape):
    """Matrix of an affine network, column by column, in float64."""
    network = network.double()
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (network(basis) - network(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1).T.numpy()


def norm(network, shape):
    return np.linalg.norm(dense(network, shape), 2)


def check(network, shape, factor, **options):
    """Truth <= upper <= factor truth, lower <= truth, with and without the shape, and the same by the
    spectrum."""
    bound, free = lipschitz_bound(network, input_shape=shape, **options), lipschitz_bound(network)
    truth = norm(network, shape)
    assert truth * (1 - 1e-13) <= bound.upper <= truth * factor
    assert truth * (1 - 1e-13) <= free.upper
    assert bound.upper <= free.upper * 1.002  # knowing the size does not cost; Gram's truncation differs
    assert 0.5 * truth < bound.lower <= truth * (1 + 1e-12)
    assert all(layer.lower <= layer.upper for layer in bound.layers)
    return bound


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(5, 5), (6, 8), pytest.param((9, 7), marks=pytest.mark.slow)])
def test_circular(k, size):
    before, after = k // 2, (k - 1) // 2
    network = nn.Sequential(nn.CircularPad2d((before, after, before, after)), nn.Conv2d(3, 4, k))
    bound = check(network, (3, *size), 1.0002)  # 3^(2^-13) - 1 = 0.013 %
    exact = lipschitz_bound(network, input_shape=(3, *size), method="spectrum")
    truth = norm(network, (3, *size))
    assert truth * (1 - 1e-13) <= exact.upper <= truth * (1 + SLACK)
    assert exact.layers[0].method == "spectrum"
    assert bound.layers[0].name == "1"


@pytest.mark.parametrize(("k", "padding"), [(1, 0), (3, 1), (5, 2), (3, "same"), (2, "same")])
@pytest.mark.filterwarnings("ignore:Using padding='same'")  # an even kernel: torch warns about a copy
def test_circular_inside_the_convolution(k, padding):
    conv = nn.Conv2d(2, 3, k, padding=padding, padding_mode="circular")
    check(nn.Sequential(conv), (2, 7, 6), 1.001)


@pytest.mark.parametrize("k", [1, 2, 3, *(pytest.param(k, marks=pytest.mark.slow) for k in (4, 5))])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("mode", ["inside", "before"])
def test_zero_padding(k, padding, mode):
    if mode == "inside":
        network = nn.Sequential(nn.Conv2d(2, 3, k, padding=padding))
    else:
        network = nn.Sequential(nn.ZeroPad2d((padding, 0, 1, padding)), nn.Conv2d(2, 3, k))
    # A finite image reaches less than the supremum over all sizes: 1.6 at 5 x 5 taps on 8 x 9 pixels.
    check(network, (2, 8, 9), 1.8)


def test_zero_padding_is_tight_on_large_images():
    check(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)), (1, 24, 24), 1.06)  # 3.2 % grid, 2 % finite size


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize(
    "options", [{}, {"padding": 1}, {"padding": 1, "stride": 2}, {"stride": 3}, {"dilation": 2}], ids=str
)
def test_zero_padding_of_a_known_image_is_that_of_the_torus_that_holds_it(k, options):
    """The padded image, with its sides rounded up to a multiple of the stride, wraps around nowhere that is read."""
    options = {"padding": 0, "stride": 1, "dilation": 1, **options}
    size, stride, reach = 7, options["stride"], options["dilation"] * (k - 1)
    conv = nn.Conv2d(2, 2, k, bias=False, **options)
    sides = -(-(size + 2 * options["padding"]) // stride) * stride
    torus = nn.Sequential(
        nn.CircularPad2d((reach, 0, reach, 0)), nn.Conv2d(2, 2, k, bias=False, **{**options, "padding": 0})
    )
    torus[1].weight = conv.weight
    expected = norm(torus, (2, sides, sides))
    assert norm(conv, (2, size, size)) * (1 - 1e-13) <= expected
    bound = lipschitz_bound(conv, input_shape=(2, size, size)).upper
    assert expected * (1 - 1e-13) <= bound <= expected * 1.0002  # rank 2 and 12 steps: 8.5e-5


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "output_padding": 1}, {"padding": 1, "dilation": 2}], ids=str)
def test_a_transposed_convolution_of_a_known_image_is_that_of_its_torus(k, options):
    """That of the pixels that it writes before it crops."""
    size, stride, dilation = 4, options.get("stride", 1), options.get("dilation", 1)
    conv = nn.ConvTranspose2d(2, 2, k, bias=False, **options)
    reach = dilation * (k - 1)
    sides = -(-((size - 1) * stride + reach + 1) // stride) * stride
    adjoint = nn.Conv2d(2, 2, k, stride, dilation=dilation, bias=False)
    adjoint.weight = conv.weight
    expected = norm(nn.Sequential(nn.CircularPad2d((reach, 0, reach, 0)), adjoint), (2, sides, sides))
    assert norm(conv, (2, size, size)) * (1 - 1e-13) <= expected
    bound = lipschitz_bound(conv, input_shape=(2, size, size)).upper
    assert expected * (1 - 1e-13) <= bound <= expected * 1.0002


def test_a_folded_sum_is_that_of_the_torus_that_holds_it():
    """x + K x on 5 x 5 pixels: a torus of 7 x 7."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)

        def forward(self, x):
            return x + self.conv(x)

    block = Block().eval()
    sum_of_both = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular", bias=False)
    sum_of_both.weight.data = block.conv.weight.data.clone()
    sum_of_both.weight.data[:, :, 1, 1] += torch.eye(2)
    expected = norm(sum_of_both, (2, 7, 7))
    bound = lipschitz_bound(block, input_shape=(2, 5, 5)).upper
    assert norm(block, (2, 5, 5)) <= expected * (1 - 1e-13) <= bound <= expected * 1.0002


@pytest.mark.parametrize("stride", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("circular", [True, False])
def test_stride_that_divides_is_exact_on_the_torus(stride, k, circular):
    total = max(k - stride, 0)
    pad = (nn.CircularPad2d if circular else nn.ZeroPad2d)((total // 2, total - total // 2) * 2)
    network = nn.Sequential(pad, nn.Conv2d(2, 3, k, stride))
    # twelve steps of rank 3 on the torus; a finite image with zero padding reaches less than the supremum
    check(network, (2, 6, 12), 1.001 if circular or k <= stride else 1.8)


@pytest.mark.parametrize("size", [(5, 5), (7, 6), (6, 5)])
@pytest.mark.parametrize("k", [3, 4])
def test_circular_stride_that_does_not_divide_stays_sound(size, k):
    """The outputs meet again across the border, so the polyphase kernel alone would be too small a bound."""
    network = nn.Sequential(nn.CircularPad2d((k // 2, (k - 1) // 2) * 2), nn.Conv2d(2, 3, k, 2))
    bound = lipschitz_bound(network, input_shape=(2, *size))
    truth = norm(network, (2, *size))
    # The stride-1 operator consists of at most 2 x 2 shifts of the strided one; their squares add up.
    assert truth * (1 - 1e-13) <= bound.upper <= 2 * truth * 1.001


def test_the_polyphase_kernel_is_too_small_where_the_stride_does_not_divide():
    conv = nn.Conv2d(1, 1, 2, 2, bias=False)
    conv.weight.data.fill_(0.5)
    network = nn.Sequential(nn.CircularPad2d((0, 1, 0, 1)), conv)
    assert norm(network, (1, 4, 4)) == pytest.approx(1)
    assert norm(network, (1, 3, 3)) == pytest.approx(1.5)  # pixels 0 and 2 are read twice
    assert lipschitz_bound(network).upper == pytest.approx(1)
    assert 1.5 <= lipschitz_bound(network, input_shape=(1, 3, 3)).upper <= 2 * (1 + 1e-9)


def test_unequal_strides_are_sound():
    network = nn.Sequential(nn.Conv2d(2, 3, 3, stride=(1, 2), padding=1, padding_mode="circular"))
    check(network, (2, 6, 6), 2.0)


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_groups_take_the_maximum(groups, mode):
    conv = nn.Conv2d(4, 8, 3, padding=1, padding_mode=mode, groups=groups)
    conv.weight.data[: 8 // groups] *= 3
    conv.weight.data[8 // groups :] *= 0.2
    check(nn.Sequential(conv), (4, 10, 10), 1.001 if mode == "circular" else 1.15)


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
@pytest.mark.parametrize("mode", ["circular", "zeros"])
@pytest.mark.parametrize("stride", [1, 2])
def test_dilation(size, mode, stride):
    conv = nn.Conv2d(2, 2, 3, stride, padding=2, dilation=2, padding_mode=mode)
    bound = lipschitz_bound(nn.Sequential(conv), input_shape=(2, *size))
    truth = norm(nn.Sequential(conv), (2, *size))
    factor = 1.001 if mode == "circular" and stride == 1 else 2.2
    assert truth * (1 - 1e-13) <= bound.upper <= factor * truth


def test_orthogonal_weights_are_certified_by_their_residual():
    conv = nn.Conv2d(4, 4, 1)
    nn.init.orthogonal_(conv.weight)
    bound = lipschitz_bound(nn.Sequential(conv))
    assert bound.layers[0].method == "residual"
    assert 1 < bound.upper < 1 + 1e-5


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'.*increases the norm"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate"), "'1'.*replicate"),
        (nn.Conv2d(1, 1, 3, padding=2, padding_mode="circular"), "4 pixels.*circular padding.*height"),
        (nn.Conv2d(1, 1, (5, 3), padding=2, padding_mode="circular"), "along the width"),
        (nn.Sequential(nn.CircularPad2d((1, 1, 2, 1)), nn.Conv2d(1, 1, 3)), "3 pixels.*along the height"),
        (nn.Sequential(nn.CircularPad2d(1), nn.Conv2d(1, 1, 3, padding=1)), "padded twice"),
        (nn.Sequential(nn.CircularPad2d(1), nn.ReLU()), "'1.0' .CircularPad2d. repeats pixels"),
        (nn.CircularPad2d(1), "CircularPad2d. repeats pixels"),
        (nn.Sequential(nn.CircularPad2d((-1, 1, 0, 0)), nn.Conv2d(1, 1, 3)), "negative circular padding"),
    ],
)
def test_unsound_padding_is_refused(network, message):
    with pytest.raises(ValueError, match=message):
        lipschitz_bound(nn.Sequential(nn.Identity(), network))


def test_the_repeated_outputs_would_have_grown_the_norm():
    """Why more circular padding than k - 1 is refused: the same outputs twice, sqrt(2) an axis."""
    conv = nn.Conv2d(1, 1, 1, padding=4, padding_mode="circular", bias=False)
    conv.weight.data.fill_(1.0)
    assert norm(conv, (1, 4, 4)) == pytest.approx(3)


def test_spectrum_needs_a_torus():
    with pytest.raises(ValueError, match=r"no exact spectrum.*circular padding"):
        lipschitz_bound(nn.Conv2d(1, 1, 3, padding=1), input_shape=(1, 5, 5), method="spectrum")
    pointwise = nn.Conv2d(3, 2, 1)  # no padding to speak of: a matrix at every pixel
    bound = lipschitz_bound(pointwise, input_shape=(3, 5, 5), method="spectrum")
    assert bound.upper == pytest.approx(norm(pointwise, (3, 5, 5)), rel=1e-6)


@pytest.mark.parametrize("change", [{"padding": (1, 1)}, {"padding": "valid"}, {"dilation": (2, 2), "padding": "same"}])
def test_circular_padding_that_the_forward_pass_does_not_apply_is_refused(change):
    """torch pads by a private copy made at construction, so later changes of the attributes are not obeyed."""
    conv = nn.Conv2d(1, 1, 3, padding=4, padding_mode="circular")
    for name, value in change.items():
        setattr(conv, name, value)
    with pytest.raises(ValueError, match=r"'0' \(Conv2d\) has _reversed_padding.*\(4, 4, 4, 4\), where a new one"):
        lipschitz_bound(nn.Sequential(conv), input_shape=(1, 5, 5))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [1, [1]])
def test_attributes_that_are_no_pairs_are_refused(kind, name, value):
    conv = kind(1, 1, 2)
    setattr(conv, name, value)
    with pytest.raises(ValueError, match=rf"'0' \({kind.__name__}\) has .*{name}.*(a pair of numbers|where a new one)"):
        lipschitz_bound(nn.Sequential(conv), input_shape=(1, 4, 4))


def test_a_weight_of_another_shape_than_declared_is_refused():
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    conv.weight.data = torch.ones(1, 1, 1, 1)
    assert norm(conv, (1, 4, 4)) > 1.9  # corner outputs four times
    with pytest.raises(ValueError, match=r"has weight=a tensor of shape \(1, 1, 1, 1\), where a new one"):
        lipschitz_bound(nn.Sequential(conv), input_shape=(1, 4, 4))
