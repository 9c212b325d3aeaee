"""Models of a few bytes that ask for gigabytes: refused before they take them, or bounded without."""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as encode
from torch import nn

from lconvnet import allowance, bake, certify, cli, lipschitz_bound, load, models, save
from lconvnet.bounds import Graph, LayerBound, trace
from lconvnet.bounds.forward_error import Arithmetic
from lconvnet.bounds.network import forward_error
from lconvnet.bounds.operations import MODULES
from lconvnet.certify.certifier import image_norms
from lconvnet.certify.files import certificate_documents
from lconvnet.importing import pickles
from lconvnet.layers import NearestUpsampling, TwoSidedReLU
from lconvnet.saving.files import require_room
from tests.test_saving import EVERY

OF_FOUR = ("linear", "nested", "sum of anything", "concat of anything")  # columns
FLATTEN = {"op": "flatten", "name": "flatten", "start_dim": 1, "end_dim": -1}


def layer(op, name, **options):
    return {"op": op, "name": name, **options}


def conv(name, inputs, outputs, size, *, stride=1, dilation=1, groups=1, padding=0):
    pairs = {"kernel_size": size, "stride": stride, "dilation": dilation, "padding": padding}
    rest = {"in_channels": inputs, "out_channels": outputs, "groups": groups, "bias": False, "padding_mode": "zeros"}
    return layer("conv2d", name, **rest, **{key: [value, value] for key, value in pairs.items()})


def linear(name, inputs, outputs):
    return layer("linear", name, in_features=inputs, out_features=outputs, bias=False)


def hostile(folder: Path, layers, weights, shape=(1, 1, 1)) -> Path:
    """A saved network with a description of our own."""
    bound = {"upper": 1.0, "lower": None, "level": "analytic"}
    about = {"format": "lconvnet-network-1", "architecture": layers, "input_shape": shape, "bound": bound}
    path = folder / "model.safetensors"
    tensors = {f"{name}.weight": weight for name, weight in weights.items()}
    path.write_bytes(encode(tensors, metadata={"lconvnet": json.dumps(about)}))
    return path


