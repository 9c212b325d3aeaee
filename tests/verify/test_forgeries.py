"""False certificates and broken files, made by hand: none is proved, and none ends the checker."""

import base64
import io
import itertools
import json
import math
import os
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("flint", reason="needs python-flint: pip install 'lconvnet[verify]'")
from flint import arb

from lconvnet_verify import NotProved, reading
from lconvnet_verify.__main__ import LONGEST, main
from lconvnet_verify.exact import Exact
from lconvnet_verify.proof import Arithmetic, known_norm, require_norm
from tests.verify.test_checker import INVALID, PROVED, UNPROVED

NAMES = {"<f4": "F32", "<f8": "F64", "<i8": "I64"}
CONVOLVED = {"groups": 1, "stride": [1, 1], "dilation": [1, 1], "padding": [0, 0], "padding_mode": "zeros"}
IMAGE, EYE, ABOVE_ONE = np.array([[[1.0, 0.5]]], "<f4"), np.eye(2, dtype="<f4"), 1 + 1e-9
FLAT = {"start_dim": 1, "end_dim": -1}


def forge(place, tensors, about, nodes, uppers, *, image=IMAGE, radius=0.1, level="analytic", **rest):
    """Write a model and a certificate that agree with each other, whatever they say; returns the exit code."""
    header, body = {}, b""
    for name, values in tensors.items():
        start, body = len(body), body + values.tobytes()
        header[name] = {"dtype": NAMES[values.dtype.str], "shape": values.shape, "data_offsets": [start, len(body)]}
    raw = json.dumps({**header, "__metadata__": {"lconvnet": json.dumps(about)}}).encode()
    (place / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + body)
    absolutes = {n["name"]: upper for n, upper in zip(nodes[1:], uppers, strict=True) if n["tensors"].get("weight")}
    data = base64.b64encode(image.tobytes()).decode()
    document = {
        "format": "lconvnet-certificate-1",
        "level": level,
        "network": {"sha256": reading._hash(header, memoryview(body))},
        "graph": {"nodes": nodes, "output": nodes[-1]["name"]},
        "layers": [
            {
                "name": node["name"],
                "upper": float(upper).hex(),
                "absolute": float(absolutes[node["name"]]).hex() if node["name"] in absolutes else None,
                "method": "",
            }
            for node, upper in zip(nodes[1:], uppers, strict=True)
        ],
        "versions": {},
        "input": {"dtype": NAMES[image.dtype.str], "shape": image.shape, "data": data},
        "label": 0,
        "radius": float(radius).hex(),
        "source": {},
        **rest,
    }
    (place / "certificate.json").write_text(json.dumps(document))
    return main([str(place / "certificate.json"), str(place / "model.safetensors")])


def node(name, operation, *inputs, options=None, shape=(), **tensors):
    return {
        "name": name, "operation": operation, "inputs": list(inputs), "options": options or {}, "tensors": tensors,
        "module": "", "shape": list(shape),
    }  # fmt: skip


def graph(place, tensors, nodes, uppers, **rest):
    """The same for a model that says its graph."""
    return forge(place, tensors, {"graph": {"nodes": nodes, "output": nodes[-1]["name"]}}, nodes, uppers, **rest)


def ended(*nodes):
    """An input, some nodes, and a dense layer of the weight ``w``."""
    last = nodes[-1]["name"] if nodes else "input"
    end = node("flat", "Flatten", last, options=FLAT), node("fc", "Linear", "flat", weight="w")
    return [node("input", "input"), *nodes, *end]


@pytest.mark.parametrize("level", ["analytic", "sound"])
def test_a_true_certificate_made_by_hand_is_proved(tmp_path, level):
    """So that the others fail for what is wrong with them; the margin 0.5 lasts up to 0.5 / sqrt(2) = 0.3535..."""
    for radius, expected in ((0.3535, PROVED), (0.3536, UNPROVED)):
        assert graph(tmp_path, {"w": EYE}, ended(), [1, ABOVE_ONE], radius=radius, level=level) == expected


