"""What all figures share: reproducible files, distinct lines, titles that are plain text."""

import numpy as np
import pytest
from matplotlib.ticker import EngFormatter

from charlm_jax.analysis.figures import as_picture, line_style, mark_logarithms, new_figure


def drawn():
    figure, axes = new_figure(3.0, 2.0, title="a run named $x_{$", grid="y")
    axes.plot([1, 2, 3], [1, 30, 500], **line_style(1).options)
    axes.fill_between([1, 2, 3], [1, 30, 500], 2)
    axes.set_yscale("log")
    mark_logarithms(axes.yaxis, EngFormatter(sep=""))
    return figure


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_same_figure_is_the_same_file_whatever_its_title(kind, start):
    picture = as_picture(drawn(), kind)
    assert picture.startswith(start)
    assert picture == as_picture(drawn(), kind)


def test_twenty_lines_differ_and_so_do_five_colours():
    assert len({line_style(number) for number in range(20)}) == 20
    assert len({line_style(number).colour for number in range(5)}) == 5
    assert line_style(20) == line_style(0)


def test_marks_stand_at_1_2_and_5():
    figure = drawn()
    figure.draw_without_rendering()
    (axes,) = figure.axes
    marks = np.array(axes.get_yticks())
    np.testing.assert_allclose(marks[(marks > 0.9) & (marks < 600)], [1, 2, 5, 10, 20, 50, 100, 200, 500])
    assert not len(axes.yaxis.get_minorticklocs())
