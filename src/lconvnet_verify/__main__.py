"""The command: one line per certificate. Exit code 0: all are proved; 4: one is not; 2: a file cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from decimal import ROUND_FLOOR, Context
from pathlib import Path
from typing import TextIO

from lconvnet_verify.proof import Prover
from lconvnet_verify.reading import InvalidFile, NotProved, read_certificate, read_model

USAGE = "usage: python -m lconvnet_verify CERTIFICATE MODEL (a .json file or a folder of them; a .safetensors file)"
LONGEST = 500
PROVED, INVALID, UNPROVED = 0, 2, 4
DOWNWARD = Context(prec=17, rounding=ROUND_FLOOR)


def main(arguments: Sequence[str]) -> int:
    """Check a certificate, or all ``*.json`` of a folder, against a model; return the exit code."""
    if len(arguments) != 2:
        return _fail(USAGE)
    place = Path(arguments[0])
    try:
        paths = sorted(place.glob("[!.]*.json")) if place.is_dir() else [place]
    except OSError as error:
        return _fail(f"{place}: cannot be read ({error.strerror})")
    if not paths:
        return _fail(f"{place} holds no certificate (*.json)")
    try:
        prover = Prover(read_model(Path(arguments[1])))
    except (InvalidFile, NotProved) as error:
        return _fail(f"{arguments[1]}: {error}")
    return max(_check(path, prover) for path in paths)


def _check(path: Path, prover: Prover) -> int:
    try:
        certificate = read_certificate(path)
        prover.prove(certificate)
    except InvalidFile as error:
        return _fail(f"{path}: {error}")
    except NotProved as error:
        _print(_cut(f"{path}: NOT PROVED: {error}"), sys.stdout)
        return UNPROVED
    radius = DOWNWARD.create_decimal_from_float(certificate.radius)
    _print(f"{path}: proved: label {certificate.label}, radius {radius} ({certificate.level})", sys.stdout)
    return PROVED


def _fail(message: str) -> int:
    _print(_cut(f"error: {message}"), sys.stderr)
    return INVALID


def _print(message: str, stream: TextIO) -> None:
    """Print one line; escape characters that are not printable or that the stream does not have."""
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    encoding = stream.encoding or "utf-8"
    print(visible.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _cut(message: str) -> str:
    return message if len(message) <= LONGEST else f"{message[:LONGEST]} ..."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
