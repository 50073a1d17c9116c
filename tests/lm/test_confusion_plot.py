"""Is the picture of a confusion written without a warning, for few and many classes and names in any script?"""

import warnings

import numpy as np
import pytest

from lm import confusion_plot
from lm.confusion_plot import find_font, plot_confusion

HAN = ["退款", "物流查询"]


def draw(path, counts, names):
    """Draws with all warnings as errors (matplotlib warns of missing glyphs); returns (legend, the PNG's width, height)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        legend = plot_confusion(path, counts, names)
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return legend, int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


def test_two_classes_show_names_and_dollars_are_no_formulas(tmp_path):
    legend, width, _ = draw(tmp_path / "c.png", [[9, 1], [0, 0]], ["costs $5 or $x_{", "ham\n" * 30])
    assert legend == ""
    assert 400 < width < 900


def test_many_classes_show_numbers_and_a_legend(tmp_path):
    names = [f"intent|{c}" for c in range(151)]
    legend, width, height = draw(tmp_path / "c.png", np.eye(151, dtype=int) * 30, names)
    assert legend.startswith("Classes: 0 intent\\|0, 1 intent\\|1, ")
    assert max(width, height) < 1700


def test_names_without_glyphs_here_become_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(confusion_plot, "FONTS", ())
    assert draw(tmp_path / "c.png", [[9, 1], [2, 3]], HAN)[0] == "Classes: 0 退款, 1 物流查询."


def test_a_font_with_the_glyphs_is_taken(tmp_path):
    assert find_font("spam and eggs, naïve") == "DejaVu Sans"
    assert find_font("\U0001f9ff\u0b95退") == ""  # no font has all of these
    found = find_font("".join(HAN))
    legend, *_ = draw(tmp_path / "c.png", [[9, 1], [2, 3]], HAN)
    assert bool(legend) == (found == "")


@pytest.mark.parametrize("classes", [40, 41])
def test_between_few_and_many(tmp_path, classes):
    legend, *_ = draw(
        tmp_path / "c.png", np.ones((classes, classes), int), [f"class number {c}" for c in range(classes)]
    )
    assert bool(legend) == (classes > 40)
