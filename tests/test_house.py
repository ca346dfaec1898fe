"""The package's subpackages, and the direction in which they may import one another."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUBPACKAGES = {
    "data": set(),
    "model": set(),
    "learning": {"data", "model"},
    "generation": {"model"},
    "analysis": {"model", "learning", "generation"},
    "runs": {"data", "model", "learning", "generation", "analysis"},
}
FOUNDATION = {"choices", "errors", "keys", "mesh"}  # modules that every subpackage may import
FILES = sorted((ROOT / "charlm_jax").rglob("*.py"))


def imported(file):
    """Return the dotted names that a file imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def subpackages_of(names):
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "charlm_jax" and len(part) > 1}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file):
    own = file.relative_to(ROOT / "charlm_jax").parts[0].removesuffix(".py")
    allowed = SUBPACKAGES[own] | {own} if own in SUBPACKAGES else set()
    if own == "__init__":  # the package's own: it may import all others, and none imports through it
        allowed = set(SUBPACKAGES)
    assert subpackages_of(imported(file)) - FOUNDATION - {"__version__"} <= allowed


def test_every_subpackage_is_known():
    assert {path.name for path in (ROOT / "charlm_jax").iterdir() if (path / "__init__.py").exists()} == set(
        SUBPACKAGES
    )


def test_experiments_import_the_package_and_never_one_another():
    experiments = {file.stem for file in (ROOT / "experiments").glob("*.py")}
    for file in (ROOT / "experiments").glob("*.py"):
        assert not {name.split(".")[0] for name in imported(file)} & (experiments | {"experiments"})


def test_only_the_shell_and_the_corpus_touch_the_world():
    world = {
        "os",
        "pathlib",
        "shutil",
        "signal",
        "socket",
        "subprocess",
        "sys",
        "tempfile",
        "time",
        "requests",
        "pooch",
    }
    for file in FILES:
        place = file.relative_to(ROOT / "charlm_jax")
        if place.parts[0] != "runs" and str(place) != "data/corpus.py":
            assert not {name.split(".")[0] for name in imported(file)} & world, place


def test_what_computes_can_be_read_in_an_afternoon():
    """All that a loss or a text depends on, given a configuration: under 3,000 lines, docstrings included."""
    shell = ROOT / "charlm_jax" / "analysis", ROOT / "charlm_jax" / "runs"
    core = [file for file in FILES if not any(file.is_relative_to(folder) for folder in shell)]
    assert sum(len(file.read_text().splitlines()) for file in core) < 3000
