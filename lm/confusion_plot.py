"""Which classes are taken for which, as a picture?"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.score_report import cell

NAMED = 40  # classes of which the picture shows the names
COUNTED = 20  # classes of which it shows the counts
LONGEST = 24  # characters of a name
# Fonts with Han, in the order in which they are looked for, after matplotlib's own.
FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "PingFang SC", "Hiragino Sans GB", "Heiti SC", "Microsoft YaHei", "SimHei", "Arial Unicode MS",
)  # fmt: skip


def find_font(text: str) -> str:
    """Returns the first font family here that has a glyph for every character of `text`, or ""."""
    from matplotlib import font_manager

    families = {entry.name for entry in font_manager.fontManager.ttflist}
    needed = {ord(char) for char in text if not char.isspace()}
    for family in ("DejaVu Sans", *FONTS):
        if family in families and needed <= _glyphs(font_manager.findfont(family)):
            return family
    return ""


@functools.cache
def _glyphs(path: str) -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(path).get_charmap())


def plot_confusion(path: Path, confusion: Sequence[Sequence[int]] | np.ndarray, classes: Sequence[str]) -> str:
    """Writes a PNG; returns "" where it shows the names, else one line of Markdown that says which number is which class.

    Rows are the true classes; colours are shares of a row, so small classes are as visible as large ones. Numbers stand for
    names where there are more than 40 classes, or where no font here has the characters.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import PowerNorm

    counts, C = np.asarray(confusion), len(classes)
    names = [_short(name) for name in classes]
    font = find_font("".join(names)) if C <= NAMED else ""
    side = min(4.0 + 0.32 * C, 14.0)
    figure, axes = plt.subplots(figsize=(side, side * 0.9), dpi=110)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, norm=PowerNorm(0.5, 0, 1), cmap="Blues", interpolation="nearest")  # a tenth is seen
    figure.colorbar(image, ax=axes, label="share of the class's rows", shrink=0.8)
    if C <= NAMED:
        _label(axes, names if font else [str(i) for i in range(C)], font, C)
    if C <= COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.25 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    temporary = path.with_name(path.stem + ".tmp.png")
    figure.savefig(temporary, bbox_inches="tight")
    temporary.replace(path)
    plt.close(figure)
    return "" if font else "Classes: " + ", ".join(f"{i} {cell(name)}" for i, name in enumerate(classes)) + "."


def _label(axes: Any, names: Sequence[str], font: str, count: int) -> None:
    size = 9 if count <= COUNTED else 7
    axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes.set_yticks(range(count), names)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_fontsize(size)
        text.set_parse_math(False)  # a $ in a name is a $
        if font:
            text.set_fontfamily(font)


def _short(name: str) -> str:
    name = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", name).strip() or "(blank)"
    return name if len(name) <= LONGEST else name[: LONGEST - 3] + "..."
