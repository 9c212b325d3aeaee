"""The libraries we compare with, imported here and nowhere else: they are not part of the locked environment."""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType

MODULES = {"orthogonium": "orthogonium.layers", "deel-torchlip": "deel.torchlip"}


class MissingPeerError(RuntimeError):
    """A library that we compare with cannot be imported, so its rows cannot be measured."""


def load(peer: str) -> ModuleType:
    """The module of a peer that holds its layers, by the name of its package."""
    try:
        return import_module(MODULES[peer])
    except ImportError as error:
        raise MissingPeerError(
            f"{peer} cannot be imported ({error}): run `make bench`, which installs it, or "
            "`python -m pip install --no-deps -r benchmarks/requirements.txt`"
        ) from error


def require_all() -> None:
    """Fail before anything is measured where a peer is missing."""
    for peer in MODULES:
        load(peer)


def title(peer: str) -> str:
    """Name and version, as they are installed."""
    return f"{peer} {version(peer)}"