def peak(function) -> float:
    """Bytes of resident memory that a call took at most, beyond what there was."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


LARGE = {
    "repeated pixels": [layer("nearest-upsampling", f"n{i}", factor=1024) for i in range(2)],
    "zeros around": [layer("zero-pad", f"p{i}", padding=[1024] * 4) for i in range(4)],
    "branches": [
        layer("nearest-upsampling", "n", factor=256),
        layer("concat", "c", branches=[[layer("identity", "i")] for _ in range(1024)]),
    ],
    "patches of a transposed one": [
        layer("nearest-upsampling", "n", factor=512),
        layer(
            "conv-transpose2d",
            "c",
            in_channels=1,
            out_channels=1,
            kernel_size=[63, 63],
            stride=[1, 1],
            padding=[31, 31],
            output_padding=[0, 0],
            dilation=[1, 1],
            groups=1,
            bias=False,
        ),
    ],
    "pads of a convolution": [
        *(layer("nearest-upsampling", f"n{i}", factor=f) for i, f in enumerate((1024, 4))),
        conv("c", 1, 1, 63, padding=1024, stride=1024) | {"padding_mode": "circular"},
    ],
    "patches": [layer("nearest-upsampling", "n", factor=512), conv("c", 1, 1, 63, padding=31)],
}


@pytest.mark.parametrize("name", LARGE)
def test_a_model_whose_image_grows_is_refused_by_load(tmp_path, name):
    named = any(entry["name"] == "c" and "kernel_size" in entry for entry in LARGE[name])
    path = hostile(tmp_path, LARGE[name], {"c": torch.ones(1, 1, 63, 63)} if named else {})

    def refused():
        with pytest.raises(ValueError, match=r"an image of shape \(1, 1, 1\) in it would take .* LCONVNET_MEMORY="):
            load(path)

    assert peak(refused) < 2e8


@pytest.mark.parametrize("name", EVERY)
def test_no_saved_operation_takes_more_than_is_counted(name, monkeypatch):
    """Two images in float64, measured; 6 MB are left for what does not grow with the image."""
    counted = [0]
    monkeypatch.setattr(allowance, "require", lambda needed, *rest: counted.append(needed))
    module, side = nn.Sequential(EVERY[name]()).double().eval(), 256
    if type(module[0]) is nn.BatchNorm1d:
        shape = (4, 4 * side * side)
    else:
        shape = (4, side, 4) if name in OF_FOUR else (4, side, side)
    require_room(module, shape, 0, name)
    image = torch.rand(2, *shape, dtype=torch.float64)
    with torch.no_grad():
        module(image.clone())  # what a first call sets up
        measured = peak(lambda: module(image.clone()))
    assert measured <= max(counted) + 6e6


GREEDY = {
    "upsampling": (lambda: NearestUpsampling(4), 200),
    "both signs": (TwoSidedReLU, 392),
    "batch norm": (lambda: nn.BatchNorm2d(4), 648),
    "patches": (lambda: nn.Conv2d(4, 16, 2, 2), 520),
    "groups": (lambda: nn.Conv2d(4, 4, 5, padding=2, groups=4), 328),
}
"""Those that took most, on images of four channels and such a side: 4 million numbers are alive."""


@pytest.mark.parametrize("name", GREEDY)
@pytest.mark.parametrize("level", [pytest.param("analytic", marks=pytest.mark.slow), "sound"])
def test_reading_and_certifying_take_no_more_than_is_counted(name, level, monkeypatch):
    """With a quarter for what torch keeps, and 10 MB for what does not grow with the image: half a gigabyte that is
    counted and 0.25 GB of libraries stay below a gigabyte."""
    counted = [0]
    monkeypatch.setattr(allowance, "require", lambda needed, *rest: counted.append(needed))
    layer, side = GREEDY[name]
    network, shape = nn.Sequential(layer(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), (4, side, side)
    require_room(network, shape, 0, name)
    certify(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(), torch.rand(1, 1, 2, 2), level=level)  # first calls
    images = torch.rand(1, *shape)
    bounded = peak(lambda: lipschitz_bound(network, input_shape=shape, diagnose=False))
    certified = peak(lambda: certify(network, images, level=level))
    assert max(bounded, certified) <= 1.25 * max(counted) + 1e7


def test_a_layer_is_differentiated_where_that_fits_only():
    """BatchNorm on 8 million numbers: 0.4 to 0.5 GB bound it, as pages are reused; differentiating takes 3 GB."""
    wide = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)).eval()
    assert peak(lambda: lipschitz_bound(wide, input_shape=(4, 1440, 1440))) < 8e8
    assert lipschitz_bound(wide, input_shape=(4, 8, 8)).layers[0].lower is not None


def test_a_sum_too_long_for_float32_is_refused_by_its_layer():
    """More numbers than half the inverse of the round-off: nothing is known of their sum."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    graph = trace(network, (2, 8, 8)).graph
    long = Graph((replace(graph.nodes[0], shape=(2, 4096, 4096)), *graph.nodes[1:]), graph.output)
    uppers = {node.name: 1.0 for node in graph.nodes}
    with pytest.raises(ValueError, match=r"'0' \(AdaptiveAvgPool2d\) adds up more .* 8388608: certify network\.double"):
        forward_error(long, uppers, {}, Arithmetic.of(torch.float32))
    assert forward_error(long, uppers, {}, Arithmetic.of(torch.float64))


def test_the_norm_of_many_pixels_is_no_such_sum():
    norms = image_norms(torch.full((1, 1, 1), 0.5).expand(1, 3000, 3000))
    assert 1500 <= float(norms) < 1500 * (1 + 1e-8)  # g(9e6) in float64 is 1e-9


