"""YAML files and `key=value` overrides as nested values, in time and memory bounded by their size.

Files may not contain Python objects, tags, aliases (`${key}` refers to another key instead) or repeated keys. They may
not exceed 1 MB or 20 levels.

A plain value means the same in a file, in `--set key=value` and in an option. It is null (or ~, or nothing), true or
false, a whole number without leading zeros, or a decimal number (including `.nan` and `.inf`, which nearly every key
refuses). Everything else is text: `0123`, `1_000`, `0x10`, `1:30`, `on` and dates stay unchanged. If a key takes a
number that need not be whole, it also takes a fraction of two decimal numbers: `36/255`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError

from lconvnet.ops.numbers import quotient

WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{".nan": math.nan, ".inf": math.inf, "-.inf": -math.inf},
}
WHOLE = r"(?:0|[1-9][0-9]*)"
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,99})")
DECIMAL = re.compile(rf"[-+]?(?:{WHOLE}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def plain(text: str) -> bool | int | float | str | None:
    """Return the value of an unquoted text.

    >>> [plain(text) for text in ("1e-3", "7", "true", "~", "0123", "cells #2")]
    [0.001, 7, True, None, '0123', 'cells #2']
    """
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if DECIMAL.fullmatch(text) else text


def number(text: str) -> float:
    """Return the number given as an option; ValueError for anything else.

    >>> number("36/255"), number("1")
    (0.1411764705882353, 1.0)
    """
    value = quotient(plain(text.strip()))
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{text!r} is not a finite number; write it as 0.5, 1e-3 or 36/255")
    return float(value)


def short(value: object) -> str:
    """Return a value as text, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


MAXIMAL_BYTES = 1_000_000
MAXIMAL_DEPTH = 20
MAXIMAL_TOKENS = 40_000  # take a second or two to read; the longest of the paper's templates has 300
STARTS = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
ENDS = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
NESTED = ("[", "{", '"', "'")
"""The first characters of an override's value that is a list, a section or quoted; any other is one plain value."""


class Written(str):
    """A plain value of an override as text; its meaning depends on the type of its key."""


class _Loader(yaml.SafeLoader):
    """Sections, lists and single values; nothing else has a constructor."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[str, Any]] = {}
    plain: ClassVar[Any] = staticmethod(plain)

    def section(self, node: yaml.MappingNode) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for name, value in node.value:
            key = self.construct_object(name)
            if not isinstance(name, yaml.ScalarNode):
                raise ConstructorError(problem="found a key that is not one value", problem_mark=name.start_mark)
            if key in found:
                raise ConstructorError(problem=f"found duplicate key {key}", problem_mark=name.start_mark)
            found[key] = self.construct_object(value, deep=True)
        return found

    def items(self, node: yaml.SequenceNode) -> list[Any]:
        return [self.construct_object(value, deep=True) for value in node.value]

    def single(self, node: yaml.ScalarNode) -> Any:
        return node.value if node.style else self.plain(node.value)


class _OverrideLoader(_Loader):
    """Like `_Loader`, with plain values as `Written`."""

    plain = Written


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.section)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.items)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.single)


_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Dumper(_DUMPER):
    """Writes values so that reading gives them back: a text that looks like a number gets quotes."""


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^{DECIMAL.pattern}$"), list("-+.0123456789"))


def read(path: Path) -> dict[str, Any]:
    """Return the nested values of a YAML file, unvalidated; ValueError if it is not a readable YAML mapping."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the cfg.yaml in it")
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link that leads nowhere ({path.readlink()}); mend it, or name a cfg.yaml")
    if not path.is_file():
        raise ValueError(f"{path} does not exist; name a cfg.yaml such as runs/demo/cfg.yaml")
    if path.stat().st_size > MAXIMAL_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than {MAXIMAL_BYTES}: not a configuration")
    try:
        values = _parsed(path.read_text(encoding="utf-8-sig"), _Loader, str(path))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8; name a YAML configuration") from None
    if not isinstance(values, dict):
        what = "is empty" if values is None else f"holds a {'list' if isinstance(values, list) else 'single value'}"
        raise ValueError(f"{path} {what}; a configuration is a mapping of sections")
    if not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path} has a key that is not text; a configuration maps names to sections")
    return values


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `key=value` texts as nested values, with plain values as `Written`; later ones replace earlier ones.

    >>> parse_overrides(["data.name=cells #2", "evaluation.eps=[0.1, 36/255]"])
    {'data': {'name': 'cells #2'}, 'evaluation': {'eps': ['0.1', '36/255']}}
    """
    return reduce(overlaid, map(_override, overrides), {})


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with others over them: sections are merged, all else is replaced.

    >>> overlaid({"a": {"b": 1, "c": 2}, "d": [3]}, {"a": {"b": 4}, "d": []})
    {'a': {'b': 4, 'c': 2}, 'd': []}
    """
    both = (key for key, value in above.items() if isinstance(value, Mapping) and isinstance(below.get(key), Mapping))
    joined = {key: overlaid(below[key], above[key]) for key in both}
    return {**below, **above, **joined}


