"""What does a person want to read about prepared data: how much, from where, what was dropped or changed and why?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_pipeline.config import SPLITS
from data_pipeline.tokenizer import Tokenizer


def format_report(entries: list[dict[str, Any]], tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the lines of report.md: `entries` is the manifest's list of sources."""
    yield "# Prepared data\n"
    yield "| source | split | documents | tokens | MB of text | bytes a token |"
    yield "|---|---|---|---|---|---|"
    for entry in entries:
        for split in SPLITS:
            if counts := entry["splits"].get(split):
                size, tokens = counts["bytes"], counts["tokens"]
                yield (
                    f"| {entry['name']} | {split} | {counts['documents']:,} | {tokens:,} | {size / 1e6:,.2f} "
                    f"| {size / max(tokens, 1):.2f} |"
                )
            elif kept := entry["kept"].get(split):
                yield f"| {entry['name']} | {split} | {kept:,} | read while training | | |"
    yield f"\nTokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} ids, sha256 {tokenizer.sha256[:12]}.\n"
    for entry in entries:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in entry["dropped"].items()) or "none"
        changed = ", ".join(f"{count:,} by {rule}" for rule, count in entry["changed"].items()) or "none"
        yield f"- {entry['name']}: {entry['read']:,} read; dropped: {dropped}; changed: {changed}."
        for split, counts in entry["splits"].items():
            if counts["unknown"]:
                yield f"  - {counts['unknown']:,} tokens of {split} are unknown to the tokenizer."
    yield "\nEvery dropped document stands in ledger.jsonl with its place and reason, and every edited one."
