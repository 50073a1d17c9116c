"""What do the manifest and the reports say of a preparation: totals, versions of the rules, inputs, settings?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.accounts import Accounts
from data_pipeline.config import DataConfig
from data_pipeline.lines import hash_file
from data_pipeline.records import Source
from data_pipeline.sources import FileSource
from data_pipeline.tokenizer import Tokenizer


def totals(entries: list[dict[str, Any]], bytes_in: int) -> dict[str, Any]:
    """What the manifest says of all sources together."""
    splits: dict[str, Counter[str]] = {}
    for entry in entries:
        for split, documents in entry["kept"].items():
            counts = {**entry["splits"].get(split, {}), "documents": documents}
            splits.setdefault(split, Counter()).update(counts)
    dropped, edited = (sum((Counter(entry[key]) for entry in entries), Counter()) for key in ("dropped", "changed"))
    read = sum(entry["read"] for entry in entries)
    return {
        "bytes_in": bytes_in, "documents_in": read, "documents_out": read - dropped.total(),
        "dropped": dict(sorted(dropped.items())), "edited": dict(sorted(edited.items())),
        "splits": {split: dict(counts) for split, counts in sorted(splits.items())},
    }  # fmt: skip


def versions() -> dict[str, str]:
    """The sha256 of the code of each rule."""
    here = Path(__file__).parents[1]
    return {f"{path.parent.name}/{path.name}": hash_file(str(path)) for path in sorted(here.glob("rules/*.py"))}


def inputs(sources: Sequence[Source]) -> dict[str, Any]:
    """Of each source its files with size and sha256; of one that is not files what it is known by."""
    return {
        source.name: [
            {"file": file.path.encode("utf-8", "backslashreplace").decode(), "bytes": file.size, "sha256": file.sha256}
            for file in source.files
        ]
        if isinstance(source, FileSource)
        else source.identity()
        for source in sources
    }


def about(config: DataConfig, sources: Sequence[Source], tokenizer: Tokenizer, accounts: Accounts) -> dict[str, Any]:
    """What manifest.json and report.json have beside the totals."""
    return {
        "languages_by": "model" if config.clean.tells_languages() else "script", "languages": accounts.by_language(),
        "rules": versions(), "inputs": inputs(sources),
        "tokenizer": {"kind": tokenizer.kind, "ids": tokenizer.vocab_size, "sha256": tokenizer.sha256},
    }  # fmt: skip
