"""The first stage: what is in a part of a source, cleaned, and what became of every record?

NUMBER.docs    the kept documents, packed (not when streaming, which reads them again)
NUMBER.npz     of each: key (16 bytes), the splits it belongs to, characters and UTF-8 bytes that training would see, a hash of its
               label, its place
NUMBER.where   [file:line, group, label] of each, one a line
NUMBER.ledger  a line for each document that was dropped or edited
NUMBER.rows    what is counted of every document, kept or dropped (documents.py)
NUMBER.samples a few of what each rule dropped or changed
"""

from __future__ import annotations

import io
import json
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipeline.config import SPLITS, DataConfig, SourceConfig
from data_pipeline.dedup.decontaminate import EvaluationIndex, Match
from data_pipeline.documents import split_where
from data_pipeline.prepare.account import CONTAMINATED, Account, why_dropped
from data_pipeline.prepare.stages import Context
from data_pipeline.records import Bad, Found, Part, Place, Record, Source, pack_record, unpack_record, utf8_size
from data_pipeline.scan import SHORTENED, Cleaner, Outcome, document_key, part_for
from data_pipeline.schema import UserError
from data_pipeline.sealed import open_to_read, read_bytes
from data_pipeline.sources import FileSource
from data_pipeline.split import split_of, text_key
from data_pipeline.tokenizer import STAND_IN, Tokenizer, load_tokenizer
from data_pipeline.whole_file import written_aside

READ = "read"
PART_BYTES = 2**25  # of a source that are read together: a function of nothing else, so that workers change nothing
HEAD = struct.Struct("<Q")  # of a packed document: bytes
BLOCK = 1 << 18  # bytes of packed documents that are read at a time
CUT = 1 << len(SPLITS)  # beside the bits of the splits: the document is cut by position
TO_JSON = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes an encoder each time
QUOTE = json.encoder.encode_basestring  # the same of a text
BATCH, BATCH_CHARS = 1000, 500_000  # records, and characters, that are cleaned at once


def tokenizer_of(context: Context, folder: Path | None) -> Tokenizer:
    """The tokenizer in `folder`, loaded once a process; without one what has special ids only."""
    if folder is None:
        return STAND_IN
    if folder not in context.loaded:
        context.loaded[folder] = load_tokenizer(folder)
    return context.loaded[folder]


def evaluation_source(path: str, max_line_bytes: int) -> FileSource:
    source = SourceConfig(path=path)
    return FileSource("evaluation", source, "config.data.clean.decontaminate", max_line_bytes, lambda text: None)


def evaluation_sets(context: Context) -> EvaluationIndex:
    """The evaluation sets, read once a process; UserError for a row of theirs that is bad."""
    if EvaluationIndex not in context.loaded:
        config: DataConfig = context.held["config"]
        items = []
        for _, where, record in evaluation_source(config.clean.decontaminate, config.max_line_bytes).read():
            if isinstance(record, Bad):
                raise UserError(f"{where}: {record.message}")
            items.append((where, "\n".join(record.parts())))
        context.loaded[EvaluationIndex] = EvaluationIndex(items)
    return context.loaded[EvaluationIndex]


def ledger_line(source: str, where: str, key: bytes | None, **what: Any) -> bytes:
    """A line of ledger.jsonl: which document, where from, and why it is not there or what changed it."""
    file, line = split_where(where)
    entry = {"id": key.hex() if key else None, "source": source, "file": file, "line": line, **what}
    return TO_JSON(entry).encode("utf-8", "backslashreplace") + b"\n"


def read_part(context: Context, number: int, task: tuple[int, Part]) -> dict[str, Any]:
    """Reads, cleans and keeps one part; returns counts."""
    config: DataConfig = context.held["config"]
    source: Source = context.held["sources"][task[0]]
    cleaner = Cleaner(config, tokenizer_of(context, context.held["tokenizer"]))
    looked_for = config.clean.decontaminate and source.config.split not in ("validation", "test")
    reader = _Reader(config, source, cleaner, evaluation_sets(context) if looked_for else None)
    with (
        written_aside(context.path(READ, number, "ledger")) as ledger,
        written_aside(context.path(READ, number, "where")) as where,
        written_aside(context.path(READ, number, "docs")) as docs,
        written_aside(context.path(READ, number, "rows")) as rows,
    ):
        reader.account = Account(rows, config, source.name)
        reader.run(task[1], ledger, where, None if config.streaming else docs, context.tick)
        reader.account.close()
    with written_aside(context.path(READ, number, "samples")) as file:
        file.write(
            json.dumps(reader.account.showcase.samples(), ensure_ascii=False).encode("utf-8", "backslashreplace")
        )
    with written_aside(context.path(READ, number, "npz")) as file:
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **reader.arrays())
        file.write(content.getvalue())
    return {**reader.counts, "dropped": dict(reader.dropped), "changed": dict(reader.changed),
            "template": cleaner.chat.source if cleaner.chat else None}  # fmt: skip