def _override(text: str) -> dict[str, Any]:
    key, separator, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ValueError(f"--set is {short(text)}; write key=value, such as --set training.epochs=3")
    if len(parts) > MAXIMAL_DEPTH or len(text) > MAXIMAL_BYTES:
        raise ValueError(f"--set {parts[0]}...: is longer than any key and value of a configuration; shorten it")
    found: Any = _value(value.strip(), f"--set {short(text)}")
    return reduce(lambda inner, part: {part: inner}, reversed(parts), found)


def _value(text: str, source: str) -> Any:
    return _parsed(text, _OverrideLoader, source) if text.startswith(NESTED) else Written(text)


def _parsed(text: str, loader: type[_Loader], source: str) -> Any:
    """The values in a text; a ValueError names the source."""
    try:
        _check_tokens(text, source)
        reader = loader(text)
        node = reader.get_single_node()
        if node is not None and loader is _OverrideLoader and node.end_mark.index != len(text):
            raise ValueError(f"{source} has something behind its value; quote what is one text")
        return None if node is None else reader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {_first_line(error)}") from None


def _check_tokens(text: str, source: str) -> None:
    """Refuse tags, aliases, which can grow without bound, and deep nesting, which takes the parser quadratic time."""
    depth = 0
    for number, token in enumerate(yaml.scan(text)):
        depth += isinstance(token, STARTS) - isinstance(token, ENDS)
        if isinstance(token, yaml.AliasToken):
            raise ValueError(f"{source} uses a YAML alias (*name); refer to another key with ${{key}} instead")
        if isinstance(token, yaml.TagToken):
            raise ValueError(f"{source} uses a YAML tag ({''.join(filter(None, token.value))}); leave it out")
        if number > MAXIMAL_TOKENS:
            raise ValueError(f"{source} has more than {MAXIMAL_TOKENS} keys, values and signs: not a configuration")
        if depth > MAXIMAL_DEPTH:
            raise ValueError(f"{source} is nested deeper than {MAXIMAL_DEPTH} levels: not a configuration")


def _first_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return str(getattr(error, "problem", None) or str(error).strip().splitlines()[0]) + where


REFERENCE = re.compile(r"\$\{([^${}]*)\}")
EACH = 50  # least memory of any value, in bytes
KEY = re.compile(r"[\w<>|-]+(?:\.[\w<>|-]+|\[[0-9]{1,9}\])*")


def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with every reference replaced; ValueError for a wrong or circular reference.

    >>> resolved({"a": {"b": 3}, "c": "${a.b}", "d": "run-${c}"})
    {'a': {'b': 3}, 'c': 3, 'd': 'run-3'}
    """
    return _Resolver(values).of(values, ())


class _Resolver:
    """Replaces references, within a limit on the memory of their values."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values, self.room = values, MAXIMAL_BYTES

    def of(self, value: Any, within: tuple[str, ...]) -> Any:
        """A value without references; `within` are the references that led to it."""
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
