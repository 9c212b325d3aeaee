"""Saved networks: equal after a round trip, and no hostile file gets anywhere."""

import json
import pickle
import subprocess
import sys
from functools import partial

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lconvnet import atomic, certify, layers, models
from lconvnet.baking import bake
from lconvnet.bounds import lipschitz_bound, register_operation
from lconvnet.bounds.operations import MODULES, REGISTERED
from lconvnet.certify import certificate_documents
from lconvnet.saving import describe, load, save
from lconvnet.saving.architecture import CONTAINERS, ENTRIES, Container

NETWORKS = {
    "small": lambda: models.small_convnet(1, 10, 3),
    "odd kernels": lambda: models.large_convnet(3, 8, 4),
    "zeros": lambda: models.small_convnet(1, 8, 3, conv=partial(layers.RKL2NEConv2d, padding_mode="zeros")),
    "groupsort": lambda: models.mlp(16, 3, (8,), activation=partial(layers.GroupSort, 4)),
    "fullsort": lambda: models.mlp(16, 3, (8,), activation=layers.FullSort),
    "relu": lambda: models.mlp(16, 3, (8,), activation=nn.ReLU),
    "shared activation": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4), *[nn.ReLU()] * 2, nn.Linear(4, 3)),
    "resampling": lambda: nn.Sequential(
        layers.InvertibleDownsampling(2),
        layers.Abs(),
        layers.InvertibleUpsampling(2),
        layers.NearestUpsampling(3),
        layers.Scale(0.5),
        nn.Flatten(),
    ),
}


def shape_of(name: str) -> tuple[int, int, int]:
    return {"small": (1, 10, 10), "odd kernels": (3, 8, 8), "zeros": (1, 8, 8), "resampling": (1, 8, 8)}.get(
        name, (1, 4, 4)
    )


def baked(name: str) -> nn.Module:
    model = NETWORKS[name]()
    return model.eval() if name in ("shared activation", "resampling") else bake(model)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip_gives_the_same_outputs_and_bound(name, dtype, path):
    network, shape = baked(name).to(dtype), shape_of(name)
    bound = lipschitz_bound(network, input_shape=shape)
    save(network, path, bound=bound, input_shape=shape, notes={"epoch": 3})
    found, x = load(path), torch.rand(2, *shape, dtype=dtype)
    assert torch.equal(found(x), network(x))
    assert str(found) == str(network)
    assert lipschitz_bound(found, input_shape=shape).upper == bound.upper == describe(path).bound.upper
    assert (describe(path).input_shape, describe(path).notes) == (shape, {"epoch": 3})
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_equal_networks_give_equal_bytes(path, tmp_path):
    network = baked("small")
    save(network, path, input_shape=(1, 10, 10))
    save(network, tmp_path / "again", input_shape=(1, 10, 10))
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


