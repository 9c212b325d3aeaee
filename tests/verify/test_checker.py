"""The checker accepts what the certifier writes and nothing else."""

import ast
import base64
import copy
import json
import math
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from lconvnet import atomic, bake, certify, layers, models, save
from lconvnet.bounds import lipschitz_bound
from lconvnet.certify.files import certificate_documents, encoded_model

pytest.importorskip("flint", reason="needs python-flint: pip install 'lconvnet[verify]'")
from lconvnet_verify.__main__ import main

SOURCE = Path(__file__).parents[2] / "src" / "lconvnet_verify"
PROVED, INVALID, UNPROVED = 0, 2, 4


def write(place, network, images, level="sound"):
    """Save a network and certificates about it; returns the documents."""
    shape = tuple(images.shape[1:])
    save(network, place / "model.safetensors", input_shape=shape)
    bound = lipschitz_bound(network, input_shape=shape, diagnose=False)
    found, certificates = certificate_documents(network, images, bound=bound, level=level, sources=[{}] * len(images))
    return [document for radius, document in zip(found.radius, certificates, strict=True) if radius > 0]


def code(place, document, model="model.safetensors"):
    """The exit code for a document, which may be text."""
    text = document if isinstance(document, str) else json.dumps(document)
    (place / "certificate.json").write_text(text)
    return main([str(place / "certificate.json"), str(place / model)])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return bake(models.small_convnet(1, 8, 3))


