"""Which part of a data set every row of a parquet file says it is of, in whatever column says one."""

import re
from pathlib import Path
from typing import Any

from lconvnet.data.errors import DataError
from lconvnet.data.parts import hint_of, role_of, roles_of
from lconvnet.extras import require

NAMES = ("split", "part", "partition", "subset", "set", "phase", "usage")
FEW = 10  # distinct values at most of a column that sorts rows
_OWN = ("image", "img", "label", "labels")  # a class may be called train
_FLAGS = {"0", "1", "0.0", "1.0", "true", "false", "yes", "no", "y", "n", "t", "f"}


def may_say_parts(field: Any) -> bool:
    """Whether a column may say parts, by its name and type: texts, and numbers of a part's name.

    Of texts `roles_in` judges the values.
    """
    types = require("pyarrow", "data").types
    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    if field.name.casefold() in _OWN:
        return False
    return _is_text(types, kind) or (types.is_primitive(kind) and _is_called_part(field.name))


def roles_in(file: Path, table: Any) -> list[str]:
    """The part that every row of a table says in a column such as `split`; none if no such column exists.

    Raises `DataError` where some rows say one and others do not, where columns disagree, and where a column of a
    part's name holds numbers, which say no part.
    """
    said = {field.name: _roles(file, table, field.name) for field in table.schema if may_say_parts(field)}
    found = {name: roles for name, roles in said.items() if roles}
    names, columns = list(found), list(found.values())
    for name, roles in found.items():
        if roles != columns[0]:
            row = next(i for i, both in enumerate(zip(roles, columns[0], strict=True)) if len(set(both)) > 1)
            raise DataError(
                f"row {row} of {file} is {columns[0][row]} by its column {names[0]!r} and {roles[row]} by {name!r}: "
                "remove one of the two"
            )
    return columns[0] if columns else []


def _roles(file: Path, table: Any, name: str) -> list[str]:
    """The parts that one column says; none where it says other things."""
    distinct, known = table.column(name).unique().to_pylist(), name.casefold() in NAMES
    if len(distinct) > FEW and not known:
        return []
    said = _said(file, name, [value for value in distinct if isinstance(value, str)])
    unknown = [value for value in distinct if value not in said]
    if unknown and said and (known or set(said.values()) != {"train"}):
        raise DataError(
            f"column {name!r} of {file} has {unknown[0]!r} beside train or test: correct the rows, or remove it"
        )
    if not said and _is_called_part(name) and _are_flags(distinct, known=known):
        raise DataError(
            f"column {name!r} of {file} holds {distinct[0]!r}, which is not the name of a part: write train, "
            "validation or test in a column called split, and remove or rename this one"
        )
    return [said[value] for value in table.column(name).to_pylist()] if not unknown else []


def _said(file: Path, name: str, values: list[str]) -> dict[str, str]:
    try:
        return roles_of(values)
    except DataError:
        raise DataError(
            f"column {name!r} of {file} has values that seem to name parts, but not all do ({values[0]!r}): write "
            "train, validation or test, or remove it"
        ) from None


def _are_flags(distinct: list[Any], *, known: bool) -> bool:
    """Whether 0 and 1, or words such as yes and no, sort the rows; or few numbers, where the name is `known`."""
    values = [value for value in distinct if value is not None]
    numbered = known and not any(isinstance(value, str) for value in values)
    return 0 < len(values) <= FEW and (numbered or all(str(value).casefold() in _FLAGS for value in values))


def _is_called_part(name: str) -> bool:
    words = re.split(r"[\W_]+", name.casefold())
    return not set(NAMES).isdisjoint(words) or role_of(name) is not None or hint_of(name) is not None


def _is_text(types: Any, kind: Any) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
