"""What a training run leaves behind: one `Epoch` per epoch, a `Record` for the run.

Both hold only what follows from the settings and the seed, so that two runs of the same settings on one machine give
the same bytes; times live in logs/timing.jsonl. Accuracies are fractions, radii l2 over pixels in [0, 1].
"""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

FORMAT = 1


@dataclass(frozen=True)
class Epoch:
    """One epoch, in training and on validation.

    `loss` and `accuracy` are means over the training batches as they were met (augmented, weights moving);
    `clean`, `certified` (eps → fraction correct with radius > eps) and `lipschitz` (upper bound of the baked network)
    are measured on the validation split after the epoch (None and empty without one), `learning_rate` is the one of
    its last step.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    accuracy: float
    clean: float | None
    certified: Mapping[float, float]
    lipschitz: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, radii as strings (`"1.58"`)."""
        return {**vars(self), "certified": {str(eps): value for eps, value in self.certified.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Epoch":
        """The inverse of `to_dict`; raises `ValueError`, `TypeError` or `KeyError` for anything else."""
        names = ("learning_rate", "loss", "accuracy", "lipschitz")
        numbers = {name: _finite(values[name]) for name in names}
        clean = None if values["clean"] is None else _finite(values["clean"])
        certified = {_finite(eps): _finite(value) for eps, value in values["certified"].items()}
        return cls(epoch=int(values["epoch"]), step=int(values["step"]), certified=certified, clean=clean, **numbers)


@dataclass(frozen=True)
class Record:
    """A training run: settings, versions, epochs, the best of them on the validation split (1-based; 0: none yet)."""

    settings: dict[str, Any]
    versions: dict[str, str]
    epochs: tuple[Epoch, ...] = ()
    best_epoch: int = 0
    finished: bool = False

    @property
    def kept_epoch(self) -> int:
        """The epoch that the kept weights are of: the best one, or that of an imported checkpoint."""
        return int(self.settings.get("imported", {}).get("epoch", self.best_epoch))

    @property
    def is_baked(self) -> bool:
        """Whether the network is an imported one in its baked form, from which nothing is baked anew."""
        return bool(self.settings.get("imported", {}).get("baked", False))

    @property
    def chosen_by(self) -> str:
        """By what the best epoch was chosen."""
        radii = self.settings.get("eps")
        if not radii or not self.best_epoch or self.best.clean is None:
            return "being the last, for want of validation images" if self.best_epoch else "nothing yet"
        return f"certified accuracy at eps {radii[0]:g} on the validation images"

    @property
    def best(self) -> Epoch:
        """The epoch whose weights are kept; raises `ValueError` before the first epoch ends."""
        if not self.best_epoch:
            raise ValueError("best_epoch=0: no epoch has finished yet; train for at least one")
        return self.epochs[self.best_epoch - 1]

    def add(self, epoch: Epoch, *, finished: bool) -> "Record":
        """The record after one more epoch. Best: most certified at the first radius, then cleanest, then earliest;
        the latest where nothing was validated. `chosen_by` says so."""
        better = not self.best_epoch or epoch.clean is None or _rank(epoch) > _rank(self.best)
        best = epoch.epoch if better else self.best_epoch
        return replace(self, epochs=(*self.epochs, epoch), best_epoch=best, finished=finished)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able and deterministic: the content of record.json."""
        best = self.best.to_dict() if self.best_epoch else None
        head = {"format": FORMAT, "finished": self.finished, "best_epoch": self.best_epoch}
        head |= {"chosen_by": self.chosen_by, "best": best}
        epochs = [epoch.to_dict() for epoch in self.epochs]
        return {**head, "epochs": epochs, "settings": self.settings, "versions": self.versions}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Record":
        """The inverse of `to_dict`. Raises `ValueError`, `TypeError` or `KeyError` for anything else."""
        epochs = tuple(Epoch.from_dict(epoch) for epoch in values["epochs"])
        best = int(values["best_epoch"])
        if values["format"] != FORMAT or not 0 <= best <= len(epochs) or bool(best) != bool(epochs):
            raise ValueError(f"format={values['format']!r}, best_epoch={best!r}: not a record of this version")
        return cls(dict(values["settings"]), dict(values["versions"]), epochs, best, bool(values["finished"]))

    def to_csv(self) -> str:
        """The epochs as a table with a header, one line each: the content of logs/metrics.csv."""
        rows = [_row(epoch) for epoch in self.epochs]
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0] if rows else [], lineterminator="\n")
        if rows:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def _rank(epoch: Epoch) -> tuple[float, float]:
    return next(iter(epoch.certified.values())), epoch.clean or 0.0


def _row(epoch: Epoch) -> dict[str, Any]:
    row = epoch.to_dict()
    certified = row.pop("certified")
    return {**row, **{f"certified@{eps}": value for eps, value in certified.items()}}


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r}: a finite number is needed")
    return number