@pytest.fixture(scope="module")
def place(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("certified")
    with torch.no_grad():
        network.linear2.bias.add_(torch.tensor([1.0, 0.0, 0.0]))
    other = copy.deepcopy(network)
    other.conv1.weight[0, 0, 0, 0] *= 1.5
    save(other, folder / "other.safetensors", input_shape=(1, 8, 8))
    return folder


@pytest.fixture(scope="module")
def true(place, network):
    """Two certificates of level "sound", the second about an image with a smaller margin."""
    found = write(place, network, torch.rand(8, 1, 8, 8))
    return sorted(found, key=lambda document: -float.fromhex(document["radius"]))


def largest_radius(place, document):
    """The largest radius that the checker proves, by bisection over all floats."""
    low, high = float.fromhex(document["radius"]), 2 * float.fromhex(document["radius"])
    while math.nextafter(low, high) < high:
        middle = (low + high) / 2
        low, high = (middle, high) if code(place, document | {"radius": middle.hex()}) == PROVED else (low, middle)
    return low


def test_true_certificates_are_proved(place, true):
    assert len(true) >= 2
    assert {code(place, document) for document in true} == {PROVED}
    assert {code(place, document | {"level": "analytic"}) for document in true} == {PROVED}


def test_one_ulp_beyond_what_can_be_proved(place, true):
    """The certifier leaves the checker 2 * 2^-30 of a norm for each of its layers, and its own rounding: below 1e-6."""
    radius = largest_radius(place, true[0])
    assert radius * (1 - 1e-2) < float.fromhex(true[0]["radius"]) <= radius
    assert code(place, true[0] | {"radius": radius.hex()}) == PROVED
    assert code(place, true[0] | {"radius": math.nextafter(radius, math.inf).hex()}) == UNPROVED


def change(*path, to):
    """A tampering: the entry at the path becomes another value, or a function of the old one."""

    def tamper(document):
        *folders, last = path
        inner = document
        for folder in folders:
            inner = inner[folder]
        inner[last] = to(inner[last]) if callable(to) else to
        return document

    return tamper


def remove(*path):
    def tamper(document):
        *folders, last = path
        inner = document
        for folder in folders:
            inner = inner[folder]
        del inner[last]
        return document

    return tamper


def times(factor):
    return lambda text: (float.fromhex(text) * factor).hex()


def node(document, name):
    return next(n for n in document["graph"]["nodes"] if n["name"] == name)


def option(name, key, value):
    def tamper(document):
        node(document, name)["options"][key] = value
        return document

    return tamper


def shortened(document):
    """Without the first activation, as if it had never been there."""
    gone = document["graph"]["nodes"].pop(2)
    after = document["graph"]["nodes"][2]
    after["inputs"] = gone["inputs"]
    document["layers"] = [layer for layer in document["layers"] if layer["name"] != gone["name"]]
    return document


def lengthened(document):
    last = document["graph"]["nodes"][-1]
    document["graph"]["nodes"].append(last | {"name": "more", "operation": "Identity", "inputs": [last["name"]]})
    document["layers"].append({"name": "more", "upper": (1.0).hex(), "absolute": None, "method": "exact"})
    return document


def exchanged(document):
    nodes = document["graph"]["nodes"]
    nodes[1], nodes[2] = nodes[2], nodes[1]
    return document


def renamed(document):
    node(document, "conv1_activation")["operation"] = "ReLU"
    return document


def redirected(document):
    node(document, "linear2")["tensors"]["weight"] = "linear1.weight"
    return document


def bypassing(document):
    node(document, "linear2")["inputs"] = ["input"]
    return document


def without_bias(document):
    del node(document, "linear1")["tensors"]["bias"]
    return document


def pixels(function):
    def tamper(document):
        values = np.frombuffer(base64.b64decode(document["input"]["data"]), "<f4").copy()
        document["input"]["data"] = base64.b64encode(function(values).astype("<f4").tobytes()).decode()
        return document

    return tamper


def set_first(value):
    def function(values):
        values[0] = value
        return values

    return function


TAMPERINGS = {
    "a radius a little larger": (change("radius", to=times(1.01)), UNPROVED),
    "a radius twice as large": (change("radius", to=times(2)), UNPROVED),
    "a radius that is NaN": (change("radius", to="nan"), INVALID),
    "a radius that is infinite": (change("radius", to="inf"), INVALID),
    "a radius that is a number": (change("radius", to=1.0), INVALID),
    "a negative radius": (change("radius", to="-0x1.0000000000000p+0"), INVALID),
    "a radius that overflows": (change("radius", to="0x1.0p+9999"), INVALID),
    "another label": (change("label", to=lambda label: (label + 1) % 3), UNPROVED),
    "a label beyond the logits": (change("label", to=3), UNPROVED),
    "a negative label": (change("label", to=-1), UNPROVED),
    "a label that is a truth value": (change("label", to=True), INVALID),
    "level estimate": (change("level", to="estimate"), UNPROVED),
    "an unknown level": (change("level", to="certain"), UNPROVED),
    "the hash of other weights": (change("network", "sha256", to="0" * 64), UNPROVED),
    "a missing layer": (shortened, UNPROVED),
    "a layer more": (lengthened, UNPROVED),
    "exchanged layers": (exchanged, UNPROVED),
    "another activation": (renamed, UNPROVED),
    "another weight": (redirected, UNPROVED),
    "a bypass": (bypassing, UNPROVED),
    "a dropped bias": (without_bias, UNPROVED),
    "another stride": (option("conv2", "stride", [1, 1]), UNPROVED),
    "another padding": (option("conv1", "circular_padding", [1, 1, 1, 1]), UNPROVED),
    "no circular padding": (option("conv1", "circular_padding", None), UNPROVED),
    "another output": (change("graph", "output", to="linear1"), UNPROVED),
    "a norm that is too small": (change("layers", 0, "upper", to=times(0.99)), UNPROVED),
    "a norm below by 2^-20": (change("layers", 0, "upper", to=times(1 - 2.0**-20)), UNPROVED),
    "a norm of an activation below 1": (change("layers", 1, "upper", to=times(0.5)), UNPROVED),
    "a norm that is too large to prove the radius": (change("layers", 0, "upper", to=times(1.01)), UNPROVED),
    "absolute weights that are too small": (change("layers", 0, "absolute", to=times(0.99)), UNPROVED),
    "no absolute weights": (change("layers", 0, "absolute", to=None), UNPROVED),
    "a layer without a claim": (remove("layers", 0), UNPROVED),
    "two claims on one layer": (change("layers", to=lambda layers: layers + layers[:1]), INVALID),
    "pixels that are NaN": (pixels(set_first(math.nan)), INVALID),
    "pixels above 1": (pixels(set_first(1.5)), UNPROVED),
    "other pixels": (pixels(lambda values: 1 - values), UNPROVED),
    "pixels in another shape": (change("input", "shape", to=[1, 4, 16]), UNPROVED),
    "too few pixels": (change("input", "shape", to=[1, 8, 7]), INVALID),
    "pixels of another dtype": (change("input", "dtype", to="F64"), INVALID),
    "an unknown key": (change("note", to="trust me"), INVALID),
    "a missing key": (remove("versions"), INVALID),
    "another format": (change("format", to="lconvnet-certificate-2"), INVALID),
    "no nodes": (change("graph", "nodes", to=[]), INVALID),
    "nodes that are text": (change("graph", "nodes", to="input"), INVALID),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_noticed(place, true, name):
    tamper, expected = TAMPERINGS[name]
    original = copy.deepcopy(true[0])
    original.setdefault("note", "")  # so that change() finds the key; removed again unless it is the tampering
    document = tamper(original)
    if name != "an unknown key":
        document.pop("note")
    assert code(place, document) == expected


def test_another_image_does_not_inherit_a_radius(place, true):
    assert code(place, true[-1] | {"radius": true[0]["radius"]}) == UNPROVED


def test_another_network_does_not_inherit_a_certificate(place, true):
    assert code(place, true[0], "other.safetensors") == UNPROVED


def test_one_bit_of_one_weight(place, true):
    """Noticed by the hash, whichever bit it is; and where the hash is adapted, by the norm or the margin."""
    data = bytearray((place / "model.safetensors").read_bytes())
    data[-1] ^= 0x01
    (place / "flipped.safetensors").write_bytes(data)
    assert code(place, true[0], "flipped.safetensors") == UNPROVED


def test_a_raised_level(place, network):
    """An analytic radius is larger than what the float32 network keeps."""
    (document, *_) = write(place, network, torch.rand(4, 1, 8, 8), level="analytic")
    assert code(place, document) == PROVED
    assert code(place, document | {"level": "sound"}) == UNPROVED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"radius": NaN}',
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        "\ud800".encode("utf-8", "replace").decode(),
    ],
)
def test_what_is_no_certificate(place, text):
    assert code(place, text) == INVALID


