"""What would other bounds drop or bring back? Answered from documents.parquet, without reading the corpus again.

python -m data_pipeline.what_if --data=DIR --min_chars=200 --bounds=chinese.min_units=50
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import SPLITS, CleanConfig
from data_pipeline.documents import COUNTED, EMPTY, MEASURED, Documents, step_of
from data_pipeline.explain import place
from data_pipeline.prepare.decide import AT_ONCE
from data_pipeline.rules.language import UNKNOWN
from data_pipeline.rules.measures import Measures
from data_pipeline.rules.quality import judge, read_bounds
from data_pipeline.schema import ConfigError, UserError, from_mapping, run_main, split_flags
from data_pipeline.sealed import read_bytes
from data_pipeline.store import Prepared, open_prepared

USAGE = """
usage: python -m data_pipeline.what_if --data=DIR [--min_chars=N] [--max_chars=N] [--bounds=KIND.BOUND=NUMBER,...]
         [--keep_languages=CODE,...] [--examples=3]

Says how many documents other values of these keys of config.data.clean would drop or bring back, by reason, split and language,
with examples by file and line. DIR is a prepared folder. --bounds changes what was set before; --keep_languages= keeps all.

example: python -m data_pipeline.what_if --data=DIR --min_chars=200 --bounds=chinese.min_units=50,max_digits=none
"""
AS_BEFORE = "(as before)"  # a flag that is not given
SMALL = 2**16  # reasons


@dataclass
class Difference:
    """What changes for documents that are dropped now, or come back."""

    documents: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # by the new reason, or the old one
    splits: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # by reason: (hash of key, description)


@dataclass
class Answer:
    """`dropped` by reason and `kept` by split are those of a new preparation, as far as rows decide; `unsure` says how far."""

    dropped: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    gone: Difference = field(default_factory=Difference)
    back: Difference = field(default_factory=Difference)
    unsure: list[str] = field(default_factory=list)


class Reasons:
    """Names of reasons as numbers; 0 is kept."""

    def __init__(self) -> None:
        self.names = [""]
        self.numbers = {"": 0}

    def number(self, name: str) -> int:
        if name not in self.numbers:
            self.numbers[name] = len(self.names)
            self.names.append(name)
        return self.numbers[name]

    def numbers_of(self, column: tuple[list[str], np.ndarray]) -> np.ndarray:
        names, which = column
        return np.array([*map(self.number, names), 0], np.int64)[which]


def what_if(prepared: Prepared, config: CleanConfig, examples: int = 3) -> Answer:
    """Compares what `config` would do with what was done; memory: two bytes a document, 500 MB to compare keys."""
    documents, reasons = Documents(prepared.folder), Reasons()
    new = np.concatenate([np.zeros(0, np.uint16), *_judge_all(documents, prepared, config, reasons)])
    assert len(reasons.names) < SMALL
    if config.exact_dedup:
        _find_duplicates(documents, prepared, new, reasons)
    _keep_near(documents, new, reasons)
    answer = Answer()
    _compare(documents, new, reasons, answer, examples)
    answer.unsure = list(_unsure(documents, prepared, new, reasons, config))
    return answer


def _judge_all(documents: Documents, prepared: Prepared, config: CleanConfig, reasons: Reasons) -> Iterator[np.ndarray]:
    """Yields the new reasons, but for duplicates, of stretches of documents."""
    limits = read_bounds(config.bounds)[0]
    short, long, foreign = (reasons.number(name) for name in ("too short", "too long", "language"))
    for rows in documents.read("reason", "chars", "language", "flags", "key", *COUNTED):
        old = reasons.numbers_of(rows["reason"])
        steps = np.array([step_of(name) for name in reasons.names])[old]
        new = np.where(np.isin(steps, ("words", "evaluation", "row")), old, 0)
        if "quality" in config.rules:
            measured = np.flatnonzero((rows["flags"] & MEASURED > 0) & (new == 0))
            found = judge(Measures(*(rows[name][measured] for name in COUNTED)), limits)
            new[measured] = [reasons.number(name) for name in found]
        if config.keep_languages:
            names, which = rows["language"]
            stays = np.array([name in (*config.keep_languages, UNKNOWN) for name in names], bool)[which]
            new[~stays & (steps != "words")] = foreign
        if config.max_chars:
            new[rows["chars"] > config.max_chars] = long
        new[(rows["chars"] < config.min_chars) | (rows["flags"] & EMPTY > 0)] = short
        fixed = (steps == "rule") | ~rows["key"].any(axis=1)
        yield np.where(fixed, old, new).astype(np.uint16)


def _find_duplicates(documents: Documents, prepared: Prepared, new: np.ndarray, reasons: Reasons) -> None:
    """Marks in `new` what repeats an earlier document, as preparation does: keys of one range after the other."""
    pinned = {name: bool(keys["split"]) for name, keys, _ in prepared.manifest["made_of"]["sources"]}
    ranges = max(1, -(-int((new == 0).sum()) // AT_ONCE))
    duplicate = reasons.number("duplicate")
    for turn in range(ranges):
        chosen, at = [], 0
        for rows in documents.read("key", "splits", "source", "reason"):
            names, which = rows["source"]
            key, here = rows["key"], new[at : at + len(rows["key"])]
            index = np.flatnonzero(
                (here == 0) & ((key[:, 0] >> np.uint64(56)).astype(np.int64) * ranges // 256 == turn)
            )
            is_pinned = np.array([pinned[name] for name in names], bool)[which[index]]
            chosen.append(
                (key[index], index + at, rows["splits"][index], is_pinned, reasons.numbers_of(rows["reason"])[index])
            )
            at += len(key)
        key, row, splits, is_pinned, old = (np.concatenate([c[n] for c in chosen]) for n in range(5))
        order = np.lexsort((row, key[:, 1], key[:, 0]))
        key, row, splits, is_pinned, old = (array[order] for array in (key, row, splits, is_pinned, old))
        begins = np.ones(len(order), bool)
        begins[1:] = (key[1:] != key[:-1]).any(axis=1)
        first = np.flatnonzero(begins)[np.cumsum(begins) - 1] if len(order) else order
        apart = (splits != splits[first]) & (is_pinned | is_pinned[first])  # a leak, which is not dropped
        again = ~begins & ~apart
        relabelled = old == reasons.number("duplicate with another label")
        new[row[again]] = np.where(relabelled, old, duplicate)[again]


def _keep_near(documents: Documents, new: np.ndarray, reasons: Reasons) -> None:
    """What was dropped as a near-duplicate, or for its repeated lines, stays so."""
    at = 0
    for rows in documents.read("reason"):
        old = reasons.numbers_of(rows["reason"])
        steps = np.array([step_of(name) for name in reasons.names])[old]
        here = new[at : at + len(old)]
        stays = np.isin(steps, ("near-duplicate", "lines")) & (here == 0)
        here[stays] = old[stays]
        at += len(old)


def _compare(documents: Documents, new: np.ndarray, reasons: Reasons, answer: Answer, examples: int) -> None:
    at = 0
    for rows in documents.read("source", "file", "line", "key", "chars", "bytes", "language", "splits", "reason"):
        old = reasons.numbers_of(rows["reason"])
        now = new[at : at + len(old)]
        at += len(old)
        counts = np.bincount(now, minlength=len(reasons.names))
        answer.dropped.update({reasons.names[n]: int(counts[n]) for n in np.flatnonzero(counts).tolist() if n})
        _count_splits(answer.kept, rows["splits"][now == 0])
        for change, which, why in (
            (answer.gone, (old == 0) & (now > 0), now),
            (answer.back, (old > 0) & (now == 0), old),
        ):
            index = np.flatnonzero(which)
            change.documents += len(index)
            change.bytes += int(rows["bytes"][index].sum())
            _count_splits(change.splits, rows["splits"][index])
            change.languages.update(rows["language"][0][n] for n in rows["language"][1][index].tolist())
            for number in np.unique(why[index]).tolist():
                here, name = index[why[index] == number], reasons.names[number]
                change.reasons[name] += len(here)
                shown = here[np.argsort(rows["key"][here, 1], kind="stable")][:examples]
                found = change.examples.get(name, []) + [
                    (int(rows["key"][i, 1]), _describe(rows, i)) for i in shown.tolist()
                ]
                change.examples[name] = sorted(found)[:examples]


def _describe(rows: dict[str, Any], i: int) -> str:
    file, line = rows["file"][0][rows["file"][1][i]], int(rows["line"][i])
    return f"{place(file, line)}  {rows['chars'][i]:,} characters"


def _count_splits(counts: Counter[str], splits: np.ndarray) -> None:
    counts.update({split: n for bit, split in enumerate(SPLITS) if (n := int((splits >> bit & 1).sum()))})


def _unsure(
    documents: Documents, prepared: Prepared, new: np.ndarray, reasons: Reasons, config: CleanConfig
) -> Iterator[str]:
    """What only another preparation can tell."""
    back = early = orphans = at = 0
    gone: list[np.ndarray] = []
    for rows in documents.read("reason", "number"):
        old = reasons.numbers_of(rows["reason"])
        now = new[at : at + len(old)]
        at += len(old)
        returns = (old > 0) & (now == 0)
        back += int(returns.sum())
        early += int((returns & np.isin(np.array([step_of(n) for n in reasons.names])[old], ("length",))).sum())
        gone.append(rows["number"][(old == 0) & (now > 0)])
    lost, at = np.concatenate([np.zeros(0, np.int64), *gone]), 0
    for rows in documents.read("reason", "repeats"):
        here = new[at : at + len(rows["repeats"])]
        at += len(here)
        orphans += int(((here == reasons.number("near-duplicate")) & np.isin(rows["repeats"], lost)).sum())
    if config.near_dedup and back:
        yield f"{back:,} documents that come back were not compared with others: some may be near-duplicates"
    if orphans:
        yield f"{orphans:,} near-duplicates repeat a document that goes: some of them may be kept in its place"
    if config.near_dedup and (back or len(lost)):
        yield "near-duplicates share a split, so some documents may move to another one"
    if config.bad_words and early:
        yield f"{early:,} documents that come back were not searched for bad words"
    if config.decontaminate and back:
        yield f"{back:,} documents that come back were not searched for pieces of evaluation sets"
    if config.repeated_lines and (back or len(lost)):
        yield "how often a line stands in the corpus may change, and with it which lines are taken out"
    if prepared.manifest["made_of"]["split"]["stratify"] and (back or len(lost)):
        yield "labels keep their shares, so some documents may move to another split"


def read_changes(prepared: Prepared, flags: dict[str, str]) -> CleanConfig:
    """The rules of a preparation with other bounds; ConfigError for what rows cannot decide."""
    report = json.loads(read_bytes(prepared.folder / "report.json"))
    clean = from_mapping(CleanConfig, report["settings"]["clean"])
    changes: dict[str, Any] = {}
    for name in ("min_chars", "max_chars"):
        if flags[name] != AS_BEFORE:
            least = int(name == "min_chars")
            if not (flags[name].isdecimal() and flags[name].isascii()) or int(flags[name]) < least:
                raise ConfigError(f"--{name} must be a whole number >= {least}, got {flags[name]!r}")
            changes[name] = int(flags[name])
    if flags["bounds"] != AS_BEFORE:
        changes["bounds"] = (*clean.bounds, *filter(None, flags["bounds"].split(",")))
        problems = read_bounds(changes["bounds"])[1]
        if "quality" not in clean.rules:
            problems.append("the rule quality was off, so nothing was counted; prepare with it in clean.rules")
        if problems:
            raise ConfigError([f"--bounds: {problem}" for problem in problems])
    if flags["keep_languages"] != AS_BEFORE:
        changes["keep_languages"] = keep = tuple(filter(None, flags["keep_languages"].split(",")))
        if prepared.manifest["languages_by"] == "script" and keep:
            raise ConfigError(
                f"--keep_languages={flags['keep_languages']}: only the scripts of this corpus are known; to know its languages "
                "prepare it once with config.data.clean.count_languages=True"
            )
    if not changes:
        raise ConfigError("name what to change, as in --min_chars=200; see --help")
    return replace(clean, **changes)


def format_answer(prepared: Prepared, answer: Answer) -> Iterator[str]:
    before = Counter(prepared.manifest["dropped"])
    yield f"{'reason':32} {'dropped':>10} {'would be':>10}"
    for reason in sorted(before | answer.dropped):
        mark = "" if before[reason] == answer.dropped[reason] else "  *"
        yield f"{reason:32} {before[reason]:>10,} {answer.dropped[reason]:>10,}{mark}"
    kept = {split: counts["documents"] for split, counts in prepared.manifest["splits"].items()}
    for split in [split for split in SPLITS if kept.get(split) or answer.kept[split]]:
        yield f"{'kept in ' + split:32} {kept.get(split, 0):>10,} {answer.kept[split]:>10,}"
    for what, change in (("dropped now", answer.gone), ("back again", answer.back)):
        yield f"\n{what}: {change.documents:,} documents, {change.bytes / 1e6:,.2f} MB"
        for name, counts in (("split", change.splits), ("language", change.languages)):
            if counts:
                yield f"  by {name}: " + ", ".join(f"{key} {count:,}" for key, count in counts.most_common(12))
        for reason, count in change.reasons.most_common():
            yield f"  {reason}: {count:,}"
            yield from (f"    {text}" for _, text in change.examples[reason])
    if answer.unsure:
        yield "\nOnly another preparation can tell:"
        yield from (f"  - {line}" for line in answer.unsure)


def main(argv: list[str]) -> None:
    can = ("min_chars", "max_chars", "bounds", "keep_languages")
    given = [word.removeprefix("--").partition("=")[0] for word in argv if word.startswith("--")]
    beyond = [one.name for one in fields(CleanConfig) if one.name in given and one.name not in can]
    if beyond:
        raise ConfigError(
            f"--{beyond[0]}: needs the text, so only another preparation can tell; without it can be told: {', '.join('--' + c for c in can)}"
        )
    flags, overrides = split_flags(argv, {"data": "", "examples": "3", **dict.fromkeys(can, AS_BEFORE)}, USAGE)
    if not flags["data"] or overrides:
        raise ConfigError("name a prepared folder: --data=DIR; see --help")
    if not (flags["examples"].isdecimal() and flags["examples"].isascii()):
        raise ConfigError(f"--examples must be a whole number, got {flags['examples']!r}")
    found = open_prepared(Path(flags["data"]).expanduser())
    if isinstance(found, str):
        raise UserError(f"--data={flags['data']}: {found}")
    config = read_changes(found, flags)
    print("\n".join(format_answer(found, what_if(found, config, int(flags["examples"])))))


if __name__ == "__main__":
    run_main(main)
