"""How are the files of a source read and their records found again, whatever their formats are?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.array_records import ArrayRecordFile
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.find_files import find_files
from data_pipeline.forms import form_of
from data_pipeline.hf_dataset import read_credits
from data_pipeline.html_file import HtmlFile
from data_pipeline.line_file import LineFile
from data_pipeline.lines import WHOLE, hash_file
from data_pipeline.package_source import PackageSource
from data_pipeline.page import PageReader
from data_pipeline.records import Bad, Found, Part, Place, Record, Source, add_file
from data_pipeline.row_file import RowFile
from data_pipeline.schema import UserError
from data_pipeline.tables import ArrowFile, ParquetFile
from data_pipeline.tfds_source import TfdsSource
from data_pipeline.tfrecord import TFRecordFile
from data_pipeline.warc import WarcFile

Log = Callable[[str], None]


def open_sources(config: DataConfig, log: Log, twins: bool = True) -> list[Source]:
    """Opens every source that the configuration names, in the order of their names; raises UserError by key.

    Warns of files that hold the same bytes, which reads all of them, unless `twins` is False.
    """
    named = config.named_sources()
    sources: list[Source] = []
    for name in sorted(named):
        source, key = named[name], config.key_of(name)
        if source.kind == "package":
            sources.append(PackageSource(name, source, key))
        elif source.kind == "tfds":
            sources.append(TfdsSource(name, source, key))
        else:
            sources.append(FileSource(name, source, key, config.max_line_bytes, log))
    if twins:
        _warn_of_twins(sources, log)
    return sources


@dataclass(frozen=True)
class SourceFile:
    path: str
    kind: str
    size: int

    @functools.cached_property
    def sha256(self) -> str:  # not before it is asked for: a plan of a large corpus does without
        return hash_file(self.path)


class FileSource:
    """Files of any format that data_pipeline/find_files.py knows."""

    def __init__(self, name: str, config: SourceConfig, key: str, max_line_bytes: int, log: Log):
        self.name, self.config, self.key, self.max_line_bytes = name, config, key, max_line_bytes
        self.files = [SourceFile(path, kind, Path(path).stat().st_size) for path, kind in find_files(config, key, log)]
        self.pages = PageReader()
        self.opened: RowFile | None = None  # the one that is read

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "opened": None}  # other processes open files for themselves

    def identity(self) -> list[Any]:
        return [[file.kind, file.sha256] for file in self.files]

    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def credits(self) -> dict[str, str]:
        return read_credits(self.config, self.key)

    def parts(self, goal: int) -> list[Part]:
        if self.config.max_documents:  # which counts from the first file on
            return [Part(0, len(self.files), self.total_bytes())]
        parts: list[Part] = []
        for number, file in enumerate(self.files):
            spans = self.open(file).spans(goal) if file.size > goal else []
            if len(spans) > 1:
                parts += [Part(number, number + 1, size, span) for span, size in spans]
            else:
                add_file(parts, number, file.size, goal)
        return parts

    def read(self, part: Part | None = None) -> Iterator[Found]:
        first, end, _, span = part or Part(0, len(self.files), 0)
        for number in range(first, end):
            file = self.files[number]
            opened = self.open(file)
            empty, form = True, self._first_form(opened) if span.start else ""
            for row in opened.read(span):
                empty, record = False, row.record
                if isinstance(record, Record):
                    its_form = form_of(record)
                    form = form or its_form
                    if its_form != form:
                        record = Bad(
                            "mixed forms",
                            f"a row of {its_form} in a file whose first row is one of {form}; give each form a file, or set the source's form",
                        )
                yield Found(Place(number, row.offset, row.length, row.item), f"{file.path}:{row.line}", record)
            if empty and not span.start:
                what = opened.nothing if file.size else "file is empty"
                yield Found(Place(number, 0, 0, 0), file.path, Bad("empty file", what))

    def open(self, file: SourceFile) -> RowFile:
        if self.opened is None or self.opened.path != file.path:
            if self.opened:
                self.opened.close()
            self.opened = open_file(file.path, file.kind, self.config, self.max_line_bytes, self.pages)
        return self.opened

    def _first_form(self, opened: RowFile) -> str:
        return next((form_of(row.record) for row in opened.read(WHOLE) if isinstance(row.record, Record)), "")

    def load(self, place: Place) -> Record:
        file = self.files[place.file]
        record = self.open(file).load(place)
        if isinstance(record, Bad):
            raise UserError(f"{file.path}: changed since it was indexed ({record.message}); run again")
        return record


def open_file(path: str, kind: str, config: SourceConfig, max_bytes: int, pages: PageReader) -> RowFile:
    """Opens one file by its kind; raises UserError for one that is damaged, ConfigError where a package is missing."""
    if kind == "parquet":
        return ParquetFile(path, config)
    if kind == "arrow":
        return ArrowFile(path, config)
    if kind == "html":
        return HtmlFile(path, max_bytes, pages)
    if kind == "warc":
        return WarcFile(path, config, max_bytes, pages)
    if kind == "tfrecord":
        return TFRecordFile(path, config, max_bytes)
    if kind == "arrayrecord":
        return ArrayRecordFile(path, config, max_bytes)
    return LineFile(path, kind, config, max_bytes)


def _warn_of_twins(sources: list[Source], log: Log) -> None:
    first: dict[str, tuple[Source, str]] = {}
    for source in sources:
        for file in source.files if isinstance(source, FileSource) else []:
            earlier, path = first.setdefault(file.sha256, (source, file.path))
            if (earlier, path) != (source, file.path) and file.size:
                log(
                    f"warning: {file.path} (source {source.name}) holds the same bytes as {path} (source {earlier.name})"
                )