def test_a_fresh_process_sees_the_same_network(path, tmp_path):
    network, x = baked("small"), torch.rand(2, 1, 10, 10)
    save(network, path, input_shape=(1, 10, 10))
    torch.save({"x": x, "y": network(x)}, tmp_path / "xy.pt")
    code = (
        "import sys, torch; from lconvnet.saving import load; xy = torch.load(sys.argv[2], weights_only=True); "
        "sys.exit(not torch.equal(load(sys.argv[1])(xy['x']), xy['y']))"
    )
    assert subprocess.run([sys.executable, "-c", code, path, tmp_path / "xy.pt"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (models.mlp(4, 2, (4,)), r"layer 'linear1' is a LipschitzLinear; save takes baked networks only, use bake"),
        (nn.Linear(2, 2), r"network is a Linear; save takes the nn.Sequential"),
        (nn.Sequential(nn.Softmax(1)), r"layer '0' is a Softmax"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")), r"layer '0' .* cannot be saved"),
    ],
)
def test_what_cannot_be_saved_is_named(network, line, path):
    bound = lipschitz_bound(nn.Sequential(nn.Flatten()))
    with pytest.raises(ValueError, match=line):
        save(network, path, bound=bound)
    assert not path.exists()


class Bomb:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("write", [lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save])
def test_pickled_code_is_refused_and_not_run(path, tmp_path, write):
    write(Bomb(tmp_path / "exploded"), path)
    with pytest.raises(ValueError, match=r"holds pickled code, which is never loaded"):
        load(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_files(path, keep):
    save(baked("small"), path, input_shape=(1, 10, 10))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"truncated or not a safetensors file"):
        load(path)


def test_missing_and_foreign_files(path, tmp_path):
    with pytest.raises(ValueError, match=r"is not a file; name a model.safetensors"):
        load(path)
    with pytest.raises(ValueError, match=r"is not a file"):
        load(tmp_path)
    atomic.write_safetensors(path, {"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"has no description of a network"):
        load(path)
    atomic.write_safetensors(path, {"weight": torch.zeros(1)}, metadata="not json")
    with pytest.raises(ValueError, match=r"has a description that is refused"):
        load(path)


def forge(path, change) -> None:
    """Save a network, then let `change(description, tensors)` edit the file's content."""
    network = baked("groupsort")
    save(network, path, input_shape=(1, 4, 4))
    description, tensors = json.loads(describe(path).model_dump_json()), dict(network.state_dict())
    change(description, tensors)
    atomic.write_safetensors(path, tensors, metadata=json.dumps(description))


def test_an_unforged_file_loads(path):
    forge(path, lambda description, tensors: None)
    load(path)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda d, t: d["architecture"][1].update(op="os.system"), r"architecture.1: .*os.system"),
        (lambda d, t: d["architecture"][1].update(module="os"), r"architecture.1.linear.module: Extra inputs"),
        (lambda d, t: d["architecture"][1].update(in_features=10**15), r"in_features: Input should be less than"),
        (lambda d, t: d["architecture"][1].update(in_features=2**20, out_features=2**20), r"inconsistent: linear1"),
        (lambda d, t: d["architecture"][1].update(in_features=-1), r"in_features: Input should be greater than"),
        (lambda d, t: d["architecture"][1].update(in_features=17), r"inconsistent: linear1.weight has shape"),
        (lambda d, t: d["architecture"][1].update(name="a.b"), r"architecture.1.linear.name: String should match"),
        (lambda d, t: d["architecture"][1].update(name="flatten"), r"two layers share a name"),
        (lambda d, t: d["architecture"].clear(), r"architecture: Tuple should have at least 1 item"),
        (lambda d, t: d.update(architecture=[d["architecture"][0]] * 10_001), r"at most 10000|no description"),
        (lambda d, t: d.update(format="other-1"), r"format: Input should be 'lconvnet-network-1'"),
        (lambda d, t: d.update(notes={"a": "b" * 1_000_001}), r"has no description of a network"),
        (lambda d, t: t.pop("linear1.bias"), r"inconsistent: linear1.bias has shape None"),
        (lambda d, t: t.update(extra=torch.zeros(1)), r"inconsistent: extra has shape \(1,\), .* needs None"),
        (lambda d, t: t.update({"linear1.bias": torch.full((8,), torch.nan)}), r"linear1.bias .* not finite"),
        (lambda d, t: t.update({"linear1.bias": torch.zeros(8, dtype=torch.int64)}), r"linear1.bias \(torch.int64\)"),
    ],
)  # fmt: skip
def test_forged_files_are_refused(path, change, line):
    forge(path, change)
    with pytest.raises(ValueError, match=line) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_operation_of_the_table_has_a_name_of_its_own():
    kinds = [entry.model_fields["op"].default for entry in ENTRIES.values() if entry is not Container]
    assert len({*kinds, *CONTAINERS, "own", "registered"}) == len(kinds) + len(CONTAINERS) + 2 == len(ENTRIES) + 2


def test_a_bound_of_something_else_is_refused(tmp_path):
    network, other = (bake(models.small_convnet(1, 8, 3)) for _ in range(2))
    path = tmp_path / "network.safetensors"
    with pytest.raises(ValueError, match="another network"):
        save(network, path, bound=lipschitz_bound(other, input_shape=(1, 8, 8)), input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"input_shape=\(1, 8, 8\) is not input_shape=\(1, 16, 16\)"):
        save(network, path, bound=lipschitz_bound(network, input_shape=(1, 8, 8)), input_shape=(1, 16, 16))
    assert not path.exists()


