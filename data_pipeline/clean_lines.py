"""How are the rules run alone, over lines of JSON or over one text? The command `python -m data_pipeline.clean`."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.check import check_data_config
from data_pipeline.clean import DROPS, EDITS, RULES, Cleaned, clean_many
from data_pipeline.config import PAGE_RULES, PII_KINDS, CleanConfig, DataConfig, SourceConfig
from data_pipeline.lines import BOM, read_lines
from data_pipeline.parse import CsvHead, parse_row
from data_pipeline.records import Bad, Record
from data_pipeline.schema import ConfigError, UserError, nearest, split_flags

USAGE = f"""
usage: python -m data_pipeline.clean [< IN.jsonl > OUT.jsonl | FILE] [--rules=RULE,RULE | default | pages] [--min_chars=1]
       [--max_chars=0] [--anonymize[=mask|surrogate|encrypt]] [--pii_kinds={",".join(PII_KINDS)}] [--bounds=BOUND=NUMBER,KIND.BOUND=NUMBER] [--keep_languages=en,zh] [--bad_words=FILE]

Lines of {{"text": ...}} on standard input: writes each with the text cleaned, "rules" (which changed it) and, where it would be
dropped, "dropped" (why); other fields stay. Bad lines are left out, and reported on standard error with their numbers.
--anonymize masks personal data as <EMAIL>, <PHONE>, <ID>, <CARD>, <IP>, <PLATE> (docs/privacy.md), with --pii_kinds also or only others (ssn, name); surrogate and encrypt take their secret from
the environment variable LM_PII_KEY. FILE (UTF-8 text): writes the cleaned text to standard output and what was changed to standard error.
Neither: lists the rules. --rules=default are those of CleanConfig; without --rules, lines get those for pages
({", ".join(PAGE_RULES)}) and a FILE the default ones.

