"""How do sources become a folder of token ids that is made once and used by every run with the same text and rules?

    python -m data_pipeline.prepare --config=configs/pretrain.py

The folder's name is a hash of what made it: the bytes of the sources, the rules and their code, the split, the tokenizer. Row length,
batch size, packing, mixture weights, seed and augmentation are no part of it; they only order what is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipeline.augment import is_on
from data_pipeline.chat import template_source
from data_pipeline.config import SPLITS, DataConfig
from data_pipeline.mix import hash64
from data_pipeline.records import Record, Source, pack_record, unpack_record
from data_pipeline.report import format_report
from data_pipeline.scan import PROGRESS_SECONDS, Document, Scan
from data_pipeline.schema import ConfigError, UserError, split_flags
from data_pipeline.sources import open_sources
from data_pipeline.store import (
    Prepared,
    ShardWriter,
    commit,
    explain_write,
    make_temporary,
    open_prepared,
    set_aside,
    write_text,
)
from data_pipeline.tasks import check_tokenizer, to_ids
from data_pipeline.tokenizer import STAND_IN, Tokenizer
from data_pipeline.train_tokenizer import find_tokenizer, train_tokenizer

Log = Callable[[str], None]
# Prepared data is made anew when the code of one of these changes: a version number would be forgotten. Runs that use data
# whose content stays the same are not affected, since their fingerprint is of the content.
CODE = ("built_in_templates", "chat", "chat_template", "clean", "conversation", "forms", "hf_folder", "hf_tokenizer", "lines",
        "marks", "mix", "package_source", "parse", "prepare", "records", "scan", "sentencepiece_tokenizer", "sources",
        "split", "store", "tasks", "tfds_source", "tokenizer", "train_tokenizer")  # fmt: skip
BATCH_CHARS = 1_000_000  # characters that are encoded at once
STRETCH = 10_000  # characters that tokenizer training takes or leaves together
HEAD = struct.Struct("<QQ")  # of a spooled document: key, bytes


def prepare(config: DataConfig, log: Log) -> tuple[Prepared, list[Source]]:
    """Returns the prepared data of `config`, made now or taken from the cache, and its opened sources."""
    sources = open_sources(config, log)
    tokenizer = find_tokenizer(config.tokenizer)
    assert tokenizer or not config.streaming  # check_data_config
    made_of = _made_of(config, sources, tokenizer)
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    cache = Path(config.cache_dir).expanduser()
    folder = cache / key
    if folder.exists():
        found = open_prepared(folder)
        if isinstance(found, Prepared):
            return found, sources
        log(f"prepared data in {folder} is damaged: {found}; making it anew")
        set_aside(folder)
    temporary = make_temporary(cache, key)
    try:
        manifest = {"key": key, "made_of": made_of} | _build(config, sources, tokenizer, temporary, log)
        return commit(temporary, folder, manifest), sources
    except OSError as error:
        raise explain_write(cache, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _made_of(config: DataConfig, sources: list[Source], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Everything that the content of the folder depends on, as JSON."""
    import sentencepiece

    described = []
    for source in sources:
        keys = asdict(source.config)
        for name in ("path", "weight", "tfds_dir"):  # the same bytes elsewhere, or in another share, are the same
            del keys[name]
        described.append([source.name, keys, source.identity()])
    files = [
        *(Path(__file__).with_name(f"{name}.py") for name in CODE),
        *sorted(Path(__file__).parent.glob("rules/*.py")),
    ]
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    trained = {k: v for k, v in asdict(config.tokenizer).items() if k != "path"}
    return {
        "code": code.hexdigest(), "sources": described, "clean": asdict(config.clean),
        "split": asdict(config.split), "add_bos": config.add_bos, "streaming": config.streaming,
        "bad_rows": [config.on_bad, config.max_bad_fraction, config.max_line_bytes, config.allow_leak],
        "chat": [template_source(tokenizer or STAND_IN, config.chat)[0], config.chat.date],
        "tokenizer": tokenizer.sha256 if tokenizer else [trained, sentencepiece.__version__],
    }  # fmt: skip


def _build(
    config: DataConfig, sources: list[Source], tokenizer: Tokenizer | None, folder: Path, log: Log
) -> dict[str, Any]:
    began = time.monotonic()
    add_eos = config.split.by == "hash"
    spool = folder / "spool"
    spool.mkdir()
    drops: list[str] = []

    def on_drop(source: str, where: str, reason: str) -> None:
        drops.append(json.dumps({"source": source, "where": where, "reason": reason}, ensure_ascii=False))

    scan = Scan(sources, config, log, on_drop, tokenizer or STAND_IN)
    train_chars = _spool(scan, config, spool, folder)
    write_text(folder / "drops.jsonl", drops)
    if tokenizer is None:
        if not train_chars:
            raise UserError("no document is in the train split, so there is nothing to train a tokenizer on")
        limit = train_chars if config.tokenizer.kind == "char" else config.tokenizer.train_chars
        log(
            f"training a {config.tokenizer.kind} tokenizer on {min(train_chars, limit):,} of {train_chars:,} characters"
        )
        tokenizer = train_tokenizer(config.tokenizer, _train_texts(spool, len(sources), train_chars, limit))
    if scan.cleaner.chat:
        tokenizer.template = scan.cleaner.chat.source  # whoever loads the tokenizer writes conversations the same way
    tokenizer.save(folder / "tokenizer")
    check_tokenizer(tokenizer, config.add_bos, add_eos, is_on(config.augment))
    entries = []
    for number, source in enumerate(sources):
        entry: dict[str, Any] = {"name": source.name, **scan.tallies[number].to_json(), "splits": {}}
        for split in SPLITS:
            path = spool / f"{number:02d}.{split}"
            if path.exists():
                entry["splits"][split] = _encode(path, number, source.name, split, tokenizer, config, folder, log)
        entries.append(entry)
    shutil.rmtree(spool)
    result = {"seconds": round(time.monotonic() - began, 2), "sources": entries}
    write_text(folder / "report.json", [json.dumps(result, indent=1, ensure_ascii=False)])
    write_text(folder / "report.md", format_report(entries, tokenizer))
    return result


