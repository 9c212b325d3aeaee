"""What the runs that a network's first weights came from have seen of its held-out images, one run after the other.

A test image that an ancestor was trained on, or chosen by, is not a test image of the run that goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lconvnet.data import Images, Splits
from lconvnet.data.sets import digests
from lconvnet.experiments.run_folder import RunFolder, find_run
from lconvnet.experiments.trained_on import own_images, trained_experiment
from lconvnet.training import Record, load_record
from lconvnet.training.settings import describe_splits

Seen = tuple[set[bytes], str]


def source_of(record: Record) -> str | None:
    """The run that the first weights came from; None where they were drawn."""
    return _origin(record).get("run")


def inherited_note(record: Record, splits: Splits) -> str:
    """What must be said of a trained run's own held-out images: as recorded when it began, or as it is found now."""
    origin = _origin(record)
    return str(origin["note"]) if "note" in origin else note_on(splits, source_of(record))


def note_on(splits: Splits, source: str | Path | None) -> str:
    """How many held-out images the run `source`, and those before it, were trained on or chosen by, in words."""
    seen, unknown = seen_by(source, describe_splits(splits))
    parts = {"validation": splits.validation, "test": splits.test}
    counts = {name: count(part, seen) for name, part in parts.items()}
    found = " and ".join(f"{number} of {len(parts[name])} {name} images" for name, number in counts.items() if number)
    said = f"{found} were trained on or chosen by in the runs that the first weights came from" if found else ""
    return "; ".join(filter(None, (said, unknown)))


def seen_by(source: str | Path | None, known: Mapping[str, Any]) -> Seen:
    """The images that the run `source`, and those before it, were trained on or chosen by, as digests, and what keeps
    one from being known, if anything. Nothing is read of a run whose images are those described in `known`."""
    seen = set[bytes]()
    try:
        for record, run in _lineage(source):
            seen |= set() if _same(record.settings.get("data"), known) else _seen(record, run)
    except ValueError as error:
        return seen, f"whether the first weights were trained on others of them is not known: {error}"
    return seen, ""


def count(images: Images, seen: set[bytes]) -> int:
    """How many images are among those seen."""
    return sum(digest in seen for digest in digests(images)) if seen else 0


def trained_or_chosen(own: Splits) -> set[bytes]:
    """Digests of the images that a run is trained on or chosen by."""
    return {digest for part in (own.train, own.validation) for digest in digests(part)}


def _lineage(source: str | Path | None) -> Iterator[tuple[Record, RunFolder]]:
    """A run and those before it, each once."""
    met = set[Path]()
    while source is not None and (run := find_run(source)).path.resolve() not in met:
        met.add(run.path.resolve())
        record = load_record(run.path)
        yield record, run
        source = source_of(record)


def _seen(record: Record, run: RunFolder) -> set[bytes]:
    if "imported" in record.settings:
        raise ValueError(f"those of {run.path} were imported")
    return trained_or_chosen(own_images(trained_experiment(run), run))


def _same(recorded: Any, known: Mapping[str, Any]) -> bool:
    held = recorded if isinstance(recorded, Mapping) else {}
    return all(part in held and held[part] == known.get(part) for part in ("train", "validation"))


def _origin(record: Record) -> Mapping[str, Any]:
    origin = record.settings.get("from")
    return origin if isinstance(origin, Mapping) else {}
