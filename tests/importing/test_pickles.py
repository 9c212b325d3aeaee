"""Files that would run something are refused by name, in both formats of torch; damaged ones by one clear line."""

import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import defaultdict
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from lconvnet.cli import app, invoke
from lconvnet.importing import import_run, pickles
from tests.importing.originals import Original, classifier, mlp, write

NET = mlp([784, 4, 10])


class Touch:
    """Pickled, this is a call that creates a file."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(made):
    """Calls that would create the file `made`, through functions of several kinds."""
    return {
        "os.system": Touch(os.system, f"touch {made}"),
        "subprocess.call": Touch(subprocess.call, ["touch", str(made)]),
        "builtins.exec": Touch(exec, f"open({str(made)!r}, 'w')"),
        "builtins.eval": Touch(eval, f"open({str(made)!r}, 'w')"),
        "torch.save": Touch(torch.save, 1, str(made)),
    }


PLACES = ("the whole file", "a weight", "epoch")


def poisoned(place, attack, weights):
    good = {"trainer": {"net": dict(weights)}, "best_metrics": {"accuracy": 1.0}, "epoch": 1}
    if place == "the whole file":
        return attack
    if place == "a weight":
        good["trainer"]["net"]["1.linear0.weight"] = attack
        return good
    return good | {place: attack}


KINDS = ("os.system", "subprocess.call", "builtins.exec", "builtins.eval", "torch.save")
CASES = [("best_metrics", kind) for kind in KINDS] + [
    (place, "os.system") for place in PLACES if place != "best_metrics"
]


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
@pytest.mark.parametrize(("place", "kind"), CASES)
def test_nothing_runs(place, kind, legacy, tmp_path, monkeypatch, capsys):
    made = tmp_path / "made"
    old = write(tmp_path / "old", classifier(NET), Original(NET).weights, monkeypatch)
    path = old / "checkpoints" / "Sequential.pth"
    torch.save(
        poisoned(place, attacks(made)[kind], Original(NET).weights), path, _use_new_zipfile_serialization=not legacy
    )
    assert invoke(app, ["import", str(old), str(tmp_path / "new")]) == 2
    message = capsys.readouterr().err
    assert "Sequential.pth is refused: it asks to run" in message and message.count("\n") == 1
    assert not made.exists() and not (tmp_path / "new").exists()


def test_the_attack_is_one(tmp_path):
    """What the tests above refuse does create a file where it is unpickled."""
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(attacks(made)["os.system"]))
    assert made.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_of_our_own_name_are_placeholders(legacy, tmp_path):
    """The original's package has our name; what a file calls by it is never looked up, here or anywhere."""
    from lconvnet import atomic

    path, made = tmp_path / "a.pth", tmp_path / "made"
    content = {"epoch": 3, "metrics": Touch(atomic.write_text, str(made), "text")}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = pickles.read(path)
    assert found["epoch"] == 3 and isinstance(found["metrics"], pickles.Skipped)
    assert not made.exists()


def test_metrics_may_hold_numbers_of_numpy(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"accuracy": np.float64(0.5), "curve": np.zeros(3), "epoch": 2}, path)
    assert pickles.read(path)["epoch"] == 2


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_plain_pickles_are_refused(protocol, tmp_path):
    path, made = tmp_path / "a.pth", tmp_path / "made"
    path.write_bytes(pickle.dumps(attacks(made)["os.system"], protocol=protocol))
    with pytest.raises(ValueError, match=r"a\.pth (is refused|is not a file of weights)"):
        pickles.read(path)
    assert not made.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
@pytest.mark.parametrize("protocol", range(6))
def test_attacks_of_every_protocol_are_called_so(protocol, legacy, tmp_path):
    path, made = tmp_path / "a.pth", tmp_path / "made"
    for content in ({"epoch": 1, "weights": attacks(made)["os.system"]}, attacks(made)["os.system"]):
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ValueError, match=r"a\.pth is refused: it") as raised:
            pickles.read(path)
        assert "nothing was run" in str(raised.value) and "\n" not in str(raised.value)
        assert not made.exists()


