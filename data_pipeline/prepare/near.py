"""Which documents are nearly the same as another one, and which split do all that are alike share?

It looks at the documents that exact comparison left, with `data_pipeline/dedup/`, in files of its own; docs/dedup.md has the rules.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from data_pipeline.config import SPLITS, DataConfig
from data_pipeline.dedup.clusters import KEPT, read_fates
from data_pipeline.dedup.deal import rank_of, split_of_cluster
from data_pipeline.dedup.names import Names
from data_pipeline.dedup.stages import DedupRule, deduplicate, one_by_one
from data_pipeline.prepare.read import CUT, read_arrays, read_groups, read_records, tokenizer_of
from data_pipeline.prepare.stages import Context, Log, writing
from data_pipeline.records import Part, Place, Record
from data_pipeline.scan import Cleaner

NEAR = "near"
Fates = list[np.ndarray]  # of each part, of each document the bits of its splits


def read_texts(context: Context, number: int, task: tuple[int, Part]) -> Iterator[tuple[bytes, str, str]]:
    """(key, text, group) of the documents of a part that exact comparison left."""
    config: DataConfig = context.held["config"]
    arrays, groups = read_arrays(context, number), read_groups(context, number)
    left = np.frombuffer(context.path(NEAR, number, "left").read_bytes(), np.uint8)
    if config.streaming:
        source = context.held["sources"][task[0]]
        cleaner = Cleaner(config, tokenizer_of(context, context.held["tokenizer"]))
        records: Iterator[Any] = (cleaner.clean(source.load(Place(*place))) for place in arrays["place"].tolist())
    else:
        records = read_records(context, number)
    for i, record in enumerate(records):
        if left[i]:
            assert isinstance(record, Record)
            yield arrays["key"][i].tobytes(), "\n".join(record.parts()), groups[i]


def compare_near(
    context: Context, tasks: list[tuple[int, Part]], fates: Fates, workers: int, log: Log
) -> tuple[Fates, Counter[tuple[str, str]], list[tuple[int, int, int]]]:
    """Returns new fates, in which near-duplicates are dropped and the others share a split with those that are alike; and
    the leaks that pinned sources make: counts of (split, split), and (part, document, source that it is like)."""
    config: DataConfig = context.held["config"]
    (context.folder / NEAR).mkdir(exist_ok=True)
    for number, fate in enumerate(fates):
        with writing(context.path(NEAR, number, "left")) as file:
            file.write((fate > 0).astype(np.uint8).tobytes())
    log(f"comparing {sum(int((fate > 0).sum()) for fate in fates):,} documents with each other")
    texts = [functools.partial(read_texts, context, number, task) for number, task in enumerate(tasks)]
    with _processes(workers) as each:
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
    return (out, *_drop(context, tasks, out, repeats, members))


def _drop(
    context: Context, tasks: list[tuple[int, Part]], fates: Fates, repeats: list[Any], members: list[Any]
) -> tuple[Counter[tuple[str, str]], list[tuple[int, int, int]]]:
    """Drops what repeats a document of its own split; finds documents that are alike and, by pinned sources, apart."""
    pinned = any(source.config.split for source in context.held["sources"])
    begins = np.cumsum([0, *(len(left) for left, _ in members)])  # documents are numbered among those that are left
    leaks: Counter[tuple[str, str]] = Counter()
    examples: list[tuple[int, int, int]] = []
    before = [fate.copy() for fate in fates]
    for number, (gone, of) in enumerate(repeats):
        for i, other in zip(gone.tolist(), of.tolist()):
            part = int(np.searchsorted(begins, other, side="right")) - 1
            there = members[part][0][other - begins[part]]
            if before[part][there] == before[number][i]:
                fates[number][i] = 0
    if not pinned:
        return leaks, examples
    seen: dict[bytes, dict[int, tuple[int, int]]] = defaultdict(dict)  # splits of a cluster, the first document in each
    for number, (left, names) in enumerate(members):
        for i, name in zip(left.tolist(), names):
            if not fates[number][i]:
                continue
            here, others = int(fates[number][i]), seen[name]
            for bits, (part, _) in others.items():
                if bits != here:
                    leaks[_word(bits), _word(here)] += 1
                    examples.append((number, i, tasks[part][0]))
                    break
            others.setdefault(here, (number, i))
    return leaks, sorted(examples)


def _word(bits: int) -> str:
    return "every split" if bits & CUT else SPLITS[bits.bit_length() - 1]


@contextmanager
def _processes(workers: int) -> Iterator[Callable[..., Any]]:
    """Gives a function that calls another with each of some tuples, in this process or in `workers`."""
    if workers <= 1:
        yield one_by_one
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:

        def each(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> None:
            for future in [pool.submit(function, *job) for job in jobs]:
                future.result()

        yield each
