"""In which of many texts does a rule find work? Asked once of all of them joined, since most texts are clean.

Only for rules that look at what is near: what stands between two texts is longer than any of them looks back or ahead (PII at 48
characters, secrets at 60, both stopped by a line end), so a text for which a rule has work by itself is among those found here.
That some are found which it then leaves as they are costs time alone: they are cleaned one by one, from the beginning.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

APART = "\n" + "|\n" * 32
CHARS = 50_000  # joined at a time: more do not fit the cache


class Joined:
    """Texts behind each other."""

    def __init__(self, texts: Sequence[str]):
        self.texts, self.text = texts, APART.join(texts)
        self.starts = [0, *accumulate(len(text) + len(APART) for text in texts)]

    def of(self, places: Iterable[int]) -> set[int]:
        """The texts in which these places are."""
        return {bisect_right(self.starts, place) - 1 for place in places}

    def changed_by(self, rule: Callable[[str], str]) -> set[int]:
        """The texts that a rule changes; all of them where it cannot be told."""
        new = rule(self.text)
        if new == self.text:
            return set()
        parts = new.split(APART)
        if len(parts) != len(self.texts):
            return set(range(len(self.texts)))
        return {i for i, (part, text) in enumerate(zip(parts, self.texts)) if part != text}


def groups(numbers: Sequence[int], texts: Sequence[str]) -> Iterator[Sequence[int]]:
    """Cuts the numbers of texts into stretches that are joined at a time."""
    start = chars = 0
    for stop, number in enumerate(numbers, 1):
        chars += len(texts[number])
        if chars >= CHARS or stop == len(numbers):
            yield numbers[start:stop]
            start, chars = stop, 0
