"""The pure parts of the benchmark: turns, medians, exponents, targets and the layout of its file. Nothing is timed."""

import json

import pytest
import torch
from torch import nn

from benchmarks import peers, timing
from benchmarks.report import Measured, Target, as_json, result, table
from benchmarks.rows import ROWS
from benchmarks.scaling import Curve, quick_enough
from benchmarks.scaling import as_json as scaling_as_json
from benchmarks.steps import is_finite
from benchmarks.timing import Effort, compare, exponent, medians, take_turns


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the calls move forward: `clock[0]` is the time."""
    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    return now


def call_lasting(clock: list[float], *durations: float):
    """A call whose n-th run takes the n-th duration, the last one for ever after."""
    remaining = list(durations)

    def call():
        clock[0] += remaining.pop(0) if len(remaining) > 1 else remaining[0]

    return call


def test_calls_take_turns():
    order = []
    take_turns([lambda: order.append("a"), lambda: order.append("b")], 3, seconds=100, least=1)
    assert order == ["a", "b"] * 3


def test_a_budget_ends_the_turns_but_not_before_the_least(clock):
    one_second = call_lasting(clock, 1.0)
    assert len(take_turns([one_second], 60, seconds=10, least=3)) == 10
    assert len(take_turns([one_second], 60, seconds=0, least=3)) == 3
    assert len(take_turns([one_second], 2, seconds=0, least=3)) == 2
    assert take_turns([one_second], 0, seconds=10, least=1) == []


def test_medians_are_taken_over_the_turns():
    assert medians([[1.0, 10.0], [100.0, 20.0], [2.0, 30.0]]) == [2.0, 20.0]


def test_compare_leaves_the_warm_up_out(clock):
    ours, other = call_lasting(clock, 99, 99, 3, 4, 8), call_lasting(clock, 99, 99, 2, 1, 9)
    assert compare([ours, other], Effort(turns=3, warm_up=2, seconds=1000)) == [4, 2]


def test_an_outlier_does_not_move_the_ratio(clock):
    ours, other = call_lasting(clock, 3, 3, 300, 3, 3), call_lasting(clock, 2, 2, 2, 2, 200)
    members = compare([ours, other], Effort(turns=5, warm_up=0, seconds=1000))
    assert result("large_step", Measured(members[0], members[1], "s", ""), Target(high=2)).ratio == 1.5


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 3.0])
def test_the_exponent_of_a_power_law(power):
    sizes = [32, 64, 128, 256, 512, 1024]
    assert exponent(sizes, [5e-6 * c**power for c in sizes]) == pytest.approx(power, abs=1e-9)


def test_the_exponent_is_that_of_the_upper_half():
    sizes = [1, 2, 4, 8, 16]  # constant at first, then cubic; the upper half of five is three
    assert exponent(sizes, [7.0, 7.0, 64.0, 512.0, 4096.0]) == pytest.approx(3, abs=1e-9)
    assert exponent([2, 4], [1.0, 4.0]) == pytest.approx(2, abs=1e-9)


def test_an_exponent_needs_two_sizes():
    with pytest.raises(ValueError, match="1 sizes and 1 costs"):
        exponent([32], [1.0])


def test_the_name_of_a_row_says_which_way_round_its_ratio_is():
    measured = Measured(2.0, 5.0, "s", "")
    assert result("small_step", measured, Target(high=1.25)).ratio == 0.4
    assert result("torchlip_over_ours", measured, Target(low=2.3)).ratio == 2.5


@pytest.mark.parametrize(
    ("target", "text", "good", "bad"),
    [
        (Target(high=1.35), "<= 1.35", (0.5, 1.35), (1.36,)),
        (Target(low=5), ">= 5", (5, 50), (4.9,)),
        (Target(low=0.95, high=1.05), "0.95-1.05", (0.95, 1.05), (0.94, 1.06)),
    ],
)
def test_targets(target, text, good, bad):
    assert str(target) == text
    assert all(target.met(ratio) for ratio in good)
    assert not any(target.met(ratio) for ratio in bad)
    assert not target.met(float("nan"))


def test_the_layout_of_the_file():
    rows = [result(name, Measured(2.0, 4.0, "s", "a note"), row.target) for name, row in ROWS.items()]
    written = json.loads(json.dumps(as_json(rows), allow_nan=False))
    assert list(written) == ["torch", "machine", "threads", "rows"]
    assert written["rows"][0] == {
        "row": "large_step",
        "ratio": 0.5,
        "ours": 2.0,
        "other": 4.0,
        "unit": "s",
        "target": "<= 1.35",
        "met": True,
        "note": "a note",
    }
    assert table(rows).row_count == len(ROWS)


def test_the_rows():
    assert list(ROWS) == [
        "large_step",
        "small_step",
        "large_step_batch512",
        "orthogonium_over_ours",
        "torchlip_over_ours",
        "bjorck20_over_ours",
        "critic_step",
        "baked_inference",
        "unbaked_eval",
        "peak_memory",
        "numpy_spectrum_over_ours",
        "certify_over_forward",
        "data_share",
    ]


def test_the_layout_of_the_curves():
    curve = Curve("ours", [32, 64], [0.1, 0.4], 2.0)
    written = json.loads(json.dumps(scaling_as_json({"width": [curve], "depth": []})))
    assert written["depth"] == []
    assert written["width"] == [
        {"method": "ours", "sizes": [32, 64], "seconds": [0.1, 0.4], "exponent": 2.0, "dropped": ""}
    ]


def test_a_method_is_dropped_from_the_size_on_where_one_step_takes_too_long(clock):
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: call_lasting(clock, 61)())
    curve = Curve("slow")
    assert quick_enough(curve, lambda: (layer, torch.ones(1, 2)), 512) is None
    assert curve.dropped == "from 512 on: one step took 61 s"
    assert quick_enough(curve, pytest.fail, 1024) is None  # not even built


def test_a_diverged_network_is_seen():
    layer = nn.Linear(2, 2)
    assert is_finite(layer)
    nn.init.constant_(layer.bias, float("nan"))
    assert not is_finite(layer)


def test_a_missing_peer_is_an_error_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(peers.MODULES, "orthogonium", "no_such_module_anywhere")
    with pytest.raises(peers.MissingPeerError, match=r"orthogonium cannot be imported .*requirements\.txt"):
        peers.require_all()
