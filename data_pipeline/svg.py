"""How are a flow and a histogram drawn as SVG, in the colours of the page around them?

Labels that people read come as markup, already escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

WIDTH = 960
HEIGHT, TOP, LOW = 150, 34, 250  # of the flow: its height at the start, where it begins, where what is dropped arrives
LEFT, RIGHT = 20, 800  # of the flow's trunk


class Branch(NamedTuple):
    """Documents that leave the flow, or a split that they end in."""

    label: str
    count: int
    target: str = ""  # the section that tells more


def flow(total: int, start: str, dropped: Sequence[Branch], ends: Sequence[Branch], title: str) -> str:
    """Draws how many of `total` leave at each step, and where the others end; thickness is their number."""
    scale = HEIGHT / max(total, 1)
    step = (RIGHT - LEFT - 150) / max(len(dropped), 1)
    parts = [_text(LEFT, TOP - 14, f"{start} {total:,}", "strong")]
    left, x = total, LEFT + 60.0
    parts.append(_band(LEFT, TOP, x, TOP, left * scale, "trunk"))
    for number, branch in enumerate(dropped):
        thick, after = branch.count * scale, left - branch.count
        end = x + step
        parts.append(_band(x, TOP, end, TOP, after * scale, "trunk"))
        down, row = x + step * 0.75, LOW + 30 * (number % 2)
        parts.append(_band(x, TOP + after * scale, down, row - thick, thick, "gone"))
        label = _text(down + 6, row - 2, f"{branch.label} <tspan class='n'>−{branch.count:,}</tspan>")
        parts.append(f'<a href="#{branch.target}">{label}</a>')
        left, x = after, end
    y = TOP
    room = (TOP + HEIGHT + 40 - TOP - left * scale) / max(len(ends), 1)
    at = float(TOP)
    for branch in ends:
        thick = branch.count * scale
        parts.append(_band(x, y, RIGHT, at, thick, "end"))
        parts.append(
            _text(RIGHT + 8, at + max(thick / 2, 6) + 4, f"{branch.label} <tspan class='n'>{branch.count:,}</tspan>")
        )
        y, at = y + thick, at + thick + min(room, 24)
    return _svg(max(LOW + 46, at + 10), title, parts)


def histogram(series: Sequence[tuple[str, Sequence[int]]], title: str, height: int = 170) -> str:
    """Draws counts by powers of two, series on top of each other: bin 0 is 0, bin n from 2**(n-1) on."""
    used = [n for n in range(max((len(c) for _, c in series), default=0)) if any(counts[n] for _, counts in series)]
    if not used:
        return ""
    bins = range(max(used[0] - 1, 0), used[-1] + 2)
    high = max(sum(counts[n] for _, counts in series if n < len(counts)) for n in bins)
    wide = min((WIDTH - 60) / len(bins), 60)
    parts = []
    for place, n in enumerate(bins):
        x, y = 50 + place * wide, 20.0 + height
        for number, (_, counts) in enumerate(series):
            count = counts[n] if n < len(counts) else 0
            tall = count / high * height
            y -= tall
            if count:
                name = f"{_size(n)}–{_size(n + 1)}: {count:,}"
                parts.append(
                    f'<rect class="s{number}" x="{x + 1:.1f}" y="{y:.1f}" width="{wide - 2:.1f}" height="{tall:.1f}"><title>{name}</title></rect>'
                )
        parts.append(_text(x, 36 + height, _size(n), "tick"))
    parts.append(_text(0, 28, f"{high:,}", "tick"))
    parts.append(f'<path class="axis" d="M50 {20 + height}H{50 + wide * len(bins):.1f}"/>')
    return _svg(44 + height, title, parts, 60 + wide * len(bins))


def columns(counts: Sequence[tuple[str, int]], title: str, height: int = 120) -> str:
    """Draws named counts as columns."""
    high, wide = max((count for _, count in counts), default=1), min((WIDTH - 20) / max(len(counts), 1), 90)
    parts = []
    for place, (name, count) in enumerate(counts):
        tall = max(count / high * height, 1)
        x = 10 + place * wide
        parts.append(
            f'<rect class="s0" x="{x + 4:.1f}" y="{20 + height - tall:.1f}" width="{wide - 8:.1f}" height="{tall:.1f}"/>'
        )
        parts += [_text(x + 4, 14 + height - tall, f"{count:,}", "tick"), _text(x + 4, 36 + height, name, "tick")]
    return _svg(44 + height, title, parts, 20 + wide * len(counts))


def _size(n: int) -> str:
    value = 0 if n == 0 else 2 ** (n - 1)
    for unit, name in ((2**30, "G"), (2**20, "M"), (2**10, "k")):
        if value >= unit:
            return f"{value // unit}{name}"
    return str(value)


def _band(x: float, y: float, to_x: float, to_y: float, thick: float, kind: str) -> str:
    """A stripe from one place to another; what is thinner than a line is drawn as one."""
    thick, middle = max(thick, 1), (x + to_x) / 2
    return (
        f'<path class="{kind}" d="M{x:.1f} {y:.1f}C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}'
        f'V{to_y + thick:.1f}C{middle:.1f} {to_y + thick:.1f} {middle:.1f} {y + thick:.1f} {x:.1f} {y + thick:.1f}Z"/>'
    )


def _text(x: float, y: float, label: str, kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{label}</text>'


def _svg(height: float, title: str, parts: Sequence[str], width: float = WIDTH) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" aria-label="{title}">{"".join(parts)}</svg>'
