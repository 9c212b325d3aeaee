"""The folder of a run: where each file lies, what may be written, and that nothing in it is ever lost.

* cfg.yaml: the configuration (complete where the run was started with another folder as its output)
* checkpoints/, logs/, record.json: written by `lconvnet.training`
* logs/sessions.jsonl: which processes worked on the run, where, with which code, and how they ended
* logs/output.log: what the processes of a sweep said
* model.safetensors: the baked network of the best epoch
* results.yaml: the evaluation, in the original's keys
* examples.parquet: one row for each test image: label, prediction, margin, radius, reason, outcome of each attack
* evaluation/: the records these two are made of, which a resumed evaluation goes on with
* other-data/: the same of images of other folders, accuracy.yaml instead of results.yaml
* evidence/: an attack that contradicted a certificate, if there ever was one

Another evaluation keeps the older one under a number: results-1.yaml with examples-1.parquet, and so on.
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
        """Whether there is a cfg.yaml, which as a link may lead nowhere."""
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
        """Raise ValueError where what a run writes would land in another folder, before any work is done."""
        written = ("checkpoints", "logs", "evaluation", "evidence", "samples", "other-data")
        for place in (self.path / name for name in written):
            atomic.refuse_links(self.path, place)
            for above, folders, files in os.walk(place):
                atomic.refuse_links(place, *(Path(above) / name for name in (*folders, *files)))

    def refuse_if_used(self) -> None:
        """Raise ValueError where a run has left something: a new run must not replace it."""
        if is_started(self.path) or self.results.exists() or self.model.exists():
            raise ValueError(
                f"{self.path} already holds a run, which is never overwritten; "
                "continue it with --resume or choose another folder with --out"
            )

    def unfinished(self, done: str) -> ValueError:
        """Return the error for a run that only training may go on with."""
        return ValueError(
            f"{self.path} is not trained to its end ({done}), and an evaluation trains nothing; "
            f"go on with it first: lconvnet train {self.config} --resume"
        )

    def refuse_if_imported(self, why: str = "cannot be trained further") -> None:
        """Raise ValueError if the weights come from elsewhere: neither the optimiser's state came with them, nor,
        for a critic, the samples."""
        if origin := recorded_settings(self).get("imported"):
            raise ValueError(
                f"{self.path} holds weights imported from {origin['file']}, which {why}; "
                "use its model.safetensors, or train in another folder with --out"
            )

    def unlike(self, stated: dict[str, Any], asked: dict[str, Any]) -> list[str]:
        """Return what differs between configurations of this run.

        Once it has begun the names of its images may, for their fingerprints are compared, and its length, for the
        learning rates of the steps done are.
        """
        both = ({"settings": one} for one in (stated, asked))
        outside = OUTSIDE | LENGTH | {("settings", "training", "steps")}
        old, new = (identity(one, outside=outside) if is_started(self.path) else one for one in both)
        return list(differences(old["settings"], new["settings"]))

    def keep_config(self, experiment: AnyExperiment) -> None:
        """Write the complete configuration if there is none; raise ValueError if there is another one.

        Only the first of several processes does.
        """
        if not is_first_process():
            return
        if not self.is_configured:
            atomic.write_text(self.config, dump(experiment))
            return
        stated = load_any(self.config)
        same = stated.task == experiment.task
        if other := self.unlike(*map(settings, (stated, experiment))) if same else [f"task: {stated.task!r}"]:
            change = "" if is_started(self.path) else ", or change the file"  # what a run is made by is fixed
            raise ValueError(
                f"{self.config} describes another experiment ({'; '.join(other[:5])}), which is never overwritten; "
                f"choose an empty folder with --out{change}"
            )

    def write_model(self, data: bytes) -> None:
        """Write model.safetensors, unless it is there already with these bytes."""
        if _differs(self.model, data):
            atomic.write_bytes(self.model, data)

    def write_evaluation(self, results: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
        """Write results.yaml and examples.parquet (one row for each test image; needs pyarrow).

        Where either differs from what is there, both older files are kept under the next free number.
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

    Raises ValueError where there is no such folder, or nothing was trained in it.
    """
    path = Path(path)
    folder = RunFolder(path if path.is_dir() else path.parent)
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a run folder, the one that holds cfg.yaml and checkpoints/")
    if not is_started(folder.path):
        raise ValueError(f"{folder.path} holds no trained run (no checkpoints); train it first: lconvnet train CFG")
    return folder


def recorded_settings(folder: RunFolder) -> dict[str, Any]:
    """Return what record.json says a run was trained with, whatever its task; nothing if it says nothing."""
    record = recorded(folder)
    return record.settings if record else {}


def recorded(folder: RunFolder) -> Record[Any] | None:
    """Return the record of a run, whatever its task; None if there is none that can be read."""
    try:
        return read_record(folder.path)
    except CheckpointError:
        return None


def evaluation_values(folder: RunFolder) -> dict[str, Any]:
    """Return what a run's cfg.yaml says of evaluation and of where the data lie, unvalidated."""
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