IMAGES, VECTORS = (4, 4, 4), (4,)
EVERY = {
    "conv": lambda: nn.Conv2d(4, 2, 3, stride=2, padding=1, dilation=2, groups=2, bias=False),
    "conv same": lambda: nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2),
    "circular": lambda: nn.Sequential(nn.CircularPad2d((1, 1, 0, 2)), nn.Conv2d(4, 2, 3)),
    "cropped": lambda: nn.ZeroPad2d((-1, 2, 0, 0)),
    "reflected": lambda: nn.ReflectionPad2d((1, 0, 2, 1)),
    "replicated": lambda: nn.ReplicationPad2d((1, 0, 2, 1)),
    "flatten": lambda: nn.Flatten(2, 3),
    "relu": lambda: nn.ReLU(inplace=True),
    "identity": nn.Identity,
    "dropout": lambda: nn.Dropout(0.3),
    "dropout2d": lambda: nn.Dropout2d(0.3),
    "batch norm": lambda: normed(nn.BatchNorm2d(4, eps=0.1, momentum=None)),
    "batch norm of vectors": lambda: normed(nn.BatchNorm1d(4, affine=False)),
    "average": lambda: nn.AvgPool2d(3, stride=(1, 2), padding=1, divisor_override=-5),
    "adaptive average": lambda: nn.AdaptiveAvgPool2d((None, 2)),
    "maximum": lambda: nn.MaxPool2d((2,), stride=3, padding=1, dilation=2, ceil_mode=True),
    "l2": lambda: nn.LPPool2d(2, (2, 3), stride=1),
    "shuffle": lambda: nn.PixelShuffle(2),
    "unshuffle": lambda: nn.PixelUnshuffle(2),
    "maxmin": lambda: layers.MaxMin(2),
    "groupsort": lambda: layers.GroupSort(4, dim=3),
    "fullsort": lambda: layers.FullSort(dim=2),
    "abs": layers.Abs,
    "two-sided": layers.TwoSidedReLU,
    "scale": lambda: layers.Scale(-1 / 3),
    "down": lambda: layers.InvertibleDownsampling(4),
    "up": lambda: layers.InvertibleUpsampling(2),
    "nearest": lambda: layers.NearestUpsampling(3),
    "normalize": lambda: layers.Normalize((0.1, 0.2, 0.3, 0.4), (1.0, 2.0, 3.0, 1 / 3)),
    "norms": lambda: layers.NormPool(2),
    "linear": lambda: nn.Linear(4, 3, bias=False),
    "nested": lambda: nn.Sequential(nn.Sequential(), nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU()))),
    "sum of anything": lambda: layers.Sum(nn.Identity(), layers.Sum(nn.Sequential(), nn.AvgPool2d(1)), nn.Linear(4, 4)),
    "concat of anything": lambda: layers.Concat(nn.Linear(4, 4), nn.Sequential(nn.Sequential(nn.ReLU()))),
}


def normed(module):
    module.running_var.uniform_(0.5, 2)
    module.running_mean.normal_()
    return module


@pytest.mark.parametrize("name", EVERY)
def test_what_is_bounded_is_saved(name, path):
    torch.manual_seed(0)
    module = EVERY[name]()
    network = nn.Sequential(module).eval()
    shape = VECTORS if type(module) is nn.BatchNorm1d else IMAGES
    save(network, path, input_shape=shape)
    found, x = load(path), torch.rand(2, *shape)
    assert torch.equal(found(x.clone()), network(x.clone()))
    assert str(found) == str(network)
    assert {name: str(tensor.dtype) for name, tensor in found.state_dict().items()} == {
        name: str(tensor.dtype) for name, tensor in network.state_dict().items()
    }
    upper = lipschitz_bound(network, input_shape=shape, diagnose=False).upper
    assert lipschitz_bound(found, input_shape=shape, diagnose=False).upper == upper


def test_each_module_with_a_rule_is_among_those():
    built = {type(module) for make in EVERY.values() for module in make().modules()}
    assert built >= set(MODULES)
    assert set(ENTRIES) >= set(MODULES)


