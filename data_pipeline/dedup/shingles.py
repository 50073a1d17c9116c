"""Which overlapping pieces does a text consist of? Character n-grams of its normal form, without a word segmenter.

A piece begins at every character of the normal form. It is 5 characters long where it begins with a wide one (Han, kana,
Hangul: U+2E80 and above) and 8 where not, so a text in two scripts needs no decision, and two texts are cut alike wherever they
are alike. Pieces at the end of a text run into zeros: a text of n characters has n pieces however short it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipeline.dedup.codes import BATCH_CHARS, FIRST_WIDE, Codes, distinct, mix, normalise

NARROW, WIDE = 8, 5
_B1 = np.uint64(0x9DDFEA08EB382D69)
_B2 = np.uint64(int(_B1) ** 2 % 2**64)
_B4 = np.uint64(int(_B1) ** 4 % 2**64)


def hash_pieces(batch: Codes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (hashes [S] uint64, which text each is of [S] int64) for stretches of at most BATCH_CHARS characters."""
    for begin in range(0, len(batch.codes), BATCH_CHARS):
        end = min(begin + BATCH_CHARS, len(batch.codes))
        codes = np.zeros(end - begin + NARROW - 1, np.uint64)
        part = batch.codes[begin : end + NARROW - 1]
        codes[: len(part)] = part
        two = codes[:-1] * _B1 + codes[1:]
        four = two[:-2] * _B2 + two[2:]
        hashes = four[:-4] * _B4 + four[4:]
        first = batch.codes[begin:end]
        wide = np.flatnonzero(first >= FIRST_WIDE)
        if len(wide):
            hashes[wide] = four[wide] * _B1 + codes[wide + 4]
        real = first != 0
        yield mix(hashes[real]), batch.owners(begin, end)[real]


def shingle_sets(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shingle sets of texts, one behind the other [S] uint32, and their sizes [N]."""
    found = [
        distinct((owners.astype(np.uint64) << np.uint64(32)) | (hashes >> np.uint64(32)))
        for hashes, owners in hash_pieces(normalise(texts))
    ]
    pieces = found[0] if len(found) == 1 else distinct(np.concatenate([np.zeros(0, np.uint64), *found]))
    sizes = np.bincount((pieces >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    return pieces.astype(np.uint32), sizes


def shingle_set(text: str) -> np.ndarray:
    """Returns the distinct pieces of a text as sorted 32-bit hashes; two pieces share one with a chance of 2**-32.

    >>> len(shingle_set("Hello, world!")), len(shingle_set("你好，世界。")), len(shingle_set(""))
    (10, 4, 0)
    """
    return shingle_sets([text])[0]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Returns |a and b| / |a or b| of two sorted sets; 0 where one is empty.

    >>> jaccard(shingle_set("the cat sat on the mat"), shingle_set("The cat sat, on the mat."))
    1.0
    """
    if not len(a) or not len(b):
        return 0.0
    both = np.concatenate([a, b])
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(both) - shared)


def reaches(a: np.ndarray, b: np.ndarray, at_least: float) -> float:
    """Returns the Jaccard similarity of two sorted sets where it is at least `at_least`, else 0."""
    if min(len(a), len(b)) < at_least * max(len(a), len(b)):
        return 0.0
    likeness = jaccard(a, b)
    return likeness if likeness >= at_least else 0.0
