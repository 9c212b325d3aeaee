"""Folders of results made by the tests, and the original's 376 files read once."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from lconvnet.experiments.config import settings
from lconvnet.experiments.loading import dump, parse
from lconvnet.report import find_runs
from lconvnet.training import Record

RESULTS = {
    "accuracy": 0.75,
    "loss": 0.25,
    "sanity_check/conv1-l2-norm": 1.0,
    "sanity_check/layer-l-constant": 1.0,
    "adv_robustness": {
        0.3: {"natural": 0.75, "lb": 0.7, "lb_dist": 1.0},
        1.58: {"natural": 0.75, "lb": 0.25, "lb_dist": 1.0, "pgd-ub": 0.5, "pgd-ub-dist": 1.5},
    },
}
PAPER = {
    "seed": 0,
    "data": {"name": "mnist"},
    "model": {"architecture": "small", "conv": "bcop", "linear": "orthogonal"},
    "loss": {"name": "hinge", "eps": 1.5},
    "optimizer": {"name": "adam", "lr": 0.001},
    "schedule": {"name": "exponential", "gamma": 0.96235062639},
    "training": {"epochs": 200, "batch_size": 128, "project_every": 100},
    "evaluation": {"eps": [0.3, 1.58]},
}


@pytest.fixture(scope="session")
def original(reference_dir: Path):
    return find_runs(reference_dir / "runs")


class Runs:
    """Writes results.yaml files below a folder, with and without a specification."""

    def __init__(self, root: Path):
        self.root = root

    def named(self, path: str, **changes) -> Path:
        """A run without a specification; `accuracy`, `lb`, ... change the results at eps 1.58."""
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.yaml").write_text(yaml.safe_dump(results(**changes)))
        return folder

    def recorded(self, path: str, overrides=(), **changes) -> Path:
        """A run of ours: cfg.yaml, record.json and results.yaml."""
        folder = self.named(path, **changes)
        experiment = parse(PAPER, overrides)
        record = Record({"settings": settings(experiment)}, {})
        (folder / "record.json").write_text(json.dumps(record.to_dict()))
        (folder / "cfg.yaml").write_text(dump(experiment))
        return folder

    def critic(self, path: str, loss: float, lipschitz: float) -> Path:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.yaml").write_text(f"loss: {loss}\nsanity_check/layer-l-constant: {lipschitz}\n")
        return folder


def results(accuracy: float | None = None, top=None, drop=(), **at_eps) -> dict:
    values = copy.deepcopy(RESULTS)
    if accuracy is not None:
        values["accuracy"] = accuracy
        for row in values["adv_robustness"].values():
            row["natural"] = accuracy
    values["adv_robustness"][1.58] |= {key.replace("_ub", "-ub"): value for key, value in at_eps.items()}
    for key in drop:
        del values["adv_robustness"][1.58][key]
    return values | (top or {})


@pytest.fixture
def runs(tmp_path) -> Runs:
    return Runs(tmp_path / "runs")


@pytest.fixture
def table_of():
    """``table_of(tables, "1")`` as {(block, label, column): cell}."""

    def cells(tables, number: str) -> dict:
        table = next(table for table in tables if table.number == number)
        return {
            (row.block, row.label, column): cell
            for row in table.rows
            for column, cell in zip(table.columns, row.cells, strict=True)
        }

    return cells
