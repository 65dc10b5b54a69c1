"""The rooms may look only one way: kernels <- zoo <- train <- export <- bench <- cli."""

import ast
from pathlib import Path
import subprocess
import sys
import tomllib

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "zoo", "train", "export", "bench")
FILES = [ROOT / "cli.py", *(p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py")))]


def imported_rooms(path: Path, text: str) -> set[str]:
    """The rooms that a file imports from, whether relatively or as `recjax.<room>`."""
    here = path.relative_to(ROOT).parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("recjax.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            module = (*base, *(node.module or "").split("."))
            names |= {".".join((*module, alias.name)).strip(".") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").removeprefix("recjax."))
    rooms = {name.lstrip(".").partition(".")[0] for name in names}
    return rooms & {*ROOMS, "cli", "tests"}


def forbidden(path: Path, text: str) -> set[str]:
    room = path.relative_to(ROOT).parts[0]
    if room == "cli.py":
        return imported_rooms(path, text) & {"tests"}
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    return imported_rooms(path, text) - allowed


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_never_point_upwards(path):
    assert not forbidden(path, path.read_text())


@pytest.mark.parametrize(
    "room, line, rooms",
    [
        ("kernels/op", "from ...zoo import din", {"zoo"}),
        ("kernels/op", "from ... import train", {"train"}),
        ("zoo", "import recjax.train.loop", {"train"}),
        ("zoo", "from ..kernels.target_attention import moments", set()),
        ("train/data", "from ...bench.results import Row", {"bench"}),
        ("train/data", "def f():\n    from ....recjax import cli", set()),
        ("bench", "from .. import cli", {"cli"}),
    ],
)
def test_the_check_sees_through_every_form_of_import(room, line, rooms):
    assert forbidden(ROOT / room / "new.py", line) == rooms


def test_the_face_imports_nothing_heavy():
    text = (ROOT / "__init__.py").read_text()
    assert not [n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.Import, ast.ImportFrom))]


def test_every_package_is_declared():
    """An undeclared package works in a checkout and is missing from the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = set(project["tool"]["setuptools"]["packages"])
    found = {
        ".".join(("recjax", *path.parent.relative_to(ROOT).parts))
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert declared == found | {"recjax"}


def test_the_suites_of_kernels_run_on_machines_that_have_little_but_jax():
    """Not the libraries of the command line, of files and of pictures."""
    code = """
import sys
for name in ("pyarrow", "tyro", "orbax.checkpoint", "tensorstore", "matplotlib"):
    sys.modules[name] = None
from recjax.bench.suites import SUITES, gpu, kernels
assert SUITES
"""
    subprocess.run([sys.executable, "-c", code], check=True)
