"""Which documents hold a piece of an evaluation set, and which piece?

A piece is 13 words in a row (GPT-3's rule), or 20 wide characters in a row (as long as 13 words, and longer than a couplet or an idiom
that anybody quotes), by what it begins with; letters, digits and Han are compared, so case, punctuation and line breaks hide
nothing. An item of an evaluation set that is shorter is looked for as a whole, from 8 words or 12 wide characters on; what is
shorter still cannot be told from chance, is not looked for, and is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from data_pipeline.dedup.words import Tokens, spell, tokenise

ENOUGH = 16  # items of a set that begin alike (a prompt) and are compared to find the one that goes on longest


@dataclass(frozen=True)
class PieceRule:
    """How long a piece must be, in words where it begins with a word, in characters where it begins with a wide one."""

    words: int = 13
    wide: int = 20
    min_words: int = 8  # of a whole item that is shorter than a piece
    min_wide: int = 12


@dataclass(frozen=True, slots=True)
class Match:
    """A piece that a document and an evaluation set share."""

    begin: int  # place in the document, in characters
    end: int
    text: str  # as it stands in the document
    where: str  # file:line of the evaluation set
    their_text: str  # as it stands there
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class EvaluationIndex:
    """Finds pieces of evaluation sets; exact, since what hashes alike is compared word by word.

    Memory: 20 bytes a token of the sets, their texts, and a table of 1 to 64 MB.
    """

    def __init__(self, items: Iterable[tuple[str, str]], rule: PieceRule = PieceRule()):
        self.rule = rule
        self.items = list(items)
        self.too_short = 0
        found: dict[int, list[tuple[np.ndarray, ...]]] = {}
        for begin in range(0, len(self.items), 256):
            self._add(begin, tokenise([text for _, text in self.items[begin : begin + 256]]), found)
        self._tables = {size: _Table(parts) for size, parts in sorted(found.items())}
        self._spell = lru_cache(64)(lambda item: spell(self.items[item][1]))

    def _add(self, base: int, tokens: Tokens, found: dict[int, list]) -> None:
        rule = self.rule
        for wide, full, least in ((False, rule.words, rule.min_words), (True, rule.wide, rule.min_wide)):
            windows = tokens.windows(full)
            for i, (first, end) in enumerate(zip(tokens.firsts[:-1].tolist(), tokens.firsts[1:].tolist()), base):
                length = end - first
                if length >= full:
                    at = np.flatnonzero(tokens.wide[first : end - full + 1] == wide)
                    part = windows[first + at], np.full(len(at), i), at, np.full(len(at), full)
                    found.setdefault(full, []).append(part)
                elif length and bool(tokens.wide[first]) == wide:
                    if length >= least:
                        part = tokens.windows(least)[first : first + 1], *(np.array([x]) for x in (i, 0, length))
                        found.setdefault(least, []).append(part)
                    else:
                        self.too_short += 1

    def find(self, texts: Sequence[str]) -> list[list[Match]]:
        """Returns the matches of each text, in order, each as long as it goes on."""
        tokens = tokenise(texts)
        hits: dict[int, list[tuple[int, int, int]]] = {}
        for size, table in self._tables.items():
            places, rows = table.look_up(tokens.windows(size))
            owners = np.searchsorted(tokens.firsts, places, "right") - 1
            for place, owner, row in zip(places.tolist(), owners.tolist(), rows.tolist()):
                hits.setdefault(owner, []).append((place - int(tokens.firsts[owner]), size, row))
        return [self._confirm(text, hits[i]) if i in hits else [] for i, text in enumerate(texts)]

    def _confirm(self, text: str, hits: list[tuple[int, int, int]]) -> list[Match]:
        words, spans = spell(text)
        matches: list[Match] = []
        done = 0
        for place, size, row in sorted(hits):
            if place + size <= done:
                continue
            best: tuple[int, int, int] | None = None
            agreed = 0
            for item, at, needed in self._tables[size].entries(row):
                length = self._common(words, place, item, at)
                if length >= needed:
                    agreed += 1
                    best = (length, item, at) if best is None or length > best[0] else best
                if agreed == ENOUGH:
                    break
            if best:
                length, item, at = best
                where, theirs = self.items[item]
                their_spans = self._spell(item)[1]
                begin, end = spans[place][0], spans[place + length - 1][1]
                their_text = theirs[their_spans[at][0] : their_spans[at + length - 1][1]]
                matches.append(Match(begin, end, text[begin:end], where, their_text, length))
                done = place + length
        return matches

    def _common(self, words: list[str], place: int, item: int, at: int) -> int:
        theirs = self._spell(item)[0]
        most = min(len(words) - place, len(theirs) - at)
        return next((i for i in range(most) if words[place + i] != theirs[at + i]), most)


class _Table:
    """Sorted hashes of pieces, behind a table that says of most others at once that they are not among them."""

    def __init__(self, parts: list[tuple[np.ndarray, ...]]):
        hashes, items, places, needed = (np.concatenate([part[i] for part in parts]) for i in range(4))
        order = np.lexsort((places, items, hashes))
        self.hashes = hashes[order]
        self.entry = np.stack([column[order].astype(np.uint32) for column in (items, places, needed)], 1)
        bits = int(np.clip(len(hashes).bit_length() + 4, 20, 26))
        self.shift = np.uint64(64 - bits)
        self.there = np.zeros(1 << bits, bool)
        self.there[self._slot(self.hashes)] = True

    def _slot(self, hashes: np.ndarray) -> np.ndarray:
        return ((hashes * np.uint64(0x9E3779B97F4A7C15)) >> self.shift).view(np.int64)

    def look_up(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (which windows are there [H], the first row of each [H])."""
        maybe = np.flatnonzero(self.there[self._slot(windows)])
        rows = np.searchsorted(self.hashes, windows[maybe])
        hit = self.hashes[np.minimum(rows, len(self.hashes) - 1)] == windows[maybe]
        return maybe[hit], rows[hit]

    def entries(self, row: int) -> list[tuple[int, int, int]]:
        """Returns (item, token in it where the piece begins, tokens that must agree)."""
        return self.entry[row : np.searchsorted(self.hashes, self.hashes[row], "right")].tolist()
