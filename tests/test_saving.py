"""Saved networks: equal after a round trip, and no hostile file gets anywhere."""

import json
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from lconvnet import atomic, layers, models
from lconvnet.baking import bake
from lconvnet.bounds import lipschitz_bound
from lconvnet.saving import describe, load, save
from lconvnet.saving.architecture import OPERATIONS

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
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
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding="same")), r"layer '0' .* cannot be saved"),
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
    with pytest.raises(ValueError, match=r"truncated or no safetensors file"):
        load(path)


def test_missing_and_foreign_files(path, tmp_path):
    with pytest.raises(ValueError, match=r"is no file; name a model.safetensors"):
        load(path)
    with pytest.raises(ValueError, match=r"is no file"):
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
    kinds = [entry.model_fields["op"].default for entry in OPERATIONS.values()]
    assert len(set(kinds)) == len(kinds) == 20


def test_a_bound_of_something_else_is_refused(tmp_path):
    network, other = (bake(models.small_convnet(1, 8, 3)) for _ in range(2))
    path = tmp_path / "network.safetensors"
    with pytest.raises(ValueError, match="another network"):
        save(network, path, bound=lipschitz_bound(other, input_shape=(1, 8, 8)), input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"input_shape=\(1, 8, 8\) is not input_shape=\(1, 16, 16\)"):
        save(network, path, bound=lipschitz_bound(network, input_shape=(1, 8, 8)), input_shape=(1, 16, 16))
    assert not path.exists()
