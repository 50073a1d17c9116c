"""Which documents are nearly the same as another one, and which split do all that are alike share?

It looks at the documents that exact comparison left, with `data_pipeline/dedup/`, in files of its own; docs/dedup.md has the rules.
"""

from __future__ import annotations

import functools
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from data_pipeline import sealed
from data_pipeline.config import DataConfig
from data_pipeline.dedup.clusters import KEPT, read_fates
from data_pipeline.dedup.names import Names
from data_pipeline.dedup.stages import DedupRule, Found, deduplicate, one_by_one
from data_pipeline.prepare.deal import NAMES, Dealer, Fates, Members, known_file
from data_pipeline.prepare.leaks import Leaks
from data_pipeline.prepare.read import kept_records, read_arrays, read_groups
from data_pipeline.prepare.stages import Context, Log, processes
from data_pipeline.records import Part
from data_pipeline.sealed import read_bytes
from data_pipeline.whole_file import written_aside

NEAR = "near"
MEMORY_BYTES = 2**25  # that a process sorts at a time


def read_texts(
    context: Context, number: int, task: tuple[int, Part], places: np.ndarray | None = None
) -> Iterator[tuple[bytes, str, str]]:
    """(key, text, group) of the documents of a part that exact comparison left, or of those at some `places` among them."""
    keys, groups = read_arrays(context, number, "key")["key"].tobytes(), read_groups(context, number)
    wanted = np.frombuffer(read_bytes(context.path(NEAR, number, "left")), np.uint8)
    if places is not None:
        left, wanted = np.flatnonzero(wanted), np.zeros_like(wanted)
        wanted[left[places]] = 1
    for i, record in kept_records(context, number, task, wanted):
        yield keys[16 * i : 16 * i + 16], "\n".join(record.parts()), groups[i]


def compare_near(
    context: Context, tasks: list[tuple[int, Part]], fates: Fates, leaks: Leaks, dealer: Dealer, copies: list[array],
    workers: int, log: Log,
) -> Fates:  # fmt: skip
    """Returns new fates, in which near-duplicates are dropped and the others share a split with those that are alike; adds
    what each repeats to `copies`, and the leaks that pinned sources make."""
    config: DataConfig = context.held["config"]
    (context.folder / NEAR).mkdir(exist_ok=True)
    for number, fate in enumerate(fates):
        with written_aside(context.path(NEAR, number, "left")) as file:
            file.write((fate > 0).astype(np.uint8).tobytes())
    log(f"comparing {sum(int((fate > 0).sum()) for fate in fates):,} documents with each other")
    texts = [functools.partial(read_texts, context, number, task) for number, task in enumerate(tasks)]
    with _each(context, workers) as each:
        rule = DedupRule(same=config.clean.near_dedup)
        known = known_file(config, NAMES)
        found = deduplicate(texts, context.folder / NEAR, rule, each, MEMORY_BYTES, known, dealer.rank)
    sealed.copy(found.names, context.folder / NAMES)
    names = Names(found.names)

    def members(number: int) -> tuple[np.ndarray, list[bytes]]:
        return np.flatnonzero(fates[number]), names.of_shard(found.shards, number)

    out = dealer.deal(fates, members)
    _drop(out, fates, found, copies)
    if any(source.config.split for source in context.held["sources"]):
        _find_leaks(tasks, out, members, leaks)
    return out


def _drop(fates: Fates, earlier: Fates, found: Found, copies: list[array]) -> None:
    """Drops what repeats a document of its own split, and notes which; documents are numbered among those left `earlier`."""
    places = np.concatenate([np.flatnonzero(old).astype(np.uint32) for old in earlier])  # in their parts
    splits = np.concatenate([fate[old > 0] for fate, old in zip(fates, earlier)])
    for number, (fate, old) in enumerate(zip(fates, earlier)):
        how, of = read_fates(found.shards, number, found.exact, found.near)
        gone = (how != KEPT) & (splits[of] == splits[slice(*found.shards.span(number))])
        here = np.flatnonzero(old)[gone]
        fate[here] = 0
        part = np.searchsorted(found.shards.bases, of[gone], side="right") - 1
        copies[number].extend(np.stack([here, part, places[of[gone]]], axis=1).astype(np.int64).ravel().tolist())


def _find_leaks(tasks: list[tuple[int, Part]], fates: Fates, members: Members, leaks: Leaks) -> None:
    """Finds documents that are alike and, by pinned sources, apart."""
    seen: dict[bytes, dict[int, int]] = defaultdict(dict)  # of a cluster each split, and the first part that has it
    for number in range(len(fates)):
        left, names = members(number)
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