class _Reader:
    def __init__(self, config: DataConfig, source: Source, cleaner: Cleaner, sets: EvaluationIndex | None):
        self.config, self.source, self.cleaner, self.sets = config, source, cleaner, sets
        self.counts: dict[str, Any] = {"read": 0, "bad": 0, "first_bad": ""}
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.keys: list[bytes] = []
        self.labels: list[int] = []
        self.numbers: list[tuple[int, ...]] = []  # splits, characters, bytes, place
        self.account: Account

    def run(
        self, part: Part, ledger: IO[bytes], where_file: IO[bytes], docs: IO[bytes] | None, tick: Callable[[int], None]
    ) -> None:
        source, done, chars = self.source, 0, 0
        batch: list[Found] = []
        for found in source.read(part):
            if source.config.max_documents and self.counts["read"] >= source.config.max_documents:
                break
            self.counts["read"] += 1
            done += found.place.length * (found.place.item == 0)
            batch.append(found)
            chars += sum(map(len, found.record.parts())) if isinstance(found.record, Record) else 0
            if len(batch) == BATCH or chars >= BATCH_CHARS:
                self._clean(batch, ledger, where_file, docs)
                tick(done)
                batch, chars = [], 0
        self._clean(batch, ledger, where_file, docs)

    def _clean(self, batch: list[Found], ledger: IO[bytes], where_file: IO[bytes], docs: IO[bytes] | None) -> None:
        records = [one.record for one in batch if isinstance(one.record, Record)]
        found = iter(self.cleaner.clean_many(records, keep_measures=True))
        outcomes = [next(found) if isinstance(one.record, Record) else Outcome(one.record, ()) for one in batch]
        matches = self._find_evaluation([outcome.record for outcome in outcomes])
        lines: list[str] = []
        packed: list[bytes] = []
        for (place, where, record), outcome, match in zip(batch, outcomes, matches):
            cleaned, name = outcome.record, self.source.name
            if isinstance(cleaned, Bad):
                self._note_bad(where, cleaned)
            reason = why_dropped(cleaned, match)
            key = text_key(outcome.cleaned) if outcome.cleaned is not None else None
            splits, seen = self._splits(key, outcome.cleaned) if key and outcome.cleaned else (0, [])
            self.account.note(where, record, outcome, reason, match, key, splits)
            if reason or key is None or not isinstance(cleaned, Record):
                self.dropped[reason] += 1
                what = {"match": match.to_json()} if match and reason == CONTAMINATED else {}
                ledger.write(ledger_line(name, where, key, reason=reason, **what))
                continue
            if outcome.shortened:
                self.changed[SHORTENED] += outcome.shortened
            if outcome.rules:
                self.changed.update(outcome.rules)
                ledger.write(ledger_line(name, where, key, rules=outcome.rules))
            self.keys.append(key)
            self.labels.append(document_key(b"", cleaned.label) if cleaned.label else 0)
            size = sum(map(utf8_size, seen))
            self.numbers.append((splits, sum(map(len, seen)), size, *place))
            lines.append(f"[{QUOTE(where)}, {QUOTE(cleaned.group)}, {QUOTE(cleaned.label)}]\n")
            if docs is not None:
                content = pack_record(cleaned)
                packed += HEAD.pack(len(content)), content
        where_file.write("".join(lines).encode("utf-8", "surrogateescape"))
        if docs is not None:
            docs.write(b"".join(packed))

    def _find_evaluation(self, records: list[Any]) -> list[Match | None]:
        """Of each document the first piece that it shares with an evaluation set."""
        if self.sets is None:
            return [None] * len(records)
        texts = ["\n".join(record.parts()) if isinstance(record, Record) else "" for record in records]
        return [found[0] if found else None for found in self.sets.find(texts)]

    def _note_bad(self, where: str, bad: Bad) -> None:
        if bad.fatal and self.config.on_bad == "error":
            hint = '; config.data.on_bad="skip" counts such rows and goes on'
            raise UserError(f"{where}: {bad.message}{hint if bad.reason != 'empty file' else ''}")
        if bad.fatal:
            self.counts["bad"] += 1
            self.counts["first_bad"] = self.counts["first_bad"] or f"{where}: {bad.message}"

    def _splits(self, key: bytes, cleaned: Record) -> tuple[int, Sequence[str]]:
        """The bits of the splits that a document belongs to, and the parts of it that training sees."""
        config, pinned = self.config, self.source.config.split
        if config.split.by == "position" and not cleaned.is_whole() and not pinned:
            parts = [part_for(cleaned, split, pinned, config).text for split in SPLITS]
            return CUT | sum(1 << n for n, text in enumerate(parts) if text), parts[:1]
        return 1 << SPLITS.index(pinned or split_of(cleaned.group, key, config.split)), cleaned.parts()

    def arrays(self) -> dict[str, np.ndarray]:
        numbers = np.array(self.numbers, np.int64).reshape(-1, 7)
        return {
            "key": np.frombuffer(b"".join(self.keys), np.uint8).reshape(-1, 16),
            "splits": numbers[:, 0].astype(np.uint8), "chars": numbers[:, 1], "bytes": numbers[:, 2],
            "place": numbers[:, 3:], "label": np.array(self.labels, np.uint64),
        }  # fmt: skip


