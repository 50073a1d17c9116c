"""What does the data of a configuration look like: counts, what was dropped, and real rows with what is learned in them?

python -m data_pipeline.show --config=configs/finetune.py
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipeline.batch import Data, open_data
from data_pipeline.config import SPLITS
from data_pipeline.report import format_report
from data_pipeline.schema import ConfigError, split_flags

GREEN, GREY, RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"
TIMED_BATCHES = 50
QUANTILES = (0.5, 0.9, 0.99, 1.0)

USAGE = """
usage: python -m data_pipeline.show --config=FILE [--split=train|validation|test] [--rows=2] [--config.data.KEY=VALUE ...]

Prepares the data if need be and prints its sources, counts, drops and rows. Text that is learned is green on a terminal
and in [[double brackets]] elsewhere or with NO_COLOR set.

example: python -m data_pipeline.show --config=configs/finetune.py --split=validation --rows=4
"""


def format_row(data: Data, batch: dict[str, np.ndarray], row: int, colour: bool) -> Iterator[str]:
    """Yields one line a segment: its ids as text, with the ids that are learned marked."""
    segments = batch["segments"][row]
    learn, skip, end = (GREEN, GREY, RESET) if colour else ("[[", "", "]]")
    for number in range(1, int(segments.max()) + 1):
        inside = np.flatnonzero(segments == number)
        # input 0, then the targets: the whole stretch of the document, each id once
        ids = np.concatenate([batch["tokens"][row, inside[:1]], batch["targets"][row, inside]])
        learned = np.concatenate([[False], batch["weights"][row, inside] > 0])
        cuts = np.flatnonzero(np.diff(learned)) + 1
        text = ""
        for ids_part, learned_part in zip(np.split(ids, cuts), np.split(learned, cuts)):
            if learned_part[0]:
                text += f"{learn}{_readable(data, ids_part)}{end}"
            else:
                text += f"{skip}{_readable(data, ids_part)}{RESET if colour else ''}"
        yield f"  segment {number}, {len(inside)} tokens, {int(learned.sum())} learned:"
        yield from ("    " + line for line in text.split("\n"))
    padding = int((segments == 0).sum())
    if padding:
        yield f"  padding: {padding} tokens"


def _readable(data: Data, ids: np.ndarray) -> str:
    special = data.tokenizer.special
    names = {special.bos: "<bos>", special.eos: "<eos>", special.mask: "<mask>", special.unk: "<unk>"}
    out, plain = "", []
    for number in ids.tolist():
        if number in names and number >= 0:
            out += data.tokenizer.decode(plain) + names[number]
            plain = []
        else:
            plain.append(number)
    return out + data.tokenizer.decode(plain)


def format_lengths(data: Data) -> Iterator[str]:
    """Yields how long documents are, and what of prompts and completions is cut."""
    quantiles = ", ".join(f"{q:.0%}" for q in QUANTILES)
    yield f"tokens a document (quantiles {quantiles}); rows have {data.config.seq_len}:"
    for split in SPLITS:
        for number, reader in data.readers[split]:
            name, chunks = data.sources[number].name, reader.chunks
            sizes = np.diff(reader.shard.offsets)
            line = f"  {name} {split}: {_quantiles(sizes)}; {len(reader):,} rows, {reader.fill():.1%} full"
            if chunks.pairs:
                starts = reader.shard.loss_start
                pairs = starts >= 0
                line += f"; prompts {_quantiles(starts[pairs])}, completions {_quantiles((sizes - starts)[pairs])}"
                line += (
                    f"; cut: {chunks.cut_prompts:,} prompts, {chunks.cut_completions:,} completions of {chunks.pairs:,}"
                )
            yield line


def _quantiles(values: np.ndarray) -> str:
    return " / ".join(f"{v:,.0f}" for v in np.quantile(values, QUANTILES))


def show(data: Data, split: str, rows: int, colour: bool) -> Iterator[str]:
    entries: list[dict[str, Any]] = data.prepared.manifest["sources"]
    yield from format_report(entries, data.tokenizer)
    yield f"Prepared data and drops.jsonl: {data.prepared.folder}\n"
    yield from format_lengths(data)
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
        yield from format_row(data, batch, row, colour)


def main(argv: list[str]) -> None:
    from lm.check import read_config

    flags, overrides = split_flags(argv, {"config": "", "split": "train", "rows": "2"}, USAGE)
    problems = [] if flags["config"] else ["name a config file: --config=configs/finetune.py; see --help"]
    if flags["split"] not in SPLITS:
        problems.append(f"--split: must be one of {', '.join(SPLITS)}, got {flags['split']!r}")
    if not flags["rows"].isdecimal():
        problems.append(f"--rows: expected a number of rows, got {flags['rows']!r}")
    if problems:
        raise ConfigError(problems)
    config = read_config(flags["config"], overrides)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in show(open_data(config.data), flags["split"], int(flags["rows"]), colour):
        print(line)
    print(f"\nNext: python launch.py --config={flags['config']}")


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
