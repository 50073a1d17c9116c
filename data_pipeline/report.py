"""What does a person want to read about prepared data: how much, from where, what was dropped or changed and why?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.config import SPLITS
from data_pipeline.html_report import write_html
from data_pipeline.sealed import read_bytes
from data_pipeline.store import VIEW, Prepared, explain_write, resign
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.whole_file import written_aside


def write_view(folder: Path, credits: dict[str, dict[str, str]]) -> None:
    """Writes report.html from the report.json of a folder."""
    report = json.loads(read_bytes(folder / "report.json"))
    with written_aside(folder / VIEW) as file:
        file.write("".join(write_html(report, credits)).encode("utf-8", "backslashreplace"))


def recredit(prepared: Prepared, credits: dict[str, dict[str, str]]) -> Prepared:
    """Writes what is said now of the sources into a folder that was prepared before; its content stays as it is."""
    if prepared.manifest["credits"] != credits or not (prepared.folder / VIEW).exists():
        try:
            write_view(prepared.folder, credits)
            resign(prepared, {"credits": credits})
        except OSError as error:
            raise explain_write(str(prepared.folder), error) from None
    return prepared


def format_report(
    entries: list[dict[str, Any]], tokenizer: Tokenizer, languages: dict[str, Any] | None = None
) -> Iterator[str]:
    """Yields the lines of report.md: `entries` and `languages` are those of the manifest."""
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
    yield from _languages(languages or {})
    for entry in entries:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in entry["dropped"].items()) or "none"
        changed = ", ".join(f"{count:,} by {rule}" for rule, count in entry["changed"].items()) or "none"
        yield f"- {entry['name']}: {entry['read']:,} read; dropped: {dropped}; changed: {changed}."
        for split, counts in entry["splits"].items():
            if counts["unknown"]:
                yield f"  - {counts['unknown']:,} tokens of {split} are unknown to the tokenizer."
    yield "\nEvery dropped document stands in ledger.jsonl with its place and reason, and every edited one. report.html shows examples."


def _languages(languages: dict[str, Any]) -> Iterator[str]:
    if not languages:
        return
    yield "| language | documents read | kept | MB kept | bytes a token | tokens a character | tokens a word or Han | byte fallback |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, counts in languages.items():
        found = counts["fertility"]
        rates = (found["bytes_per_token"], found["tokens_per_char"], found["tokens_per_word"])
        cells = " | ".join("-" if rate is None else f"{rate:.2f}" for rate in rates)
        fallback = "-" if found["fallback"] is None else f"{found['fallback']:.2%}"
        kept = f"{counts['documents_out']:,} | {counts['bytes_out'] / 1e6:,.2f}"
        yield f"| {name} | {counts['documents_in']:,} | {kept} | {cells} | {fallback} |"
    yield ""
