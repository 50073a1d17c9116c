"""Which lines or paragraphs stand in so many documents that they are boilerplate, and how are they taken out?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.dedup.codes import is_kept, segment_hashes, to_codes
from data_pipeline.dedup.runs import part_bounds, written_aside
from data_pipeline.sealed import read_bytes

if TYPE_CHECKING:
    from data_pipeline.dedup.signatures import Shards

REPEATED = np.dtype([("hash", "<u8"), ("documents", "<u8"), ("first", "<u8")])
_BREAKS = {"line": re.compile(r"\n"), "paragraph": re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")}


@dataclass(frozen=True)
class LineRule:
    """What counts as boilerplate: a unit of at least `min_chars` letters, digits and Han in more than `max_documents` documents."""

    unit: str = "line"  # line | paragraph (blank lines between)
    min_chars: int = 20
    max_documents: int = 10
    keep_first: bool = True  # leave it in the first document of the corpus that has it; False: remove it everywhere


def cut_units(text: str, unit: str) -> tuple[list[str], list[str]]:
    """Returns the lines or paragraphs of a text, and what stands behind each of them.

    >>> cut_units("a\\nb\\n\\n \\nc", "paragraph"), cut_units("甲\\n乙", "line")
    ((['a\\nb', 'c'], ['\\n\\n \\n', '']), (['甲', '乙'], ['\\n', '']))
    """
    found = list(_BREAKS[unit].finditer(text))
    starts = [0, *(m.end() for m in found)]
    ends = [*(m.start() for m in found), len(text)]
    return [text[a:b] for a, b in zip(starts, ends)], [*(m.group() for m in found), ""]


def hash_units(units: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (hashes [N] uint64, compared characters [N]) of lines or paragraphs; of units without any, 0."""
    folded = [unit.casefold() + "\n" for unit in units]  # a line's end is not compared: it makes no unit empty
    codes = to_codes("".join(folded))
    lengths = np.fromiter(map(len, folded), np.int64, len(folded))
    keep = is_kept(codes)
    sizes = np.add.reduceat(keep, np.cumsum(lengths) - lengths, dtype=np.int64)
    hashes = np.zeros(len(units), np.uint64)
    real = sizes > 0
    if real.any():
        hashes[real] = segment_hashes(codes[keep], np.cumsum(sizes[real]) - sizes[real])
    return hashes, sizes


def distinct_units(texts: Sequence[str], rule: LineRule) -> tuple[np.ndarray, np.ndarray]:
    """Returns (hashes, which text [..] has each), each pair once, of units long enough."""
    cut = [cut_units(text, rule.unit)[0] for text in texts]
    hashes, sizes = hash_units([unit for units in cut for unit in units])
    owners = np.repeat(np.arange(len(texts)), [len(units) for units in cut])
    long = sizes >= rule.min_chars
    hashes, owners = hashes[long], owners[long]
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    first = np.append(True, (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1]))[: len(hashes)]
    return hashes[first], owners[first]


def find_repeated(
    shards: Shards, rule: LineRule, dropped: Sequence[Path], out: Path, part: int = 0, parts: int = 1
) -> int:
    """Writes rows of REPEATED, sorted by hash, for the boilerplate of one range of hashes; returns their count.

    Documents in `dropped` (run files of `exact` and `clusters`) do not count: a text that was there twice is no boilerplate.
    """
    hashes, numbers = shards.gather("lines", *part_bounds(part, parts), dropped)
    order = np.lexsort((numbers, hashes))
    hashes, numbers = hashes[order], numbers[order]
    found, first, documents = np.unique(hashes, return_index=True, return_counts=True)
    many = documents > rule.max_documents
    rows = np.zeros(int(many.sum()), REPEATED)
    rows["hash"], rows["documents"], rows["first"] = found[many], documents[many], numbers[first[many]]
    with written_aside(out) as file:
        file.write(rows.tobytes())
    return len(rows)


def read_repeated(paths: Sequence[Path]) -> np.ndarray:
    """Returns the rows of all parts that `find_repeated` wrote, in order."""
    return np.concatenate([np.zeros(0, REPEATED), *(np.frombuffer(read_bytes(path), REPEATED) for path in paths)])


class RepeatedLines:
    """Takes boilerplate out of texts; `rows` [N] of REPEATED, sorted by hash."""

    def __init__(self, rows: np.ndarray, rule: LineRule):
        self.rule, self.rows = rule, rows
        self.hashes = self.rows["hash"].copy()

    def remove(self, texts: Sequence[str], numbers: Sequence[int]) -> list[tuple[str, list[str]]]:
        """Returns (what is left, the units that were removed) of each text; `numbers` name the documents as `first` in the rows does.

        Where something was removed, space that is now at the text's end goes too.
        """
        cut = [cut_units(text, self.rule.unit) for text in texts]
        hashes, sizes = hash_units([unit for units, _ in cut for unit in units])
        place = np.minimum(np.searchsorted(self.hashes, hashes), max(len(self.rows) - 1, 0))
        hit = np.zeros(len(hashes), bool)
        if len(self.rows):
            hit = (self.hashes[place] == hashes) & (sizes >= self.rule.min_chars)
        found: list[tuple[str, list[str]]] = []
        at = 0
        for text, number, (units, breaks) in zip(texts, numbers, cut):
            hits = hit[at : at + len(units)]
            gone = set(np.flatnonzero(hits).tolist())
            if self.rule.keep_first:
                seen: set[int] = set()
                for i in sorted(gone):
                    row = int(place[at + i])
                    if self.rows["first"][row] == number and row not in seen:
                        seen.add(row)
                        gone.discard(i)
            at += len(units)
            left = "".join(u + b for i, (u, b) in enumerate(zip(units, breaks)) if i not in gone)
            found.append((left.rstrip() if gone else text, [units[i] for i in sorted(gone)]))
        return found
