"""What the training of a generator leaves behind: one `Epoch` per epoch, a `Record` for the run; no times in them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

FORMAT = "lconvnet-gan-1"


@dataclass(frozen=True)
class Epoch:
    """One epoch of training, as a mean over its steps while the weights moved.

    `difference` is the critic's mean over real minus its mean over generated images, `critic_loss` and
    `generator_loss` what the two optimisers saw. `lipschitz` is the upper bound on the baked critic's constant at the
    end of the epoch; None where the objective gives none. `step` counts steps of the generator.
    """

    epoch: int
    step: int
    critic_loss: float
    generator_loss: float
    difference: float
    lipschitz: float | None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Epoch:
        """The inverse of `asdict`; raises `ValueError`, `TypeError` or `KeyError` for anything else."""
        epoch = cls(**values)
        numbers = [value for value in asdict(epoch).values() if value is not None]
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
            raise ValueError(f"{values!r}: not an epoch")
        return epoch


@dataclass(frozen=True)
class Record:
    """The training of a generator: what was asked for, with which versions, and its epochs so far."""

    settings: dict[str, Any]
    versions: dict[str, str]
    epochs: tuple[Epoch, ...] = ()

    def add(self, epoch: Epoch) -> Record:
        """The record after one more epoch."""
        return replace(self, epochs=(*self.epochs, epoch))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able and deterministic: the content of record.json."""
        epochs = [asdict(epoch) for epoch in self.epochs]
        return {"format": FORMAT, "epochs": epochs, "settings": self.settings, "versions": self.versions}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """The inverse of `to_dict`. Raises `ValueError`, `TypeError` or `KeyError` for anything else."""
        if values["format"] != FORMAT:
            raise ValueError(f"format={values['format']!r}: not a record of this version")
        epochs = tuple(Epoch.from_dict(epoch) for epoch in values["epochs"])
        return cls(dict(values["settings"]), dict(values["versions"]), epochs)

    def to_csv(self) -> str:
        """The epochs as a table with a header, one line each: the content of logs/metrics.csv."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in self.epochs)
        return text.getvalue()
