"""What does the data of a configuration look like: counts, what was dropped, and real rows with what is learned in them?

python -m data_pipeline.show --config=configs/finetune.py
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from data_pipeline.batch import Data, open_data
from data_pipeline.config import SPLITS
from data_pipeline.report import format_report
from data_pipeline.schema import ConfigError, split_flags
from data_pipeline.store import Shard
from data_pipeline.tasks import cut_chunks
from data_pipeline.tokenizer import OURS, Tokenizer

GREEN, GREY, RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"
TIMED_BATCHES = 50
QUANTILES = (0.5, 0.9, 0.99, 1.0)

USAGE = """
usage: python -m data_pipeline.show --config=FILE [--split=train|validation|test] [--rows=2] [--ids]
         [--augmented=DOCUMENTS [--epoch=0]] [--config.data.KEY=VALUE ...]

Prepares the data if need be and prints its sources, counts, drops and rows. Text that is learned is green on a terminal
and in [[double brackets]] elsewhere or with NO_COLOR set; --ids shows token by token.
--augmented=2 shows, in place of rows, the first 2 training documents of each source with what augmentation changes in an epoch.

example: python -m data_pipeline.show --config=configs/finetune.py --split=validation --rows=4
"""


def format_row(data: Data, batch: dict[str, np.ndarray], row: int, colour: bool, ids: bool = False) -> Iterator[str]:
    """Yields one line a segment: its ids as text, with those that are learned marked; `ids` shows them token by token."""
    segments = batch["segments"][row]
    learn, skip, end = (GREEN, GREY, RESET) if colour else ("[[", "", "]]")
    write = _tokens if ids else _readable
    for number in range(1, int(segments.max()) + 1):
        inside = np.flatnonzero(segments == number)
        if data.classes:
            name = data.classes.names[batch["targets"][row, inside[-1]]]
            yield f"  segment {number}, {len(inside)} tokens, its class learned at the last:"
            text = f"{skip}{write(data, batch['tokens'][row, inside])}{RESET if colour else ''} {learn}-> {name}{end}"
            yield from ("    " + line for line in text.split("\n"))
            continue
        # input 0, then the targets: the whole stretch of the document, each id once
        numbers = np.concatenate([batch["tokens"][row, inside[:1]], batch["targets"][row, inside]])
        learned = np.concatenate([[False], batch["weights"][row, inside] > 0])
        cuts = np.flatnonzero(np.diff(learned)) + 1
        text = ""
        for part, learned_part in zip(np.split(numbers, cuts), np.split(learned, cuts)):
            if learned_part[0]:
                text += f"{learn}{write(data, part)}{end}"
            else:
                text += f"{skip}{write(data, part)}{RESET if colour else ''}"
        yield f"  segment {number}, {len(inside)} tokens, {int(learned.sum())} learned:"
        yield from ("    " + line for line in text.split("\n"))
    padding = int((segments == 0).sum())
    if padding:
        yield f"  padding: {padding} tokens"


def _special_names(tokenizer: Tokenizer) -> dict[int, str]:
    names = {number: name for name, number in tokenizer.special_names.items()}
    if tokenizer.special == OURS:
        names |= {number: f"<{name}>" for name, number in asdict(OURS).items()}
    return names


def _readable(data: Data, ids: np.ndarray) -> str:
    names, out, plain = _special_names(data.tokenizer), "", b""
    for number in ids.tolist():
        if number in names:
            out, plain = out + plain.decode("utf-8", "replace") + names[number], b""
        else:
            plain += data.tokenizer.piece(number)
    return out + plain.decode("utf-8", "replace")


def _texts(data: Data, ids: np.ndarray) -> list[str]:
    """Returns a text for each id, or for ids that only together are a character."""
    names, texts, plain = _special_names(data.tokenizer), [], b""
    for number in ids.tolist():
        plain += names.get(number, "").encode() or data.tokenizer.piece(number)
        try:
            texts.append(plain.decode())
            plain = b""
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                texts.append(plain.decode("utf-8", "replace"))
                plain = b""
    return texts + [plain.decode("utf-8", "replace")] * bool(plain)


def _tokens(data: Data, ids: np.ndarray) -> str:
    """Writes each token as its id and its text, the bytes of one that is no whole character in hexadecimal."""
    names, words = _special_names(data.tokenizer), []
    for number in ids.tolist():
        piece = data.tokenizer.piece(number)
        try:
            text = names.get(number) or json.dumps(piece.decode(), ensure_ascii=False)
        except UnicodeDecodeError:
            text = f"<{piece.hex()}>"
        words.append(f"{number}:{text}")
    return " ".join(words)


def format_lengths(data: Data) -> Iterator[str]:
    """Yields how long documents are, and what of prompts and answers is cut, also at other row lengths."""
    quantiles = ", ".join(f"{q:.0%}" for q in QUANTILES)
    yield f"tokens a document (quantiles {quantiles}); rows have {data.config.seq_len}:"
    for split in SPLITS:
        for number, reader in data.readers[split]:
            name, shard, cut = data.sources[number].name, reader.shard, reader.chunks.cut
            sizes = np.diff(shard.offsets)
            line = f"  {name} {split}: {_quantiles(sizes)}; {len(reader):,} rows, {reader.fill():.1%} full"
            pairs = shard.loss_start >= 0
            if cut.pairs:
                starts = shard.loss_start
                line += f"; prompts {_quantiles(starts[pairs])}, completions {_quantiles((sizes - starts)[pairs])}"
                line += f"; {cut.cut_prompts:,} of {cut.pairs:,} prompts cut"
            if cut.chats:
                line += f"; {cut.answers - cut.pairs:,} answers in {cut.chats:,} conversations, {cut.lost_chats:,} of them left out"
            yield line
            if cut.answers:
                yield from _format_cuts(data, shard)


def _format_cuts(data: Data, shard: Shard) -> Iterator[str]:
    """Yields what some row lengths cut: the one that is set, and others by factors of two until all fit."""
    config, longest = data.config, int(np.diff(shard.offsets).max())
    lengths = [config.seq_len // 2, config.seq_len]
    while lengths[-1] < longest - 1:
        lengths.append(lengths[-1] * 2)
    for length in lengths:
        cut = cut_chunks(
            shard.offsets, shard.loss_start, length, config.add_bos, config.loss_on_prompt, shard.learned
        ).cut
        shares = ((cut.cut_documents, cut.pairs + cut.chats, "documents"), (cut.cut_answers, cut.answers, "answers"),
                  (cut.cut_answer_tokens, cut.answer_tokens, "answer tokens"))  # fmt: skip
        here = " (as set)" if length == config.seq_len else ""
        yield f"    rows of {length:,}{here} cut " + ", ".join(
            f"{some / max(all_, 1):.1%} of {what}" for some, all_, what in shares
        )


def _quantiles(values: np.ndarray) -> str:
    return " / ".join(f"{v:,.0f}" for v in np.quantile(values, QUANTILES))


def show(data: Data, split: str, rows: int, colour: bool, ids: bool = False, steps: int = 0) -> Iterator[str]:
    entries: list[dict[str, Any]] = data.prepared.manifest["sources"]
    yield from format_report(entries, data.tokenizer)
    yield f"Prepared data and ledger.jsonl: {data.prepared.folder}\n"
    yield from format_lengths(data)
    if steps:
        yield from data.describe_steps(steps)
    if not data.has_split(split):
        have = ", ".join(s for s in SPLITS if data.has_split(s))
        raise ConfigError(f"--split={split}: no document fell into it; there are {have}")
    yield f"\n{rows} rows of {split} (what is learned is marked):"
    if split == "train":
        batches = data.train_batches(0, (0, data.config.batch_size))
        batch = next(batches)
        began = time.monotonic()
        tokens = sum(int((next(batches)["segments"] > 0).sum()) for _ in range(TIMED_BATCHES))
        speed = tokens / (time.monotonic() - began)
        batches.close()
        yield f"(reading gives {speed / 1e6:.1f} million tokens/s here)"
    else:
        batch = next(data.eval_batches(split, max(rows, 1), (0, max(rows, 1))))
    for row in range(min(rows, len(batch["tokens"]))):
        yield f"row {row}:"
        yield from format_row(data, batch, row, colour, ids)


def main(argv: list[str]) -> None:
    from lm.check import count_steps, read_config

    names = {"config": "", "split": "train", "rows": "2", "ids": "false", "augmented": "0", "epoch": "0"}
    flags, overrides = split_flags(argv, names, USAGE)
    problems = [] if flags["config"] else ["name a config file: --config=configs/finetune.py; see --help"]
    if flags["split"] not in SPLITS:
        problems.append(f"--split: must be one of {', '.join(SPLITS)}, got {flags['split']!r}")
    problems += [
        f"--{name}: expected a whole number from 0, got {flags[name]!r}"
        for name in ("rows", "augmented", "epoch")
        if not (flags[name].isdecimal() and flags[name].isascii() and int(flags[name]) < 2**31)
    ]
    if problems:
        raise ConfigError(problems)
    config = read_config(flags["config"], overrides)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    data, rows, documents = open_data(config.data), int(flags["rows"]), int(flags["augmented"])
    if documents:
        from data_pipeline.augment.preview import preview

        lines = preview(data, documents, int(flags["epoch"]), colour, lambda ids: _texts(data, ids))
    else:
        steps = count_steps(config, data.summary()["rows"]["train"]).train.steps
        lines = show(data, flags["split"], rows, colour, flags["ids"] == "true", steps)
    for line in lines:
        print(line)
    print(f"\nNext: python launch.py --config={flags['config']}")


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
