"""How good are the texts that a model generates? A command; what it measures stands in lm/text_measures.py.

python -m lm.text_scores --workdir=runs/finetune --file=prompts.jsonl --out=generated.jsonl
python -m lm.text_scores --generated=generated.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.config import DataConfig
from data_pipeline.dedup.words import spell
from data_pipeline.lines import read_lines
from data_pipeline.rules.language import script
from data_pipeline.schema import run_main, split_flags
from lm.config import ConfigError, UserError
from lm.text_measures import format_scores, summarise

BATCH = 16  # prompts that are continued at once
SHOWN = 5  # bad rows that are named
Row = dict[str, Any]


def read_rows(path: str, needed: str) -> list[Row]:
    """Returns the rows of a JSONL file; raises UserError that names by file:line those that cannot be used."""
    rows, bad = [], []
    for line in read_lines(path, DataConfig.max_line_bytes):
        if line.raw is not None and not line.raw.strip():
            continue
        row = parse_row(line.raw, needed)
        if isinstance(row, str):
            bad.append(f"{path}:{line.number}: {row}")
        else:
            rows.append(row)
    if bad:
        more = f"\n... and {len(bad) - SHOWN} more rows" if len(bad) > SHOWN else ""
        raise UserError("\n".join(bad[:SHOWN]) + more)
    if not rows:
        raise UserError(f"{path}: no rows; expected one JSON object a line, with {needed!r}")
    return rows


def parse_row(raw: bytes | None, needed: str) -> Row | str:
    """Returns one row, or what is wrong with it."""
    if raw is None:
        return "the line is too long"
    try:
        row = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({' '.join(str(error).split())[:80]})"
    if not isinstance(row, dict):
        return f"the line holds a JSON {type(row).__name__}, expected an object"
    for key in ("prompt", "completion", "generated"):
        value = row.get(key)
        if value is None and key != needed:
            continue
        if not isinstance(value, str):
            return f"{key!r} must be text, got {json.dumps(value)[:40]}" if key in row else f"no field {needed!r}"
        if any("\ud800" <= char <= "\udfff" for char in value):
            return f"{key!r} holds a lone surrogate, which is no character"
        if key == "prompt" and not value and needed == "prompt":
            return "'prompt' is empty, which gives the model nothing to continue"
    if not isinstance(row.get("stopped"), bool | None):
        return f"'stopped' must be true or false, got {json.dumps(row['stopped'])[:40]}"
    return row


def write_on(loaded: Any, tokenizer: Any, rows: Sequence[Row], ids: Sequence[list[int]], most: int, sampling: Any, seed: int,
             stop_ids: Sequence[int], tick: Callable[[int], None]) -> list[Row]:  # fmt: skip
    """Returns the rows with `generated`, `stopped` (at an end token, before `most` tokens) and `tokens`, in their order.

    Prompts of like length are continued together, BATCH at a time; `tick` is told how many tokens are done with, of most a row.
    """
    from lm.generate import generate

    order = sorted(range(len(rows)), key=lambda i: len(ids[i]))
    found: list[Row] = [{} for _ in rows]
    for start in range(0, len(order), BATCH):
        batch, count = order[start : start + BATCH], [start * most]

        def on_token(row: int, token: int, count: list[int] = count) -> None:
            count[0] += 1
            tick(count[0])

        texts = generate(
            loaded.model, loaded.params, [ids[i] for i in batch], max_new_tokens=most, stop_ids=stop_ids, sampling=sampling,
            seed=seed + start, on_token=on_token,
        )  # fmt: skip
        for i, text in zip(batch, texts):
            stream = tokenizer.stream()
            said = "".join(map(stream.push, text)) + stream.close()
            kept = {key: value for key, value in rows[i].items() if key in ("prompt", "completion")}
            found[i] = {**kept, "generated": said, "stopped": len(text) < most, "tokens": len(text)}
        tick((start + len(batch)) * most)
    return found


def continue_rows(rows: Sequence[Row], flags: dict[str, str]) -> list[Row]:
    """Loads the run that the flags name and lets it continue, or answer, the prompts."""
    from data_pipeline.chat import open_trained_chat
    from data_pipeline.tokenizer import load_tokenizer
    from lm import build
    from lm.logger import Ticker
    from lm.sampling import Sampling, check_sampling

    value = {key: build.parse_number(key, flags[key]) for key in NUMBERS}
    most = int(value["max_new_tokens"])
    if not 1 <= most < 2**31:
        raise ConfigError(f"--max_new_tokens must be >= 1, got {flags['max_new_tokens']}")
    sampling = Sampling(value["repetition_penalty"], value["temperature"], int(value["top_k"]), value["top_p"])
    check_sampling(sampling)
    loaded = build.load_run(flags["workdir"], flags["step"], log=lambda text: print(text, file=sys.stderr))
    tokenizer = load_tokenizer(f"{flags['workdir']}/tokenizer")
    if flags["chat"] == "true":
        chat = open_trained_chat(tokenizer, flags["workdir"])
        ids = [
            chat.prompt([{"role": "user", "content": row["prompt"]}], add_bos=loaded.config.data.add_bos)
            for row in rows
        ]
        stop_ids = chat.stop_ids
    else:
        bos = [tokenizer.special.bos] if loaded.config.data.add_bos else []
        ids, stop_ids = [bos + tokenizer.encode(row["prompt"]) for row in rows], tokenizer.stop_ids
    ticker = Ticker("generating tokens", len(rows) * most)
    found = write_on(loaded, tokenizer, rows, ids, most, sampling, int(value["seed"]), stop_ids, ticker.update)
    ticker.close()
    return found


USAGE = """
usage: python -m lm.text_scores --workdir=DIR --file=FILE.jsonl [--out=FILE] [--max_new_tokens=200] [--temperature=0] [--top_k=0]
         [--top_p=1] [--repetition_penalty=1] [--seed=0] [--step=best|last|N] [--chat]
       python -m lm.text_scores --generated=FILE.jsonl

