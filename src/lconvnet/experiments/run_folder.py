"""The folder of a run: where each file lies, what may be written, and that nothing in it is ever lost.

cfg.yaml               the configuration (complete where the run was started with another folder as its
output) checkpoints/, logs/, record.json   written by `lconvnet.training` model.safetensors      the baked
network of the best epoch results.yaml           the evaluation, in the original's keys; an older one is kept
as results-1.yaml, -2, ... certificates.parquet   one row for each test image evidence/              an attack
that contradicted a certificate, if there ever was one
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lconvnet import atomic
from lconvnet.data.errors import require
from lconvnet.experiments.build import settings
from lconvnet.experiments.config import Experiment
from lconvnet.experiments.loading import dump, load, read
from lconvnet.training import is_started


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run below `path`."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "cfg.yaml"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def results(self) -> Path:
        return self.path / "results.yaml"

    @property
    def certificates(self) -> Path:
        return self.path / "certificates.parquet"

    @property
    def evidence(self) -> Path:
        return self.path / "evidence"

    def refuse_if_used(self) -> None:
        """Raise ValueError where a run has left something: a new run must not replace it."""
        if is_started(self.path) or self.results.exists() or self.model.exists():
            raise ValueError(
                f"{self.path} already holds a run, which is never overwritten; "
                "continue it with --resume or choose another folder with --out"
            )

    def keep_config(self, experiment: Experiment) -> None:
        """Write the complete configuration where there is none; raise ValueError where there is another
        one."""
        if not self.config.exists():
            atomic.write_text(self.config, dump(experiment))
        elif settings(load(self.config)) != settings(experiment):
            raise ValueError(
                f"{self.config} describes another experiment, which is never overwritten; "
                "choose an empty folder with --out"
            )

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.yaml; a different older one is kept beside it under the next free number."""
        text = yaml.safe_dump(dict(results), sort_keys=False, allow_unicode=True, width=1000)
        if self.results.exists() and self.results.read_text(encoding="utf-8") != text:
            numbers = (number for number in range(1, 10**6) if not self._numbered(number).exists())
            atomic.write_bytes(self._numbered(next(numbers)), self.results.read_bytes())
        atomic.write_text(self.results, text)

    def write_certificates(self, columns: Mapping[str, Any]) -> None:
        """Write one row for each test image as parquet; needs the extra `data` (pyarrow)."""
        pyarrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.table(dict(columns)), buffer)
        atomic.write_bytes(self.certificates, buffer.getvalue())

    def _numbered(self, number: int) -> Path:
        return self.path / f"results-{number}.yaml"


def find_run(path: str | Path) -> RunFolder:
    """Return the run folder named by itself or by a file in it such as its cfg.yaml.

    Raises ValueError where there is no such folder, or nothing was trained in it.
    """
    path = Path(path)
    folder = RunFolder(path if path.is_dir() else path.parent)
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a run folder, the one that holds cfg.yaml and checkpoints/")
    if not is_started(folder.path):
        raise ValueError(f"{folder.path} holds no trained run (no checkpoints); train it first: lconvnet train CFG")
    return folder


def evaluation_values(folder: RunFolder) -> dict[str, Any]:
    """Return what a run's cfg.yaml says of evaluation and of where the data lie, unvalidated."""
    if not folder.config.exists():
        return {}
    values = read(folder.config)
    found = {"evaluation": values["evaluation"]} if "evaluation" in values else {}
    data = values.get("data")
    if isinstance(data, Mapping) and data.get("directory") is not None:
        found["data"] = {"directory": data["directory"]}
    return found
