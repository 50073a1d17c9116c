"""In which order do the stages run over the shards of a corpus, and where does each leave its result?

Every file takes its name when it is complete, so the same call in the same folder goes on where a killed one stopped. The folder must
belong to one corpus and one set of rules. Results are the same for every `each`, memory and cut of the corpus into shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.dedup.clusters import drop_clusters
from data_pipeline.dedup.exact import find_exact
from data_pipeline.dedup.lines import LineRule, find_repeated
from data_pipeline.dedup.names import name_clusters
from data_pipeline.dedup.near import ALIKE, SAME, find_candidates, verify, write_sets
from data_pipeline.dedup.runs import parts_for
from data_pipeline.dedup.signatures import Shards, SignatureWriter, shard_file
from data_pipeline.schema import UserError

# (key, text, group) of each document of a shard, in order, or of those at some places in it (ascending int64)
Texts = Callable[..., Iterable[tuple[bytes, str, str]]]
Each = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Any]  # calls a function with each tuple, in any order


def one_by_one(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> None:
    for job in jobs:
        function(*job)


@dataclass(frozen=True)
class DedupRule:
    """What repeats what."""

    same: float = SAME  # Jaccard similarity from which on all but one document of a cluster are dropped
    alike: float = ALIKE  # Jaccard similarity from which on documents share a split; at most `same`
    lines: LineRule | None = None


@dataclass(frozen=True)
class Found:
    """Where the results lie."""

    shards: Shards
    exact: list[Path]  # runs: dropped document -> the one with the same text
    pairs: list[Path]  # rows of near.PAIR
    near: Path  # runs: document of a cluster -> the one that is kept
    names: Path  # names.Names: what is dealt to splits; `known` of the next corpus
    repeated: list[Path]  # rows of lines.REPEATED


def sign(stem: Path, texts: Texts, lines: LineRule | None) -> None:
    """Stage 1, a shard: the only one beside stage 4 that reads texts."""
    if not shard_file(stem, "docs").exists():
        with SignatureWriter(stem, lines=lines) as writer:
            for key, text, group in texts():
                writer.add(key, text, group)


def fill_sets(shards: Shards, shard: int, texts: Texts, candidates: Sequence[Path]) -> None:
    """Stage 4, a shard: reads the texts of candidates once more, and keeps their shingles."""
    if not shard_file(shards.stems[shard], "sets").exists():
        write_sets(shards, shard, lambda places: (text for _, text, _ in texts(places)), candidates)


def deduplicate(
    texts: Sequence[Texts],
    folder: Path,
    rule: DedupRule = DedupRule(),
    each: Each = one_by_one,
    memory_bytes: int = 1 << 28,
    known: Path | None = None,
    rank: Callable[[bytes], int] = lambda name: 0,
) -> Found:
    """Runs all stages; `memory_bytes` bounds what each call of `each` sorts at a time."""
    if not 0.6 <= rule.alike <= rule.same <= 1:  # below 0.6 the bands find too few
        raise UserError(
            f"near-duplicates: 0.6 <= alike <= same <= 1 must hold, got alike={rule.alike}, same={rule.same}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    stems = [folder / f"shard-{number:05d}" for number in range(len(texts))]
    each(sign, [(stem, read, rule.lines) for stem, read in zip(stems, texts)])
    shards = Shards(stems)
    exact = _in_parts(each, find_exact, (shards,), folder / "exact", parts_for(shards.files("keys"), memory_bytes))
    parts = parts_for(shards.files("bands"), memory_bytes)
    candidates = _in_parts(each, find_candidates, (shards, exact), folder / "candidates", parts)
    each(fill_sets, [(shards, shard, read, candidates) for shard, read in enumerate(texts)])
    parts = parts_for(candidates, memory_bytes, copies=8)
    pairs = _in_parts(each, verify, (shards, candidates, rule.same, rule.alike), folder / "pairs", parts)
    near, names = folder / "near", folder / "names"
    if not near.exists():
        drop_clusters(shards, pairs, near, rule.same)
    if not names.exists():
        parts = parts_for(shards.files("nodes"), memory_bytes, copies=24)
        name_clusters(shards, exact, pairs, names, known, rank, rule.alike, parts)
    repeated: list[Path] = []
    if rule.lines:
        parts = parts_for(shards.files("lines"), memory_bytes, copies=10)
        repeated = _in_parts(each, find_repeated, (shards, rule.lines, [*exact, near]), folder / "repeated", parts)
    return Found(shards, exact, pairs, near, names, repeated)


def _in_parts(each: Each, function: Callable[..., Any], given: tuple[Any, ...], out: Path, parts: int) -> list[Path]:
    paths = [out.with_name(f"{out.name}-{part:04d}-of-{parts:04d}") for part in range(parts)]
    each(function, [(*given, path, part, parts) for part, path in enumerate(paths) if not path.exists()])
    return paths
