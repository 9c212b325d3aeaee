"""The grammar of an old configuration: typed values, each with its place in the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from sys import float_info
from typing import Any

from lconvnet.experiments.explain import choice, short

MISSING = object()
MAXIMUM = float_info.max


class Node:
    """A typed value of an old configuration with its place in the file; its arguments are taken one by one."""

    def __init__(self, value: Any, place: str) -> None:
        if not isinstance(value, Mapping) or not isinstance(value.get("<type>"), str):
            raise ValueError(f"{place} is {short(value)}; it should be a section with a key '<type>'")
        self.type, self.place = value["<type>"], place
        given = {key: inner for key, inner in value.items() if key not in ("<type>", "[submodules]")}
        if not isinstance(given.pop("<init>", False), bool):
            raise ValueError(f"{self.at('<init>')} is {short(value['<init>'])}; it should be true or false")
        submodules = value.get("[submodules]", {})
        if not isinstance(submodules, Mapping):
            raise ValueError(f"{self.at('[submodules]')} is {short(submodules)}; it should be a section")
        self.arguments = given | dict(submodules)

    def at(self, key: str) -> str:
        """The place of an argument."""
        return f"{self.place}.{key}" if self.place else key

    def take(self, key: str, default: Any = MISSING) -> Any:
        """Return an argument and strike it off."""
        value = self.arguments.pop(key, default)
        if value is MISSING:
            raise ValueError(f"{self.at(key)} is missing; {self.type} needs it")
        return value

    def node(self, key: str) -> Node:
        """Return an argument that is a typed value itself."""
        return Node(self.take(key), self.at(key))

    def nodes(self, key: str) -> list[Node]:
        """Return the typed values of an argument that lists them, none where it is absent."""
        values = self.take(key, [])
        if not isinstance(values, list):
            raise ValueError(f"{self.at(key)} is {short(values)}; it should be a list")
        return [Node(value, f"{self.at(key)}[{i}]") for i, value in enumerate(values)]

    def number(self, key: str, default: Any = MISSING) -> Any:
        """Return an argument that is a number."""
        value = self.take(key, default)
        if not _is_number(value):
            raise ValueError(f"{self.at(key)} is {short(value)}; it should be a number")
        return value

    def numbers(self, key: str) -> list[Any]:
        """Return an argument that lists numbers, at least one."""
        values = self.take(key)
        if not isinstance(values, list) or not values or not all(map(_is_number, values)):
            raise ValueError(f"{self.at(key)} is {short(values)}; it should be a list of numbers")
        return values

    def flag(self, key: str, default: Any = MISSING) -> bool:
        """Return an argument that is true or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.at(key)} is {short(value)}; it should be true or false")
        return value

    def only(self, **expected: Any) -> None:
        """Refuse another value than the one that there is an equal for here; absent is that value."""
        for key, value in expected.items():
            found = self.take(key, value)
            if found != value or isinstance(found, bool) != isinstance(value, bool):
                raise ValueError(f"{self.at(key)} is {short(found)}; of {self.type} only {short(value)} can be read")

    def end(self) -> None:
        """Refuse arguments that nobody took."""
        for key, value in self.arguments.items():
            raise ValueError(f"{self.at(key)} = {short(value)} is not a known argument of {self.type}")

    def choose(self, readers: Mapping[str, Callable[[Node], Any]]) -> Any:
        """Return what the reader of this type makes of it, all arguments taken."""
        if self.type not in readers:
            raise ValueError(choice(self.at("<type>"), self.type, list(readers)))
        found = readers[self.type](self)
        self.end()
        return found


def _is_number(value: Any) -> bool:
    """Whether a value is a number that float64 has a place for."""
    return type(value) in (int, float) and not abs(value) > MAXIMUM
