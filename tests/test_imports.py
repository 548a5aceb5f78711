"""Tests that imports between subpackages go in one direction, and that TensorFlow is loaded only where it is needed."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tfllmrec"

# The subpackages and top-level modules ("rooms"). A module may import from its own room and from earlier ones.
# Evaluation depends only on data and comes before training, which uses it for measurements.
ROOMS = [
    "version", "columns", "wording", "errors", "durable", "progress", "client", "config", "assets", "data",
    "evaluation", "feedback", "text", "layers", "losses", "models", "board", "training", "runs", "explain", "serving",
    "server", "cli",
]  # fmt: skip
# Rooms that do not import TensorFlow at top level. numpy and pandas are lighter, but still too slow for --help.
WITHOUT_TENSORFLOW = [
    "version", "columns", "wording", "errors", "durable", "progress", "client", "config", "assets", "data",
    "evaluation", "feedback", "explain", "server", "cli",
]  # fmt: skip
# Exceptions to WITHOUT_TENSORFLOW. The server's process does not load TensorFlow, but its model processes do.
NEEDS_TENSORFLOW = ["data/batches.py", "server/servable.py"]
TENSORFLOW = {
    "tensorflow", "tf_keras", "keras", "tensorflow_text", "tensorflow_hub", "tensorflow_recommenders", "tensorboard",
}  # fmt: skip
HEAVY = TENSORFLOW | {"numpy", "pandas", "pyarrow", "scipy", "pydantic", "yaml", "optuna", "matplotlib", "jinja2"}


def imports(tree: ast.AST, package: str, top_level: bool = False) -> Iterator[tuple[int, str]]:
    """Yields the line and dotted name of each import; with ``top_level``, of those that run on import of the module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif not (top_level and runs_later(node)):
            yield from imports(node, package, top_level)


def runs_later(node: ast.AST) -> bool:
    """Returns whether the code below a node runs only in calls, or never."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test).endswith("TYPE_CHECKING")
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def room_of(path: Path) -> str:
    """Returns the name of the room of a file: the folder or module directly below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def backward(path: Path, text: str) -> list[str]:
    """Returns the imports in a module's text that are from a later room."""
    room = room_of(path)
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    wrong = []
    for line, name in imports(ast.parse(text), package):
        parts = name.split(".")
        if parts[0] != "tfllmrec" or len(parts) < 2 or parts[1] not in ROOMS:
            continue
        if ROOMS.index(parts[1]) > ROOMS.index(room):
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}: {parts[1]} comes after {room}")
    return wrong


def at_top_level(path: Path, text: str, forbidden: set[str]) -> list[str]:
    """Returns the imports of ``forbidden`` packages that run when the module is imported."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}: do it in the function that needs it"
        for line, name in imports(ast.parse(text), package, top_level=True)
        if name.split(".")[0] in forbidden
    ]


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or not p.name.startswith("__"))


def test_every_module_stands_in_a_room():
    assert {room_of(path) for path in MODULES} <= set(ROOMS)


def test_imports_point_to_earlier_rooms():
    assert [line for path in MODULES for line in backward(path, path.read_text(encoding="utf-8"))] == []


def test_what_needs_no_tensorflow_does_not_load_it():
    wrong = []
    for path in MODULES:
        name = path.relative_to(PACKAGE).as_posix()
        if room_of(path) in WITHOUT_TENSORFLOW and name not in NEEDS_TENSORFLOW:
            wrong += at_top_level(
                path, path.read_text(encoding="utf-8"), HEAVY if room_of(path) == "cli" else TENSORFLOW
            )
    assert wrong == []


def test_importing_the_package_and_its_light_rooms_loads_no_tensorflow():
    """Checks the same in a process, including indirect imports."""
    light = [f"tfllmrec.{room}" for room in (*WITHOUT_TENSORFLOW, "client.client", "server.server")]
    script = (
        f"import sys, tfllmrec\nprint(len(sys.modules))\nimport {', '.join(light)}, tfllmrec.evaluation.report\n"
        f"print([name for name in {sorted(TENSORFLOW)!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    modules, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert int(modules) < 150  # importing the package alone is fast: it needs little more than os


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        (
            "data/x.py",
            "from tfllmrec.models.hybrid import Hybrid",
            ["tfllmrec/data/x.py:1 imports tfllmrec.models.hybrid"],
        ),
        ("data/x.py", "def f():\n    import tfllmrec.text", ["tfllmrec/data/x.py:2 imports tfllmrec.text: text comes"]),
        ("data/x.py", "from ..serving import export", ["tfllmrec/data/x.py:1 imports tfllmrec.serving.export"]),
        ("data/x.py", "from .. import serving", ["tfllmrec/data/x.py:1 imports tfllmrec.serving"]),
        ("data/x.py", "from tfllmrec import assets, cli", ["tfllmrec/data/x.py:1 imports tfllmrec.cli"]),
        ("errors.py", "import tfllmrec.config", ["tfllmrec/errors.py:1 imports tfllmrec.config"]),
        ("data/x.py", "from tfllmrec.data.y import z\nfrom tfllmrec import errors\nimport numpy", []),
        ("evaluation/x.py", "from tfllmrec.text import y", ["tfllmrec/evaluation/x.py:1 imports tfllmrec.text.y"]),
        ("training/x.py", "from tfllmrec.evaluation import y", []),
        ("data/x.py", "from . import y", []),
    ],
)
def test_the_reader_finds_what_breaks_the_order(file, text, found):
    lines = backward(PACKAGE / file, text)
    assert len(lines) == len(found)
    assert all(line.startswith(start) for line, start in zip(lines, found, strict=True))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import tensorflow as tf", True),
        ("from tensorflow.keras import layers", True),
        ("try:\n    import tf_keras\nexcept ImportError:\n    pass", True),
        ("class A:\n    import tensorflow", True),
        ("def f():\n    import tensorflow", False),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tensorflow", False),
        ("import numpy", False),
    ],
)
def test_the_reader_finds_what_loads_tensorflow(text, found):
    assert bool(at_top_level(PACKAGE / "data" / "x.py", text, TENSORFLOW)) == found
