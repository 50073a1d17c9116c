"""Why is a document in training, or not, and which documents are in a row of a training step?

python -m data_pipeline.explain --config=configs/pretrain.py --step=120 --row=3
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.batch import Data, open_data
from data_pipeline.config import SPLITS
from data_pipeline.documents import split_where
from data_pipeline.scan import document_key
from data_pipeline.schema import ConfigError, UserError, run_main, split_flags
from data_pipeline.sealed import open_to_read
from data_pipeline.store import Prepared, open_prepared

PREVIEW = 60  # characters of a document that are shown

USAGE = """
usage: python -m data_pipeline.explain (--config=FILE | --data=DIR) --doc=ID | --file=NAME[:LINE]
       python -m data_pipeline.explain --config=FILE --step=N --row=M

--doc: what became of a document, by its id in ledger.jsonl: kept in which split, edited by which rules, or dropped why.
--file: the same by the end of the file's name, and a line.
--step, --row: the documents in row M of training step N (both from 0), with file, line and what edited them, and the licence of
  their source.

example: python -m data_pipeline.explain --config=configs/pretrain.py --step=120 --row=3
"""


def read_ledger(
    prepared: Prepared, wanted: Callable[[dict[str, Any]], bool], hint: str = ""
) -> Iterator[dict[str, Any]]:
    """The lines of the ledger that are `wanted`; only lines with `hint` in them are looked at."""
    with open_to_read(prepared.folder / "ledger.jsonl") as file:
        for line in file:
            if hint.encode() in line and wanted(entry := json.loads(line)):
                yield entry


def describe(entry: dict[str, Any]) -> str:
    what = (
        f"dropped: {entry['reason']}{_match(entry)}" if "reason" in entry else f"edited by {', '.join(entry['rules'])}"
    )
    return f"{place(entry['file'], entry['line'])}  source {entry['source']}, id {entry['id']}: {what}"


def _match(entry: dict[str, Any]) -> str:
    found = entry.get("match")
    return f", {found['text']!r} is in {found['where']}" if found else ""


def place(file: str, line: int | None) -> str:
    return f"{file}:{line}" if line else file


def kept(prepared: Prepared, chosen: Callable[[int, str], np.ndarray]) -> Iterator[str]:
    """Describes the kept documents that `chosen` picks of each source and split."""
    for source, name in enumerate(prepared.sources):
        for split in SPLITS:
            if prepared.has_shard(source, split):
                files, origins = prepared.origins(source, split)
                shard = prepared.shard(source, split)
                for document in chosen(source, split).tolist():
                    file, line = origins[document].tolist()
                    tokens = int(shard.offsets[document + 1] - shard.offsets[document])
                    yield f"{place(files[file], line)}  source {name}: kept, {split} document {document}, {tokens} tokens"


def explain_id(prepared: Prepared, name: str) -> Iterator[str]:
    try:
        key = bytes.fromhex(name)
    except ValueError:
        raise ConfigError(f"--doc={name}: an id is 32 hexadecimal digits, as in ledger.jsonl") from None
    yield from map(describe, read_ledger(prepared, lambda entry: entry["id"] == name, name))

    def chosen(source: int, split: str) -> np.ndarray:
        return np.flatnonzero(prepared.shard(source, split).keys == np.uint64(document_key(key, split)))

    yield from kept(prepared, chosen)


def explain_file(prepared: Prepared, name: str) -> Iterator[str]:
    file, line = split_where(name)

    def wanted(entry: dict[str, Any]) -> bool:
        return entry["file"].endswith(file) and (line is None or entry["line"] == line)

    yield from map(describe, read_ledger(prepared, wanted))

    def chosen(source: int, split: str) -> np.ndarray:
        files, origins = prepared.origins(source, split)
        here = np.array([path.endswith(file) for path in files], bool)[origins[:, 0]]
        return np.flatnonzero(here & (origins[:, 1] == line) if line is not None else here)

    yield from kept(prepared, chosen)


def explain_row(data: Data, step: int, row: int) -> Iterator[str]:
    if data.config.streaming:
        raise UserError(
            "rows of a stream are not numbered: prepare the data (config.data.streaming=False) to trace them"
        )
    source, epoch, held = data.trace(step, row)
    prepared = data.prepared
    files, origins = prepared.origins(source, "train")
    shard, names = prepared.shard(source, "train"), prepared.label_names(source, "train")
    name = prepared.sources[source]
    yield f"step {step}, row {row}: source {name}, its epoch {epoch}, {len(held)} documents"
    yield from (f"  {key}: {text}" for key, text in data.credits()[name].items())
    edits: dict[tuple[str, int | None], list[str]] = {}
    places = {(files[file], line or None) for file, line in (origins[document].tolist() for document, _, _ in held)}
    for entry in read_ledger(prepared, lambda entry: "rules" in entry and (entry["file"], entry["line"]) in places):
        edits.setdefault((entry["file"], entry["line"]), []).extend(entry["rules"])
    for document, start, tokens in held:
        file, line = origins[document].tolist()
        rules = edits.get((files[file], line or None))
        begin = int(shard.offsets[document]) + start
        text = data.tokenizer.decode(shard.ids[begin : begin + PREVIEW].tolist())[:PREVIEW].replace("\n", "⏎")
        told = f", class {names[shard.labels[document]]}" if shard.labels is not None and names else ""
        yield f"  {place(files[file], line)}  document {document}, tokens {start} to {start + tokens}{told}"
        how = f"edited by {', '.join(rules)}" if rules else "as it was"
        yield f"    {how}: {text}"


def main(argv: list[str]) -> None:
    names = ("config", "data", "doc", "file", "step", "row")
    flags, overrides = split_flags(argv, dict.fromkeys(names, ""), USAGE)
    asked = [key for key in ("doc", "file", "step") if flags[key]]
    if len(asked) != 1 or bool(flags["row"]) != bool(flags["step"]) or bool(flags["config"]) == bool(flags["data"]):
        raise ConfigError("name a config or a folder, and one of --doc, --file, --step with --row; see --help")
    if flags["step"] and flags["data"]:
        raise ConfigError("--step needs --config: batch size, packing and seed decide what is in a row")
    data = None
    if flags["config"]:
        from lm.check import read_config

        data = open_data(read_config(flags["config"], overrides).data)
        prepared = data.prepared
    else:
        found = open_prepared(Path(flags["data"]).expanduser())
        if isinstance(found, str):
            raise UserError(f"--data={flags['data']}: {found}")
        prepared = found
    if data and flags["step"]:
        numbers = [flags[key] for key in ("step", "row")]
        if not all(number.isdecimal() and number.isascii() for number in numbers):
            raise ConfigError(f"--step and --row are whole numbers from 0, got {', '.join(numbers)}")
        step, row = map(int, numbers)
        if row >= data.config.batch_size:
            raise ConfigError(f"--row={row}: a batch has rows 0 to {data.config.batch_size - 1}")
        lines = list(explain_row(data, step, row))
    else:
        lines = list(explain_id(prepared, flags["doc"]) if flags["doc"] else explain_file(prepared, flags["file"]))
    print("\n".join(lines) or "no such document was read")


if __name__ == "__main__":
    run_main(main)
