"""Records of single images that outlive a kill: one JSON line an image, appended batch by batch.

The first line states what the records are about (`facts`), and its hash is part of the file's name: other weights,
images or options go to another file. Nothing is ever rewritten. Every row carries a hash of itself and the facts: what
a kill, a bad disk or a hand has changed is reported with file and line number, and its image is measured again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lconvnet import atomic

logger = logging.getLogger("lconvnet")

Row = dict[str, Any]
SEAL = "seal"
SEAL_DIGITS = 12


@dataclass(frozen=True)
class Journal:
    """The file `NAME-HASH.jsonl` in `folder`; every row has an `index` and exactly the `columns` (name -> types)."""

    folder: Path
    name: str
    facts: Mapping[str, Any]
    columns: Mapping[str, tuple[type, ...]]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}-{self._digest(dict(self.facts))[:12]}.jsonl"

    def _digest(self, value: Any) -> str:
        return hashlib.sha256(json.dumps([self.facts, value], sort_keys=True).encode()).hexdigest()

    def read(self) -> dict[int, Row]:
        """Return the rows by index, the last one where an index comes twice; what cannot be used is logged."""
        rows: dict[int, Row] = {}
        for number, line in enumerate(_lines(self.path), start=1):
            found = _parsed(line)
            if self._is_row(found):
                rows[found["index"]] = {name: found[name] for name in found if name != SEAL}
            elif found != {"facts": json.loads(json.dumps(self.facts))}:
                logger.warning("%s:%d: not a record, ignored; what it stood for is measured again", self.path, number)
        return rows

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows and wait until the disk has them. Raises `atomic.WriteError` where it is full."""
        begun = self.path.exists() and self.path.stat().st_size
        head = [] if begun else [_dumped({"facts": dict(self.facts)})]
        atomic.append_text(
            self.path, "".join([*head, *(_dumped({**row, SEAL: self._digest(row)[:SEAL_DIGITS]}) for row in rows)])
        )

    def _is_row(self, found: Any) -> bool:
        if not isinstance(found, dict) or set(found) != {"index", *self.columns, SEAL}:
            return False
        types = {"index": (int,), **self.columns}
        row = {name: found[name] for name in found if name != SEAL}
        sealed = found[SEAL] == self._digest(row)[:SEAL_DIGITS]
        return sealed and all(type(found[name]) in kinds for name, kinds in types.items())


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        yield from path.read_bytes().splitlines()


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _dumped(value: Any) -> str:
    return json.dumps(value) + "\n"
