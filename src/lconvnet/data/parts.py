"""Which part of a data set a name stands for: `train`, `validation` or `test`, in whatever spelling.

One recognition for folders, files and columns: case, accents, width, synonyms (`Training`, `dev`, `testing`), what
decorates them (`train_images`, `test-00000-of-00002`, `imagesVal`), and what siblings have in common (`seg_train`
beside `seg_test`, `tr` beside `te`).
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from lconvnet.data.sets import DataError

_WORDS = {
    "train": r"train|training|trn",
    "validation": r"val|valid|validate|validating|validation|dev|devel|development",
    "test": r"test|tests|testing|tst|eval|evaluate|evaluation|holdout|heldout",
}
_SHORT = {"tr": "train", "va": "validation", "vl": "validation", "val": "validation", "te": "test", "ts": "test"}
_DECORATION = r"(?:images?|imgs?|pictures?|pics?|photos?|samples?|examples?|datasets?|data|subset|sets?|splits?|parts?|"
_DECORATION += r"partition|folders?|dirs?|files?|rows?|shards?|raw|new|full|all|of|x|\d+)"
_PART = {role: re.compile(rf"{_DECORATION}*(?:{words}){_DECORATION}*") for role, words in _WORDS.items()}
_INSIDE = re.compile(r"(.*?)(train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?)(.*)")
_BETWEEN = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])|(?<=\D)(?=\d)")


@lru_cache(maxsize=4096)
def role_of(name: str) -> str | None:
    """Return the part that a name says by itself, or None.

    >>> [role_of(name) for name in ("TRAIN", "test_set", "val2017", "train-00000-of-00002", "bullet train", "latest")]
    ['train', 'test', 'validation', 'train', None, None]
    """
    squeezed = re.sub(r"[\W_]+", "", _plain(name).casefold())
    return next((role for role, pattern in _PART.items() if pattern.fullmatch(squeezed)), None)


def roles_of(names: Iterable[str]) -> dict[str, str]:
    """Return the parts among the names of siblings; those that only end or begin so count if all do and share the
    rest.

    Raises `DataError` for siblings that seem to be several parts but also differ otherwise.

    >>> roles_of(["seg_train", "seg_test"]), roles_of(["bullet train", "steam train"])
    ({'seg_train': 'train', 'seg_test': 'test'}, {})
    """
    names = list(names)
    short = {name: _SHORT[key] for name in names if (key := name.casefold()) in _SHORT}
    if len(short) == len(names) and {"train", "test"} <= set(short.values()):
        return short
    said = {name: role for name in names if (role := role_of(name))}
    hinted = {name: hint for name in names if (hint := _hint(name))}
    if said:
        return said
    for found in (hinted, {name: inside for name in names if (inside := _inside(name))}):
        if len(found) == len(names) and len({rest for _, rest in found.values()}) == 1:
            return {name: role for name, (role, _) in found.items()}
    if len({role for role, _ in hinted.values()}) > 1:
        raise DataError(f"{listed(hinted)} seem to be parts of a data set, but not all there is: {WAY_OUT}")
    return {}


def hint_of(name: str) -> str | None:
    """Return the part that a name says by itself or among other words, as `pets_test` does, or None."""
    return hint[0] if (hint := _hint(name)) else None


def listed(names: Iterable[str]) -> str:
    """Names for an error, the first few of them."""
    return ", ".join(map(repr, sorted(names)[:6]))


WAY_OUT = (
    "name parts train, validation and test and move the rest into them; a class of such a name goes into train/ "
    "beside the other classes (called train), or is renamed"
)


def _plain(name: str) -> str:
    """A name without accents and in letters of ordinary width."""
    return "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))


def _hint(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The only part among the words of a name, and its other words but decorations."""
    words = [word.casefold() for word in _BETWEEN.split(_plain(name)) if word]
    roles: Sequence[str | None] = [role_of(word) for word in words]
    found = {role for role in roles if role}
    if len(found) != 1:
        return None
    rest = [word for word, role in zip(words, roles, strict=True) if not role and not re.fullmatch(_DECORATION, word)]
    return found.pop(), tuple(rest)


def _inside(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The part within a name whose words nothing divides, `mnisttrain`, and what stands around it."""
    found = _INSIDE.fullmatch(_plain(name).casefold())
    return (role_of(found[2]) or "", (found[1], found[3])) if found else None
