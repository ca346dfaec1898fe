"""What is distributed: one version everywhere, and packages that hold what they need and nothing else."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import charlm_jax

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CACHES = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis")
MADE_HERE = {".git", ".venv", ".venv.lock", "runs", "site", "dist"}
STRAY = "runs/mine/config.json", ".venv/bin/tool", "site/index.html", "dist/old.whl", "charlm_jax/__pycache__/a.pyc"


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def run(*words, **options):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository without what working in it leaves."""

    def left_out(folder, names):
        return CACHES(folder, names) | (MADE_HERE if Path(folder) == ROOT else set())

    return shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "charlm_jax", ignore=left_out)


@pytest.fixture(scope="module")
def packages(checkout, tmp_path_factory):
    """The repository's files, its source distribution, and the wheel built from that; stray files are left out."""
    whole, made = files_below(checkout), tmp_path_factory.mktemp("dist")
    for name in STRAY:
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not the project's")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", made, checkout)
    (source,), (wheel,) = made.glob("*.tar.gz"), made.glob("*.whl")
    return whole, source, wheel


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert charlm_jax.__version__ == PROJECT["version"] == citation["version"]
    assert newest.startswith(f"## [{PROJECT['version']}] - ")


def test_the_citation_names_the_project_and_the_book():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # the ones that the format requires
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert (citation["title"], citation["license"]) == (PROJECT["name"], PROJECT["license"])
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert [reference["title"] for reference in citation["references"]] == ["Deep Learning with Python"]


def test_the_source_distribution_is_the_repository(packages):
    whole, source, _ = packages
    with tarfile.open(source) as archive:
        names = {str(Path(*Path(member.name).parts[1:])) for member in archive if member.isfile()}
    assert names == whole | {"PKG-INFO"}
    assert {"LICENSE", "README.md", "scripts/run", "experiments/sample.py", "tests/test_packaging.py"} <= names


def test_the_wheel_is_the_package_alone(packages):
    whole, _, wheel = packages
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert names == {name for name in whole if name.startswith("charlm_jax/")}
    assert {"charlm_jax/analysis/report.html.jinja", "charlm_jax/py.typed", "charlm_jax/runs/loop.py"} <= names


USE = """
from pathlib import Path

import charlm_jax
from charlm_jax.analysis.report import make_report
from charlm_jax.runs.assembly import prepare
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.directory import open_run
from charlm_jax.runs.gathering import gather
from charlm_jax.runs.train import train

run_dir = Path("run")
few = Configuration(hidden_size=8, window=20, stride=400, sample_length=30, temperatures=(0.5,))
(_,) = train(prepare(few, 1, run_dir), run_dir, lambda: False)
page = make_report("run", [gather(open_run(run_dir), "run", characters=1000, picture_bytes=0)])
print(charlm_jax.__file__, page.rstrip().endswith("</html>"))
"""


def test_the_installed_wheel_trains_and_reports(packages, tmp_path):
    """Nothing of the checkout is on the path."""
    target = tmp_path / "installed"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, packages[2])
    environment = {**os.environ, "PYTHONPATH": str(target)}
    output = run(sys.executable, "-c", USE, cwd=tmp_path, env=environment)
    assert output.splitlines()[-1] == f"{target}/charlm_jax/__init__.py True"


def test_a_set_up_that_reaches_no_index_says_what_to_do(tmp_path):
    for folder in ("scripts", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=CACHES)
    offline = {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_NO_CACHE": "1"}
    words = [tmp_path / "scripts" / "run", "verify", "--help"]
    done = subprocess.run(words, env={**os.environ, **offline}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "0.9 GB on disk" in done.stderr.splitlines()[0]
    assert done.stderr.splitlines()[-1].startswith("error: the packages could not be installed (see above); connect")


def test_a_set_up_that_fails_leaves_what_was_installed(tmp_path):
    """Without a network, the packages of another lock stay in use."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=CACHES)
    (tmp_path / "scripts" / "none.lock").write_text("# a lock of no packages\n")
    environment = {**os.environ, "PIP_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_NO_CACHE": "1"}

    def use(lock):
        words = ["bash", "-c", f". scripts/environment.sh; use_environment {lock}"]
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    first = use("none.lock")
    assert (first.returncode, "extras" in first.stderr) == (0, False)
    (tmp_path / "scripts" / "none.lock").write_text("# another lock of no packages\n")
    second = use("none.lock")
    assert (second.returncode, "install extras that you added" in second.stderr) == (0, True)
    record = tmp_path / ".venv" / "installed"
    marks = record.read_text()
    assert marks.startswith("none.lock ")
    assert use("requirements.lock").returncode == 2
    assert record.read_text() == marks
    assert use("none.lock").stderr == "", "nothing is set up again"
