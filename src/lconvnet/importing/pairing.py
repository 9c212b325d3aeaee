"""Which layer of a file is which layer of a network: by name where the names agree, by number where numbers tell.

The order in a file is the order in which somebody's constructor made the layers. It need not be that of the forward
pass, so it decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

WAY_OUT = "name the layers of the frame as the file does: nn.Sequential(OrderedDict(...))"
WRAPPER = "_orig_mod"  # of a compiled module, anywhere in a name


def paired(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """Return for each of our layers, in their order, the name of theirs.

    Names agree where both are the same set, but for what all of theirs begin with (such as `module.`). Numbers tell
    where the names of theirs differ in numbers only; then the smallest belongs to our first layer, and so on.

    Raises ValueError where neither tells, and where a name that both have would belong to another layer.

    >>> paired(["module.second", "module.first"], ["first", "second"])
    {'first': 'module.first', 'second': 'module.second'}
    >>> paired(["conv10", "conv2"], ["0", "3"])
    {'0': 'conv2', '3': 'conv10'}
    """
    if len(theirs) != len(ours):
        raise ValueError(
            f"has weights of {len(theirs)} layers ({', '.join(theirs)}), the frame has {len(ours)} "
            f"({', '.join(ours)}); write one layer for each"
        )
    shortened = list(_shortened(theirs))
    for names in shortened:
        if set(names) == set(ours):
            return {name: theirs[names.index(name)] for name in ours}
    order = numbered(theirs)
    for names in shortened:
        places = [names[theirs.index(name)] for name in order]
        if any(place in ours and place != name for place, name in zip(places, ours, strict=True)):
            raise ValueError(
                f"has layers called {', '.join(theirs)}, the frame {', '.join(ours)}, which gives one name to two of "
                f"them; {WAY_OUT}"
            )
    return dict(zip(ours, order, strict=True))


def numbered(names: Sequence[str]) -> list[str]:
    """Names that differ in numbers only, in the order of these; ValueError for others.

    >>> numbered(["conv10", "conv2"])
    ['conv2', 'conv10']
    """
    if len({re.sub(r"\d+", "#", name) for name in names}) > 1:
        raise ValueError(f"has layers called {', '.join(names)}, whose order no number tells; {WAY_OUT}")
    return sorted(names, key=natural)


def natural(name: str) -> list[tuple[int, str]]:
    """What to sort names by, so that numbers inside them are compared as numbers.

    >>> sorted(["a10/b", "a2/b"], key=natural)
    ['a2/b', 'a10/b']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _shortened(names: Sequence[str]) -> Iterator[list[str]]:
    """The names without wrappers, and again and again without the part that all begin with, as long as they differ."""
    parts = [[part for part in name.split(".") if part != WRAPPER] for name in names]
    while len({tuple(part) for part in parts}) == len(names):
        yield [".".join(part) for part in parts]
        if len({part[0] for part in parts if part}) != 1 or not all(part[1:] for part in parts):
            return
        parts = [part[1:] for part in parts]
