"""Forward passes as chains: the layers, one after another, compute what the module does; others are refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lconvnet import bake, convert, lipschitz_bound
from lconvnet.conversion import links
from lconvnet.layers import MaxMin


class Functions(nn.Module):
    """A network as tutorials write it: layers with weights are modules, the others functions."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 16, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(64, 12), nn.Linear(12, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2, 2, 0, 1, True)
        x = F.avg_pool2d(torch.tanh(self.conv2(x)), (2, 2))
        x = F.adaptive_avg_pool2d(x, 2)
        x = x.view(x.size(0), -1)
        x = F.dropout(self.fc1(x).relu(), training=self.training)
        return self.fc2(F.leaky_relu(x, 0.1))


class Parts(nn.Module):
    """Sequences and classes inside of a class, as in torchvision's VGG."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), Downsampled())
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x, unused=None):
        return self.head(torch.flatten(self.features(x), 1))


class Downsampled(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        return F.gelu(self.pool(x))


class Shape(nn.Module):
    def forward(self, x):
        return x.reshape((x.shape[0], -1))


class Length(nn.Module):
    def forward(self, x):
        return torch.reshape(x, (x.size()[0], -1))


NETWORKS = {
    "functions": Functions(),
    "parts": Parts(),
    "sequence": nn.Sequential(Downsampled(), nn.Sequential(nn.Flatten(), nn.Linear(48, 3))),
    "shape": nn.Sequential(Downsampled(), Shape()),
    "length": Length(),
    "a layer": nn.Conv2d(3, 4, 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_one_after_another_are_the_module(name):
    module, x = NETWORKS[name].eval(), torch.rand(2, 3, 8, 8)
    found = list(links(module))
    assert not any(link.fault for link in found)
    assert torch.equal(nn.Sequential(*(link.layer for link in found)).eval()(x), module(x))
    module.train()


def test_layers_are_called_by_their_paths():
    names = [link.name for link in links(nn.Sequential(Parts(), nn.ReLU()))]
    parts = ["0.features.0", "0.features.1", "0.features.2", "0.features.3.pool"]
    assert names == [*parts, "0.gelu", "0.flatten", "0.head", "1"]


@pytest.mark.parametrize("name", ["functions", "parts"])
def test_a_class_converts(name):
    conversion = convert(NETWORKS[name], (3, 8, 8))
    assert conversion.model(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert lipschitz_bound(bake(conversion.model), input_shape=(3, 8, 8)).upper < 1 + 1e-5
    assert ("relu" if name == "functions" else "features.2", "ReLU", "MaxMin") in conversion.changes


class Forward(nn.Module):
    """A class with a forward pass of its own, and two layers to build it from."""

    def __init__(self, forward):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 3, 1), nn.MaxPool2d(2)
        self.act = forward


def doubled(module, images, outputs):
    return outputs + outputs


def forward(function):
    """A class whose forward pass is a function of itself and its input."""
    return type("Net", (Forward,), {"forward": function})(None)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (forward(lambda self, x: x + self.conv(x)), "at add() it branches, with the input 'x' and conv; convert"),
        (forward(lambda self, x: self.conv(x) + 1), "add is not known"),
        (forward(lambda self, x: self.conv(x) * self.conv(x)), "at conv it branches, with the input 'x' and conv"),
        (forward(lambda self, x: torch.sin(x)), "sin is not known"),
        (forward(lambda self, x: 2 * self.conv(x)), "mul() takes conv other than as its first argument; write that"),
        (forward(lambda self, x: self.conv(input=x)), "conv takes the input 'x' other than as its first argument"),
        (forward(lambda self, x: exec("raise KeyError")), "cannot be traced (KeyError)"),
        (forward(lambda self, x: F.elu(self.conv(x), x)), "at elu() it branches"),
        (forward(lambda self, x: F.elu(self.conv(x), alpha=x)), "at elu() it branches"),
        (forward(lambda self, x: (x, x)), "it returns more than what its last layer does"),
        (forward(lambda self, x: (self.conv(x), x)[1]), "it returns more than what its last layer does"),
        (forward(lambda self, x, y: self.conv(x)), "it takes y too"),
        (forward(lambda self: 1), "it takes nothing"),
        (forward(lambda self, x: self.conv(x) if x.sum() > 0 else x), "cannot be traced (symbolically traced"),
        (forward(lambda self, x: x.view(-1, 192)), "view is not a flattening; write torch.flatten(x, 1)"),
        (forward(lambda self, x: x.view(x.size(1), -1)), "size is not known"),
        (forward(lambda self, x: x.view(x.size(0), 192)), "view is not a flattening"),
        (forward(lambda self, x: x.view(x.size(0) * 3, -1)), "mul() computes with the sizes of its input"),
        (forward(lambda self, x: F.max_pool2d(x, 2, return_indices=True)[0]), "is not known"),
        (forward(lambda self, x: F.linear(x, self.conv.weight)), "its tensor 'conv.weight' outside of a layer"),
        (forward(lambda self, x: x.relu(colour=3)), "cannot be traced ("),
    ],
)
def test_what_is_no_chain_is_said(module, message):
    (link,) = links(module)
    assert link.layer is module and message in link.fault and "\n" not in link.fault
    with pytest.raises(ValueError, match=r"'module' \(Net\) has no 1-Lipschitz equal here; its forward pass "):
        convert(module, (3, 8, 8))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", [Downsampled, nn.Sequential])
def test_hooks_of_whatever_holds_layers_are_seen(kind, inside):
    module = kind()
    module.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"it has forward hooks or a replaced forward; make what they do"):
        convert(nn.Sequential(module) if inside else module, (3, 8, 8))


def test_what_hooks_inside_of_a_traced_class_do_is_seen():
    net = Parts()
    net.features.register_forward_hook(doubled)
    with pytest.raises(ValueError, match=r"\(Parts\) has no .*not a chain of layers: add is not known"):
        convert(net, (3, 8, 8))


def test_layers_of_this_package_are_layers():
    (link,) = links(MaxMin())
    assert isinstance(link.layer, MaxMin)
    with pytest.raises(ValueError, match=r"\(MaxMin\) has no 1-Lipschitz equal here; take it out"):
        convert(nn.Sequential(MaxMin()), (4, 4, 4))