class Res(nn.Sequential):
    """Another function than the chain of its layers."""

    def forward(self, x):
        return x + super().forward(x)


class Block(nn.Module):
    """Whatever a class of a user may hold."""

    def __init__(self, channels):
        super().__init__()
        self.half, self.pair, self._private = 0.5, (1, [2, (3,)]), 0.25
        self.conv, self.none = layers.BCOPConv2d(channels, channels, 3), None
        self.activations = nn.ModuleList([layers.MaxMin(), nn.ModuleDict({"a": nn.ReLU()})])
        self.shift = nn.Parameter(torch.randn(channels, 1, 1))
        self.shifts = nn.ParameterList([nn.Parameter(torch.randn(channels, 1, 1))])
        self.register_buffer("mask", torch.rand(1, channels, 1, 1), persistent=False)
        self.register_buffer("counts", torch.arange(3))

    def forward(self, x):
        y = self.activations[1]["a"](self.activations[0](self.conv(x + self.shift)))
        return self.half * x + self.mask * (self._private * y) + self.shifts[0]


@pytest.mark.parametrize("make", [lambda: Res(nn.Linear(4, 4)), lambda: Block(4)], ids=["sequence", "module"])
def test_own_classes_are_saved_where_both_sides_name_them(make, path):
    torch.manual_seed(0)
    inner = make()
    network = bake(nn.Sequential(inner, layers.Sum(nn.Identity(), make())))
    kind = type(inner)
    with pytest.raises(ValueError, match=rf"layer '0' is a {kind.__name__}; .* classes=\[{kind.__name__}\]"):
        save(network, path, input_shape=IMAGES)
    assert not path.exists()
    save(network, path, input_shape=IMAGES, classes=[kind])
    with pytest.raises(ValueError, match=rf"never imports a class: pass it to load, classes=\[{kind.__name__}\]"):
        load(path)
    found, x = load(path, classes=[kind]), torch.rand(2, *IMAGES)
    assert torch.equal(found(x), network(x))
    assert str(found) == str(network)


@pytest.mark.parametrize("around", [lambda m: m, nn.Sequential, lambda m: nn.Sequential(layers.Sum(nn.Sequential(m)))])
def test_a_class_with_a_forward_pass_of_its_own_is_never_written_as_a_chain(around, path):
    network = around(Res(nn.Linear(4, 4))).eval()
    with pytest.raises(ValueError, match=r"is a Res"):
        save(network, path, input_shape=VECTORS)


def test_a_class_with_a_rule_is_known(path):
    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    register_operation(Halved, rule=lambda call: 10.0, save={"in_features": int, "out_features": int, "bias": bool})
    try:
        network, x = nn.Sequential(Halved(4, 3)).eval(), torch.rand(2, 4)
        save(network, path, input_shape=VECTORS)
        assert torch.equal(load(path)(x), network(x))
    finally:
        del REGISTERED[Halved]
    with pytest.raises(ValueError, match=r"never imports a class"):
        load(path)


class Held(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    "held", [{"a": 1}, torch.relu, torch.float32, {1}, float("inf"), float("nan"), 2j, None.__class__]
)
def test_what_a_file_cannot_hold_is_named(held, path):
    with pytest.raises(ValueError, match=r"0'?.*held|attributes.held"):
        save(nn.Sequential(Held(held)).eval(), path, input_shape=VECTORS, classes=[Held])


def changed(module, **attributes):
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


CHANGED = {
    "a pad of ones": lambda: changed(nn.ZeroPad2d(1), value=1.0),
    "another circular padding": lambda: changed(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), _reversed_padding_repeated_twice=[3, 3, 3, 3]
    ),
    "channels": lambda: changed(nn.ConvTranspose2d(4, 4, 2), out_channels=10**6),
    "a wider bias": lambda: changed(nn.Linear(4, 2), bias=nn.Parameter(torch.ones(1))),
    "a factor that learns": lambda: changed(delattr_(layers.Scale(1.0), "factor"), factor=nn.Parameter(torch.ones(()))),
    "no such group": lambda: changed(layers.GroupSort(2), group_size=0),
    "no gain": lambda: changed(nn.BatchNorm2d(4), weight=None),
    "complex": lambda: changed(nn.Linear(4, 2, bias=False), weight=nn.Parameter(torch.ones(2, 4, dtype=torch.cfloat))),
}