example: python -m data_pipeline.clean --min_chars=200 --keep_languages=en,zh < pages.jsonl > clean.jsonl
example: python -m data_pipeline.clean notes.txt --rules=line_ends,control,width > clean.txt
"""
STDIN = "/dev/stdin"
BATCH_CHARS, BATCH_LINES = 500_000, 1000  # cleaned at once
SHOWN = 20  # bad lines that are named
Row = dict[str, Any]


def main(argv: list[str]) -> None:
    files = [word for word in argv if not word.startswith("-")]
    names = {"rules": "", "min_chars": "1", "max_chars": "0", "bounds": "", "keep_languages": "", "bad_words": "",
             "anonymize": "", "pii_kinds": ",".join(CleanConfig().pii_kinds)}  # fmt: skip
    words = ["--anonymize=mask" if word == "--anonymize" else word for word in argv if word.startswith("-")]
    flags, _ = split_flags(words, names, USAGE)
    if len(files) > 1:
        raise ConfigError(f"name one file, not {len(files)}; see --help")
    config = _config(flags, CleanConfig().rules if files else PAGE_RULES)
    if files:
        _clean_file(files[0], config)
    elif _has_input():
        _clean_stdin(config)
    else:
        _list_rules()


def _has_input() -> bool:
    """Says whether standard input is a file or a pipe, and not a terminal or nothing."""
    mode = os.fstat(0).st_mode
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def _config(flags: dict[str, str], rules: tuple[str, ...]) -> CleanConfig:
    """Reads the flags; the place where a flag can add rules."""
    problems = []
    sets = {"default": CleanConfig().rules, "pages": PAGE_RULES}
    rules = sets.get(flags["rules"], _words(flags["rules"]) or rules)
    problems += [f"no rule {rule!r}{nearest(rule, list(RULES))}" for rule in rules if rule not in RULES]
    for name in ("min_chars", "max_chars"):
        if not flags[name].isdecimal():
            problems.append(f"--{name} must be a whole number, got {flags[name]!r}")
    if problems:
        raise ConfigError(problems)
    config = CleanConfig(
        rules=rules, min_chars=int(flags["min_chars"]), max_chars=int(flags["max_chars"]), bad_words=flags["bad_words"],
        bounds=_words(flags["bounds"]), keep_languages=_words(flags["keep_languages"]),
        pii=flags["anonymize"], pii_kinds=_words(flags["pii_kinds"]),
    )  # fmt: skip
    if found := check_data_config(DataConfig(path="-", clean=config)):
        named = (problem.replace("config.data.clean.pii:", "--anonymize:") for problem in found)
        raise ConfigError([problem.replace("config.data.clean.", "--") for problem in named])
    return config


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _list_rules() -> None:
    for name, rule in (EDITS | DROPS).items():
        kind = (
            "on by default" if name in CleanConfig().rules else "for pages" if name in PAGE_RULES else "off by default"
        )
        print(f"{name:16} {kind:15} {(rule.__doc__ or '').strip().splitlines()[0]}")


def _clean_file(path: str, config: CleanConfig) -> None:
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    (cleaned,) = clean_many([Record(text)], config)
    if cleaned.reason:
        print(f"the document would be dropped: {cleaned.reason}", file=sys.stderr)
        return
    sys.stdout.buffer.write(cleaned.record.text.encode())  # UTF-8 as it came, whatever the terminal's encoding
    sys.stdout.buffer.flush()
    edited = ", ".join(cleaned.rules) or "nothing"
    print(f"changed by: {edited}; {len(text):,} -> {len(cleaned.record.text):,} characters", file=sys.stderr)


def _clean_stdin(config: CleanConfig) -> None:
    dropped: Counter[str] = Counter()
    edited: Counter[str] = Counter()
    bad: list[str] = []
    kept = total = 0

    def write(batch: list[Row]) -> None:
        nonlocal kept
        results = clean_many([Record(row["text"]) for row in batch], config)
        sys.stdout.buffer.write(b"".join(map(_line, batch, results)))
        for result in results:
            edited.update(result.rules)
            dropped.update([result.reason] if result.reason else [])
            kept += not result.reason

    batch: list[Row] = []
    chars = 0
    for number, row in _rows():
        total += 1
        if isinstance(row, Bad):
            bad.append(f"line {number}: {row.message}")
            if len(bad) <= SHOWN:
                print(bad[-1], file=sys.stderr)
            continue
        batch.append(row)
        chars += len(row["text"])
        if chars >= BATCH_CHARS or len(batch) >= BATCH_LINES:
            write(batch)
            batch, chars = [], 0
    write(batch)
    sys.stdout.buffer.flush()
    print(_summary(total, kept, dropped, edited, len(bad)), file=sys.stderr)
    if bad and len(bad) == total:
        raise UserError(f"none of {total} lines could be read; the first: {bad[0]}")


def _rows() -> Iterator[tuple[int, Row | Bad]]:
    """Yields the number of each line of standard input that is not blank, and its object or what is wrong with it."""
    limit = DataConfig().max_line_bytes
    for line in read_lines(STDIN, limit):
        if line.raw is None:
            yield line.number, Bad("line too long", f"longer than {limit:,} bytes")
        elif line.raw.strip():
            yield line.number, _row(line.raw)


def _row(raw: bytes) -> Row | Bad:
    try:
        row = json.loads(raw.removeprefix(BOM))
        row["text"].encode()
        json.dumps(row, ensure_ascii=False).encode()  # other fields can hold half a surrogate pair or be too deep
        return row
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError):
        found = parse_row(raw, "jsonl", replace(SourceConfig(), form="text"), CsvHead(",", ()))
        return found if isinstance(found, Bad) else Bad("not writable", "a field cannot be written as UTF-8")


def _line(row: Row, result: Cleaned) -> bytes:
    out = {**row, "text": result.record.text, "rules": list(result.rules)}
    out.pop("dropped", None)
    if result.reason:
        out["dropped"] = result.reason
    return json.dumps(out, ensure_ascii=False).encode() + b"\n"


def _summary(total: int, kept: int, dropped: Counter[str], edited: Counter[str], bad: int) -> str:
    def count(counter: Counter[str]) -> str:
        return ", ".join(f"{name} {number:,}" for name, number in counter.most_common()) or "none"

    return f"{total:,} lines: {kept:,} kept; dropped: {count(dropped)}; edited: {count(edited)}; bad: {bad:,}"
