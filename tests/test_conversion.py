"""Ordinary CNNs become 1-Lipschitz ones: whatever the layout, the bound of the baked network says so."""

from collections import OrderedDict
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lconvnet import bake, convert, fit, layers, lipschitz_bound, losses, save
from lconvnet.layers import InvertibleDownsampling, MaxMin, OrthogonalLinear, RKOConv2d

VGG = nn.Sequential(
    nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
    nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.LeakyReLU(), nn.Dropout2d(0.1)),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(16, 10),
)


def upper(model, shape):
    network = bake(model)
    return lipschitz_bound(network, input_shape=shape, diagnose=False).upper


def test_a_vgg_with_its_changes():
    conversion = convert(VGG, (3, 16, 16))
    assert conversion.model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert upper(conversion.model, (3, 16, 16)) < 1 + 1e-5  # float32 weights, four layers
    assert [tuple(change) for change in conversion.changes] == [
        ("0.1", "BatchNorm2d", "nothing"),
        ("0.2", "ReLU", "MaxMin"),
        ("0.3", "MaxPool2d", "InvertibleDownsampling"),
        ("1.0", "Conv2d", "kernel_size 4"),
        ("1.1", "LeakyReLU", "MaxMin"),
        ("1.2", "Dropout2d", "nothing"),
        ("2", "AdaptiveAvgPool2d", "InvertibleDownsampling"),
    ]
    second = conversion.model.get_submodule("1_0")
    assert isinstance(second, layers.LipschitzConv2d)
    assert (second.in_channels, second.kernel_size, second.stride, second.bias) == (32, 4, 2, None)


def test_every_parameter_learns():
    model = convert(VGG, (3, 16, 16)).model
    model(torch.rand(4, 3, 16, 16)).pow(2).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_the_network_can_be_saved(tmp_path):
    save(bake(convert(VGG, (3, 16, 16)).model), tmp_path / "a.safetensors", input_shape=(3, 16, 16))


def test_parts_are_the_callers():
    model = convert(VGG, (3, 16, 16), conv=RKOConv2d, linear=OrthogonalLinear, activation=layers.Abs).model
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"RKO", "Orthogonal", "Abs"} <= kinds and not {"BCOP", "MaxMin"} & kinds


convolutions = st.builds(
    lambda out, k, s, p: nn.Conv2d(1, 2 * out, k, s, padding=min(p, k - 1)),
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.integers(0, 3),
)  # fmt: skip
others = st.sampled_from([nn.ReLU(), nn.Tanh(), nn.MaxPool2d(2), nn.AvgPool2d(3, 2), nn.Dropout(), nn.Identity()])


@settings(max_examples=15, deadline=None)
@given(
    st.lists(convolutions | others, max_size=3),
    st.tuples(st.sampled_from([2, 4]), st.integers(16, 19), st.integers(16, 19)),  # no kernel outgrows a quarter
)
def test_whatever_the_layout_it_is_1_lipschitz(body, shape):
    head = [nn.Flatten(), nn.Linear(1, 3)]
    model = convert(nn.Sequential(*body, *head), shape).model
    assert upper(model, shape) < 1 + 1e-5
    assert model(torch.zeros(2, *shape)).shape == (2, 3)


