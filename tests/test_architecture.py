"""The source tree keeps its shape: imports point left, no print, no assert, no long module."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import lconvnet

PACKAGE = "lconvnet"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE
MODULES = sorted(SOURCE.rglob("*.py"))

# Data flows from left to right: a part imports itself and parts of a lower rank, never one of its own rank.
ORDER: tuple[tuple[str, ...], ...] = (
    ("ops", "atomic", "extras", "visible", "allowance"),
    ("kernels",),
    ("layers",),
    ("models", "conversion"),
    ("baking",),
    ("bounds",),
    ("certify", "attacks"),
    ("data",),
    ("losses",),
    ("training",),
    ("tasks",),
    ("saving",),
    ("wasserstein", "gan"),
    ("experiments",),
    ("importing",),
    ("report",),
    ("cli",),
    ("run", "consolidate", "export", "__main__"),
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
FACADES = {("training/__init__.py", "tasks")}  # `fit` is public there, and is built on what lies there
MAY_PRINT = {"cli", "run", "__main__"}
MAX_LINES = 500  # the habit is 100 to 400; beyond this a module holds two ideas


def part_of(path: Path) -> str:
    """First component below the package: 'ops' for ops/polar.py, 'baking' for baking.py."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def nodes_in(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, relative ones resolved; those under TYPE_CHECKING count."""
    package = [PACKAGE, *path.relative_to(SOURCE).parts[:-1]]
    for node in nodes_in(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def internal_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and part for every import of this package; '' is the package itself (`import lconvnet`)."""
    for line, name in imported_names(path):
        head, *rest = name.split(".")
        if head == PACKAGE:
            yield line, rest[0] if rest and rest[0] in RANK else ""


def wrong_imports(path: Path) -> list[str]:
    part = part_of(path)
    return [
        f"{path.relative_to(SOURCE)}:{line} imports {target or 'the whole package'}"
        for line, target in internal_imports(path)
        if target != part and (not target or RANK[target] >= RANK[part])
        if (path.relative_to(SOURCE).as_posix(), target) not in FACADES
    ]


def nodes_of(path: Path, *kinds: type[ast.AST]) -> list[ast.AST]:
    return [node for node in nodes_in(path) if isinstance(node, kinds)]


def each(modules: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", modules, ids=lambda path: str(path.relative_to(SOURCE)))


inner = each([path for path in MODULES if path != SOURCE / "__init__.py"])


def test_every_part_has_a_place_in_the_order():
    unknown = {part_of(path) for path in MODULES} - set(RANK) - {"__init__"}
    assert not unknown, f"give {sorted(unknown)} a place in ORDER (and in CONTRIBUTING.md)"


@inner
def test_imports_point_left(path: Path):
    assert not wrong_imports(path)


@each(MODULES)
def test_only_the_commands_print(path: Path):
    calls = [node.lineno for node in nodes_of(path, ast.Call) if getattr(node.func, "id", "") == "print"]
    assert part_of(path) in MAY_PRINT or not calls, f"print in lines {calls}: return the text, or log it"


@each(MODULES)
def test_no_assert_statements(path: Path):
    lines = [node.lineno for node in nodes_of(path, ast.Assert)]
    assert not lines, f"assert in lines {lines}: raise ValueError with the argument, its value, the way out"


@each(MODULES)
def test_modules_stay_short(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines: split where the second idea begins"


def test_no_torchvision():
    imported = {name.split(".")[0] for path in MODULES for _, name in imported_names(path)}
    assert "torchvision" not in imported


@pytest.mark.parametrize(
    ("place", "statement", "wrong"),
    [
        ("ops/a.py", "from lconvnet.kernels import BCOP", True),
        ("ops/a.py", "from ..kernels.bcop import BCOP", True),
        ("ops/a.py", "from .. import layers", True),
        ("kernels/a.py", "import lconvnet", True),
        ("attacks/a.py", "from lconvnet import certify", True),
        ("kernels/a.py", "def f():\n    from lconvnet.data import load", True),
        ("kernels/a.py", "from lconvnet.ops.orthogonalize import polar", False),
        ("kernels/a.py", "from . import b\nfrom .b import c\nfrom .. import ops", False),
        ("cli.py", "from lconvnet.experiments import run\nimport torch", False),
        ("baking.py", "from .models import mlp", False),
    ],
)
def test_the_import_rule_itself(tmp_path, monkeypatch, place: str, statement: str, wrong: bool):
    """The rule is seen to fail, so that a green result above means something."""
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(statement)
    assert bool(wrong_imports(path)) is wrong


def test_completion_shows_the_public_names():
    assert dir(lconvnet) == sorted(lconvnet.__all__)
