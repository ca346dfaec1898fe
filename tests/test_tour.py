"""The tour, as a reader runs it: every cell, in order, in a kernel of its own."""

import re
from pathlib import Path

import pytest

from charlm_jax.runs.directory import find_runs

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "experiments" / "tour.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(TOUR, as_version=4)


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    """The executed notebook, and the folder it was executed in."""
    folder = tmp_path_factory.mktemp("checkout") / "experiments"
    folder.mkdir()
    executed = nbformat.read(TOUR, as_version=4)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(ROOT))
        environment.delenv("MPLBACKEND", raising=False)  # use the notebook's own
        nbclient.NotebookClient(executed, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return executed, folder


def said(cell, name):
    """Return what a cell wrote to stdout or stderr."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == name)


def drawn(cell):
    return [output for output in cell.outputs if "image/png" in output.get("data", {})]


def test_no_outputs_are_committed_and_it_is_short(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count is None and not cell.outputs for cell in code)
    assert len(code) <= 10


def test_every_cell_shows_what_it_is_about(toured):
    executed, folder = toured
    text, training, curves, writing, surprisal, sizes, loading = (
        cell for cell in executed.cells if cell.cell_type == "code"
    )
    assert re.match(r"[\d,]+ characters, \d+ distinct", said(text, "stdout"))
    # One bar per epoch, even though a notebook is not a terminal.
    for epoch in range(1, 7):
        assert re.search(rf"epoch {epoch}/6: 100%\|.*loss=", said(training, "stderr")), said(training, "stderr")
    assert len(drawn(curves)) == len(drawn(surprisal)) == 1
    guessing, learned = map(float, re.findall(r"\d\.\d\d", said(curves, "stdout")))
    assert learned < guessing / 2
    texts = re.findall(r"--- (\S+)\nThe statement (.{200})\n", said(writing, "stdout"), re.DOTALL)
    assert [temperature for temperature, _ in texts] == ["0.2", "0.5", "1.0", "1.5"]
    assert len({continuation for _, continuation in texts}) == 4
    costly = re.findall(r"^(.*)\.\.\. (.+), where (.+) was expected$", said(surprisal, "stdout"), re.MULTILINE)
    assert len(costly) == 5
    # Somewhere in the last word but two, which no manual has.
    assert any("giraffe".startswith(place.rpartition("as a ")[2]) for place, _, _ in costly if "as a " in place)
    losses = [float(loss) for loss in re.findall(r"units: (\d\.\d{3}) nats", said(sizes, "stdout"))]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 2
    assert losses[-1] == pytest.approx(learned, abs=0.006)  # the run that existed already, to the digits shown
    (bits,) = re.findall(r": (\d\.\d{3}) bits per character", said(loading, "stdout"))
    assert float(bits) < guessing / 2 / 0.693
    assert [run.path.name for run in find_runs(folder.parent / "runs")] == ["tour-16", "tour-64"]
