"""Which files does a source name, and how are its records read and found again?"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.forms import form_of
from data_pipeline.lines import WHOLE, Span, SpanReader, cut_at_lines, hash_file
from data_pipeline.package_source import PackageSource
from data_pipeline.parquet import ParquetFile
from data_pipeline.parse import SUFFIXES, CsvHead, Row, find_rows, is_by_line, parse_row, read_header
from data_pipeline.records import Bad, Found, Part, Place, Record, Source, add_file
from data_pipeline.schema import UserError
from data_pipeline.tfds_source import TfdsSource

PACKED = (".gz", ".zst")
NO_HEAD = CsvHead(",", ())
Log = Callable[[str], None]


def open_sources(config: DataConfig, log: Log) -> list[Source]:
    """Opens every source that the configuration names, in the order of their names; raises UserError by key."""
    named = {"data": SourceConfig(path=config.path)} if config.path else config.sources
    sources: list[Source] = []
    for name in sorted(named):
        source, key = named[name], "config.data.path" if config.path else f"config.data.sources.{name}.path"
        if source.kind == "package":
            sources.append(PackageSource(name, source, key))
        elif source.kind == "tfds":
            sources.append(TfdsSource(name, source, key))
        else:
            sources.append(FileSource(name, source, key, config.max_line_bytes, log))
    _warn_of_twins(sources, log)
    return sources


@dataclass(frozen=True)
class SourceFile:
    path: str
    kind: str
    size: int
    sha256: str


class FileSource:
    """Text, Markdown, JSONL, CSV and Parquet files."""

    def __init__(self, name: str, config: SourceConfig, key: str, max_line_bytes: int, log: Log):
        self.name, self.config, self.max_line_bytes = name, config, max_line_bytes
        self.files = [
            SourceFile(path, kind, Path(path).stat().st_size, hash_file(path))
            for path, kind in find_files(config, key, log)
        ]
        self.heads: dict[str, CsvHead] = {}
        self.reader = SpanReader()
        self.parquet: ParquetFile | None = None  # the one that is read

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "reader": SpanReader(), "parquet": None}  # other processes open files for themselves

    def identity(self) -> list[Any]:
        return [[file.kind, file.sha256] for file in self.files]

    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def credits(self) -> dict[str, str]:
        return {}

    def parts(self, goal: int) -> list[Part]:
        if self.config.max_documents:  # which counts from the first file on
            return [Part(0, len(self.files), self.total_bytes())]
        parts: list[Part] = []
        for number, file in enumerate(self.files):
            if file.size > goal and file.kind == "parquet":
                opened = ParquetFile(file.path, self.config)
                for span in opened.spans(file.size, goal):
                    rows = span.stop - span.start
                    parts.append(Part(number, number + 1, file.size * rows // max(opened.rows, 1), span))
            elif file.size > goal and is_by_line(file.kind, self.config) and not file.path.endswith(PACKED):
                for span in cut_at_lines(file.path, file.size, goal):
                    stop = span.stop if span.stop >= 0 else file.size
                    parts.append(Part(number, number + 1, stop - span.start, span))
            else:
                add_file(parts, number, file.size, goal)
        return parts

    def read(self, part: Part | None = None) -> Iterator[Found]:
        first, end, _, span = part or Part(0, len(self.files), 0)
        for number in range(first, end):
            file = self.files[number]
            empty, form = True, self._first_form(file) if span.start else ""
            for row in self._rows(file, span):
                empty = False
                content = row.content
                record = content if isinstance(content, Bad) else self._parse(file, content)
                if isinstance(record, Record):
                    form = form or form_of(record)
                    if form_of(record) != form:
                        record = Bad(
                            "mixed forms",
                            f"a row of {form_of(record)} in a file whose first row is one of {form}; give each form a file, or set the source's form",
                        )
                yield Found(Place(number, row.offset, row.length, 0), f"{file.path}:{row.line}", record)
            if empty and not span.start:
                what = "file is empty" if file.size == 0 else "no rows in it, only blank lines"
                if file.kind == "csv" and file.size:
                    what = "no rows in it below the header"
                yield Found(Place(number, 0, 0, 0), file.path, Bad("empty file", what))

    def _rows(self, file: SourceFile, span: Span) -> Iterator[Row]:
        if file.kind != "parquet":
            yield from find_rows(file.path, file.kind, self.config, self.max_line_bytes, span)
            return
        opened = self._open_parquet(file)
        for number, raw in opened.read(span):
            yield Row(number + 1, number, file.size // opened.rows, raw)

    def _open_parquet(self, file: SourceFile) -> ParquetFile:
        if self.parquet is None or self.parquet.path != file.path:
            self.parquet = ParquetFile(file.path, self.config)
        return self.parquet

    def _first_form(self, file: SourceFile) -> str:
        for row in self._rows(file, WHOLE):
            if isinstance(row.content, bytes) and isinstance(record := self._parse(file, row.content), Record):
                return form_of(record)
        return ""

    def load(self, place: Place) -> Record:
        file = self.files[place.file]
        if file.kind == "parquet":
            raw = self._open_parquet(file).row(place.offset)
        else:
            raw = self.reader.read(file.path, place.offset, place.length)
        record = self._parse(file, raw)
        if isinstance(record, Bad):
            raise UserError(f"{file.path}: changed since it was indexed ({record.message}); run again")
        return record

    def _parse(self, file: SourceFile, raw: bytes) -> Record | Bad:
        if file.kind == "csv" and file.path not in self.heads:
            self.heads[file.path] = read_header(file.path, self.max_line_bytes)
        kind = "jsonl" if file.kind == "parquet" else file.kind
        return parse_row(raw, kind, self.config, self.heads.get(file.path, NO_HEAD))


def find_files(config: SourceConfig, key: str, log: Log) -> list[tuple[str, str]]:
    """Returns (path, kind) of every file that a source names, sorted; raises UserError naming the key."""
    path = Path(config.path).expanduser()
    if path.is_dir():
        found = sorted(_walk(path, key, log))
        known = [(p, kind) for p in found if (kind := _kind_by_name(p)) and config.kind in ("auto", kind)]
        wanted = "readable" if config.kind == "auto" else config.kind
        if not known:
            suffixes = ", ".join(s for kind, group in SUFFIXES.items() for s in group if config.kind in ("auto", kind))
            raise UserError(f"{key}: folder {config.path!r} holds no {wanted} files (names that end in {suffixes})")
        if len(known) < len(found):
            log(f"{key}: reads {len(known)} {wanted} files of {config.path}; {len(found) - len(known)} others left out")
        return known
    if path.is_file():
        paths = [str(path)]
    else:
        paths = sorted(p for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not paths and glob.has_magic(str(path)):
            raise UserError(f"{key}: {config.path!r} matches no files")
        if not paths:
            raise UserError(f"{key}: no such file or folder: {config.path!r}")
    kinds = [config.kind if config.kind != "auto" else _kind_by_name(p) for p in paths]
    for p, kind in zip(paths, kinds):
        if not kind:
            raise UserError(
                f"{key}: cannot tell what {p!r} is by its name; give it a source with kind= one of {', '.join(SUFFIXES)}"
            )
    return list(zip(paths, kinds))


def _walk(folder: Path, key: str, log: Log) -> Iterator[str]:
    """Yields the files below a folder but hidden ones; a part of it that cannot be read is an error, not a smaller corpus."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{key}: {error.filename}: {error.strerror}")

    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in filter(os.path.islink, (os.path.join(here, name) for name in folders)):
            log(f"warning: {key}: {link} is a link to a folder and is not followed")
        paths = [Path(here, name) for name in files if not name.startswith(".")]
        yield from (str(p) for p in paths if p.is_file() or p.is_symlink())  # a link to nothing fails when it is read


def _kind_by_name(path: str) -> str:
    name = path.lower()
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    return next((kind for kind, suffixes in SUFFIXES.items() if name.endswith(suffixes)), "")


def _warn_of_twins(sources: list[Source], log: Log) -> None:
    first: dict[str, tuple[Source, str]] = {}
    for source in sources:
        for file in source.files if isinstance(source, FileSource) else []:
            earlier, path = first.setdefault(file.sha256, (source, file.path))
            if (earlier, path) != (source, file.path) and file.size:
                log(
                    f"warning: {file.path} (source {source.name}) holds the same bytes as {path} (source {earlier.name})"
                )