def test_repeated_keys_are_refused(place, true):
    text = json.dumps(true[0])
    assert code(place, text[:-1] + ', "radius": "0x1.0p+9"}') == INVALID


@pytest.mark.parametrize("data", [b"", b"\x80\x02", b"\xff" * 16, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_what_is_no_model(place, true, data):
    (place / "broken.safetensors").write_bytes(data)
    assert code(place, true[0], "broken.safetensors") == INVALID
    assert code(place, true[0], "missing.safetensors") == INVALID


def test_a_truncated_model(place, true):
    data = (place / "model.safetensors").read_bytes()
    for length in (4, 100, len(data) - 1):
        (place / "broken.safetensors").write_bytes(data[:length])
        assert code(place, true[0], "broken.safetensors") == INVALID


def test_random_damage_never_proves_another_claim(place, true):
    """Any byte may be any other: the file is refused, or it still says the same."""
    text = json.dumps(true[0]).encode()
    random, largest = np.random.default_rng(0), largest_radius(place, true[0])
    for _ in range(80):
        damaged = bytearray(text)
        damaged[random.integers(len(text))] = random.integers(32, 127)
        (place / "certificate.json").write_bytes(damaged)
        result = main([str(place / "certificate.json"), str(place / "model.safetensors")])
        assert result in (PROVED, INVALID, UNPROVED)
        if result == PROVED:
            read = json.loads(damaged)
            assert all(read[key] == true[0][key] for key in ("label", "network"))
            if read["input"] == true[0]["input"]:  # else it is a true claim about other pixels
                assert float.fromhex(read["radius"]) <= largest


def networks(count):
    """Random networks of every layer that can be saved, with images: (network, images)."""
    kernels = (layers.BCOPConv2d, layers.RKOConv2d, layers.RKL2NEConv2d)
    for seed in range(count):
        torch.manual_seed(seed)
        kind, dtype = seed % 6, (torch.float32, torch.float64)[seed % 2]
        if kind == 0:
            network = models.mlp(16, 3, widths=(8, 6), activation=layers.FullSort)
        elif kind == 1:
            network = models.small_convnet(1, 8, 4, conv=kernels[seed % 3])
        elif kind == 2:
            network = nn.Sequential(
                nn.ZeroPad2d(1), nn.Conv2d(1, 4, 3, stride=2, groups=1), layers.Abs(),
                nn.Conv2d(4, 4, 2, groups=2, dilation=2, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3),
            )  # fmt: skip
        elif kind == 3:
            network = nn.Sequential(
                layers.NearestUpsampling(2), nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"),
                layers.InvertibleDownsampling(2), layers.GroupSort(4), layers.InvertibleUpsampling(2),
                layers.Scale(0.3), nn.Flatten(), nn.LazyLinear(3, bias=False),
            )  # fmt: skip
        elif kind == 4:
            network = nn.Sequential(nn.Conv2d(1, 3, 4, stride=(4, 1), padding=(0, 1)), nn.Flatten(), layers.MaxMin())
            network.append(nn.LazyLinear(5)).append(layers.Scale(-2.0))
        else:
            network = nn.Sequential(
                nn.CircularPad2d((0, 1, 0, 1)), nn.Conv2d(1, 4, 2, stride=2), nn.Identity(), nn.Flatten(),
                nn.LazyLinear(2),
            )  # fmt: skip
        images = torch.rand(5, 1, *((4, 4) if kind == 0 else (8, 8)))
        network(images)
        yield bake(network).to(dtype), images


@pytest.mark.parametrize("count", [6, pytest.param(210, marks=pytest.mark.slow)])
def test_certificates_of_many_networks_are_proved(tmp_path, count):
    """210 networks, five images each, two levels: more than 1,000 certificates."""
    total = 0
    for network, images in networks(count):
        for level in ("analytic", "sound"):
            for document in write(tmp_path, network, images, level=level):
                assert code(tmp_path, document) == PROVED
                total += 1
    assert total > 5 * count


def test_the_checker_is_independent():
    """numpy, flint and the standard library; no torch, nothing of lconvnet."""
    for path in SOURCE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in {"numpy", "flint", "lconvnet_verify"} | set(sys.stdlib_module_names), name


def test_the_command_runs_alone(place, true):
    """As a process of its own, which never imports torch; a folder is proved where all in it are."""
    folder = place / "folder"
    folder.mkdir()
    for i, document in enumerate(true[:2]):
        (folder / f"{i}.json").write_text(json.dumps(document))
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "lconvnet_verify",
        str(folder),
        str(place / "model.safetensors"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SOURCE.parent, check=False)
    assert done.returncode == PROVED and done.stdout.count(": proved: label") == 2
    assert "torch" not in done.stderr and "lconvnet." not in done.stderr
    (folder / "2.json").write_text(json.dumps(true[0] | {"radius": (9.0).hex()}))
    assert main([str(folder), str(place / "model.safetensors")]) == UNPROVED
    assert main([str(place / "nowhere"), str(place / "model.safetensors")]) == INVALID
    (place / "empty").mkdir()
    assert main([str(place / "empty"), str(place / "model.safetensors")]) == INVALID
    assert main(["one argument"]) == INVALID


class Residual(nn.Module):
    """Branches that are added, subtracted, concatenated, split, shifted and scaled."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.third = nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")
        self.dense, self.activation = nn.Linear(32, 3), layers.MaxMin()
        self.register_buffer("gain", torch.rand(2, 1, 1))

    def forward(self, x):
        y = x + 0.5 * self.activation(self.first(x))
        a, b = y.chunk(2, dim=1)
        y = torch.cat([b, -a], dim=1) - self.second(y) * self.gain
        y = self.third(torch.cat([y, x - 0.25], dim=1)) + self.gain
        y = torch.relu(y.transpose(2, 3)).reshape(x.shape[0], 32)
        return -2.0 * self.dense(y)


def branched(seed, dtype):
    torch.manual_seed(seed)
    network = Residual().to(dtype).eval().requires_grad_(False)
    return network, torch.rand(4, 2, 4, 4)


@pytest.mark.parametrize("level", ["analytic", "sound"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_with_branches(tmp_path, level, dtype):
    network, images = branched(0, dtype)
    (tmp_path / "model.safetensors").write_bytes(encoded_model(network, (2, 4, 4)))
    bound = lipschitz_bound(network, input_shape=(2, 4, 4))
    found, certificates = certificate_documents(network, images, bound=bound, level=level, sources=[{}] * 4)
    assert bool((found.radius > 0).any())
    for radius, document in zip(found.radius, certificates, strict=True):
        if radius > 0:
            document = json.loads(json.dumps(document))
            assert code(tmp_path, document) == PROVED
            assert code(tmp_path, document | {"radius": (float(radius) * 1.05).hex()}) == UNPROVED
            next(n for n in document["graph"]["nodes"] if n["operation"] == "subtract")["operation"] = "add"
            assert code(tmp_path, document) == UNPROVED


def conv(*arguments, **options):
    return nn.Sequential(nn.Conv2d(*arguments, **options))


SAVED = {
    "a sum": [layers.Sum(conv(1, 1, 3, padding=1), nn.Sequential())],
    "one that starts with the shortcut": [layers.Sum(nn.Sequential(), conv(1, 1, 3, padding=1))],
    "a residual block": [
        layers.Sum(
            conv(1, 2, 2, stride=2),
            nn.Sequential(nn.Conv2d(1, 2, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1)),
        ),
        nn.ReLU(),
    ],
    "four terms": [
        layers.Sum(
            conv(1, 2, 1),
            nn.Sequential(nn.CircularPad2d(1), nn.Conv2d(1, 2, 3)),
            conv(1, 2, 1, bias=False),
            nn.Sequential(nn.Conv2d(1, 2, 1), layers.MaxMin(), layers.Scale(0.5)),
        ),
    ],
    "terms without layers": [layers.Sum(nn.Sequential(), nn.Sequential()), layers.Sum(nn.Sequential())],
    "a concatenation": [layers.Concat(conv(1, 1, 3, padding=1), nn.Sequential()), layers.MaxMin()],
    "branches of branches": [
        layers.Concat(
            nn.Sequential(layers.Sum(conv(1, 1, 1), nn.Sequential(nn.ReLU())), nn.Conv2d(1, 2, 1)),
            nn.Sequential(nn.ReLU(), layers.Sum(nn.Sequential(), nn.Sequential(layers.Abs()))),
        ),
    ],
    "zeros around": [nn.ZeroPad2d((2, 0, 1, 0)), layers.Scale(1 / 3), layers.Sum(nn.Sequential(), conv(1, 1, 1))],
    "two sides": [nn.Conv2d(1, 2, 3, padding=1), layers.TwoSidedReLU()],
    "branches named like the input": [OrderedDict(input=layers.Sum(nn.Sequential(), conv(1, 1, 1)))],
}  # fmt: skip


@pytest.mark.parametrize("level", ["analytic", "sound"])
@pytest.mark.parametrize("name", SAVED)
def test_saved_networks_with_branches(tmp_path, name, level):
    torch.manual_seed(0)
    images = torch.rand(6, 1, 4, 4)
    parts = SAVED[name]
    body = nn.Sequential(parts[0]) if isinstance(parts[0], OrderedDict) else nn.Sequential(*parts)
    network = body.append(nn.Flatten()).append(nn.LazyLinear(3)).eval()
    network(images)
    certificates = write(tmp_path, network.requires_grad_(False), images, level=level)
    assert certificates and {code(tmp_path, document) for document in certificates} == {PROVED}
    too_large = [document | {"radius": (float.fromhex(document["radius"]) * 1.1).hex()} for document in certificates]
    assert {code(tmp_path, document) for document in too_large} == {UNPROVED}


def test_logits_that_are_saved_networks_of_their_own(tmp_path):
    torch.manual_seed(0)
    network = bake(models.qw_convnet(1, 8, 3, channels=(), hidden=4))
    certificates = write(tmp_path, network, torch.rand(3, 1, 8, 8))
    assert certificates and {code(tmp_path, document) for document in certificates} == {PROVED}


class Apart(nn.Module):
    """Every logit has a dense layer of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(16, 1) for _ in range(3))

    def forward(self, x):
        return torch.cat([self.first(x), self.second(x), self.third(x)], dim=1)


def test_logits_that_are_computed_apart_move_by_the_sum_of_their_constants(tmp_path):
    network, images = Apart().eval().requires_grad_(False), torch.rand(4, 16)
    (tmp_path / "model.safetensors").write_bytes(encoded_model(network, (16,)))
    bound = lipschitz_bound(network, input_shape=(16,))
    found, certificates = certificate_documents(network, images, bound=bound, level="analytic", sources=[{}] * 4)
    assert bool((found.radius > found.margin / (2**0.5 * bound.upper)).any())  # more than the joint constant gives
    for radius, document in zip(found.radius, certificates, strict=True):
        assert code(tmp_path, document) == PROVED
        assert code(tmp_path, document | {"radius": (float(radius) * 1.01).hex()}) == UNPROVED


class Broadcasting(nn.Module):
    """One entry that is added to every other: a sum that moves further than its terms together."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(16, 3)

    def forward(self, x):
        return self.dense(x + 4 * x[:, :1])


def test_what_is_repeated_in_a_sum_is_neither_underestimated_nor_proved(tmp_path):
    network, images = Broadcasting().eval().requires_grad_(False), torch.rand(4, 16)
    (tmp_path / "model.safetensors").write_bytes(encoded_model(network, (16,)))
    bound = lipschitz_bound(network, input_shape=(16,))
    found, certificates = certificate_documents(network, images, bound=bound, level="analytic", sources=[{}] * 4)
    assert bool((found.radius <= certify(network, images, bound=bound).radius).all())
    assert {code(tmp_path, document) for document in certificates} == {UNPROVED}


def test_the_model_says_what_is_computed(tmp_path):
    """An option that the layer does not have changes nothing: FullSort sorts all, whatever a certificate adds."""
    network, images = bake(models.mlp(16, 3, widths=(4,), activation=layers.FullSort)), torch.rand(6, 1, 4, 4)
    for document in write(tmp_path, network, images):
        node(document, "linear1_activation")["options"]["group_size"] = 2
        assert code(tmp_path, document) == PROVED  # about the network of the model, as before


@pytest.mark.parametrize("name", ["first", "last"])
def test_a_layer_named_like_the_input(tmp_path, name):
    parts = {"first": nn.Flatten(), "last": nn.Linear(16, 3)}
    named = OrderedDict(("input" if key == name else key, part) for key, part in parts.items())
    documents_of = write(tmp_path, nn.Sequential(named).eval(), torch.rand(3, 1, 4, 4))
    assert documents_of and {code(tmp_path, document) for document in documents_of} == {PROVED}


@pytest.mark.parametrize("level", ["analytic", "sound"])
def test_a_constant_network(tmp_path, level):
    """Its radius is infinite, which no certificate can say."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval().requires_grad_(False)
    network[1].weight.zero_()
    for document in write(tmp_path, network, torch.rand(2, 1, 4, 4), level=level):
        assert code(tmp_path, document) == PROVED
        if level == "analytic":
            assert float.fromhex(document["radius"]) == 8.0  # twice the diagonal of [0, 1]^16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda graph: graph["nodes"].reverse(), "out of order"),
        (lambda graph: graph["nodes"].append(graph["nodes"][-1]), "out of order"),
        (lambda graph: graph.update(output="input"), "last node is not the output"),
        (lambda graph: graph.update(nodes=[]), "last node is not the output"),
        (lambda graph: graph["nodes"][2].update(inputs=[]), "reads nothing"),
    ],
)
def test_graphs_that_are_none(tmp_path, capsys, damage, message):
    network, _ = branched(0, torch.float32)
    data = encoded_model(network, (2, 4, 4))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header["__metadata__"]["lconvnet"])
    damage(about["graph"])
    header["__metadata__"]["lconvnet"] = json.dumps(about)
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert code(tmp_path, "{}") == INVALID
    assert message in capsys.readouterr().err


def test_sequences_inside_and_branches_of_one_layer_are_read(tmp_path):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Sequential(), nn.Linear(16, 16), nn.Sequential(nn.ReLU()))
    branches = layers.Sum(
        nn.Linear(16, 16), nn.Sequential(nn.Sequential(nn.Linear(16, 16))), layers.Concat(nn.Identity())
    )
    network = nn.Sequential(nn.Flatten(), inner, branches, nn.Linear(16, 3)).eval()
    documents_of = write(tmp_path, network, torch.rand(3, 1, 4, 4))
    assert documents_of and {code(tmp_path, document) for document in documents_of} == {PROVED}
    description, tensors = read_model(tmp_path)
    description["architecture"][2]["branches"][0]["name"] = "1"
    write_model(tmp_path, description, tensors)
    assert code(tmp_path, documents_of[0]) == INVALID


def read_model(place):
    with safe_open(place / "model.safetensors", "pt") as file:
        return json.loads(file.metadata()["lconvnet"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write_model(place, description, tensors):
    atomic.write_safetensors(place / "model.safetensors", tensors, metadata=json.dumps(description))
