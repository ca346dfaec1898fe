"""The README says what is there, and its examples run."""

import re
import tomllib
from pathlib import Path

from charlm_jax.runs.configuration import PRESETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return [block for name, block in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S) if name == language]


def test_the_examples_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of_a_run, of_functions = (compile(example, "README.md", "exec") for example in blocks("python"))
    names = {}
    exec(of_a_run, names)
    assert names["run"].metrics.epoch.tolist() == [1, 2]
    assert len(capsys.readouterr().out) > 200
    exec(of_functions, {})
    first, second = capsys.readouterr().out.rstrip("\n").split("\n---\n")
    assert len(first) == len(second) == 100
    assert first != second


def test_every_command_is_there():
    commands = re.findall(r"^scripts/(\S+)(?: +([a-z_]+))?", "\n".join(blocks("bash")), re.M)
    assert ("run", "text_generation") in commands
    assert any(name == "test" for name, _ in commands)
    for name, experiment in commands:
        assert (ROOT / "scripts" / name).exists()
        if name == "run":
            assert (ROOT / "experiments" / f"{experiment}.py").exists()


def test_every_preset_and_every_module_is_on_the_map():
    for preset in PRESETS:
        assert preset == "quick" or f"`{preset}`" in README
    house = next(block for block in blocks("") if block.startswith("charlm_jax/"))
    for path in [*ROOT.glob("charlm_jax/**/*.py"), *ROOT.glob("experiments/*.py")]:
        assert path.name == "__init__.py" or path.name in house, path


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = README.split("## Why each dependency")[1]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["test"], *extras["benchmark"]]:
        name = re.split(r"[\[>=]", requirement)[0]
        assert name == project["name"] or re.search(rf"\b{name}\b", table), requirement


def test_every_picture_and_every_document_is_there():
    places = re.findall(r"\[[^\]]+\]\((?!https?:)([^)]+)\)", README)
    assert {"CONTRIBUTING.md", "experiments/results/loss_curves.svg"} <= set(places)
    assert all((ROOT / place).exists() for place in places)
