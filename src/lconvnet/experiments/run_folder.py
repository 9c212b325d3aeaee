"""The folder of a run: the place of each file, and the rules that protect them. Nothing in it is ever lost.

* cfg.yaml: the configuration (complete if the run was started with another folder as its output)
* checkpoints/, logs/, record.json: written by `lconvnet.training`
* logs/sessions.jsonl: the processes that worked on the run, with place, code and outcome
* logs/output.log: the output of a sweep's processes
* model.safetensors: the baked network of the best epoch
* results.yaml: the evaluation, in the original's keys
* examples.parquet: one row per test image: label, prediction, margin, radius, reason, outcome of each attack
* evaluation/: the records behind these two files, from which a resumed evaluation continues
* other-data/: the same for images of other folders, with accuracy.yaml instead of results.yaml
* evidence/: any attack that contradicted a certificate

A new evaluation keeps the older one under a number: results-1.yaml with examples-1.parquet, and so on.
"""

import io
import itertools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lconvnet import atomic
from lconvnet.experiments.config import settings
from lconvnet.experiments.loading import AnyExperiment, dump, load_any, merge
from lconvnet.experiments.reading import read
from lconvnet.extras import require
from lconvnet.training import CheckpointError, Record, is_first_process, is_started
from lconvnet.training.folder import TrainingFolder
from lconvnet.training.record import read_record
from lconvnet.training.settings import LENGTH, OUTSIDE, differences, identity

logger = logging.getLogger("lconvnet")


