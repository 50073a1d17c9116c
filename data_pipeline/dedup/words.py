"""Which words and Han does a text consist of, and what hash has every window of n of them?

A token is a run of letters and digits between signs or spaces, case-folded; a wide character (Han, kana, Hangul) is a token by
itself, as no segmenter is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.dedup.codes import FIRST_WIDE, is_kept, segment_hashes, to_codes

_BASE = 0xD6E8FEB86659FD93


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of several texts, one behind the other."""

    hashes: np.ndarray  # [T] uint64
    wide: np.ndarray  # [T] bool
    firsts: np.ndarray  # [N + 1] the first token of each text, and the end

    def windows(self, size: int) -> np.ndarray:
        """Returns the hash of `size` tokens from each one on, [T - size + 1] uint64; some reach into the next text."""
        left = len(self.hashes) - size + 1
        if left <= 0:
            return np.zeros(0, np.uint64)
        double, width, at, total = self.hashes, 1, 0, np.zeros(left, np.uint64)
        while width <= size:
            if size & width:
                total *= np.uint64(pow(_BASE, width, 2**64))
                total += double[at : at + left]
                at += width
            if 2 * width <= size:
                double = double[:-width] * np.uint64(pow(_BASE, width, 2**64)) + double[width:]
            width *= 2
        return total


def tokenise(texts: Sequence[str]) -> Tokens:
    folded = [text.casefold() + "\n" for text in texts]
    codes = to_codes("".join(folded))
    keep, begin = _starts(codes)
    lengths = np.fromiter(map(len, folded), np.int64, len(folded))
    counts = np.add.reduceat(begin, np.cumsum(lengths) - lengths, dtype=np.int64) if len(folded) else lengths
    codes = codes[keep]
    starts = np.flatnonzero(begin[keep])
    hashes = segment_hashes(codes, starts) if len(starts) else np.zeros(0, np.uint64)
    return Tokens(hashes, codes[starts] >= FIRST_WIDE, np.concatenate([[0], np.cumsum(counts)]))


def _starts(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which characters are compared, and which of them begin a token."""
    keep = is_kept(codes)
    begin = keep.copy()
    begin[1:] &= ~keep[:-1]
    if len(codes) and codes.max() >= FIRST_WIDE:
        wide = codes >= FIRST_WIDE
        begin |= keep & wide
        begin[1:] |= keep[1:] & wide[:-1]
    return keep, begin


def spell(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Returns the tokens of one text and where in it each one begins and ends.

    >>> spell("Don't 你好!")
    (['don', 't', '你', '好'], [(0, 3), (4, 5), (6, 7), (7, 8)])
    """
    folded = text.casefold()
    keep, begin = _starts(to_codes(folded + "\n"))
    places = np.flatnonzero(keep)
    starts = np.flatnonzero(begin[keep])
    firsts = places[starts]
    ends = places[np.append(starts[1:], len(places)) - 1] + 1 if len(starts) else firsts
    words = [folded[a:b] for a, b in zip(firsts.tolist(), ends.tolist())]
    if len(folded) != len(text):  # a letter that folds to several
        origin = np.repeat(np.arange(len(text)), [len(c.casefold()) for c in text])
        firsts, ends = origin[firsts], origin[ends - 1] + 1
    return words, list(zip(firsts.tolist(), ends.tolist()))