Continues every {"prompt"} of a file with a run's model (--chat: answers it as a message), and scores the texts: distinct-n,
repetition, loops, how many ended, and where rows have a {"completion"}, BLEU and chrF. Prints one JSON line, and a table on stderr.
--out writes the texts; with --generated those of such a file are scored, {"generated"} of any origin, without a model.

example: python -m lm.text_scores --workdir=runs/finetune --file=prompts.jsonl --out=generated.jsonl
"""
NUMBERS = {
    "max_new_tokens": "200", "temperature": "0", "top_k": "0", "top_p": "1", "repetition_penalty": "1", "seed": "0",
}  # fmt: skip


def main(argv: list[str]) -> None:
    texts = {"workdir": "", "file": "", "generated": "", "out": "", "step": "best", "chat": "false"}
    flags, extra = split_flags(argv, {**texts, **NUMBERS}, USAGE)
    with_model = bool(flags["workdir"] and flags["file"])
    if with_model == bool(flags["generated"]) or extra or (flags["generated"] and (flags["workdir"] or flags["file"])):
        raise ConfigError(
            "name a run and a file of prompts, --workdir=DIR --file=FILE.jsonl, or --generated=FILE.jsonl; see --help"
        )
    path, out = flags["file"] or flags["generated"], Path(flags["out"])
    if flags["out"] and (
        not with_model or out.is_dir() or not out.parent.is_dir() or out.resolve() == Path(path).resolve()
    ):
        raise ConfigError(
            f"--out={out} must be a file other than the prompts, in a folder that exists; it goes with --workdir and --file"
        )
    rows = read_rows(path, "prompt" if with_model else "generated")
    if with_model:
        rows = continue_rows(rows, flags)
    if flags["out"]:
        temporary = out.with_name(out.name + ".tmp")
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        temporary.replace(out)
    scores = summarise(rows, lambda text: spell(text)[0], script)
    print(json.dumps({"file": path, **({"workdir": flags["workdir"]} if with_model else {}), **scores}))
    print(format_scores(scores), file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
