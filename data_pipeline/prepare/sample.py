"""Which few megabytes stand for a whole corpus, and how are they read as if they were a source?

A corpus is one line of bytes, its files one after the other in their order; the sample is short stretches of it, at equal distances and
each at a place of its own that a hash gives. What begins in a stretch is in the sample, so every document has the same chance to be,
short or long. Where nothing can be found without reading all before it (packed files, CSV, TFDS) the beginnings of files are taken.
"""

from __future__ import annotations

import bisect
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from data_pipeline.find_files import PACKED
from data_pipeline.lines import Span, open_bytes
from data_pipeline.mix import make_key
from data_pipeline.package_source import PackageSource
from data_pipeline.parse import is_by_line
from data_pipeline.records import Bad, Found, Part, Place, Record, Source, add_file
from data_pipeline.sources import FileSource
from data_pipeline.tables import TableFile
from data_pipeline.tfds_source import TfdsSource

STRETCH = 2**12  # bytes; with longer ones a corpus of unlike files is met less evenly
SMALL = 64 * STRETCH  # a file of at most so much is in the sample whole, where it begins in a stretch
WHOLE = 1.25  # a source of at most so many times what is asked for is read whole
LOOK = 2**22  # bytes that are unpacked to learn how well a file is packed


class Piece(NamedTuple):
    part: Part
    documents: int  # that are read, from the beginning of the part


