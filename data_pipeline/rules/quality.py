"""Which counts of a text are out of bounds? C4's, Gopher's and FineWeb's rules, with bounds by kind of text.

A bound is a pure function of `Measures`, so another bound can be tried without the text. The reason of a drop is the name
of the bound. A kind is told by script and shape: `code` (also marked-up technical text), `chinese`, `latin` (words in Latin
letters of any language), `other`. The published values are in docs/cleaning.md: they were set for English pages from the
web, and drop a quarter of Python's documentation and most Chinese text, so ours are wider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.rules.measures import Measures, measure_many

KINDS = ("latin", "chinese", "code", "other")
CODE_SHARE = 0.04  # of the ink: Python's library has 0.067 (median), English prose 0.002, Chinese 0.005
Limits = dict[str, tuple[float | None, ...]]  # bound -> limit of each kind; None: no limit


class Bound(NamedTuple):
    """A limit of one value by kind of text: `min_` bounds are lowest, `max_` bounds highest values that pass."""

    name: str
    what: str
    value: Callable[[Measures], Any]
    latin: float | None
    chinese: float | None
    code: float | None
    other: float | None


def _ink(m: Measures) -> Any:
    return np.maximum(m.chars - m.spaces, 1)


def _of_lines(count: Any, m: Measures) -> Any:
    return np.maximum(count - 3, 0) / np.maximum(m.lines, 1)  # three lines are no evidence


def _repeated(count: Any, m: Measures) -> Any:
    return count / np.maximum(m.unit_chars, 1) * np.minimum(m.units / 64, 1)  # a short text repeats a word soon


def _letters(m: Measures) -> Any:
    return m.latin + m.han + m.kana + m.hangul + m.letters


BOUNDS = (
    Bound("min_units", "words, Han characters", lambda m: m.units, 5, 5, 5, 5),
    Bound("max_units", "words, Han characters", lambda m: m.units, None, None, None, None),
    Bound("min_word_length", "mean length of words", lambda m: m.word_chars / np.maximum(m.words, 1), 2.5, None, None, None),
    Bound("max_word_length", "mean length of words", lambda m: m.word_chars / np.maximum(m.words, 1), 10, None, None, None),
    Bound("min_stop_words", "share of stop words", lambda m: (m.stop_words + 1) / np.maximum(m.words, 1), 0.05, None, None, None),
    Bound("min_letters", "share of letters", lambda m: _letters(m) / _ink(m), 0.5, 0.5, 0.25, 0.4),
    Bound("max_digits", "share of digits", lambda m: m.digits / _ink(m), 0.25, 0.3, 0.5, 0.3),
    Bound("min_punctuation", "share of punctuation", lambda m: (m.punctuation + 2) / _ink(m), 0.005, 0.01, None, None),
    Bound("max_symbols", "share of symbols", lambda m: (m.symbols - m.code) / _ink(m), 0.1, 0.1, 0.25, 0.1),
    Bound("max_hashes", "# and ellipses for each word", lambda m: np.maximum(m.hashes - 3, 0) / np.maximum(m.units, 1), 0.1, 0.1, None, 0.1),
    Bound("max_urls", "addresses for each word", lambda m: np.maximum(m.urls - 3, 0) / np.maximum(m.units, 1), 0.1, 0.1, 0.2, 0.1),
    Bound("max_bullet_lines", "share of lines that begin with a bullet", lambda m: _of_lines(m.bullet_lines, m), 0.9, 0.9, None, 0.9),
    Bound("max_ellipsis_lines", "share of lines that end in an ellipsis", lambda m: _of_lines(m.ellipsis_lines, m), 0.3, 0.3, None, 0.3),
    Bound("max_open_lines", "share of lines that end without punctuation", lambda m: _of_lines(m.lines - m.ended_lines, m), 0.88, 0.88, None, None),
    Bound("max_short_lines", "share of short lines that end without punctuation", lambda m: _of_lines(m.short_lines, m), 0.67, 0.67, None, None),
    Bound("max_line_length", "mean length of lines", lambda m: m.line_chars / np.maximum(m.lines, 1), None, None, 250, None),
    Bound("min_sentences", "sentences", lambda m: m.sentences, None, None, None, None),
    Bound("max_braces", "{", lambda m: m.braces, None, None, None, None),
    Bound("max_fillers", "lorem ipsum", lambda m: m.fillers, 0, 0, None, 0),
    Bound("max_repeated_lines", "share of lines that stood before", lambda m: _of_lines(m.repeated_lines, m), 0.4, 0.4, 0.6, 0.4),
    Bound("max_repeated_line_chars", "share of text in such lines", lambda m: m.repeated_line_chars / np.maximum(m.line_chars, 200), 0.3, 0.3, 0.5, 0.3),
    Bound("max_repeated_paragraphs", "share of paragraphs that stood before", lambda m: np.maximum(m.repeated_paragraphs - 3, 0) / np.maximum(m.paragraphs, 1), 0.3, 0.3, 0.5, 0.3),
    Bound("max_repeated_paragraph_chars", "share of text in such paragraphs", lambda m: m.repeated_paragraph_chars / np.maximum(m.line_chars, 200), 0.3, 0.3, 0.5, 0.3),
    Bound("max_top_2", "share of text in the 2-gram that fills most", lambda m: _repeated(m.top_2, m), 0.3, 0.3, 0.5, 0.3),
    Bound("max_top_3", "the same of 3-grams", lambda m: _repeated(m.top_3, m), 0.27, 0.27, 0.45, 0.27),
    Bound("max_top_4", "the same of 4-grams", lambda m: _repeated(m.top_4, m), 0.25, 0.25, 0.4, 0.25),
    *(
        Bound(f"max_repeated_{n}", f"share of text in {n}-grams that stood before",
              lambda m, n=n: _repeated(getattr(m, f"repeated_{n}"), m), limit, limit, limit + 0.3, limit)
        for n, limit in zip(range(5, 11), (0.5, 0.48, 0.46, 0.44, 0.42, 0.4))
    ),
)  # fmt: skip


def kinds_of(m: Measures) -> np.ndarray:
    """Returns the kind of each text as a number in KINDS."""
    is_code = m.code > CODE_SHARE * _ink(m)
    japanese = m.kana * 10 > m.han + m.kana
    is_chinese = (m.han * 3 > m.units) & ~japanese
    is_latin = (m.latin > (m.han + m.kana) * 5 + m.hangul + m.letters) & ~is_chinese  # a word has some 5 letters
    return np.select([is_code, is_chinese, is_latin], [2, 1, 0], 3)


def read_bounds(changes: Iterable[str] = ()) -> tuple[Limits, list[str]]:
    """Returns the limits with `KIND.BOUND=NUMBER` or `BOUND=NUMBER` changes, and what is wrong with these."""
    limits: Limits = {bound.name: bound[3:] for bound in BOUNDS}
    problems = []
    for change in changes:
        name, _, number = change.partition("=")
        kind, _, bound = name.rpartition(".")
        try:
            value = None if number == "none" else float(number)
        except ValueError:
            problems.append(f"{change!r} must be BOUND=NUMBER, KIND.BOUND=NUMBER, or =none for no limit")
            continue
        if bound not in limits or kind not in ("", *KINDS):
            problems.append(f"{change!r}: kinds are {', '.join(KINDS)}; bounds are {', '.join(limits)}")
            continue
        limits[bound] = tuple(value if kind in ("", name) else old for name, old in zip(KINDS, limits[bound]))
    return limits, problems


def quality(text: str) -> str:
    """Drops a text of which a count is out of bounds; the reason is the bound's name.

    >>> quality("This is for you. " * 99), quality("买一送一！" * 99)
    ('max_top_2', 'max_top_2')
    >>> quality("The cat sat on the mat."), quality("猫坐在垫子上，看着窗外。")
    ('', '')
    """
    return judge(measure_many([text]), read_bounds()[0])[0]


def judge(m: Measures, limits: Limits) -> list[str]:
    """Returns for each row of arrays of counts the first bound that it breaks, or ""; no text is needed.

    >>> judge(measure_many(["Too short.", "太短"]), read_bounds(["latin.min_units=none"])[0])
    ['', 'min_units']
    """
    kinds = kinds_of(m)
    broken = np.full(len(kinds), len(BOUNDS))
    for place in reversed(range(len(BOUNDS))):
        by_kind = limits[BOUNDS[place].name]
        if all(limit is None for limit in by_kind):
            continue
        low = BOUNDS[place].name.startswith("min_")
        none = -np.inf if low else np.inf
        limit = np.array([none if limit is None else limit for limit in by_kind])[kinds]
        value = BOUNDS[place].value(m)
        broken[value < limit if low else value > limit] = place
    names = [*(bound.name for bound in BOUNDS), ""]
    return [names[place] for place in broken]