def delattr_(module, name):
    delattr(module, name)
    return module


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("around", [nn.Sequential, lambda m: nn.Sequential(layers.Sum(m))], ids=["top", "branch"])
def test_a_module_that_is_not_as_built_is_neither_saved_nor_certified(name, around, path):
    network = around(CHANGED[name]()).eval()
    with pytest.raises(ValueError, match=r"where a new one|constructor refuses|cannot be saved"):
        save(network, path, input_shape=IMAGES)
    assert not path.exists()
    with pytest.raises(ValueError, match=r"where a new one|constructor refuses"):
        certify(nn.Sequential(network, nn.Flatten()), torch.rand(1, *IMAGES), level="sound")


@pytest.mark.parametrize("shape", [(4,), [4], torch.Size([4])])
def test_vectors_have_a_shape_too(shape, path):
    save(nn.Sequential(nn.Linear(4, 2)).eval(), path, input_shape=shape)
    assert describe(path).input_shape == (4,)


@pytest.mark.parametrize("shape", [(), 4, (0,), (-1,), (4.0,), (True,), "4", (2**21, 4), (1,) * 8 + (4,)])
def test_what_is_no_shape_is_refused_in_one_line(shape, path):
    with pytest.raises(ValueError, match="input_shape") as error:
        save(nn.Sequential(nn.Linear(4, 2)).eval(), path, input_shape=shape)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "a.b", "..", "größe", "0#2", "a b", "a\n", "x" * 65])
@pytest.mark.parametrize("deep", [False, True])
def test_names_are_checked_at_every_depth(name, deep, path):
    inner = nn.Sequential()
    inner._modules[name] = nn.ReLU()
    network = nn.Sequential(layers.Sum(nn.Sequential(inner))) if deep else inner
    with pytest.raises(ValueError, match="rename it") as error:
        save(network.eval(), path, input_shape=VECTORS)
    assert "\n" not in str(error.value)


def twins(description, tensors):
    relu = {"op": "relu", "name": "a"}
    description["architecture"][0] = {"op": "sum", "name": "s", "branches": [[relu, relu]]}


def taken(description, tensors):
    description["architecture"][0] = {"op": "sequence", "name": "s", "layers": [{"op": "relu", "name": "forward"}]}


@pytest.mark.parametrize(("change", "line"), [(twins, "two layers share a name"), (taken, "'forward' already exists")])
def test_forged_names_are_refused_at_every_depth(change, line, path):
    forge(path, change)
    with pytest.raises(ValueError, match=line):
        load(path)


class Rated(nn.Module):
    """A class with data, a method and a property of its own."""

    rate = 2

    def __init__(self):
        super().__init__()
        self.rate = 3

    @property
    def twice(self):
        return 2 * self.rate

    def forward(self, x):
        return self.scaled(x)

    def scaled(self, x):
        return x / self.twice


@pytest.mark.parametrize(
    "name",
    ["forward", "scaled", "twice", "named_children", "__call__", "_call_impl", "_compiled_call_impl", "_forward_hooks"],
)
def test_an_attribute_of_a_file_hides_no_method(name, path):
    network, x = nn.Sequential(Rated()).eval(), torch.rand(2, 4)
    save(network, path, input_shape=VECTORS, classes=[Rated])
    assert torch.equal(load(path, classes=[Rated])(x), network(x))
    description = json.loads(describe(path).model_dump_json())
    assert description["architecture"][0]["attributes"] == {"rate": 3}
    description["architecture"][0]["attributes"][name] = 3
    atomic.write_safetensors(path, {}, metadata=json.dumps(description))
    with pytest.raises(ValueError, match=rf"{name}'?.* (hides a method|is an attribute of every module)"):
        load(path, classes=[Rated])


class Valued(nn.Module):
    """A forward pass that depends on values, and a rule that knows it."""

    def forward(self, x):
        return x * (float(x.detach().sum()) > 0)