def test_the_command_says_so_in_one_line(tmp_path, capsys):
    path = hostile(tmp_path, LARGE["zeros around"], {})
    assert cli.invoke(cli.app, ["certify", str(path), "--data", "digits"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "would take" in captured.err


def test_what_fits_is_loaded(tmp_path):
    """Layers on images of 224 x 224, each of which takes 13 MB in float32, one after the other: 154 MB in all."""
    layers = [conv("first", 3, 64, 1), *(layer("abs", f"a{i}") for i in range(4))]
    path = hostile(tmp_path, layers, {"first": torch.ones(64, 3, 1, 1)}, (3, 224, 224))
    assert load(path)(torch.zeros(1, 3, 224, 224)).shape == (1, 64, 224, 224)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(1, 9000, 1, stride=1024, bias=False),
        nn.Conv2d(1, 2000, 2, dilation=1024, bias=False),
        nn.Conv2d(1, 2000, 2, stride=2, dilation=1024, bias=False),
        nn.ConvTranspose2d(1, 9000, 1, stride=1024, bias=False),
    ],
    ids=["stride", "dilation", "both", "transposed"],
)
def test_a_kernel_is_not_filled_up_with_gigabytes_of_zeros(module):
    """One input channel: all taps together, as a vector, are the norm where no two of them meet the same output."""
    with torch.no_grad():
        module.weight.zero_()[..., 0, 0] = 1
    found = []
    # filled up the kernels take 8 GB and more; without, numbers as many as the weights, several times, and libraries
    assert peak(lambda: found.append(lipschitz_bound(nn.Sequential(module).eval(), diagnose=False).upper)) < 1e9
    assert found[0] == pytest.approx(max(module.weight.shape[:2]) ** 0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Flatten(), nn.Linear(9000, 1, bias=False), nn.Linear(1, 9000, bias=False)], (1, 90, 100)),
        ([nn.Conv2d(9000, 9000, 1, groups=9000, bias=False), nn.Conv2d(9000, 1, 1, bias=False)], (9000, 1, 1)),
    ],
)
def test_narrow_maps_are_not_multiplied_into_a_wide_one(layers, shape, monkeypatch):
    """The joint matrix would have 81 million entries; the product of the norms is what is left."""
    quick = replace(MODULES[nn.Conv2d], rule=_of_one)  # nine thousand groups take their time, and no room
    monkeypatch.setitem(MODULES, nn.Conv2d, quick)
    network = nn.Sequential(*layers).eval()
    assert peak(lambda: lipschitz_bound(network, input_shape=shape, diagnose=False)) < 1e8


def _of_one(call, method):
    return LayerBound(call.name, 1.0, 1.0, "exact")


def test_a_joint_map_of_ordinary_size_is_still_bounded_as_one():
    """A rank-one pair whose factors are orthogonal: the joint map is 0, the product of the norms is not."""
    first, second = nn.Linear(64, 2, bias=False), nn.Linear(2, 64, bias=False)
    with torch.no_grad():
        first.weight.zero_()[0] = 1
        second.weight.zero_()[:, 1] = 1
    assert lipschitz_bound(nn.Sequential(nn.Flatten(), first, second).eval(), input_shape=(1, 8, 8)).upper < 1e-9


