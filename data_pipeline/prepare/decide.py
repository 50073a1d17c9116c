"""The second stage: which documents stay, and in which splits? It looks at keys alone, in one process; at texts only for near-duplicates.

NUMBER.fate    of each document of the part the bits of its splits, 0: dropped
NUMBER.repeats of each that is dropped here: its number, part and number of the one that it repeats, and why, as a number in REPEATS
NUMBER.ledger  a line for each that is dropped here
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipeline.config import SPLITS, DataConfig
from data_pipeline.prepare.deal import Dealer
from data_pipeline.prepare.leaks import Leaks, name_splits
from data_pipeline.prepare.near import compare_near
from data_pipeline.prepare.read import ledger_line, read_arrays, read_where
from data_pipeline.prepare.repeated import ONLY_REPEATED, take_out
from data_pipeline.prepare.repeated import RULE as REPEATED
from data_pipeline.prepare.stages import Context, Log
from data_pipeline.records import Part, Source
from data_pipeline.schema import UserError
from data_pipeline.sealed import read_bytes
from data_pipeline.whole_file import written_aside

DECIDE = "decide"
REPEATS = (
    "duplicate",
    "duplicate with another label",
    "near-duplicate",
    ONLY_REPEATED,
)  # the last repeats no document, part -1
# Documents whose keys are compared at once, of 80 bytes each; but in so many ranges at most.
AT_ONCE, RANGES = 2**16, 64


@dataclass
class Tally:
    """What became of the records of one source."""

    read: int = 0
    kept: Counter[str] = field(default_factory=Counter)  # by split
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    changed: Counter[str] = field(default_factory=Counter)  # by rule

    def to_json(self) -> dict[str, Any]:
        return {
            "read": self.read,
            **{k: dict(sorted(getattr(self, k).items())) for k in ("kept", "dropped", "changed")},
        }


def decide(
    context: Context, tasks: list[tuple[int, Part]], answers: list[dict[str, Any]], workers: int, log: Log
) -> list[Tally]:
    """Writes the fate of every document; returns the tallies by source. Raises UserError for leaks and for sources of which
    nothing or too little is left."""
    config: DataConfig = context.held["config"]
    sources: list[Source] = context.held["sources"]
    (context.folder / DECIDE).mkdir(exist_ok=True)
    repeats = [array("q") for _ in tasks]
    exact, relabelled, leaks = _compare(context, tasks, config, sources, repeats)
    fates, dealer = exact, Dealer(context, tasks, log)
    if config.clean.near_dedup:
        fates = compare_near(context, tasks, exact, leaks, dealer, repeats, workers, log)
    elif config.split.stratify:
        fates = dealer.deal(exact, dealer.by_itself(exact))
    out = take_out(context, tasks, fates, workers, log) if config.clean.repeated_lines else []
    tallies = [Tally() for _ in sources]
    for number, ((source, _), answer, fate) in enumerate(zip(tasks, answers, fates)):
        tally = tallies[source]
        tally.read += answer["read"]
        tally.dropped.update(answer["dropped"])
        tally.changed.update(answer["changed"])
        gone = np.flatnonzero(fate == 0)
        same = np.array(repeats[number], np.int64).reshape(-1, 3)
        same = same[np.argsort(same[:, 0])]  # as `gone`
        why = [2 if exact[number][i] else int(i in relabelled[number]) for i in gone.tolist()]
        rows = np.column_stack([same, np.array(why, np.int64)])
        if out:
            emptied = np.array(out[number]["emptied"], np.int64)
            rows = np.concatenate([rows, np.column_stack([emptied, emptied * 0 - 1, emptied, emptied * 0 + 3])])
            fate = fate.copy()
            fate[out[number]["emptied"]] = 0  # they have their lines in a ledger of their own
            tally.dropped.update({ONLY_REPEATED: n} if (n := len(out[number]["emptied"])) else {})
            tally.changed.update({REPEATED: n} if (n := out[number]["changed"]) else {})
        tally.kept.update({split: n for i, split in enumerate(SPLITS) if (n := int((fate >> i & 1).sum()))})
        with written_aside(context.path(DECIDE, number, "fate")) as file:
            file.write(fate.tobytes())
        with written_aside(context.path(DECIDE, number, "repeats")) as file:
            file.write(rows.tobytes())
        with written_aside(context.path(DECIDE, number, "ledger")) as file:
            where, keys = (
                (read_where(context, number), read_arrays(context, number, "key")["key"]) if len(gone) else ([], [])
            )
            for i, reason in zip(gone.tolist(), (REPEATS[number] for number in why)):
                tally.dropped[reason] += 1
                file.write(ledger_line(sources[source].name, where[i], keys[i].tobytes(), reason=reason))
    for number, (source, tally) in enumerate(zip(sources, tallies)):
        _check_source(source, tally, [a for (n, _), a in zip(tasks, answers) if n == number], config)
    leaks.check(context, log)
    return tallies


def read_fate(context: Context, number: int) -> np.ndarray:
    return np.frombuffer(read_bytes(context.path(DECIDE, number, "fate")), np.uint8)


def read_repeats(context: Context, number: int) -> np.ndarray:
    return np.frombuffer(read_bytes(context.path(DECIDE, number, "repeats")), np.int64).reshape(-1, 4)


def _compare(
    context: Context, tasks: list[tuple[int, Part]], config: DataConfig, sources: list[Source], repeats: list[array]
) -> tuple[list[np.ndarray], list[set[int]], Leaks]:
    """Finds documents that repeat an earlier one, by keys of one range after the other: fates, those that had another label."""
    relabelled: list[set[int]] = [set() for _ in tasks]
    fates = [read_arrays(context, number, "splits")["splits"] for number in range(len(tasks))]
    total, leaks = sum(map(len, fates)), Leaks()
    ranges = min(max(1, -(-total // AT_ONCE)), RANGES)
    pinned = np.array([bool(source.config.split) for source in sources])
    for turn in range(ranges):
        chosen = []
        for number, (source, _) in enumerate(tasks):
            arrays = read_arrays(context, number, "key", "label")
            keys = arrays["key"]
            index = np.flatnonzero(keys[:, 0].astype(np.int64) * ranges // 256 == turn)
            halves = keys[index].view(">u8").reshape(-1, 2).astype(np.uint64)
            here = (
                np.full(len(index), number, np.int32),
                index.astype(np.int32),
                np.full(len(index), source, np.int32),
            )
            chosen.append((halves, *here, arrays["label"][index]))
        halves, part, index, source, label = (np.concatenate([c[n] for c in chosen]) for n in range(5))
        order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: the earliest document of a key comes first
        halves, part, index, source, label = (array[order] for array in (halves, part, index, source, label))
        begins = np.concatenate([[True], (halves[1:] != halves[:-1]).any(axis=1)]) if len(order) else np.zeros(0, bool)
        first = np.flatnonzero(begins)[np.cumsum(begins) - 1]
        for i in np.flatnonzero(~begins).tolist():
            here, there = (int(fates[part[n]][index[n]]) for n in (i, first[i]))
            fixed = pinned[source[i]] or pinned[source[first[i]]] or not config.clean.exact_dedup
            if name_splits(here) != name_splits(there) and fixed:
                leaks.add(there, here, int(part[i]), int(index[i]), int(source[first[i]]))
            elif config.clean.exact_dedup:
                fates[part[i]][index[i]] = 0
                repeats[part[i]].extend((int(index[i]), int(part[first[i]]), int(index[first[i]])))
                if label[i] != label[first[i]]:
                    relabelled[part[i]].add(int(index[i]))
    return fates, relabelled, leaks


def _check_source(source: Source, tally: Tally, answers: list[dict[str, Any]], config: DataConfig) -> None:
    bad = sum(answer["bad"] for answer in answers)
    if bad > config.max_bad_fraction * tally.read:
        first = next(answer["first_bad"] for answer in answers if answer["first_bad"])
        raise UserError(
            f"source {source.name}: {bad} of {tally.read} rows are bad, more than "
            f"config.data.max_bad_fraction={config.max_bad_fraction:g} allows; the first: {first}"
        )
    if not tally.kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in tally.dropped.most_common())
        raise UserError(
            f"source {source.name}: none of its {tally.read} documents is left ({reasons or 'no documents'})"
        )
