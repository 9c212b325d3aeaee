"""Records: the choice of the best epoch, and round trips."""

import json
from dataclasses import replace

import pytest

from lconvnet.training import Epoch, Record

EPOCH = Epoch(1, 8, 1e-3, 0.5, 0.9, clean=0.8, certified={0.1: 0.5, 0.2: 0.3}, lipschitz=1.0)


def record(*epochs: tuple[float, float, float]) -> Record:
    """A record of epochs (certified at the first radius, at the second, clean)."""
    result = Record({"a": 1}, {"torch": "x"})
    for number, (first, second, clean) in enumerate(epochs, 1):
        epoch = replace(EPOCH, epoch=number, certified={0.1: first, 0.2: second}, clean=clean)
        result = result.add(epoch, finished=number == len(epochs))
    return result


@pytest.mark.parametrize(
    ("epochs", "best"),
    [
        ([(0.5, 0.1, 0.7), (0.6, 0.0, 0.6)], 2),  # certified before clean, the first radius before the others
        ([(0.6, 0.0, 0.6), (0.5, 0.9, 0.9)], 1),
        ([(0.5, 0.1, 0.7), (0.5, 0.0, 0.8)], 2),  # ties: clean
        ([(0.5, 0.1, 0.7), (0.5, 0.2, 0.7)], 1),  # ties again: the earlier one
        ([(0.0, 0.0, 0.0)], 1),
    ],
)
def test_the_best_epoch(epochs: list[tuple[float, float, float]], best: int) -> None:
    assert record(*epochs).best_epoch == best
    assert record(*epochs).best.epoch == best


def test_round_trip_through_json_and_the_table() -> None:
    one = record((0.5, 0.1, 0.7), (1 / 3, 0.2, 0.1 + 0.2))
    assert Record.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    lines = one.to_csv().splitlines()
    assert lines[0].endswith("clean,lipschitz,certified@0.1,certified@0.2")
    assert lines[2].endswith(f"{0.1 + 0.2},1.0,{1 / 3},0.2")
    assert Record({}, {}).to_csv() == ""


def test_no_epoch_is_no_best() -> None:
    with pytest.raises(ValueError, match="best_epoch=0: no epoch has finished yet"):
        _ = Record({}, {}).best


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"best_epoch": 3}, {"best_epoch": 0}, {"epochs": [{}]}, {"epochs": None}, {"settings": 1}]
)
def test_anything_else_is_no_record(change: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Record.from_dict({**record((0.5, 0.1, 0.7)).to_dict(), **change})


def test_a_number_that_is_none_is_no_record() -> None:
    values = record((0.5, 0.1, 0.7)).to_dict()
    values["epochs"][0]["loss"] = float("nan")
    with pytest.raises(ValueError, match="a finite number is needed"):
        Record.from_dict(values)
