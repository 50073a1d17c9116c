"""Which documents are nearly the same as another one, and which split do all that are alike share?

It looks at the documents that exact comparison left, with `data_pipeline/dedup/`, in files of its own; docs/dedup.md has the rules.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from data_pipeline.config import SPLITS, DataConfig
from data_pipeline.dedup.clusters import KEPT, read_fates
from data_pipeline.dedup.deal import rank_of, split_of_cluster
from data_pipeline.dedup.names import Names
from data_pipeline.dedup.stages import DedupRule, deduplicate, one_by_one
from data_pipeline.prepare.leaks import Leaks
from data_pipeline.prepare.read import CUT, kept_records, read_arrays, read_groups
from data_pipeline.prepare.stages import Context, Log, processes
from data_pipeline.records import Part
from data_pipeline.whole_file import written_aside

NEAR = "near"
Fates = list[np.ndarray]  # of each part, of each document the bits of its splits


def read_texts(context: Context, number: int, task: tuple[int, Part]) -> Iterator[tuple[bytes, str, str]]:
    """(key, text, group) of the documents of a part that exact comparison left."""
    keys, groups = read_arrays(context, number)["key"], read_groups(context, number)
    left = np.frombuffer(context.path(NEAR, number, "left").read_bytes(), np.uint8)
    for i, record in kept_records(context, number, task, left):
        yield keys[i].tobytes(), "\n".join(record.parts()), groups[i]


def compare_near(
    context: Context, tasks: list[tuple[int, Part]], fates: Fates, leaks: Leaks, workers: int, log: Log
) -> Fates:
    """Returns new fates, in which near-duplicates are dropped and the others share a split with those that are alike; adds
    the leaks that pinned sources make."""
    config: DataConfig = context.held["config"]
    (context.folder / NEAR).mkdir(exist_ok=True)
    for number, fate in enumerate(fates):
        with written_aside(context.path(NEAR, number, "left")) as file:
            file.write((fate > 0).astype(np.uint8).tobytes())
    log(f"comparing {sum(int((fate > 0).sum()) for fate in fates):,} documents with each other")
    texts = [functools.partial(read_texts, context, number, task) for number, task in enumerate(tasks)]
    with _each(context, workers) as each:
        rule = DedupRule(same=config.clean.near_dedup)
        found = deduplicate(texts, context.folder / NEAR, rule, each, rank=rank_of(config.split))
    names = Names(found.names)
    out, repeats, members = [], [], []
    for number, (task, fate) in enumerate(zip(tasks, fates)):
        left = np.flatnonzero(fate)
        how, of = read_fates(found.shards, number, found.exact, found.near)
        its_names = names.of_shard(found.shards, number)
        new = fate.copy()
        if not context.held["sources"][task[0]].config.split:
            for i, name in zip(left.tolist(), its_names):
                if not fate[i] & CUT:
                    new[i] = 1 << SPLITS.index(split_of_cluster(name, config.split))
        repeats.append((left[how != KEPT], of[how != KEPT]))
        members.append((left, its_names))
        out.append(new)
    _drop(out, repeats, members)
    if any(source.config.split for source in context.held["sources"]):
        _find_leaks(tasks, out, members, leaks)
    return out


def _drop(fates: Fates, repeats: list[Any], members: list[Any]) -> None:
    """Drops what repeats a document of its own split."""
    begins = np.cumsum([0, *(len(left) for left, _ in members)])  # documents are numbered among those that are left
    before = [fate.copy() for fate in fates]
    for number, (gone, of) in enumerate(repeats):
        for i, other in zip(gone.tolist(), of.tolist()):
            part = int(np.searchsorted(begins, other, side="right")) - 1
            there = members[part][0][other - begins[part]]
            if before[part][there] == before[number][i]:
                fates[number][i] = 0


def _find_leaks(tasks: list[tuple[int, Part]], fates: Fates, members: list[Any], leaks: Leaks) -> None:
    """Finds documents that are alike and, by pinned sources, apart."""
    seen: dict[bytes, dict[int, int]] = defaultdict(dict)  # of a cluster each split, and the first part that has it
    for number, (left, names) in enumerate(members):
        for i, name in zip(left.tolist(), names):
            here, others = int(fates[number][i]), seen[name]
            if here:
                other = next((bits for bits in others if bits != here), None)
                if other is not None:
                    leaks.add(other, here, number, i, tasks[others[other]][0])
                others.setdefault(here, number)


@contextmanager
def _each(context: Context, workers: int) -> Iterator[Callable[..., Any]]:
    """Gives a function that calls another with each of some tuples, in this process, in `workers`, or where the context says."""
    if context.spread:
        yield context.spread
        return
    if workers <= 1:
        yield one_by_one
        return
    with processes(context, workers, "comparing") as pool:

        def each(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> None:
            for future in [pool.submit(function, *job) for job in jobs]:
                future.result()

        yield each