INSTRUCTIONS = {
    "INST": b"(S'touch'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nU\x05toucho.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "STACK_GLOBAL": b"\x80\x02X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.",
    "NEWOBJ_EX": b"\x80\x02N)}\x92.",
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_that_weights_do_not_need_are_named(name, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(INSTRUCTIONS[name])
    with pytest.raises(ValueError, match=rf"is refused: its pickle holds {name}, which"):
        pickles.read(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_harmless_files_of_another_protocol_are_not_called_damaged(protocol, legacy, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(2)}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"its pickle (holds \w+|is of protocol 3), which .*; save the weights with"):
        pickles.read(path)


@pytest.mark.parametrize("kind", ["os.system", "builtins.exec"])
@pytest.mark.parametrize("protocol", [1, 2])
def test_what_a_plain_pickle_asks_to_run_is_named(protocol, kind, tmp_path):
    path, made = tmp_path / "a.pth", tmp_path / "made"
    path.write_bytes(pickle.dumps(attacks(made)[kind], protocol=protocol))
    with pytest.raises(ValueError, match=r"it asks to run (posix\.system|__builtin__\.exec), which no weights need"):
        pickles.read(path)
    assert not made.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
def test_a_pickle_that_takes_long_to_look_through_is_refused(legacy, tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    torch.save({"curve": [0.5] * 1000}, path, _use_new_zipfile_serialization=not legacy)
    assert len(pickles.read(path)["curve"]) == 1000
    monkeypatch.setattr(pickles, "MAXIMAL_INSTRUCTIONS", 1000)
    with pytest.raises(ValueError, match=r"has more than 1000 instructions in its pickle; it is not a file of weights"):
        pickles.read(path)


@pytest.mark.parametrize("factory", [bool, dict, float, int, list, set, str, tuple])
def test_metrics_may_be_tables_of_anything_plain(factory, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"metrics": defaultdict(factory, accuracy=factory()), "epoch": 2}, path)
    assert pickles.read(path)["epoch"] == 2


@pytest.mark.parametrize("base", [dict, list])
def test_metrics_that_are_a_table_of_their_own_class_are_said_to_be(base, tmp_path, monkeypatch):
    """torch's reader fills its own kinds of tables only, so such an object can be neither read nor left out."""
    module = ModuleType("lconvnet.metrics")
    table = type("Table", (base,), {"__module__": "lconvnet.metrics"})
    vars(module)["Table"] = table
    path = tmp_path / "a.pth"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lconvnet.metrics", module)
        torch.save({"metrics": table([(1, 2)])}, path)
    with pytest.raises(ValueError, match=r"holds an object with items of a class of its own"):
        pickles.read(path)


def test_parameters_are_read_as_tensors(tmp_path):
    """Whoever computes with them is not warned of gradients that nobody asked for."""
    weights = {"a": nn.Parameter(torch.ones(2))}
    assert not pickles.state_dict(weights, tmp_path / "a.pth")["a"].requires_grad


def test_objects_that_are_skipped_have_a_name_to_be_shown_by():
    assert f"epoch {pickles.Skipped(1)!r}" == "epoch an object that is not read"


def test_an_unreadable_file_is_said_to_be_one(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.ones(2)}, path)

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", denied)
    with pytest.raises(ValueError, match=r"a\.pth cannot be read: permission denied"):
        pickles.read(path)


def test_the_names_of_an_archive_have_a_largest_size(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        (size,) = (entry.file_size for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
    monkeypatch.setattr(pickles, "MAXIMAL_PICKLE", size)
    assert pickles.read(path)["weight"].tolist() == [1.0, 1.0]
    monkeypatch.setattr(pickles, "MAXIMAL_PICKLE", size - 1)
    with pytest.raises(ValueError, match=rf"has {size} bytes of names; it is not a file of weights"):
        pickles.read(path)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "folder", "absent"])
def test_damaged_files_are_refused_in_one_line(damage, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.ones(100)}, path)
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "absent":
        path.write_bytes(
            {"empty": b"", "cut": data[: len(data) // 2], "noise": struct.pack("500d", *range(500))}[damage]
        )
    with pytest.raises(ValueError, match=r"a\.pth (does not exist|is not a file of weights)"):
        pickles.read(path)


def test_archives_that_would_grow_are_refused(tmp_path):
    path, bomb = tmp_path / "a.pth", tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match=r"bomb\.pth is a compressed archive"):
        pickles.read(bomb)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no weights by name"),
        ({}, "holds no weights by name"),
        ({"a": 1.0}, "'a' is a float; weights are tensors"),
        ({3: torch.ones(1)}, "3 is a Tensor; weights are tensors with names"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a holds NaN or infinite values"),
        ({"a": torch.ones(2, 2).to_sparse()}, "a is not a dense tensor"),
        ({"a": torch.ones(2, device="meta")}, "a is not a dense tensor"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, "a has dtype torch.float8_e4m3fn; weights are in"),
        ({"a": torch.ones(2, dtype=torch.int64)}, "a has dtype torch.int64; weights are in"),
        ({"a": torch.ones(2, dtype=torch.bool)}, "a has dtype torch.bool; weights are in"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "a has dtype torch.complex64; weights are in"),
    ],
)
def test_weights_are_finite_tensors_with_names(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pickles.state_dict(content, tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore")  # both kinds are on their way out of torch
def test_nested_and_quantized_tensors_are_no_weights(tmp_path):
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for value in (ragged, torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)):
        with pytest.raises(ValueError, match=r"a (is not a dense tensor|has dtype torch\.qint8)"):
            pickles.state_dict({"a": value}, tmp_path / "a.pth")


def test_tensors_that_the_file_does_not_hold_are_refused_unread(tmp_path):
    """Four terabytes of one stored number: whoever looked at them all would need a terabyte."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1).expand(1 << 40)}, path)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"a has shape \(1099511627776,\), more than the file holds"):
        pickles.state_dict(pickles.read(path), path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_of_weights_is_read(dtype, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(3, 2, dtype=dtype).mT, "b": nn.Parameter(torch.ones(2, dtype=dtype))}, path)
    found = pickles.state_dict(pickles.read(path), path)
    assert found["a"].dtype == dtype and torch.equal(found["a"], torch.ones(2, 3, dtype=dtype))


def test_a_warning_of_torch_is_not_the_users_business(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pickles.read(path)["weight"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("place", ["cfg.yaml", "checkpoints/Sequential.pth"])
def test_what_an_import_reads_must_be_there(place, tmp_path, monkeypatch):
    old = write(tmp_path / "old", classifier(NET), Original(NET).weights, monkeypatch)
    (old / place).unlink()
    with pytest.raises(ValueError, match=r"does not exist|holds no \.pth file"):
        import_run(old, tmp_path / "new")