@pytest.mark.parametrize("level", ["analytic", "sound"])
@pytest.mark.parametrize(
    ("operation", "options"),
    [("ReLU", {}), ("Identity", {}), ("Scale", {"factor": 1.0}), ("multiply", {"value": 1.0}), ("negate", {})],
)
def test_a_weight_that_the_operation_does_not_read(tmp_path, capsys, level, operation, options):
    """Its norm of 2^-20 would be taken for that of the operation."""
    stray = np.full((1, 1, 1, 1), 2.0**-20, "<f4")
    nodes = ended(node("act", operation, "input", options={**CONVOLVED, **options}, weight="stray"))
    tensors = {"stray": stray, "w": EYE}
    assert graph(tmp_path, tensors, nodes, [2.0**-19, 1, ABOVE_ONE], radius=100, level=level) == INVALID
    assert f"is not a {operation} as this checker knows it" in capsys.readouterr().err


def test_a_weight_that_the_layer_of_a_chain_does_not_read(tmp_path, capsys):
    tensors = {"act.weight": np.full((1, 1, 1, 1), 2.0**-20, "<f4"), "fc.weight": EYE}
    chain = [
        {"name": "act", "op": "relu", "bias": False, **CONVOLVED},
        {"name": "flat", "op": "flatten", **FLAT},
        {"name": "fc", "op": "linear", "bias": False},
    ]
    nodes = [
        node("input", "input"),
        node("act", "ReLU", "input", options=CONVOLVED, weight="act.weight"),
        node("flat", "Flatten", "act", options=FLAT),
        node("fc", "Linear", "flat", weight="fc.weight"),
    ]
    assert forge(tmp_path, tensors, {"architecture": chain}, nodes, [2.0**-19, 1, ABOVE_ONE], radius=100) == INVALID
    assert "is not a ReLU as this checker knows it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("operation", "options", "tensors"),
    [
        ("Sigmoid", {}, {}),
        ("Abs", {"scale": 2.0}, {}),
        ("MaxMin", {}, {}),
        ("MaxMin", {"dim": True}, {}),
        ("Scale", {"factor": True}, {}),
        ("Scale", {"factor": 2**53 + 1}, {}),
        ("Scale", {"factor": 10**400}, {}),
        ("Scale", {}, {"factor": "w"}),
        ("multiply", {"value": 1.0}, {"constant": "w"}),
        ("shift", {"value": 1.0}, {}),
        ("shift", {"value": 1.0, "sign": 2}, {}),
        ("GroupSort", {"dim": 1, "group_size": 0}, {}),
        ("ZeroPad2d", {"padding": [-1, 0, 0, 0]}, {}),
        ("ZeroPad2d", {"padding": [0, 0, 0, 0], "value": 1.0}, {}),
        ("NearestUpsampling", {"factor": 1.5}, {}),
        ("Conv2d", CONVOLVED, {}),
        ("Conv2d", {**CONVOLVED, "stride": [-1, 1]}, {"weight": "k"}),
        ("Conv2d", {**CONVOLVED, "stride": 1}, {"weight": "k"}),
        ("Conv2d", {**CONVOLVED, "transposed": True}, {"weight": "k"}),
        ("Conv2d", {**CONVOLVED, "padding_mode": "reflect"}, {"weight": "k"}),
        ("Conv2d", CONVOLVED, {"weight": "w"}),
        ("Conv2d", CONVOLVED, {"weight": "missing"}),
        ("Conv2d", CONVOLVED, {"weight": "k", "bias": "w"}),
        ("Conv2d", CONVOLVED, {"weight": "k", "bias": "two"}),
        ("Linear", {}, {"weight": "two"}),
        ("concatenate", {"dim": 0}, {}),
        ("slice", {"slices": [[1, 0, 1]]}, {}),
        ("add", {}, {}),
    ],
)
def test_what_the_table_of_operations_does_not_have(tmp_path, operation, options, tensors):
    known = {"w": EYE, "k": np.ones((1, 1, 1, 1), "<f4"), "two": np.ones(2, "<f4")}
    nodes = ended(node("x", operation, "input", options=options, **tensors))
    assert graph(tmp_path, known, nodes, [ABOVE_ONE, 1, ABOVE_ONE], radius=0.1) == INVALID