ALL_CONV = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 10, 1))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(8), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1))])
def test_averages_at_the_end_stay_the_outputs(pool):
    """A network without dense layers ends with them: as many outputs as before, and no norm is lost."""
    module = nn.Sequential(*ALL_CONV, nn.BatchNorm2d(10), pool, nn.Flatten())
    conversion = convert(module, (3, 8, 8))
    assert conversion.model(torch.zeros(2, 3, 8, 8)).shape == module(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert conversion.changes[-1][1:] == (type(pool).__name__, "8 times its averages")
    constant = torch.ones(1, 10, 8, 8)
    assert torch.allclose(conversion.model[-3:](constant).norm(), constant.norm())
    assert upper(conversion.model, (3, 8, 8)) < 1 + 1e-5


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (nn.MaxPool2d(8), r"\(MaxPool2d\) .*is the last layer, which only average pooling may be"),
        (nn.AdaptiveMaxPool2d(1), r"\(AdaptiveMaxPool2d\) .*is the last layer, which only average pooling may be"),
        (nn.AvgPool2d(4, 2), r"\(AvgPool2d\) .*is the last layer and has kernel_size=4; only 2 is"),
        (nn.AvgPool2d(4, padding=2), r"is the last layer and has padding=2; only 0 is converted there"),
        (nn.AvgPool2d(3, ceil_mode=True), r"is the last layer and has ceil_mode=True; only False"),
        (nn.AvgPool2d(8, divisor_override=1), r"is the last layer and has divisor_override=1; only None"),
    ],
)
def test_other_pooling_at_the_end_is_refused(pool, message):
    """Downsampling would make each of its pixels an output."""
    with pytest.raises(ValueError, match=message):
        convert(nn.Sequential(*ALL_CONV, pool, nn.Flatten()), (3, 8, 8))


@pytest.mark.parametrize(("side", "sizes"), [(2, (2, 2)), (3, (3, 4)), (4, (3, 4))])
def test_kernels_are_no_larger_than_their_images(side, sizes):
    """As at the end of VGG, where 3×3 kernels see images of 2×2."""
    module = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 4, 2, 1), nn.Flatten())
    conversion = convert(module, (2, side, side))
    convs = [part for part in conversion.model.modules() if isinstance(part, layers.LipschitzConv2d)]
    assert tuple(conv.kernel_size for conv in convs) == sizes
    assert upper(conversion.model, (2, side, side)) < 1 + 1e-5
    assert (("0", "Conv2d", "kernel_size 2") in conversion.changes) == (side == 2)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten()])
def test_a_layer_by_itself_is_a_network(layer):
    assert upper(convert(layer, (3, 8, 8)).model, (3, 8, 8)) < 1 + 1e-6


class Residual(nn.Module):
    def forward(self, x):
        return x + x


def test_everything_that_cannot_be_converted_is_listed():
    hooked = nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
    bad = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, (1, 3)),
        nn.ReLU(),
        Residual(),
        nn.Sequential(nn.Softmax(1), nn.Flatten(0)),
        hooked,
    )
    with pytest.raises(ValueError, match="7 of 8 layers cannot be converted") as raised:
        convert(bad, (4, 8, 8))
    for words in (
        "'0' (Conv2d) has groups=2; only 1 is converted",
        "'1' (Conv2d) has dilation=(2, 2); only 1",
        "'2' (Conv2d) has kernel_size=(1, 3); only squares",
        "'4' (Residual) has no 1-Lipschitz equal here",
        "'5.0' (Softmax) has no",
        "'5.1' (Flatten) has start_dim=0; only 1",
        "'6' (ReLU) has forward hooks",
    ):
        assert words in str(raised.value), words


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Residual(), r"'module' \(Residual\) has no 1-Lipschitz equal"),
        (nn.Sequential(nn.Linear(8, 2)), r"'0' \(Linear\) cannot be converted at \(3, 8, 8\): .*put nn\.Flatten"),
        (nn.Sequential(nn.Flatten(), nn.Conv2d(3, 4, 3)), r"'1' \(Conv2d\) .*192 features arrive"),
        (nn.Sequential(nn.ReLU()), r"'0' \(ReLU\) .*use an even width"),
        (nn.Sequential(nn.Conv2d(3, 4, 9)), r"'0' \(Conv2d\) .*at least kernel_size=9"),
        (nn.Sequential(nn.Conv2d(3, 4, 9), nn.Linear(2, 2)), r"'0' \(Conv2d\) .*at least kernel_size=9"),
        (nn.Sequential(nn.Conv2d(3, 4, 9, padding=4), nn.Linear(2, 2)), r"'1' \(Linear\) .*put nn\.Flatten"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(3)), r"pools 8x8 to 3"),
    ],
)
def test_what_does_not_fit_its_place_is_named(module, message):
    with pytest.raises(ValueError, match=message):
        convert(module, (3, 8, 8))


