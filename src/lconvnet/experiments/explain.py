"""Explanations of configuration keys: overrides that fit them, and each validation error as one line with the key, its
value, and the nearest or the allowed names."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from lconvnet.experiments.reading import Written, plain, short

TAGS = ("architecture", "name")
SECTION = "a section with keys of its own"
EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list such as [0.1, 0.2]",
    "model_type": SECTION,
    "model_attributes_type": SECTION,
    "dict_type": SECTION,
    "finite_number": "a finite number",
}


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Return the first problem of `error`, found while validating `root`, as one line.

    >>> from lconvnet.experiments.config import Experiment
    >>> try:
    ...     Experiment.model_validate({"model": {"architecture": "small", "linear": "choleski"}})
    ... except ValidationError as error:
    ...     explain(error, Experiment)
    "model.linear is 'choleski'; did you mean 'cholesky'? Allowed: orthogonal, cholesky, spectral-norm, unconstrained"
    """
    problems: list[dict[str, Any]] = [dict(problem) for problem in error.errors(include_url=False)]
    problem = min(problems, key=lambda item: item["type"] != "extra_forbidden")
    path, owner = walk(root, problem["loc"])
    alike = [other for other in problems if walk(root, other["loc"])[0] == path]  # of the members of a union
    match problem["type"]:
        case "extra_forbidden":
            return _unknown(path, owner, problem["input"], root)
        case "missing":
            return f"{path} is missing; it has no default, give it a value"
        case "literal_error":
            return choice(path, problem["input"], [str(value) for value in values(_annotation(path, owner))])
        case "union_tag_invalid":
            key, allowed = problem["ctx"]["discriminator"].strip("'"), problem["ctx"]["expected_tags"]
            return choice(f"{path}.{key}", problem["ctx"]["tag"], re.findall(r"'([^']*)'", allowed))
        case "union_tag_not_found":
            key = problem["ctx"]["discriminator"].strip("'")
            if not isinstance(problem["input"], Mapping):
                return f"{path} is {short(problem['input'])}; it should be a section with a key {key!r}"
            known = [name for section in sections(_annotation(path, owner)) for name in tags(section)[1]]
            return f"{path}.{key} is missing; Allowed: {', '.join(known)}"
        case "value_error":
            return f"{path}: {problem['ctx']['error']}"
        case kind:
            expected = dict.fromkeys(map(_expected, alike if kind in EXPECTED else [problem]))
            return f"{path} is {short(problem['input'])}; it should be {' or '.join(expected)}"


def walk(root: type[BaseModel], location: Sequence[int | str]) -> tuple[str, type[BaseModel]]:
    """Return the dotted key path that a user wrote for `location`, and the section that holds its last key.

    pydantic's locations also name the chosen member of a union; those entries are removed.
    """
    path, owner, candidates = "", root, [root]
    for entry in location:
        chosen = [section for section in candidates if entry in tags(section)[1]]
        if isinstance(entry, int):
            path = f"{path}[{entry}]"
        elif chosen and entry not in candidates[0].model_fields:
            candidates = chosen[:1]
        elif candidates:
            owner, path = candidates[0], f"{path}.{entry}" if path else entry
            field = owner.model_fields.get(entry)
            candidates = sections(field.annotation) if field is not None else []
    return path, owner


def types(annotation: Any) -> Iterator[Any]:
    """Yield the single types that `annotation` allows (through Annotated, unions and tuples)."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Union, UnionType, tuple):
        for one in inner[:1] if origin is Annotated else inner:
            yield from types(one)
    else:
        yield annotation


def sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the configuration sections that `annotation` allows."""
    return [one for one in types(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]


def values(annotation: Any) -> list[Any]:
    """Return the values that the literal types in `annotation` allow."""
    return [value for one in types(annotation) if get_origin(one) is Literal for value in get_args(one)]


def tags(section: type[BaseModel]) -> tuple[str, tuple[str, ...]]:
    """Return the type key of a union's section and the names it accepts, or ("", ()) without one."""
    for key in TAGS:
        field = section.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is Literal:
            return key, get_args(field.annotation)
    return "", ()


def nearest(word: str, allowed: Sequence[str]) -> str:
    """Return a question that suggests the closest allowed word, or an empty text.

    >>> nearest("epoch", ["epochs", "seed"])
    "did you mean 'epochs'? "
    """
    found = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}? " if found else ""


def choice(path: str, value: object, allowed: Sequence[str]) -> str:
    """Return the line for a value that is not an allowed name."""
    return f"{path} is {short(value)}; {nearest(str(value)[:40], allowed)}Allowed: {', '.join(allowed)}"


def _unknown(path: str, owner: type[BaseModel], value: object, root: type[BaseModel]) -> str:
    """The line for a key that is unknown here, with the nearest known key, here or elsewhere."""
    key = path.rpartition(".")[2]
    members = ((name, section) for name, field in root.model_fields.items() for section in sections(field.annotation))
    elsewhere = [f"{name}.{key}" for name, section in members if key in section.model_fields]
    hint = nearest(key, list(owner.model_fields))
    if not hint and elsewhere and elsewhere[0] != path:
        hint = f"did you mean {elsewhere[0]!r}? "
    return f"{path} = {short(value)} is not a known key; {hint}Keys here: {', '.join(owner.model_fields)}"


def _annotation(path: str, owner: type[BaseModel]) -> Any:
    field = owner.model_fields.get(re.sub(r"\[\d+\]", "", path).rpartition(".")[2])
    return field.annotation if field else None


def _expected(problem: Mapping[str, Any]) -> str:
    return EXPECTED.get(problem["type"]) or str(problem["msg"]).removeprefix("Input should be ").strip()


def open_to(changes: Mapping[str, Any], given: Mapping[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Return the values of a file, prepared for overrides of an experiment of this kind.

    If only the overrides name a section, its default is written out. If they choose a member of a union, the keys that
    the member does not know are dropped.
    """
    defaults = kind.model_construct().model_dump(mode="json")
    kept = {name: defaults[name] for name in changes if isinstance(defaults.get(name), dict)} | dict(given)
    for name, field in kind.model_fields.items():
        change, section = changes.get(name), kept.get(name)
        for member in sections(field.annotation):
            key, names = tags(member)
            if not (key and isinstance(change, Mapping) and isinstance(section, Mapping)):
                continue
            if change.get(key) in names and change.get(key) != section.get(key):
                kept[name] = {k: v for k, v in section.items() if k in member.model_fields}
    return kept


def typed(value: Any, annotation: Any) -> Any:
    """Return nested values with every `Written` converted to the type of its key."""
    if isinstance(value, Mapping):
        fields = next((member.model_fields for member in sections(annotation) if _is_chosen(member, value)), {})
        return {key: typed(inner, fields[key].annotation if key in fields else None) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner, annotation) for inner in value]
    return _read_as(value, annotation) if isinstance(value, Written) else value


def _is_chosen(member: type[BaseModel], section: Mapping[str, Any]) -> bool:
    """Whether a section is of this member of a union."""
    key, names = tags(member)
    return not key or section.get(key) in names


def _read_as(text: Written, annotation: Any) -> Any:
    found, kinds = plain(text), types(annotation)
    is_text = str in kinds or str(text) in values(annotation)
    return str(text) if is_text and not (found is None and NoneType in kinds) else found