def test_integers_are_no_constants(tmp_path, capsys):
    """The absolute value of -2^63 is negative there."""
    nodes = ended(node("m", "multiply", "input", constant="c"), node("n", "negate", "m"))
    tensors = {"c": np.array([-(2**63)], "<i8"), "w": EYE}
    assert graph(tmp_path, tensors, nodes, [0, 1, 1, ABOVE_ONE], radius=1000) == INVALID
    assert "has a constant that holds no floats" in capsys.readouterr().err
    assert graph(tmp_path, {"w": EYE}, ended(), [1, ABOVE_ONE], image=IMAGE.astype("<i8")) == INVALID
    unread = {"w": EYE, "num_batches_tracked": np.array(7, "<i8")}
    assert graph(tmp_path, unread, ended(), [1, ABOVE_ONE]) == PROVED


def test_a_bias_that_is_longer_than_the_rows_of_its_weight(tmp_path, capsys):
    """It would repeat them, f_0 = 100 x_0 where the norms say |f| <= |x|."""
    repeats, V = 10_000, np.zeros((2, 10_000))
    V[0] = repeats**-0.5
    tensors = {"w": np.array([[1.0, 0.0]]), "b": np.zeros(repeats), "V": V, "c": np.array([0.0, 50.0])}
    nodes = [
        node("input", "input"),
        node("flat", "Flatten", "input", options=FLAT),
        node("h", "Linear", "flat", weight="w", bias="b"),
        node("fc", "Linear", "h", weight="V", bias="c"),
    ]
    image = IMAGE.astype("<f8")
    assert graph(tmp_path, tensors, nodes, [1, ABOVE_ONE, ABOVE_ONE], image=image, radius=49) == INVALID
    assert "bias of shape (10000,) for a weight of shape (1, 2)" in capsys.readouterr().err


def test_norms_are_looked_up_by_operation():
    """Also where nothing was refused before: a second line of defence."""
    stray = {"stray": np.full((1, 1), 2.0**-20), "c": np.array([-(2**63)])}
    act = reading.Node("act", "ReLU", ("input",), {}, {"weight": "stray"})
    for absolute in (2.0**-19, None):
        with pytest.raises(NotProved, match="layer 'act'"):
            require_norm(act, reading.Layer(2.0**-19, absolute), stray, (2,))
    assert known_norm(reading.Node("m", "multiply", ("input",), {}, {"constant": "c"}), stray) == 2.0**63
    with pytest.raises(NotProved, match="not a float"):
        Exact.of(stray["c"])


def test_an_operation_of_a_chain_that_has_no_rule(tmp_path, capsys):
    chain = [{"name": "pool", "op": "norm-pool", "factor": 2}]
    assert forge(tmp_path, {}, {"architecture": chain}, [node("input", "input")], []) == INVALID
    assert "layer 'pool' is a 'norm-pool', which has no rule here" in capsys.readouterr().err


def test_images_are_repeated_and_permuted_within_one_example(tmp_path):
    for operation, options in (("NearestUpsampling", {"factor": 1}), ("permute", {"dims": [0, 0, 1, 2]})):
        for image in (IMAGE, IMAGE[None]):
            nodes = ended(node("x", operation, "input", options=options))
            expected = PROVED if operation == "NearestUpsampling" and image is IMAGE else UNPROVED
            assert graph(tmp_path, {"w": EYE}, nodes, [1, 1, ABOVE_ONE], image=image) == expected


def test_shapes_that_contradict_the_graph(tmp_path, capsys):
    nodes = ended()
    nodes[1]["shape"] = [3]
    assert graph(tmp_path, {"w": EYE}, nodes, [1, ABOVE_ONE]) == UNPROVED
    assert "gives the shape (2,), not (3,)" in capsys.readouterr().out
    nodes[0]["shape"] = [1, 2, 1]
    assert graph(tmp_path, {"w": EYE}, nodes, [1, ABOVE_ONE]) == UNPROVED


def test_the_image_of_a_convolution_has_three_dimensions(tmp_path, capsys):
    nodes = ended(node("k", "Conv2d", "input", options=CONVOLVED, weight="k"))
    tensors = {"k": np.ones((1, 1, 1, 1), "<f4"), "w": EYE}
    assert graph(tmp_path, tensors, nodes, [ABOVE_ONE, 1, ABOVE_ONE]) == PROVED
    for shape in ((2,), (1, 2), (1, 1, 1, 2)):
        assert graph(tmp_path, tensors, nodes, [ABOVE_ONE, 1, ABOVE_ONE], image=IMAGE.reshape(shape)) == UNPROVED
        assert "reads no image" in capsys.readouterr().out


