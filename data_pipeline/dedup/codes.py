"""What of a text is compared, as numbers: its letters, digits and Han, many texts at once, and hashes that never change.

The normal form is that of `split.text_key`: case-folded, without `NOT_COMPARED`. Everything here is arithmetic modulo 2**64,
so results are the same on every machine and in every version of numpy. Case folding follows Python's Unicode tables, which
never change for a character that has been assigned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from data_pipeline.split import NOT_COMPARED

PAD = 8  # zeros after each text, so that no window reaches into the next one
_SEPARATOR = "\U0010ffff"  # no character; where a text holds it, it counts as a zero
BATCH_CHARS, BATCH_TEXTS = 1 << 17, 256  # what stays in a processor's cache
GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)  # murmur3's 64-bit finaliser
FIRST_WIDE = 0x2E80  # CJK radicals; from here on a character says about as much as a syllable or a word


def mix(x: np.ndarray) -> np.ndarray:
    """Scrambles uint64 numbers in place, one to one, and returns them."""
    x ^= x >> np.uint64(33)
    x *= _MIX_1
    x ^= x >> np.uint64(33)
    x *= _MIX_2
    x ^= x >> np.uint64(33)
    return x


def distinct(numbers: np.ndarray) -> np.ndarray:
    """Sorts numbers in place and returns each once: np.unique, which hashes before it sorts, takes three times as long."""
    numbers.sort()
    return numbers[np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)]]


@cache
def kept_table() -> np.ndarray:
    """Returns which characters below U+10000 are compared, [65536] bool; those above all are."""
    table = np.ones(0x10000, bool)
    table[[ord(c) for run in NOT_COMPARED.findall("".join(map(chr, range(0x10000)))) for c in run]] = False
    return table


def to_codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def is_kept(codes: np.ndarray) -> np.ndarray:
    """Says of each code point whether it is compared."""
    return kept_table()[np.minimum(codes, 0xFFFF)]


@dataclass(frozen=True, slots=True)
class Codes:
    """Normalised texts one behind the other: text i is `codes[starts[i] : starts[i] + sizes[i]]`, then PAD zeros follow."""

    codes: np.ndarray  # [C] uint32
    starts: np.ndarray  # [N] int64
    sizes: np.ndarray  # [N] int64

    def owners(self, begin: int, end: int) -> np.ndarray:
        """Returns the text of each place from `begin` to `end`, [end - begin] int64."""
        first, last = np.searchsorted(self.starts, [begin, end - 1], "right") - 1
        edges = np.concatenate([[begin], self.starts[first + 1 : last + 1], [end]])
        return np.repeat(np.arange(first, last + 1), np.diff(edges))


def normalise(texts: Sequence[str]) -> Codes:
    """Takes texts to what is compared of them; a text of signs only is compared as it stands."""
    folded = [text.casefold() for text in texts]
    codes = to_codes("".join(part + _SEPARATOR * PAD for part in folded))
    lengths = np.fromiter(map(len, folded), np.int64, len(folded)) + PAD
    raw_ends = np.cumsum(lengths)
    keep = is_kept(codes)
    count = np.add.reduceat(keep, raw_ends - lengths, dtype=np.int64) if len(folded) else np.zeros(0, np.int64)
    for i in np.flatnonzero((count == PAD) & (lengths > PAD)):
        keep[raw_ends[i] - lengths[i] : raw_ends[i]] = True
        count[i] = lengths[i]
    codes = codes[keep]
    codes[codes == ord(_SEPARATOR)] = 0
    return Codes(codes, np.cumsum(count) - count, count - PAD)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Groups texts so that one batch fits the cache; a long text stands alone."""
    waiting: list[str] = []
    chars = 0
    for text in texts:
        if waiting and (chars + len(text) > BATCH_CHARS or len(waiting) == BATCH_TEXTS):
            yield waiting
            waiting, chars = [], 0
        waiting.append(text)
        chars += len(text)
    if waiting:
        yield waiting


def segment_hashes(codes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Hashes the stretches of `codes` [C] that begin at `starts` [S] (the first is 0); returns [S] uint64.

    The sum over a stretch of scrambled (character, place in the stretch).
    """
    place = np.arange(len(codes), dtype=np.uint64)
    place -= np.repeat(place[starts], np.diff(np.append(starts, len(codes))))
    place *= np.uint64(GOLDEN)
    place += codes
    return np.add.reduceat(mix(place), starts)