def test_a_forward_pass_that_shapes_do_not_tell(path):
    register_operation(Valued, rule=lambda call: 1.0, save={})
    try:
        network = nn.Sequential(Valued()).eval()
        with pytest.raises(ValueError, match=r"depends on values, .*: leave input_shape out"):
            save(network, path, input_shape=VECTORS)
        save(network, path)
        load(path)
        description = json.loads(describe(path).model_dump_json())
        atomic.write_safetensors(path, {}, metadata=json.dumps(description | {"input_shape": [4]}))
        with pytest.raises(ValueError, match=r"takes memory that shapes do not tell: .*meta"):
            load(path)
    finally:
        del REGISTERED[Valued]


def test_the_advice_is_never_what_was_just_done(path):
    with pytest.raises(ValueError, match=r"layer '0' is a Softmax; build the network from Abs"):
        save(bake(nn.Sequential(nn.Softmax(1))), path, bound=lipschitz_bound(nn.Sequential(nn.Flatten())))
    averaged = AveragedModel(nn.Sequential(layers.OrthogonalLinear(4, 4))).eval()
    with pytest.raises(ValueError, match=r"is a AveragedModel; use bake\(model\)"):
        save(averaged, path, input_shape=VECTORS)
    network, x = bake(averaged), torch.rand(2, 4)
    save(network, path, input_shape=VECTORS)
    assert torch.equal(load(path)(x), network(x))
    assert torch.allclose(network(x), averaged(x), atol=1e-6)  # one rounding of the weights


def test_a_bound_that_is_not_finite_is_refused_at_once(path):
    """JSON has no infinity: the file could be written, and not be read."""
    large = nn.Linear(4, 4, dtype=torch.float64)
    nn.init.constant_(large.weight, 1e200)
    with pytest.raises(ValueError, match=r"bound.upper=inf: the weights overflow"):
        save(nn.Sequential(large, large).eval(), path, input_shape=VECTORS)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_bounded_is_certified_and_documented(name):
    """At the level that looks at the rounding of every operation, with a witness where products are summed."""
    torch.manual_seed(0)
    module = EVERY[name]()
    images = torch.rand(2, *(VECTORS if type(module) is nn.BatchNorm1d else IMAGES))
    features = module.eval()(images.clone())[0].numel()
    network = nn.Sequential(module, nn.Flatten(), nn.Linear(features, 3)).eval()
    bound = lipschitz_bound(network, input_shape=images.shape[1:], diagnose=False)
    found, certificates = certificate_documents(network, images, bound=bound, level="sound", sources=[{}, {}])
    for radius, certificate in zip(found.radius, certificates, strict=True):
        assert float.fromhex(certificate["radius"]) == float(radius)
        sums = {layer["name"] for layer in certificate["layers"] if layer["absolute"] is not None}
        assert sums == {
            name
            for name, part in network.named_modules()
            if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        }


def test_saving_leaves_the_network_as_it_is(path):
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    before = [(id(p), p.requires_grad, p.clone()) for p in network.parameters()]
    save(network, path, input_shape=VECTORS)
    after = list(network.parameters())
    assert all(
        id(p) == i and p.requires_grad == g and torch.equal(p, v) for p, (i, g, v) in zip(after, before, strict=True)
    )
    assert not any(p.requires_grad for p in load(path).parameters())