def read_arrays(context: Context, number: int, *names: str) -> dict[str, np.ndarray]:
    """Of the documents of a part the arrays with these names; the others are not read."""
    with open_to_read(context.path(READ, number, "npz")) as file, np.load(file) as arrays:
        return {name: arrays[name] for name in names}


def read_where(context: Context, number: int) -> list[str]:
    """file:line of each document of a part."""
    return [where for where, _, _ in read_lines(context, number)]


def read_groups(context: Context, number: int) -> list[str]:
    """The group of each document of a part."""
    return [group for _, group, _ in read_lines(context, number)]


def read_labels(context: Context, number: int) -> list[str]:
    """The label of each document of a part; "" where it has none."""
    return [label for _, _, label in read_lines(context, number)]


def read_lines(context: Context, number: int) -> list[list[str]]:
    """[file:line, group, label] of each document of a part."""
    lines = read_bytes(context.path(READ, number, "where")).decode("utf-8", "surrogateescape")
    return json.loads(f"[{lines[:-1].replace(chr(10), ',')}]")  # at once: ten times as fast as line by line


def _packed(file: IO[bytes]) -> Iterator[bytes]:
    """The packed documents of a file, of which a stretch is read at a time: read one by one they take twice as long."""
    held = b""
    while block := file.read(BLOCK):
        held, at = held + block, 0
        while at + HEAD.size <= len(held):
            (size,) = HEAD.unpack_from(held, at)
            end = at + HEAD.size + size
            if end > len(held):
                held += file.read(end - len(held))  # of a long document, all at once
                if end > len(held):
                    return  # cut short, as the count of them will show
            yield held[at + HEAD.size : end]
            at = end
        held = held[at:]


def kept_records(
    context: Context, number: int, task: tuple[int, Part], wanted: np.ndarray
) -> Iterator[tuple[int, Record]]:
    """Yields (number, record) of the documents of a part that are `wanted`: read again and cleaned where they are streamed."""
    if not context.held["config"].streaming:
        path, count = context.path(READ, number, "docs"), 0
        with open_to_read(path) as file:
            for is_wanted, content in zip(wanted.tolist(), _packed(file)):
                if is_wanted:
                    yield count, unpack_record(content)
                count += 1
        if count != len(wanted):
            raise UserError(f"{path}: holds {count} documents, not {len(wanted)}; delete its folder and prepare again")
        return
    source, places = context.held["sources"][task[0]], read_arrays(context, number, "place")["place"]
    cleaner = Cleaner(context.held["config"], tokenizer_of(context, context.held["tokenizer"]))
    for i in np.flatnonzero(wanted).tolist():
        cleaned = cleaner.clean(source.load(Place(*places[i].tolist())))
        if not isinstance(cleaned, Record):
            raise UserError(f"source {source.name}: a document changed while it was read ({cleaned}); run again")
        yield i, cleaned