def _spool(scan: Scan, config: DataConfig, spool: Path, folder: Path) -> int:
    """Writes kept documents to files by source and split, so memory stays small; returns characters of the train split.

    Streaming keeps only the places of training documents.
    """
    train_chars = 0
    places: dict[int, tuple[list[tuple[int, ...]], list[int]]] = {}
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for document in scan:
            if document.split == "train":
                train_chars += sum(map(len, document.record.parts()))
                if config.streaming:
                    where, keys = places.setdefault(document.source, ([], []))
                    where.append(tuple(document.place))
                    keys.append(document.key)
                    continue
            name = f"{document.source:02d}.{document.split}"
            if name not in files:
                files[name] = stack.enter_context(open(spool / name, "wb"))
            _write_document(files[name], document)
    for source, (where, keys) in places.items():
        np.save(folder / f"{source:02d}.train.places.npy", np.array(where, np.int64))
        np.save(folder / f"{source:02d}.train.keys.npy", np.array(keys, np.uint64))
    return train_chars


def _write_document(file: IO[bytes], document: Document) -> None:
    content = pack_record(document.record)
    file.write(HEAD.pack(document.key, len(content)))
    file.write(content)


def _read_documents(path: Path) -> Iterator[tuple[int, Record]]:
    with open(path, "rb") as file:
        while head := file.read(HEAD.size):
            key, size = HEAD.unpack(head)
            yield key, unpack_record(file.read(size))


def _train_texts(spool: Path, sources: int, total: int, limit: int) -> Iterator[str]:
    """Yields the training texts, or where there are more than `limit` characters an even, repeatable sample of stretches."""
    for number in range(sources):
        path = spool / f"{number:02d}.train"
        for key, record in _read_documents(path) if path.exists() else ():
            text = "".join(record.parts())
            if record.rendered:  # names of special tokens are no text
                text = STAND_IN.name_pattern.sub("\n", text)
            if total <= limit:
                yield text
                continue
            starts = np.arange(0, len(text), STRETCH)
            drawn = hash64(np.uint64(key) ^ hash64(starts.astype(np.uint64))) / 2.0**64 < limit / total
            yield from (text[start : start + STRETCH] for start in starts[drawn].tolist())


def _encode(
    path: Path, number: int, source: str, split: str, tokenizer: Tokenizer, config: DataConfig, folder: Path, log: Log
) -> dict[str, int]:
    writer = ShardWriter(folder, number, split, tokenizer.vocab_size, tokenizer.special.unk)
    size, began = path.stat().st_size, time.monotonic()
    said, n_bytes = began, 0
    waiting: list[tuple[int, Record]] = []
    chars = 0

    add_eos = config.split.by == "hash"

    def flush() -> None:
        records = [record for _, record in waiting]
        for (key, _), ids, start, learned in zip(waiting, *to_ids(records, tokenizer, config.add_bos, add_eos)):
            writer.add(ids, start, key, f"source {source}, {split} document {len(writer.keys)}", learned)
        waiting.clear()

    for key, record in _read_documents(path):
        waiting.append((key, record))
        chars += sum(map(len, record.parts()))
        n_bytes += sum(len(part.encode()) for part in record.parts())
        if chars >= BATCH_CHARS:
            flush()
            chars = 0
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                left = (said - began) * max(size / max(n_bytes, 1) - 1, 0)
                log(f"encoding {source} {split}: {n_bytes / 1e6:,.0f} of {size / 1e6:,.0f} MB, {left:.0f} s left")
    flush()
    return {**writer.close(), "bytes": n_bytes}


USAGE = """
usage: python -m data_pipeline.prepare --config=FILE [--config.data.KEY=VALUE ...]

Reads, cleans, splits and tokenises the sources of a configuration ahead of training, and prints the report. Training
with the same configuration then starts at once.

example: python -m data_pipeline.prepare --config=configs/pretrain.py
"""


def main(argv: list[str]) -> None:
    from lm.check import read_config

    flags, overrides = split_flags(argv, {"config": ""}, USAGE)
    if not flags["config"]:
        raise ConfigError(
            "name a config file: python -m data_pipeline.prepare --config=configs/pretrain.py; see --help"
        )
    config = read_config(flags["config"], overrides).data
    prepared, _ = prepare(config, print)
    print((prepared.folder / "report.md").read_text("utf-8"))
    print(f"prepared data: {prepared.folder}. Next: python -m data_pipeline.show --config={flags['config']}")


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