def test_so_many_roundings_have_no_bound():
    """n u / (1 - n u) turns negative beyond n u = 1."""
    single = Arithmetic(arb(2) ** -24, arb(2) ** -126, arb(2) ** 127)
    assert single.relative(2**22) > 0.33
    for roundings in (2**23, 2**24, 2**24 + 1, 2**25):
        with pytest.raises(NotProved, match="have no bound"):
            single.relative(roundings)


@pytest.mark.parametrize("where", ["weight", "bias", "factor", "shift"])
def test_subnormal_constants_may_be_read_as_zero(tmp_path, capsys, where):
    """Scale(1e30), then 1e-39 x_0: the logit 1e-9 is 0 where subnormal operands count as zero."""
    small = 1e-39
    head = np.array([[0, 0], [small if where == "weight" else 0, 0]], "<f4")
    bias = np.array([1e-9, small if where == "bias" else 0], "<f4")
    nodes = [
        node("input", "input"),
        node("flat", "Flatten", "input", options=FLAT),
        node("s", "Scale", "flat", options={"factor": small if where == "factor" else 1e30}),
        node("t", "shift", "s", options={"value": small if where == "shift" else 0.0, "sign": 1}),
        node("fc", "Linear", "t", weight="w", bias="b"),
    ]
    uppers, tensors = [1, 1e30, 1, 1e-38], {"w": head, "b": bias}
    if where == "factor":
        uppers[1] = small
    for level, expected in (("analytic", PROVED), ("sound", UNPROVED)):
        label = 1 if where == "weight" else 0
        tensors["b"] = bias * (where != "weight")
        result = graph(tmp_path, tensors, nodes, uppers, radius=1e-6, level=level, label=label)
        assert result == expected
    assert ("subnormal" if where in ("weight", "bias") else "loses its constant") in capsys.readouterr().out


def test_subnormal_pixels_may_be_read_as_zero(tmp_path):
    """Then the logits 1e30 (1e-39, 0) are equal: sqrt(2) 2^-126 are missing to the image, more than its radius."""
    image = np.array([[[1e-39, 0.0]]], "<f4")
    nodes = ended(node("s", "Scale", "input", options={"factor": 1e30}))
    for level, expected in (("analytic", PROVED), ("sound", UNPROVED)):
        shown = graph(tmp_path, {"w": EYE}, nodes, [1e30, 1, ABOVE_ONE], image=image, radius=1e-40, level=level)
        assert shown == expected


def test_a_model_whose_constants_are_subnormal_in_float32_only(tmp_path):
    head = np.array([[1, 0], [1e-39, 1]])
    image = IMAGE.astype("<f8")
    for dtype, expected in (("<f8", PROVED), ("<f4", UNPROVED)):
        tensors = {"w": head.astype(dtype)}
        assert graph(tmp_path, tensors, ended(), [1, ABOVE_ONE], image=image, level="sound") == expected