class SampledSource:
    """Pieces of a source, as a source of two parts: the first, short one also shows what only beginning costs."""

    def __init__(self, source: Source, budget: int):
        self.source, self.name, self.config = source, source.name, source.config
        self.pieces: list[Piece] = []
        self.sizes: list[float] = []  # bytes on the disk, of each piece
        self.at_beginnings, self.bad = False, 0
        total = source.total_bytes()
        for part, limit in self._choose(total, budget):
            documents, size = self._measure(part, limit)
            if documents:
                self.pieces.append(Piece(part, documents))
                self.sizes.append(size)
            if sum(self.sizes) > 2 * budget:
                break
        if not self.pieces:  # every document is longer than what lies between two stretches
            part = source.parts(max(total, 1))[0]
            self.pieces, self.sizes, self.at_beginnings = [Piece(part, 1)], [self._measure(part, 1)[1]], True
        order = sorted(range(len(self.pieces)), key=lambda i: (self.pieces[i].part.first, self.pieces[i].part.span))
        self.pieces, self.sizes = [self.pieces[i] for i in order], [self.sizes[i] for i in order]
        self.documents = sum(piece.documents for piece in self.pieces)
        read = max(sum(self.sizes), 1) if total > WHOLE * budget else total
        self.scale = max(total / max(read, 1), 1.0)  # what stands for one document of the sample
        if isinstance(source, TfdsSource):
            self.scale = source.split.num_examples / max(self.documents, 1)
        if self.config.max_documents:
            self.scale = max(min(self.scale, self.config.max_documents / max(self.documents, 1)), 1.0)

    def identity(self) -> list[object]:
        return []

    def credits(self) -> dict[str, str]:
        return self.source.credits()

    def total_bytes(self) -> int:
        return int(sum(self.sizes))

    def parts(self, goal: int) -> list[Part]:
        ends = (0, 1, len(self.pieces)) if len(self.pieces) > 1 else (0, 1)
        return [Part(a, b, int(sum(self.sizes[a:b]))) for a, b in itertools.pairwise(ends)]

    def read(self, part: Part | None = None) -> Iterator[Found]:
        first, end = (part.first, part.end) if part else (0, len(self.pieces))
        for piece in self.pieces[first:end]:
            yield from itertools.islice(self.source.read(piece.part), piece.documents)

    def load(self, place: Place) -> Record:
        return self.source.load(place)

    def _measure(self, part: Part, limit: float) -> tuple[int, float]:
        """Reads a part until `limit` bytes on the disk are reached; returns documents and bytes."""
        ratio = self._ratio(part)
        documents, size = 0, 0.0
        for found in self.source.read(part):
            documents += 1
            self.bad += isinstance(found.record, Bad) and found.record.fatal
            text = found.place.length or sum(map(len, found.record.parts()) if isinstance(found.record, Record) else ())
            size += (text if found.place.item == 0 else 0) / ratio
            if size >= limit or documents == self.config.max_documents:
                break
        return documents, size

    def _ratio(self, part: Part) -> float:
        path = self.source.files[part.first].path if isinstance(self.source, FileSource) and self.source.files else ""
        return unpacked_ratio(path) if path.endswith(PACKED) else 1.0

    def _choose(self, total: int, budget: int) -> Iterator[tuple[Part, float]]:
        """Yields (part, bytes on the disk to read of it), so that any first of them lie all over the source."""
        source, files = self.source, file_sizes(self.source)
        if files is None or self.config.max_documents or total <= WHOLE * budget:
            self.at_beginnings = total > WHOLE * budget
            yield source.parts(max(total, 1))[0], budget if self.at_beginnings else float("inf")
            return
        begins, count = [0, *itertools.accumulate(files)], max(budget // STRETCH, 1)
        step, of_file = total / count, defaultdict(int)
        for turn in sorted(range(count), key=lambda i: int(f"{i:032b}"[::-1], 2)):
            start = int(turn * step + float(make_key(turn)[0]) / 2.0**64 * (step - STRETCH))
            for number in range(bisect.bisect_right(begins, start) - 1, len(files)):
                low, high = start - begins[number], min(start + STRETCH - begins[number], files[number])
                if high <= 0:
                    break
                if (part := self._stretch(number, max(low, 0), high)) is not None:
                    yield part, float("inf")
                elif files[number] <= SMALL:
                    if low <= 0:
                        yield Part(number, number + 1, files[number]), float("inf")
                else:
                    of_file[number] += high - max(low, 0)
        for number, size in of_file.items():
            self.at_beginnings = True
            yield Part(number, number + 1, size), size

    def _stretch(self, number: int, low: int, high: int) -> Part | None:
        """What begins between two bytes of a file; None where nobody can tell without reading what is before."""
        source = self.source
        if not isinstance(source, FileSource):
            return None
        file = source.files[number]
        if isinstance(opened := source.open(file), TableFile):
            row = low * opened.rows // max(file.size, 1)
            ends = list(itertools.accumulate(opened.groups))
            group = min(bisect.bisect_right(ends, row), len(ends) - 1)
            return Part(number, number + 1, high - low, Span(ends[group] - opened.groups[group], ends[group], 1))
        if not is_by_line(file.kind, source.config) or file.path.endswith(PACKED):
            return None
        with open_bytes(file.path) as stream:
            stream.seek(max(low - 1, 0))
            start, line = max(low - 1, 0), b""
            while low and not line.endswith(b"\n") and (line := stream.readline(LOOK)):
                start += len(line)
        return Part(number, number + 1, high - low, Span(start, max(high, start), 1))


def file_sizes(source: Source) -> list[int] | None:
    """Bytes of each file of a source that consists of files."""
    if isinstance(source, FileSource):
        return [file.size for file in source.files]
    return [(source.root / path).stat().st_size for path in source.files] if isinstance(source, PackageSource) else None


def part_sizes(source: Source, goal: int) -> list[int]:
    """Bytes of each part that `source.parts` would make, without reading the files."""
    if not isinstance(source, FileSource) or source.config.max_documents:
        return [part.size for part in source.parts(goal)]
    parts: list[Part] = []
    for number, file in enumerate(source.files):
        cut = file.kind in ("parquet", "arrow", "arrayrecord") or (
            is_by_line(file.kind, source.config) and not file.path.endswith(PACKED)
        )
        if cut and file.size > goal:
            parts += [Part(number, number + 1, min(goal, file.size - at)) for at in range(0, file.size, goal)]
            parts[-1] = parts[-1]._replace(span=Span(1))  # nothing joins it
        else:
            add_file(parts, number, file.size, goal)
    return [part.size for part in parts]


def unpacked_ratio(path: str) -> float:
    """Bytes of a packed file's text for each on the disk, from its beginning."""
    with open(path, "rb") as raw, open_bytes(path) as stream:
        size = len(stream.read(LOOK))
        inner = getattr(stream, "raw", None) or getattr(stream, "fileobj", None) or raw
        return max(size / max(inner.tell(), 1), 1e-3)