@dataclass(frozen=True)
class RunFolder(TrainingFolder):
    """The paths of a run below `path`."""

    results_name: str = "results.yaml"

    @property
    def config(self) -> Path:
        return self.path / "cfg.yaml"

    @property
    def is_configured(self) -> bool:
        """Whether there is a cfg.yaml, even as a broken link."""
        return self.config.exists() or self.config.is_symlink()

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def results(self) -> Path:
        return self.path / self.results_name

    @property
    def examples(self) -> Path:
        return self.path / "examples.parquet"

    @property
    def sessions(self) -> Path:
        return self.path / "logs" / "sessions.jsonl"

    @property
    def output(self) -> Path:
        return self.path / "logs" / "output.log"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def evidence(self) -> Path:
        return self.path / "evidence"

    def refuse_links(self) -> None:
        """Raise ValueError, before any work, if a link would send a run's files to another folder."""
        written = ("checkpoints", "logs", "evaluation", "evidence", "samples", "other-data")
        for place in (self.path / name for name in written):
            atomic.refuse_links(self.path, place)
            for above, folders, files in os.walk(place):
                atomic.refuse_links(place, *(Path(above) / name for name in (*folders, *files)))

    def refuse_if_used(self) -> None:
        """Raise ValueError if the folder holds files of a run: a new run must not replace them."""
        if is_started(self.path) or self.results.exists() or self.model.exists():
            raise ValueError(
                f"{self.path} already holds a run, which is never overwritten; "
                "continue it with --resume or choose another folder with --out"
            )

    def unfinished(self, done: str) -> ValueError:
        """Return the error for a run that only training may continue."""
        return ValueError(
            f"{self.path} is not trained to its end ({done}), and an evaluation trains nothing; "
            f"go on with it first: lconvnet train {self.config} --resume"
        )

    def refuse_if_imported(self, why: str = "cannot be trained further") -> None:
        """Raise ValueError if the weights were imported: the optimiser's state is missing and, for a critic, the
        samples."""
        if origin := recorded_settings(self).get("imported"):
            raise ValueError(
                f"{self.path} holds weights imported from {origin['file']}, which {why}; "
                "use its model.safetensors, or train in another folder with --out"
            )

    def unlike(self, stated: dict[str, Any], asked: dict[str, Any]) -> list[str]:
        """Return the differences between two configurations of this run.

        Once the run has begun, image names may differ, because fingerprints are compared. The length may differ too,
        because the learning rates of the steps done are compared.
        """
        both = ({"settings": one} for one in (stated, asked))
        outside = OUTSIDE | LENGTH | {("settings", "training", "steps")}
        old, new = (identity(one, outside=outside) if is_started(self.path) else one for one in both)
        return list(differences(old["settings"], new["settings"]))

    def keep_config(self, experiment: AnyExperiment) -> None:
        """Write the complete configuration if there is none; raise ValueError if another one exists.

        Only the first of several processes writes.
        """
        if not is_first_process():
            return
        if not self.is_configured:
            atomic.write_text(self.config, dump(experiment))
            return
        stated = load_any(self.config)
        same = stated.task == experiment.task
        if other := self.unlike(*map(settings, (stated, experiment))) if same else [f"task: {stated.task!r}"]:
            change = "" if is_started(self.path) else ", or change the file"  # a started run keeps its configuration
            raise ValueError(
                f"{self.config} describes another experiment ({'; '.join(other[:5])}), which is never overwritten; "
                f"choose an empty folder with --out{change}"
            )

    def write_model(self, data: bytes) -> None:
        """Write model.safetensors, unless it already has these bytes."""
        if _differs(self.model, data):
            atomic.write_bytes(self.model, data)

    def write_evaluation(self, results: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        """Write results.yaml and examples.parquet (one row per test image; needs pyarrow).

        If either file would change, both older files are kept under the next free number.
        """
        text = yaml.safe_dump(dict(results), sort_keys=False, allow_unicode=True, width=1000)
        files = {self.examples: _parquet(columns), self.results: text.encode()}
        older = [path for path in files if path.exists()]
        if any(_differs(path, files[path]) for path in older):
            number = self._free_number()
            for path in older:
                atomic.write_bytes(_numbered(path, number), path.read_bytes())
            kept = " and ".join(str(_numbered(path, number)) for path in reversed(older))
            logger.info("the former evaluation is in %s", kept)
        for path, data in files.items():
            atomic.write_bytes(path, data)

    def _free_number(self) -> int:
        paths = (self.results, self.examples)
        return next(n for n in itertools.count(1) if not any(_numbered(path, n).exists() for path in paths))


def find_run(path: str | Path) -> RunFolder:
    """Return the run folder named by itself or by a file in it such as its cfg.yaml.

    Raises ValueError if there is no such folder, or nothing was trained in it.
    """
    path = Path(path)
    folder = RunFolder(path if path.is_dir() else path.parent)
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a run folder, the one that holds cfg.yaml and checkpoints/")
    if not is_started(folder.path):
        raise ValueError(f"{folder.path} holds no trained run (no checkpoints); train it first: lconvnet train CFG")
    return folder


def recorded_settings(folder: RunFolder) -> dict[str, Any]:
    """Return the settings in record.json, for any task; empty if it has none."""
    record = recorded(folder)
    return record.settings if record else {}


def recorded(folder: RunFolder) -> Record[Any] | None:
    """Return the record of a run, for any task; None if none can be read."""
    try:
        return read_record(folder.path)
    except CheckpointError:
        return None


def evaluation_values(folder: RunFolder) -> dict[str, Any]:
    """Return the evaluation and data location of a run's cfg.yaml, unvalidated."""
    if not folder.is_configured:
        return {}
    values = merge(read(folder.config))
    found = {"evaluation": values["evaluation"]} if "evaluation" in values else {}
    data = values.get("data")
    if isinstance(data, Mapping):
        found["data"] = {key: data[key] for key in ("name", "directory") if data.get(key) is not None}
    return found


def _differs(path: Path, data: bytes) -> bool:
    return not path.exists() or path.read_bytes() != data


def _numbered(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}-{number}")


def _parquet(columns: Mapping[str, Any]) -> bytes:
    pyarrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(dict(columns)), buffer)
    return buffer.getvalue()