class Doubled(nn.Module):
    """A class that loads other numbers than it gives."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x + self.shift

    def _load_from_state_dict(self, state, *rest):
        super()._load_from_state_dict({name: 2 * tensor for name, tensor in state.items()}, *rest)


def test_a_class_that_changes_what_it_loads_is_refused(path):
    with pytest.raises(ValueError, match=r"network tensor '0.shift' would be read as other numbers"):
        save(nn.Sequential(Doubled()).eval(), path, input_shape=VECTORS, classes=[Doubled])


@pytest.mark.parametrize("classes", [3, ["Res"], [Res(nn.ReLU())]])
def test_classes_are_classes(classes, path):
    save(nn.Sequential(nn.ReLU()).eval(), path, input_shape=VECTORS, classes=[nn.Linear])
    with pytest.raises(ValueError, match=r"pass your classes of modules in a list"):
        load(path, classes=classes)


class Branch(nn.Module):
    """A block whose second layer is optional, as residual blocks have it."""

    def __init__(self, down):
        super().__init__()
        self.main, self.down = nn.Linear(4, 4), down

    def forward(self, x):
        return self.main(x) if self.down is None else self.main(x) + self.down(x)


@pytest.mark.parametrize("down", [None, nn.Linear(4, 4)])
def test_a_child_that_is_none_stays_none(down, path):
    network, x = nn.Sequential(Branch(down)).eval(), torch.rand(2, 4)
    save(network, path, input_shape=VECTORS, classes=[Branch])
    found = load(path, classes=[Branch])
    assert torch.equal(found(x), network(x)) and ("down" in dict(found[0].named_children())) == (down is not None)


def test_tensors_and_states_that_a_file_would_lose_are_named(path):
    network = nn.Sequential(nn.Linear(4, 4)).eval()
    network[0].register_buffer("z", torch.ones(1))
    with pytest.raises(ValueError, match=r"network has a tensor '0.z', .* remove it"):
        save(network, path, input_shape=VECTORS)

    class Stateful(Branch):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ValueError, match=r"layer '0' \(Stateful\) has a state of its own \(get_extra_state\)"):
        save(nn.Sequential(Stateful(None)).eval(), path, input_shape=VECTORS, classes=[Stateful])
    assert not path.exists()


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("cat", "dog"), r"network has 2 class_names for 3 outputs; give one name for each output"),
        (("cat", "dog", "emu", "fox"), r"network has 4 class_names for 3 outputs"),
        ((), r"network has 0 class_names for 3 outputs"),
        (("cat", "dog", "cat"), r"cannot be saved: class_names: .*two outputs have one name"),
        (("cat", "dog", "\udcff"), r"cannot be saved: its class_names or notes are not text in UTF-8"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_names_are_one_for_each_output(names, line, dtype, path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).to(dtype).eval()
    with pytest.raises(ValueError, match=line):
        save(network, path, input_shape=(1, 2, 2), class_names=names)
    save(network, path, input_shape=(1, 2, 2), class_names=("cat", "dog", "emu"))
    tensors, description = safetensors.torch.load_file(path), json.loads(describe(path).model_dump_json())
    if names[-1:] != ("\udcff",):
        description["class_names"] = list(names)
        path.write_bytes(atomic.encode_safetensors(tensors, metadata=json.dumps(description)))
        with pytest.raises(ValueError, match=r"class_names"):
            load(path)


def test_names_of_outputs_that_are_no_vector(path):
    with pytest.raises(ValueError, match=r"network has 3 class_names for 1 x 2 x 2 outputs"):
        save(nn.Sequential(nn.ReLU()).eval(), path, input_shape=(1, 2, 2), class_names=("a", "b", "c"))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"bound": 1.0}, r"bound is a float: leave it out"),
        ({"notes": {"a": "x" * 1_000_000}}, r"its description with notes has 1000\d{3} letters, .* shorten the notes"),
        ({"input_shape": (10**12,)}, r"input_shape=\(1000000000000,\): 2 such images do not fit into memory"),
    ],
)
def test_options_of_another_kind(options, line, path):
    with pytest.raises(ValueError, match=line):
        save(nn.Sequential(nn.ReLU()).eval(), path, **options)
    assert not path.exists()


@pytest.mark.parametrize("wrong", [None, 3, b"model.safetensors"])
def test_paths_are_texts_or_paths(wrong):
    for use in (load, describe, partial(save, nn.Sequential(nn.ReLU()).eval())):
        with pytest.raises(ValueError, match=r"path=.* is a \w+: pass the path of a file"):
            use(wrong)
    with pytest.raises(ValueError, match=r"cannot be read \(File name too long\)"):
        load("x" * 5000)


def test_modules_without_an_end(path):
    network = nn.Sequential(nn.ReLU()).eval()
    network._modules["1"] = network
    with pytest.raises(ValueError, match=r"modules within modules without end"):
        save(network, path)
    with pytest.raises(ValueError, match=r"network is on the meta device"):
        save(nn.Sequential(nn.Linear(2, 2, device="meta")).eval(), path)