BROKEN = {
    "a label of 5000 digits": lambda text: text.replace('"label": 0', '"label": ' + "1" * 5000),
    "a lone surrogate": lambda text: text.replace('"source"', '"\\ud800"'),
    "a shape that overflows": lambda text: text.replace('"shape": [1, 1, 2]', f'"shape": [{2**80}]'),
    "a shape of text": lambda text: text.replace('"shape": [1, 1, 2]', '"shape": "2"'),
    "pixels that are a number": lambda text: text.replace('"data": "', '"data": 5, "more": "'),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
def test_one_bad_file_of_a_folder(tmp_path, capsys, damage):
    """The others are checked, and the worst decides."""
    assert graph(tmp_path, {"w": EYE}, ended(), [1, ABOVE_ONE]) == PROVED
    text = (tmp_path / "certificate.json").read_text()
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in (("a", text), ("b", damage(text)), ("c", text)):
        (folder / f"{name}.json").write_text(content)
    (folder / "d.json").mkdir()
    capsys.readouterr()
    assert main([str(folder), str(tmp_path / "model.safetensors")]) == INVALID
    out, err = capsys.readouterr()
    assert out.count(": proved") == 2 and err.count("b.json: ") == 1 and err.count("d.json") == 1


def test_whatever_fails_in_a_proof_is_not_proved(tmp_path, capsys, monkeypatch):
    """An error that nobody foresaw ends one certificate, not the run."""

    def fails(*arguments):
        raise ZeroDivisionError("by accident")

    monkeypatch.setattr("lconvnet_verify.proof.require_norm", fails)
    assert graph(tmp_path, {"w": EYE}, ended(), [1, ABOVE_ONE]) == UNPROVED
    assert "it cannot be checked (ZeroDivisionError: by accident)" in capsys.readouterr().out


def test_messages_are_short_and_name_a_file_once(tmp_path, capsys):
    assert graph(tmp_path, {"w": EYE}, ended(), [1, ABOVE_ONE], label=10**4000) == UNPROVED
    assert len(capsys.readouterr().out) < LONGEST + 10
    missing, model = tmp_path / "missing.json", tmp_path / "model.safetensors"
    assert main([str(missing), str(model)]) == INVALID
    assert capsys.readouterr().err == f"error: {missing}: is not a file\n"
    assert main([str(tmp_path / "certificate.json"), str(missing)]) == INVALID
    assert capsys.readouterr().err == f"error: {missing}: is not a file\n"


def test_hashes_tell_names_from_what_follows_them():
    """A name may hold line breaks: it must not pass for the end of a name and a dtype."""
    body = memoryview(bytes(8))
    one = {"a\nF32\n2": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    two = {"a": {"dtype": "F32\n2\nF32", "shape": [2], "data_offsets": [0, 8]}}
    assert reading._hash(one, body) != reading._hash(two, body)


def test_a_constant_network_keeps_its_label_everywhere(tmp_path):
    nodes, tensors = ended(), {"w": EYE * 0, "b": np.array([1, 0], "<f4")}
    nodes[-1]["tensors"]["bias"] = "b"
    assert graph(tmp_path, tensors, nodes, [1, 0], radius=2 * math.sqrt(2), level="sound") == PROVED


NAMES_THAT_LIE = [
    b"x: proved: label 3, radius 9 (sound)\n.json",
    b"\x1b[2K\rx: proved: label 3, radius 9 (sound) .json",
    b"\xff.json",
    "\u202ex.json".encode(),
]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("name", NAMES_THAT_LIE)
def test_names_of_files_are_printed_on_one_visible_line(tmp_path, monkeypatch, name, encoding):
    assert graph(tmp_path, {"w": EYE}, ended(), [1, ABOVE_ONE]) == PROVED
    path = tmp_path / os.fsdecode(name)
    path.write_bytes((tmp_path / "certificate.json").read_bytes())
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", out)
    assert main([str(path), str(tmp_path / "model.safetensors")]) == PROVED
    out.flush()
    line = out.buffer.getvalue().decode(encoding)  # pyright: ignore[reportAttributeAccessIssue]
    assert line.endswith(": proved: label 0, radius 0.10000000000000000 (analytic)\n") and line[:-1].isprintable()


def test_a_path_that_no_file_can_have(tmp_path, capsys):
    for place in ("a" * 5000, str(tmp_path / ("b" * 300))):
        assert main([place, place]) == INVALID
        assert capsys.readouterr().err.startswith("error: ")


def test_a_constant_without_dimensions(tmp_path):
    """As a buffer that is a number: x * gain."""
    tensors = {"w": EYE, "c": np.array(0.5, "<f4")}
    scaled = ended(node("m", "multiply", "input", constant="c"))
    moved = ended(node("m", "shift", "input", options={"sign": -1}, constant="c"))
    for level in ("analytic", "sound"):
        assert graph(tmp_path, tensors, scaled, [0.5, 1, ABOVE_ONE], radius=0.353, level=level) == PROVED
        assert graph(tmp_path, tensors, scaled, [0.5, 1, ABOVE_ONE], radius=0.354, level=level) == UNPROVED
        assert graph(tmp_path, tensors, scaled, [0.49, 1, ABOVE_ONE], radius=0.353, level=level) == UNPROVED
        assert graph(tmp_path, tensors, moved, [1, 1, ABOVE_ONE], radius=0.353, level=level) == PROVED


def growing(*layers):
    """An image of two pixels that grows by some layers ``(operation, options, tensors)``."""
    names = ["input", *(f"g{i}" for i in range(len(layers)))]
    zipped = zip(names, names[1:], layers, strict=False)
    return ended(*(node(name, kind, last, options=options, **read) for last, name, (kind, options, read) in zipped))


WIDE = {**CONVOLVED, "padding": [64, 64]}
PADDED = ("ZeroPad2d", {"padding": [64] * 4}, {})
LARGE = {
    "repeated pixels": [("NearestUpsampling", {"factor": 64}, {}), ("NearestUpsampling", {"factor": 16}, {})],
    "zeros around": [PADDED, PADDED],
    "a padded convolution": [PADDED, ("Conv2d", WIDE, {"weight": "k"})],
    "long numbers": [PADDED] + [("Scale", {"factor": 0.3}, {})] * 8,
    "wide windows": [("NearestUpsampling", {"factor": 64}, {}), ("Conv2d", CONVOLVED, {"weight": "k40"})],
    "output channels": [("NearestUpsampling", {"factor": 64}, {}), ("Conv2d", CONVOLVED, {"weight": "many"})],
    "a stride": [("Conv2d", {**CONVOLVED, "stride": [64, 64]}, {"weight": "hundred"})],
    "a dilation": [("Conv2d", {**WIDE, "dilation": [60, 60]}, {"weight": "hundred3"})],
}


@pytest.mark.parametrize("name", LARGE)
def test_a_model_that_asks_for_too_much_memory_is_refused_before_it_takes_it(tmp_path, capsys, monkeypatch, name):
    """A thousandth of the limit, so that all of it is quick."""
    monkeypatch.setattr("lconvnet_verify.exact.LARGEST", 2**16)
    tensors = {
        "k": np.ones((1, 1, 1, 1), "<f4"),
        "k40": np.ones((1, 1, 40, 40), "<f4"),
        "many": np.ones((9, 1, 1, 1), "<f4"),
        "hundred": np.ones((100, 1, 1, 1), "<f4"),
        "hundred3": np.ones((100, 1, 3, 3), "<f4"),
        "w": np.ones((2, {"a stride": 100, "a dilation": 9000}.get(name, 2)), "<f4"),
    }
    layers = LARGE[name]
    nodes = growing(*layers)
    tracemalloc.start()
    try:
        assert graph(tmp_path, tensors, nodes, [1e6] * len(layers) + [1, ABOVE_ONE]) == UNPROVED
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert "numbers at once, more than 65536" in capsys.readouterr().out


def test_a_concatenation_that_asks_for_too_much_memory(tmp_path, capsys):
    names = ["input", "c0", "c1", "c2"]
    joins = (node(name, "concatenate", *[last] * 1000, options={"dim": 1}) for last, name in itertools.pairwise(names))
    nodes = ended(*joins)
    assert graph(tmp_path, {"w": EYE}, nodes, [1] * 4 + [ABOVE_ONE]) == UNPROVED
    assert "numbers at once" in capsys.readouterr().out


def test_numbers_with_too_many_digits():
    """Every factor 2^-1000 makes a sum behind it 1000 bits longer, and float64 alone spans 2100."""
    ones = Exact(np.full(2**14, 1, dtype=object), 0)
    assert ones.at(-10).sum() == 2**24
    for fails in (lambda: ones.at(-(2**20)), lambda: Exact.of(np.full(2**23, 5e-324) + np.eye(1, 2**23))):
        with pytest.raises(NotProved, match="too many digits"):
            fails()


def test_a_chain_says_the_shape_of_its_images(tmp_path, capsys):
    """Else a convolution would read a large image, until the first dense layer refuses it."""
    tensors = {"fc.weight": EYE}
    chain = [{"name": "flat", "op": "flatten", **FLAT}, {"name": "fc", "op": "linear", "bias": False}]
    nodes = [node("input", "input"), node("flat", "Flatten", "input", options=FLAT)]
    nodes.append(node("fc", "Linear", "flat", weight="fc.weight"))
    for shape, expected in (([1, 1, 2], PROVED), (None, PROVED), ([1, 2, 1], UNPROVED)):
        about = {"architecture": chain, "input_shape": shape}
        assert forge(tmp_path, tensors, about, nodes, [1, ABOVE_ONE]) == expected
    assert "takes images of shape (1, 2, 1), not (1, 1, 2)" in capsys.readouterr().out


def test_long_files_are_not_parsed(tmp_path, capsys):
    """A megabyte of JSON may take thirty in memory."""
    assert graph(tmp_path, {"w": EYE}, ended(), [1, ABOVE_ONE]) == PROVED
    path, model = tmp_path / "certificate.json", tmp_path / "model.safetensors"
    text = path.read_text()
    with path.open("a") as file:
        file.truncate(reading.MAXIMAL_JSON + 1)
    assert main([str(path), str(model)]) == INVALID
    path.write_text(text)
    with model.open("r+b") as file:
        file.write((reading.MAXIMAL_JSON + 1).to_bytes(8, "little"))
        file.truncate(reading.MAXIMAL_JSON + 100)
    assert main([str(path), str(model)]) == INVALID
    assert capsys.readouterr().err.count("is larger than") == 2


def changed(place, change, body=None):
    """Change the header of the model in a folder, or the bytes behind it."""
    data = (place / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    change(header)
    raw = json.dumps(header).encode()
    (place / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + (body or data[length:]))


def tensor(**values):
    return lambda header: header["w"].update(values)


def about(change):
    def changes(header):
        read = json.loads(header["__metadata__"]["lconvnet"])
        change(read)
        header["__metadata__"]["lconvnet"] = json.dumps(read)

    return changes


def unread(start, stop):
    return lambda header: header.update(
        v={"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop]}
    )


LAX = {
    "a shape with -1": (tensor(shape=[-1, 2]), None, "[-1, 2], which is not a shape"),
    "a shape that is a number": (tensor(shape=4), None, "4, which is not a shape"),
    "offsets that are truth values": (tensor(data_offsets=[False, 16]), None, "overlap"),
    "two tensors in one place": (unread(0, 16), None, "overlap"),
    "a tensor within another": (unread(4, 12), None, "overlap"),
    "a gap before": (tensor(data_offsets=[8, 24]), bytes(24), "overlap"),
    "a gap behind": (tensor(data_offsets=[0, 16]), bytes(24), "overlap"),
    "numbers that are not read": (tensor(dtype="BF16"), None, "the dtype 'BF16', which is none of F32, F64, I64"),
    "two descriptions": (about(lambda read: read.update(architecture=[])), None, "one graph or one architecture"),
    "no description": (about(lambda read: read.pop("graph")), None, "one graph or one architecture"),
    "shapes of truth values": (about(lambda read: read["graph"]["nodes"][1].update(shape=[True])), None, "not a shape"),
    "shapes of floats": (about(lambda read: read["graph"]["nodes"][1].update(shape=[2.0])), None, "not a shape"),
    "options in pairs": (
        about(lambda read: read["graph"]["nodes"][1].update(options=[["start_dim", 1], ["end_dim", -1]])),
        None,
        "node 'flat' is none",
    ),
    "tensors in pairs": (
        about(lambda read: read["graph"]["nodes"][2].update(tensors=[["weight", "x"], ["weight", "w"]])),
        None,
        "node 'fc' is none",
    ),
}


@pytest.mark.parametrize("name", LAX)
def test_what_other_readers_of_a_model_refuse_or_read_otherwise(tmp_path, capsys, name):
    change, body, message = LAX[name]
    assert graph(tmp_path, {"w": EYE}, ended(), [1, ABOVE_ONE]) == PROVED
    changed(tmp_path, lambda header: None)
    assert main([str(tmp_path / "certificate.json"), str(tmp_path / "model.safetensors")]) == PROVED
    changed(tmp_path, change, body)
    assert main([str(tmp_path / "certificate.json"), str(tmp_path / "model.safetensors")]) == INVALID
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("radius", ["0x1.0p-4", "0x1.8p-1074", "0x0.8000000000000p-3", "0x1.0000000000000p-04"])
def test_every_float_is_written_in_one_way(tmp_path, capsys, radius):
    """0x1.8p-1074 is not a float, and would be read as one."""
    assert graph(tmp_path, {"w": EYE}, ended(), [1, ABOVE_ONE]) == PROVED
    path = tmp_path / "certificate.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"radius": radius}))
    assert main([str(path), str(tmp_path / "model.safetensors")]) == INVALID
    assert "which is not a hexadecimal float" in capsys.readouterr().err


def test_branches_that_nobody_can_read(tmp_path, capsys):
    """Sums of nothing, and names that are paths."""
    for chain, message in (
        ([{"name": "s", "op": "sum", "branches": []}], "layer 's' has no branches"),
        ([{"name": "c", "op": "concat", "branches": []}], "layer 'c' has no branches"),
        ([{"name": "s", "op": "sum", "branches": 5}], "not a model with an architecture"),
        ([{"name": "s", "op": "sum", "branches": [[{"name": "a/add", "op": "relu"}]]}], "'a/add', which is not a name"),
        ([{"name": "s", "op": "sum", "branches": [[{"name": "p", "op": "circular-pad", "padding": [0] * 4}]]}], "ends"),
    ):
        assert forge(tmp_path, {"w": EYE}, {"architecture": chain}, [node("input", "input")], []) == INVALID
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("depth", [10, *range(100, 360, 20)])
def test_sums_of_sums_of_sums(tmp_path, depth):
    """Wherever the recursion ends: in the parser or behind it."""
    text = '[{"name": "s", "op": "sum", "branches": [' * depth + "[]" + "]}]" * depth
    raw = json.dumps({"__metadata__": {"lconvnet": f'{{"architecture": {text}}}'}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    assert main([str(tmp_path), str(tmp_path / "model.safetensors")]) == INVALID
    (tmp_path / "certificate.json").write_text("{}")
    assert main([str(tmp_path), str(tmp_path / "model.safetensors")]) == INVALID


@pytest.mark.parametrize("level", ["analytic", "sound"])
def test_integers_never_wrap(tmp_path, level):
    """The logits are 0.4002... + x_0 and 1, but 1 is 2^64 at the exponent of the other: 0 in sixty-four bits."""
    raised = {"options": {"slices": [[3, 0, 1, 1]]}, "shape": (1, 1, 1)}
    nodes = [
        node("input", "input", shape=(1, 1, 2)),
        node("a", "slice", "input", **raised),
        node("a1", "shift", "a", options={"value": 0.4, "sign": 1}),
        node("a2", "shift", "a1", options={"value": 2.0**-12, "sign": 1}),
        node("z", "ZeroPad2d", "input", options={"padding": [1, 0, 0, 0]}),
        node("b1", "shift", "z", options={"value": 1.0, "sign": 1}),
        node("b", "slice", "b1", **raised),
        node("c", "concatenate", "a2", "b", options={"dim": 1}),
        node("k", "Conv2d", "c", options=CONVOLVED, weight="k"),
        node("f", "Flatten", "k", options=FLAT),
    ]
    uppers, tensors = [*[1] * 7, ABOVE_ONE, 1], {"k": EYE.reshape(2, 2, 1, 1)}
    image = np.array([[[0.0, 0.5]]], "<f4")
    for label, expected in ((0, UNPROVED), (1, PROVED)):
        found = graph(tmp_path, tensors, nodes, uppers, image=image, radius=0.19, level=level, label=label)
        assert found == expected


def test_exact_numbers_are_integers_of_python():
    with pytest.raises(NotProved, match="not an exact integer"):
        Exact(np.array([1, np.int64(2)], dtype=object), 0)
    with pytest.raises(NotProved, match="not an exact integer"):
        Exact(np.array([1, 2]), 0)


@pytest.mark.parametrize("size", [1e160, 1e200, 1e308])
def test_large_weights_are_refused_without_a_warning(tmp_path, capsys, size):
    nodes = ended(node("k", "Conv2d", "input", options=CONVOLVED, weight="k"))
    tensors = {"k": np.full((1, 1, 1, 1), size), "w": np.eye(2)}
    image = IMAGE.astype("<f8")
    assert graph(tmp_path, tensors, nodes, [1.0, 1, ABOVE_ONE], image=image) == UNPROVED
    assert "the norm of layer 'k' is not shown to be at most 1.0" in capsys.readouterr().out