@pytest.mark.parametrize("level", ["analytic", "sound"])
def test_pairs_of_classes_are_not_held_at_once(level):
    """A table of 27,000 by 27,000 numbers would take 5.8 GB; the answer's row tells all."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 27_000)).eval()
    with torch.no_grad():
        network[1].weight.zero_()[5] = 3.0
        network[1].bias.zero_()
    found = []
    assert peak(lambda: found.append(certify(network, torch.ones(1, 1, 1, 1), level=level))) < 1e8
    assert found[0].label.item() == 5
    assert found[0].radius.item() == pytest.approx(1.0, rel=1e-3)  # the logits 3 x and 0 meet at x = 0


def test_the_allowance_of_files_is_not_that_of_networks_in_memory(monkeypatch):
    monkeypatch.setattr(allowance, "allowed", lambda size: 0)
    assert (certify(nn.Linear(4, 3000).eval(), torch.rand(2, 4)).radius > 0).all()


def test_a_network_is_read_without_keeping_what_every_layer_returns():
    """240 layers on images of 262,144 numbers: 0.5 GB in float32 if every layer kept what it returns for two images."""
    deep = nn.Sequential(*(nn.ReLU() for _ in range(240)), nn.AvgPool2d(512)).eval()
    assert peak(lambda: lipschitz_bound(deep, input_shape=(1, 512, 512), diagnose=False)) < 2e8
    assert lipschitz_bound(deep, input_shape=(1, 512, 512)).lower is None
    assert lipschitz_bound(deep[-1:], input_shape=(1, 512, 512)).lower is not None


def test_images_are_certified_a_few_at_a_time(monkeypatch):
    """As many as fit, and the radii do not depend on how many that is."""
    network, images = bake(models.mlp(16, 3, widths=(8,))), torch.rand(9, 1, 4, 4)
    whole = certify(network, images)
    monkeypatch.setattr(allowance, "BYTES", 1)
    torch.testing.assert_close(certify(network, images).radius, whole.radius, rtol=1e-9, atol=0)  # another order


def test_parts_of_an_archive_that_overlap(tmp_path):
    """Every tensor is written once; entries that share their bytes would be read many times."""
    path = tmp_path / "a.pth"
    torch.save({f"w{i}": torch.zeros(1000) for i in range(3)}, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        large = max(archive.infolist(), key=lambda entry: entry.file_size)
    directory = content.rindex(b"PK\x01\x02", 0, content.index(b"PK\x01\x02") + 4)
    more = content[directory:]
    for place in _entries(more):
        size = large.file_size.to_bytes(4, "little")
        more = more[: place + 20] + size + size + more[place + 28 :]
    path.write_bytes(content[:directory] + more)
    with pytest.raises(ValueError, match=r"a\.pth is an archive whose parts overlap"):
        pickles.read(path)


def _entries(directory):
    places, start = [], directory.find(b"PK\x01\x02")
    while start >= 0:
        places.append(start)
        start = directory.find(b"PK\x01\x02", start + 1)
    return places


class Sized:
    def __reduce__(self):
        return bytearray, (10**11,)


def test_a_pickle_that_asks_for_bytes(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": Sized()}, path)
    assert b"bytearray" in pickle.dumps(Sized())
    with pytest.raises(ValueError, match=r"a\.pth is refused: it asks for a .*bytearray"):
        pickles.read(path)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_floats(tmp_path, dtype):
    path = hostile(tmp_path, [FLATTEN, linear("l", 2, 2)], {"l": torch.ones(2, 2).to(dtype)}, (1, 1, 2))
    with pytest.raises(ValueError, match=r"l\.weight .*holds values that are not finite floats|is truncated or no"):
        load(path)


class Masked(nn.Sequential):
    """A network whose first tensor is a mask that nothing reads."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(4, 2))
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))


def test_a_buffer_of_truth_values():
    network, images = nn.Sequential(Masked()).eval(), torch.rand(2, 1, 2, 2)
    bound = lipschitz_bound(network, input_shape=(1, 2, 2))
    with pytest.raises(ValueError, match=r"'0.mask' is torch.bool: a certificate is about tensors of"):
        certificate_documents(network, images, bound=bound, level="analytic", sources=[{}, {}])
    assert (certify(network, images, bound=bound).radius >= 0).all()


def test_saved_models_of_the_package_are_within_the_allowance(tmp_path):
    network = bake(models.small_convnet(3, 32, 10))
    save(network, tmp_path / "large.safetensors", input_shape=(3, 32, 32))
    load(tmp_path / "large.safetensors")
