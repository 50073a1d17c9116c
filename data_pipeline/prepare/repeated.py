"""Which lines stand in so many of the documents that stay that they are boilerplate, and what is left of each without them?

Documents of plain text alone; those that repeat others do not count, since a text that was there twice is no boilerplate.

NUMBER.changed  the documents of a part that lost lines, packed, each behind its number in the part
NUMBER.ledger   a line for each of them
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import CleanConfig
from data_pipeline.dedup.lines import LineRule, RepeatedLines, find_repeated, read_repeated
from data_pipeline.dedup.runs import parts_for
from data_pipeline.dedup.signatures import Shards, SignatureWriter, whole
from data_pipeline.prepare.read import kept_records, ledger_line, read_arrays, read_where
from data_pipeline.prepare.stages import Context, Log, run_stage
from data_pipeline.records import Part, Record, pack_record, unpack_record
from data_pipeline.scan import document_key
from data_pipeline.sealed import read_bytes
from data_pipeline.store import load_array, save_array
from data_pipeline.whole_file import written_aside

COUNT, LINES = "count", "lines"
RULE = "repeated_lines"  # in the ledger
ONLY_REPEATED = "only repeated lines"
TABLE = "repeated_lines.npy"  # what streaming needs: hash of a line, key of the first document that has it
MEMORY_BYTES = 2**25  # that are sorted at a time
HEAD = struct.Struct("<QQ")  # of a changed document: its number, bytes
BATCH = 500  # documents looked at together


def rule_of(clean: CleanConfig) -> LineRule:
    return LineRule(clean.repeated_unit, max_documents=clean.repeated_lines)


def take_out(
    context: Context, tasks: list[tuple[int, Part]], fates: list[np.ndarray], workers: int, log: Log
) -> list[dict[str, Any]]:
    """Finds repeated lines in documents that stay, and writes these without them; returns of each part the numbers of
    documents of which too little is left (`emptied`), and how many were `changed`."""
    (context.folder / COUNT).mkdir(exist_ok=True)
    for number, fate in enumerate(fates):
        with written_aside(context.path(COUNT, number, "left")) as file:
            file.write((fate > 0).astype(np.uint8).tobytes())
    sizes = [part.size for _, part in tasks]
    run_stage(context, COUNT, count_part, tasks, sizes, workers, log, "counting lines")
    rule, shards = rule_of(context.held["config"].clean), Shards([_stem(context, n) for n in range(len(tasks))])
    parts = parts_for(shards.files("lines"), MEMORY_BYTES, copies=10)
    paths = [context.folder / COUNT / f"repeated-{part:04d}-of-{parts:04d}" for part in range(parts)]
    for part, path in enumerate(paths):
        if not path.exists():
            find_repeated(shards, rule, [], path, part, parts)
    rows = read_repeated(paths)
    log(f"{len(rows):,} {rule.unit}s stand in more than {rule.max_documents} documents")
    # documents are told by keys, so that streaming can do it too
    firsts = shards.rows(rows["first"])["key"].tolist()
    rows["first"] = np.array([document_key(whole(key), "train") for key in firsts], np.uint64)
    save_array(context.folder / TABLE, rows)
    return run_stage(context, LINES, remove_part, tasks, sizes, workers, log, "removing lines")


def count_part(context: Context, number: int, task: tuple[int, Part]) -> int:
    """Notes which documents of a part have which long lines."""
    keys = read_arrays(context, number, "key")["key"]
    with SignatureWriter(_stem(context, number), near=False, lines=rule_of(context.held["config"].clean)) as writer:
        for i, record in _texts(context, number, task):
            writer.add(keys[i].tobytes(), record.text)
    return writer.count


def remove_part(context: Context, number: int, task: tuple[int, Part]) -> dict[str, Any]:
    """Writes the documents of a part that lose lines; returns how many, and the numbers of those that are to be dropped."""
    clean: CleanConfig = context.held["config"].clean
    if TABLE not in context.loaded:
        context.loaded[TABLE] = open_table(context.folder / TABLE, clean)
    arrays, name = read_arrays(context, number, "key"), context.held["sources"][task[0]].name
    where, emptied, changed = read_where(context, number), [], 0
    with (
        written_aside(context.path(LINES, number, "changed")) as file,
        written_aside(context.path(LINES, number, "ledger")) as ledger,
    ):
        for i, record, left in _without(context.loaded[TABLE], _texts(context, number, task), arrays["key"]):
            if left == record.text:
                continue
            key = arrays["key"][i].tobytes()
            if len(left) < clean.min_chars or not left.strip():
                emptied.append(i)
                ledger.write(ledger_line(name, where[i], key, reason=ONLY_REPEATED))
                continue
            changed += 1
            ledger.write(ledger_line(name, where[i], key, rules=[RULE]))
            content = pack_record(replace(record, text=left))
            file.write(HEAD.pack(i, len(content)) + content)
    return {"emptied": emptied, "changed": changed}


def _texts(context: Context, number: int, task: tuple[int, Part]) -> Iterator[tuple[int, Record]]:
    left = np.frombuffer(read_bytes(context.path(COUNT, number, "left")), np.uint8)
    return ((i, record) for i, record in kept_records(context, number, task, left) if not record.is_whole())


def _without(
    table: RepeatedLines, records: Iterator[tuple[int, Record]], keys: np.ndarray
) -> Iterator[tuple[int, Record, str]]:
    """Yields (number, record, what is left of its text)."""
    while batch := list(itertools.islice(records, BATCH)):
        named = [document_key(keys[i].tobytes(), "train") for i, _ in batch]
        for (i, record), (left, _) in zip(batch, table.remove([record.text for _, record in batch], named)):
            yield i, record, left


def open_table(path: Path, clean: CleanConfig) -> RepeatedLines:
    return RepeatedLines(load_array(path), rule_of(clean))


def read_changed(context: Context, number: int) -> dict[int, Record]:
    """The documents of a part that lost lines, by their numbers."""
    path, found, at = context.path(LINES, number, "changed"), {}, 0
    content = read_bytes(path) if path.exists() else b""
    while at < len(content):
        i, size = HEAD.unpack_from(content, at)
        at += HEAD.size + size
        found[i] = unpack_record(content[at - size : at])
    return found


def _stem(context: Context, number: int) -> Path:
    return context.folder / COUNT / f"{number:05d}"
