"""The command: one line for each certificate. Exit code 0: all are proved; 4: one is not; 2: a file cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lconvnet_verify.proof import Prover
from lconvnet_verify.reading import InvalidFile, NotProved, read_certificate, read_model

USAGE = "usage: python -m lconvnet_verify CERTIFICATE MODEL (a .json file or a folder of them; a .safetensors file)"
LONGEST = 500
PROVED, INVALID, UNPROVED = 0, 2, 4


def main(arguments: Sequence[str]) -> int:
    """Check a certificate, or all ``*.json`` of a folder, against a model; returns the exit code."""
    if len(arguments) != 2:
        return _fail(USAGE)
    place = Path(arguments[0])
    paths = sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not paths:
        return _fail(f"{place} holds no certificate (*.json)")
    try:
        prover = Prover(read_model(Path(arguments[1])))
    except InvalidFile as error:
        return _fail(f"{arguments[1]}: {error}")
    return max(_check(path, prover) for path in paths)


def _check(path: Path, prover: Prover) -> int:
    try:
        certificate = read_certificate(path)
        prover.prove(certificate)
    except InvalidFile as error:
        return _fail(f"{path}: {error}")
    except NotProved as error:
        print(_line(f"{path}: NOT PROVED: {error}"))  # noqa: T201
        return UNPROVED
    print(f"{path}: proved: label {certificate.label}, radius {certificate.radius:.17g} ({certificate.level})")  # noqa: T201
    return PROVED


def _fail(message: str) -> int:
    print(_line(f"error: {message}"), file=sys.stderr)  # noqa: T201
    return INVALID


def _line(message: str) -> str:
    """A message on one line that can be printed, whatever a file made of it."""
    line = " ".join(message.split()).encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
