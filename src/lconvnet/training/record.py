"""The results of a training: a row per epoch, a `Record` per run, and the one reader of record.json.

Both follow from the settings and the seed alone, so two runs of the same settings on one machine give the same bytes.
Times go to logs/timing.jsonl. Accuracies are fractions; radii are l2 over pixels in [0, 1].
"""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from lconvnet.ops.rounding import percent_down, rounded_up


class CheckpointError(ValueError):
    """A file of a run cannot be used: it is missing, truncated, foreign, of other settings, or has pickled code."""


@dataclass(frozen=True)
class Row:
    """One epoch: its number (from 1), and the steps done since the start of the run."""

    FORMAT: ClassVar[int | str] = ""
    epoch: int
    step: int

    @property
    def rank(self) -> tuple[float, ...] | None:
        """The key by which the best epoch is the largest; None if the last epoch is kept."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def columns(self) -> dict[str, Any]:
        """The epoch as a line of logs/metrics.csv."""
        return self.to_dict()

    def curves(self) -> dict[str, float]:
        """The epoch's numbers by the names of their curves in TensorBoard."""
        numbers = {name: value for name, value in vars(self).items() if name not in ("epoch", "step")}
        return {f"train/{name}": value for name, value in numbers.items() if isinstance(value, int | float)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Row":
        """The inverse of `to_dict`; raises `ValueError`, `TypeError` or `KeyError` for anything else."""
        row = cls(**values)
        for value in asdict(row).values():
            _ = None if value is None else _finite(value)
        return row

    def summary(self) -> str:
        """The epoch in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.columns().items())


@dataclass(frozen=True)
class Epoch(Row):
    """One epoch of a classifier, in training and on validation.

    `loss` and `accuracy` are means over the training batches as they came (augmented, while the weights moved).
    `clean`, `certified` (eps → fraction correct with radius > eps) and `lipschitz` (upper bound of the baked network)
    are measured on the validation split after the epoch; without a split they are None or empty. `learning_rate` is
    that of the last step.
    """

    FORMAT: ClassVar[int | str] = 1
    learning_rate: float
    loss: float
    accuracy: float
    clean: float | None
    certified: Mapping[float, float]
    lipschitz: float

    @property
    def rank(self) -> tuple[float, float] | None:
        """Most certified at the first radius, then cleanest; None if nothing was validated."""
        return None if self.clean is None else (next(iter(self.certified.values())), self.clean)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, radii as strings (`"1.58"`)."""
        return {**vars(self), "certified": {str(eps): value for eps, value in self.certified.items()}}

    def columns(self) -> dict[str, Any]:
        row = self.to_dict()
        certified = row.pop("certified")
        return {**row, **{f"certified@{eps}": value for eps, value in certified.items()}}

    def curves(self) -> dict[str, float]:
        train = {f"train/{name}": getattr(self, name) for name in ("loss", "accuracy", "learning_rate")}
        found = {"lipschitz_upper_bound": self.lipschitz} | ({} if self.clean is None else {"clean": self.clean})
        found |= {f"certified@{eps}": value for eps, value in self.certified.items()}
        return train | {f"validation/{name}": value for name, value in found.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Epoch":
        numbers = {name: _finite(values[name]) for name in ("learning_rate", "loss", "accuracy", "lipschitz")}
        clean = None if values["clean"] is None else _finite(values["clean"])
        certified = {_finite(eps): _finite(value) for eps, value in values["certified"].items()}
        return cls(epoch=int(values["epoch"]), step=int(values["step"]), certified=certified, clean=clean, **numbers)

    def validated(self) -> str:
        """Clean and certified accuracy in words."""
        if self.clean is None:
            return "no validation images"
        certified = "  ".join(f"certified@{eps!r} {percent_down(value)}" for eps, value in self.certified.items())
        return f"clean {self.clean:.2%}  {certified}"

    def summary(self) -> str:
        bound = rounded_up(self.lipschitz, 6)
        return f"loss {self.loss:.4f}  train {self.accuracy:.2%}  {self.validated()}  L <= {bound}"


@dataclass(frozen=True)
class GeneratorEpoch(Row):
    """One epoch of a generator, as means over its steps while the weights moved.

    `difference` is the critic's mean over real images minus its mean over generated ones. `critic_loss` and
    `generator_loss` are the losses of the two optimisers. `lipschitz` is the upper bound on the baked critic's constant
    at the end of the epoch; None if the objective gives none. `step` counts steps of the generator.
    """

    FORMAT: ClassVar[int | str] = "lconvnet-gan-1"
    critic_loss: float
    generator_loss: float
    difference: float
    lipschitz: float | None

    def summary(self) -> str:
        bound = "" if self.lipschitz is None else f"  L <= {rounded_up(self.lipschitz, 6)}"
        losses = f"critic {self.critic_loss:.4f}  generator {self.generator_loss:.4f}"
        return f"real - generated {self.difference:.4f}  {losses}{bound}"


@dataclass(frozen=True)
class CriticEpoch(Row):
    """A hundred steps of a Wasserstein critic, with the difference of its means on the batch of each."""

    FORMAT: ClassVar[int | str] = "lconvnet-estimate-1"
    differences: tuple[float, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CriticEpoch":
        return cls(int(values["epoch"]), int(values["step"]), tuple(map(_finite, values["differences"])))

    def summary(self) -> str:
        return f"difference {sum(self.differences) / len(self.differences):.4f}"


ROWS: dict[int | str, type[Row]] = {row.FORMAT: row for row in (Epoch, GeneratorEpoch, CriticEpoch)}
E = TypeVar("E", bound=Row)


@dataclass(frozen=True)
class Record(Generic[E]):
    """A training run: settings, versions, epochs, the best of them (1-based; 0: none yet).

    Only classifiers choose an epoch, on the validation split, and have an end. Other runs keep the last epoch and can
    always continue.
    """

    settings: dict[str, Any]
    versions: dict[str, str]
    epochs: tuple[E, ...] = ()
    best_epoch: int = 0
    finished: bool = False
    row: type[Row] = Epoch

    @property
    def kept_epoch(self) -> int:
        """The epoch of the kept weights: the best one, or that of an imported checkpoint."""
        return int(self.settings.get("imported", {}).get("epoch", self.best_epoch))

    @property
    def is_baked(self) -> bool:
        """Whether the network was imported in its baked form, so that nothing can be baked again."""
        return bool(self.settings.get("imported", {}).get("baked", False))

    @property
    def chosen_by(self) -> str:
        """The criterion that chose the best epoch."""
        radii = self.settings.get("eps")
        if not radii or not self.best_epoch or self.best.rank is None:
            return "being the last, for want of validation images" if self.best_epoch else "nothing yet"
        return f"certified accuracy at eps {radii[0]:g} on the validation images"

    @property
    def best(self) -> E:
        """The epoch whose weights are kept; raises `ValueError` before the first epoch ends."""
        if not self.best_epoch:
            raise ValueError("best_epoch=0: no epoch has finished yet; train for at least one")
        return self.epochs[self.best_epoch - 1]

    def add(self, row: E, *, finished: bool) -> "Record[E]":
        """The record after one more epoch. It becomes the best if it ranks above all before, or if none is ranked."""
        rank, former = row.rank, self.best.rank if self.best_epoch else None
        best = row.epoch if rank is None or former is None or rank > former else self.best_epoch
        return replace(self, epochs=(*self.epochs, row), best_epoch=best, finished=finished and self.row is Epoch)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able and deterministic: the content of record.json."""
        head: dict[str, Any] = {"format": self.row.FORMAT}
        if self.row is Epoch:
            best = self.best.to_dict() if self.best_epoch else None
            head |= {"finished": self.finished, "best_epoch": self.best_epoch, "chosen_by": self.chosen_by}
            head |= {"best": best}
        epochs = [row.to_dict() for row in self.epochs]
        return {**head, "epochs": epochs, "settings": self.settings, "versions": self.versions}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Record[Any]":
        """The inverse of `to_dict`. Raises `ValueError`, `TypeError` or `KeyError` for anything else."""
        row = ROWS.get(values["format"])
        if row is None:
            raise ValueError(f"format={values['format']!r}: not a record of this version")
        epochs: tuple[Any, ...] = tuple(row.from_dict(epoch) for epoch in values.get("epochs", ()))
        if row is not Epoch:
            return cls(dict(values["settings"]), dict(values["versions"]), epochs, len(epochs), row=row)
        best = int(values["best_epoch"])
        if not 0 <= best <= len(epochs) or bool(best) != bool(epochs):
            raise ValueError(f"best_epoch={best!r}: not a record of this version")
        return cls(dict(values["settings"]), dict(values["versions"]), epochs, best, bool(values["finished"]))

    def to_csv(self) -> str:
        """The epochs as a table with a header and one line per epoch: the content of logs/metrics.csv."""
        rows = [row.columns() for row in self.epochs]
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0] if rows else [], lineterminator="\n")
        if rows:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def files(self) -> dict[str, bytes]:
        """The files of the record, by their places in the run folder."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        return {"record.json": text.encode(), "logs/metrics.csv": self.to_csv().encode()}


def read_record(directory: str | Path) -> Record[Any]:
    """The record of a run folder, for any task.

    Raises `CheckpointError` if record.json is missing, damaged or of another format.
    """
    path = Path(directory) / "record.json"
    try:
        return Record.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a readable training record ({error}); train with this folder first"
        ) from error


def load_record(directory: str | Path) -> Record[Epoch]:
    """The record of a classifier's run folder. Raises `CheckpointError` if it is missing or not readable."""
    record = read_record(directory)
    if record.row is not Epoch:
        path = Path(directory) / "record.json"
        raise CheckpointError(
            f"{path}: not a readable training record (format={record.row.FORMAT!r}, which is not a classifier's); "
            "train with this folder first"
        )
    return record


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r}: a finite number is needed")
    return number
