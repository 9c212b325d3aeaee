"""References `${key}` between the values of a configuration: names of its own keys, and nothing else.

A reference names a value by its path, `${evaluation.eps[0]}`. Where it is all of a text it stands for that value,
within a text for the characters of it. What references bring in together is held to `MAXIMAL_BYTES`, before it is made.
"""

import re
from collections.abc import Mapping
from typing import Any

from lconvnet.experiments.explain import short
from lconvnet.experiments.reading import MAXIMAL_BYTES, MAXIMAL_DEPTH

REFERENCE = re.compile(r"\$\{([^${}]*)\}")
EACH = 50  # bytes that any value takes in memory, at least
KEY = re.compile(r"[\w<>|-]+(?:\.[\w<>|-]+|\[[0-9]{1,9}\])*")


def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with every reference replaced; ValueError for one that is wrong, or a circle of them.

    >>> resolved({"a": {"b": 3}, "c": "${a.b}", "d": "run-${c}"})
    {'a': {'b': 3}, 'c': 3, 'd': 'run-3'}
    """
    return _Resolver(values).of(values, ())


class _Resolver:
    """Replaces references, as long as what they bring in has room."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values, self.room = values, MAXIMAL_BYTES

    def of(self, value: Any, within: tuple[str, ...]) -> Any:
        """A value without references; `within` are those that led to it."""
        if within:
            self._pay(value)
        if isinstance(value, Mapping):
            return {key: self.of(inner, within) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.of(inner, within) for inner in value]
        return self._text(value, within) if isinstance(value, str) and "${" in value else value

    def _pay(self, value: Any) -> None:
        self.room -= EACH + (len(value) if isinstance(value, str) else 0)
        if self.room < 0:
            raise ValueError(f"its ${{key}} references bring in more than {MAXIMAL_BYTES} bytes; write fewer")

    def _text(self, text: str, within: tuple[str, ...]) -> Any:
        if whole := REFERENCE.fullmatch(text):
            return self._target(whole[1], within)
        if "${" in REFERENCE.sub("", text):
            raise _wrong(short(text), "does not close, or holds another")
        parts = [self._target(part, within) if i % 2 else part for i, part in enumerate(REFERENCE.split(text))]
        for part in parts:
            if isinstance(part, Mapping | list):
                raise _wrong(short(text), "puts a section or a list into a text")
        return type(text)("".join(map(str, parts)))

    def _target(self, key: str, within: tuple[str, ...]) -> Any:
        if not KEY.fullmatch(key):
            raise _wrong(key, "is not the name of a key, and nothing else is read, such as the environment")
        if key in within or len(within) >= MAXIMAL_DEPTH:
            raise _wrong(key, "leads back to itself, or through too many others")
        value: Any = self.values
        for part in re.findall(r"[^.\[\]]+", key):
            if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
            else:
                raise _wrong(key, f"names no key: there is no {part!r}")
        return self.of(value, (*within, key))


def _wrong(what: str, why: str) -> ValueError:
    return ValueError(f"a ${{key}} reference is wrong: {short(what)} {why}")
