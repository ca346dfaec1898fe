"""The README and the documents beside it describe what exists, and their examples run."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from charlm_jax.runs.configuration import PRESETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = {path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
# A stand-in for scripts/run, with the tests' Python and, where something is trained, a single epoch.
RUN = """\
#!/bin/sh
name=$1; shift
case $name in text_generation | hidden_size) set -- "$@" --epochs 1 ;; esac
exec "{python}" "{root}/experiments/$name.py" "$@"
"""


def blocks(document, language):
    return [block for name, block in re.findall(r"^```(\w*)\n(.*?)^```$", document, re.M | re.S) if name == language]


def shell(document):
    """Return a document's commands with their flags, except those that install, open a notebook or run these tests."""
    commands = "".join(blocks(document, "bash")).replace("\\\n", " ").splitlines()
    return [command for command in commands if not re.match(r"scripts/test\b|.*\bpip install\b|.*\bjupyter\b", command)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the scripts, in which the documents' commands have been run, one after another."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "scripts").mkdir()
    (folder / "scripts" / "sample_numpy.py").symlink_to(ROOT / "scripts" / "sample_numpy.py")
    (folder / "scripts" / "run").write_text(RUN.format(python=sys.executable, root=ROOT))
    (folder / "scripts" / "run").chmod(0o755)
    for document in DOCUMENTS.values():
        for command in shell(document):
            if "--launcher slurm" not in command:  # which the tests of Slurm run
                give(command, folder)
    return folder


def give(command, folder):
    """Run a command in a folder, with the folder's one run in place of RUN."""
    run = next(folder.glob("runs/quick-*"), "RUN")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = re.sub(r"\bRUN\b", str(run), command)
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_the_commands_do_what_is_said_of_them(folder):
    (run,) = folder.glob("runs/quick-*")
    for made in (
        run / "report.html",
        *(folder / "runs/code/figures").glob("temperature.*"),
        folder / "model.keras.json",
    ):
        assert made.stat().st_size > 100
    assert list((folder / "runs/from-keras/checkpoints").iterdir())
    assert len(list((folder / "runs/code/figures").iterdir())) == 5


def test_the_examples_run(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    of_a_run, of_a_program, of_functions = (
        compile(example, str(path), "exec") for path, text in DOCUMENTS.items() for example in blocks(text, "python")
    )
    names = {}
    exec(of_a_run, names)
    assert names["run"].metrics.epoch.tolist() == [1, 2]
    assert len(capsys.readouterr().out) > 200
    exec(of_functions, {})
    first, second = capsys.readouterr().out.rstrip("\n").split("\n---\n")
    assert len(first) == len(second) == 100
    assert first != second
    exec(of_a_program, {})
    assert len(capsys.readouterr().out) == 2 * (400 + len("\n"))


def test_every_command_and_every_flag_is_there():
    """Including those in the text, some of which take hours."""
    sources = [path.read_text() for room in ("charlm_jax", "experiments") for path in ROOT.glob(f"{room}/**/*.py")]
    known = set(re.findall(r"\w+", "".join(sources)))
    for path, document in DOCUMENTS.items():
        prose = re.sub(r"^```.*?^```$", "", document, flags=re.M | re.S)
        for command in [*shell(document), *re.findall(r"`([^`]+)`", prose)]:
            first, *others = command.split()
            assert not first.startswith("scripts/") or (ROOT / first).exists(), (path, command)
            experiments = [word for word in others[:1] if first == "scripts/run" and word != "..."]
            assert all((ROOT / "experiments" / f"{name}.py").exists() for name in experiments), (path, command)
            if first == "scripts/run" or first.startswith("--"):
                flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]+)", command)}
                assert flags <= known, (path, command)


def test_every_preset_and_every_module_is_on_the_map():
    for preset in PRESETS:
        assert preset == "quick" or f"`{preset}`" in DOCUMENTS[ROOT / "docs/reproduction.md"] + README
    house = next(block for block in blocks(README, "") if block.startswith("charlm_jax/"))
    for path in [*ROOT.glob("charlm_jax/**/*.py"), *ROOT.glob("experiments/*.py")]:
        assert path.name == "__init__.py" or path.name in house, path


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = README.split("## Why each dependency")[1]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["test"], *extras["benchmark"]]:
        name = re.split(r"[\[>=]", requirement)[0]
        assert name == project["name"] or re.search(rf"\b{name}\b", table), requirement


def test_every_picture_every_document_and_every_chapter_is_there():
    chapters = {
        (path, re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-"))
        for path, document in DOCUMENTS.items()
        for title in re.findall(r"^## (.*)$", document, re.M)
    }
    reached = set()
    for path, document in DOCUMENTS.items():
        for place, chapter in re.findall(r"\[[^\]]+\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", document):
            target = (path.parent / place).resolve() if place else path
            assert target.exists(), (path, place)
            assert not chapter or (target, chapter) in chapters, (path, chapter)
            reached.add(target)
    assert {*DOCUMENTS} - reached <= {ROOT / "README.md"}
    assert ROOT / "CONTRIBUTING.md" in reached
