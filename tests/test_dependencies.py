"""Imports run one way: kernels <- zoo <- train <- export <- bench <- cli."""

import ast
from pathlib import Path
import subprocess
import sys
import tomllib

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kernels", "zoo", "train", "export", "bench")
FILES = [
    ROOT / "cli.py",
    *(p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))),
]


def imported_packages(path: Path, text: str) -> set[str]:
    """The packages that a file imports from, whether relatively or as `recjax.<package>`."""
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
    packages = {name.lstrip(".").partition(".")[0] for name in names}
    return packages & {*PACKAGES, "cli", "tests"}


def forbidden(path: Path, text: str) -> set[str]:
    package = path.relative_to(ROOT).parts[0]
    if package == "cli.py":
        return imported_packages(path, text) & {"tests"}
    allowed = set(PACKAGES[: PACKAGES.index(package) + 1])
    return imported_packages(path, text) - allowed


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_never_point_upwards(path):
    assert not forbidden(path, path.read_text())


@pytest.mark.parametrize(
    "package, line, packages",
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
def test_the_check_sees_through_every_form_of_import(package, line, packages):
    assert forbidden(ROOT / package / "new.py", line) == packages


def test_the_face_imports_nothing_heavy():
    """Names come when they are asked for: `recjax --version` is quick."""
    asked = "import sys, recjax; assert recjax.__all__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True)
    assert not {"jax", "numpy", "pyarrow", "recjax.api"} & {*loaded.stdout.decode().split()}


def test_every_package_is_declared():
    """An undeclared package works in a checkout and is missing from the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = set(project["tool"]["setuptools"]["packages"])
    found = {
        ".".join(("recjax", *path.parent.relative_to(ROOT).parts))
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
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


def modules_imported(path: Path, modules: set[str]) -> set[str]:
    """Those of `modules` that a file imports when it is loaded; dotted names below ROOT."""
    here, tree = path.relative_to(ROOT).parts[:-1], ast.parse(path.read_text())
    later = (ast.FunctionDef, ast.If)  # `if TYPE_CHECKING`
    late = {id(x) for node in ast.walk(tree) if isinstance(node, later) for x in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in late:
            base = (*here[: len(here) - node.level + 1], *filter(None, [node.module]))
            package = ".".join(base)
            names = {f"{package}.{alias.name}" for alias in node.names}
            found |= names & modules or {package}
    return found & modules


def test_no_module_imports_itself_by_a_detour():
    name = lambda path: ".".join(path.relative_to(ROOT).with_suffix("").parts)
    paths = {name(path).removesuffix(".__init__"): path for path in FILES}
    graph = {name: modules_imported(path, {*paths}) - {name} for name, path in paths.items()}
    while leaves := {name for name, found in graph.items() if not found}:
        graph = {name: found - leaves for name, found in graph.items() if name not in leaves}
    assert not graph, f"a cycle among {sorted(graph)}"


def test_files_and_packages_stay_small():
    """A longer file has a second idea in it; a fuller package has two subjects."""
    long = [p.name for p in FILES if len(p.read_text().splitlines()) > 400]
    assert not long
    folders = {path.parent for path in FILES}
    full = [d.name for d in folders if len([*d.glob("*.py")]) > 21]  # 20, and __init__.
    assert not full