@pytest.mark.parametrize(
    ("first", "second", "image"),
    [
        ({"a_b": nn.Conv2d(2, 2, 1)}, {"a": nn.Sequential(OrderedDict(b=nn.ReLU()))}, (2, 4, 4)),
        ({"a": nn.Sequential(OrderedDict(b=nn.ReLU()))}, {"a_b": nn.Conv2d(2, 2, 1)}, (2, 4, 4)),
        ({"c_1": nn.ReLU()}, {"c": nn.MaxPool2d(2)}, (2, 5, 5)),  # a padding and a downsampling, numbered
    ],
)
def test_no_layer_takes_the_place_of_another(first, second, image):
    with pytest.raises(ValueError, match=r"and an earlier layer are both '(a_b|c_1)' here; rename one"):
        convert(nn.Sequential(OrderedDict(first | second)), image)


def test_the_old_network_is_left_as_it_is():
    before = {name: value.clone() for name, value in VGG.state_dict().items()}
    convert(VGG, (3, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in VGG.state_dict().items())


def test_pooling_to_no_size_is_nothing():
    module = nn.Sequential(nn.Conv2d(2, 4, 1), nn.AdaptiveAvgPool2d((None, None)), nn.AdaptiveMaxPool2d(None))
    conversion = convert(module, (2, 5, 4))
    assert [change.after for change in conversion.changes] == ["nothing", "nothing"]
    assert conversion.model(torch.zeros(1, 2, 5, 4)).shape == (1, 4, 5, 4)


@pytest.mark.parametrize("shape", [(4,), (4, 8), (1, 3, 8, 8)])
def test_a_shape_is_that_of_one_image(shape):
    with pytest.raises(ValueError, match=r"input_shape is .*; expected \(channels, height, width\)"):
        convert(nn.Sequential(nn.Flatten()), shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_double_networks_stay_double(dtype):
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).to(dtype)
    model = convert(module, (2, 4, 4)).model
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for p in model.parameters()} == {expected}
    if dtype == torch.float64:
        assert upper(model, (2, 4, 4)) < 1 + 1e-11  # what float32 weights would not reach


class Pooled(nn.Module):
    """One pooling layer called twice, as in PyTorch's tutorial."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.pool, self.flatten, self.linear = nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 5)

    def forward(self, x):
        return self.linear(self.flatten(self.pool(self.conv2(self.pool(self.conv1(x))))))


def test_a_layer_that_is_called_twice_is_numbered():
    names = [name for name, _ in convert(Pooled(), (3, 8, 8)).model.named_children()]
    assert names == ["conv1", "pool", "conv2", "pool_2", "flatten", "linear"]


def test_lost_paddings_and_shared_weights_are_changes():
    shared = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    changes = convert(nn.Sequential(shared, nn.Identity(), shared), (4, 4, 4)).changes
    assert [tuple(change) for change in changes] == [
        ("0", "Conv2d", "no reflect padding"),
        ("2", "Conv2d", "no reflect padding, weights of its own"),
    ]


def test_a_layer_used_twice_becomes_two():
    relu = nn.ReLU()
    model = convert(nn.Sequential(nn.Conv2d(2, 4, 1), relu, nn.Conv2d(4, 4, 1), relu), (2, 4, 4)).model
    assert [type(m) for m in model].count(MaxMin) == 2
    assert not any(isinstance(m, InvertibleDownsampling) for m in model)


@pytest.mark.parametrize("hold", [lambda layer: layer, lambda layer: nn.Sequential(nn.Sequential(layer))])
def test_a_replaced_forward_is_not_lost(hold):
    """A layer that was given another `forward` is no longer what its class says."""
    layer = nn.ReLU()
    layer.forward = lambda x: 2 * x
    with pytest.raises(ValueError, match=r"has forward hooks or a replaced forward; make what they do a module"):
        convert(hold(layer), (1, 4, 4))


def test_what_takes_a_module_names_the_model_of_a_conversion():
    found = convert(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4))
    loss = losses.Hinge(eps=0.1)
    for take in (bake, lipschitz_bound, partial(fit, data="digits", loss=loss, epochs=1)):
        with pytest.raises(ValueError, match=r"is a Conversion: pass its \.model"):
            take(found)
