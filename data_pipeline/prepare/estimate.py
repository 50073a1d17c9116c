"""How does what a sample took become what the whole corpus takes?"""

from __future__ import annotations

import hashlib
import heapq
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.config import DataConfig
from data_pipeline.prepare.decide import AT_ONCE
from data_pipeline.prepare.sample import SampledSource

COMPARE = ("sign", "fill_sets")  # stages of one job a part, as all are but these:
PAIRWISE = ("find_exact", "find_candidates", "verify", "find_repeated")  # of as many jobs as the memory asks for
ALONE = ("start", "decide", "tokenizer", "hash", "all", "processor")  # what no stage is called
# Bytes of memory, measured on this code with 58 MB in 60,909 documents and 33 MB in 400,000.
TOKEN_BYTES, ROW_BYTES = 23.5, 380  # that a worker holds of each token and of each document of its part
BAND_COPIES, BAND_LIMIT = (
    4,
    2**26,
)  # what looking for candidates holds of the bands, and of how many bytes of those at a time
DECIDE_BYTES = 210  # that the first process holds of each document of the corpus while it decides
JOIN_BYTES, JOINED_BYTES = 4, 100  # and when it joins, of each token of a part and each document of the corpus
TRAINER_BYTES = 37e6  # that sentencepiece takes whatever the text
TRAINER_POWER = 1.07  # its time grows by this power of the characters
DECIDE_SECONDS, PART_SECONDS = (
    7e-6,
    0.005,
)  # of the first process, for each document and each part; a sample is too small to tell
HASHED = 2**23  # bytes


@dataclass(frozen=True)
class Job:
    stage: str
    seconds: float
    memory: float  # bytes: the most that the process had so far


@dataclass
class Measured:
    """What the sample took."""

    jobs: list[Job]
    startup: float = 0.0  # seconds of a process before its first job
    base: float = 0.0  # bytes of the first process before anything
    fresh: float = 0.0  # bytes of another before its first job
    training: float = 0.0  # seconds
    trainer: float = 0.0  # bytes that training took
    trained_on: int = 0  # characters of the train split


def quantities(sources: list[SampledSource], report: dict[str, Any], total: int) -> dict[str, Any]:
    """Documents, tokens and shares of the corpus, each with its 95 % interval."""
    dropped: Counter[str] = Counter()
    edited: Counter[str] = Counter()
    read = weights = out = tokens = text = 0.0
    for source, entry in zip(sources, report["sources"]):
        read, weights = read + source.scale * entry["read"], weights + source.scale**2 * entry["read"]
        for counts, found in ((dropped, entry["dropped"]), (edited, entry["changed"])):
            for reason, count in found.items():
                counts[reason] += source.scale * count
        out += source.scale * (entry["read"] - sum(entry["dropped"].values()))
        for split in entry["splits"].values():
            tokens, text = tokens + source.scale * split["tokens"], text + source.scale * split["bytes"]
    sampled = sum(split["bytes"] for entry in report["sources"] for split in entry["splits"].values())
    n = read**2 / max(weights, 1)  # documents of equal weight that would tell as much

    def shares(counts: Counter[str]) -> dict[str, list[float]]:
        return {name: [count / read, *wilson(count / read, n)] for name, count in counts.most_common()}

    return {
        "bytes_in": total, "sample_bytes": report["bytes_in"], "sample_documents": report["documents_in"],
        "bad": sum(source.scale * source.bad for source in sources) / max(read, 1), "times": read / max(report["documents_in"], 1), "documents_in": read, "documents_out": out, "tokens": tokens,
        "text_times": text / max(sampled, 1), "dropped": shares(dropped), "edited": shares(edited),
    }  # fmt: skip


def wilson(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share that was seen among n (Wilson 1927).

    >>> [round(bound, 3) for bound in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max((middle - half) / (1 + z * z / n), 0.0), min((middle + half) / (1 + z * z / n), 1.0)


def disk_of(folder: Path) -> dict[str, float]:
    """Bytes of what grows with the corpus, in the work folder and the result, of the bands, and of what does not grow."""
    sizes: dict[str, float] = defaultdict(float)
    for path in folder.rglob("*"):
        if path.is_file():
            first, *inner = path.relative_to(folder).parts
            fixed = "tokenizer" in inner or "given" in inner or inner[-1].startswith(("report", "manifest"))
            sizes["fixed" if fixed else first] += path.stat().st_size
            sizes["bands"] += path.stat().st_size * (path.suffix == ".bands")
    return sizes


def memory_of(config: DataConfig, plan: dict[str, Any], found: Measured, sizes: list[list[int]]) -> dict[str, float]:
    """Peak bytes of a worker, of the process that decides, trains and joins, and of all at once.

    `sizes`: bytes of the parts of each source.
    """
    workers, documents, near = plan["workers"], plan["documents_in"], config.clean.near_dedup
    reads = max((job.memory for job in found.jobs if job.stage == "read"), default=found.base)  # with models and tables
    bands = BAND_COPIES * min(plan["bands_bytes"], BAND_LIMIT) if near else 0.0

    def worker(size: int, base: float) -> float:
        share = size / max(plan["bytes_in"], 1)
        rows = ROW_BYTES * documents * share
        return max(reads + rows, base + bands, base + rows + TOKEN_BYTES * plan["tokens"] * share)

    trained = 0.0
    if found.training:
        trained = TRAINER_BYTES + max(found.trainer - TRAINER_BYTES, 0.0) * training_times(config, plan, found)
    largest = sorted((size for of in sizes for size in of), reverse=True)[:workers]
    joins = JOINED_BYTES * documents + JOIN_BYTES * plan["tokens"] * largest[0] / max(plan["bytes_in"], 1)
    decides = found.base + trained + max(DECIDE_BYTES * (documents if near else min(documents, AT_ONCE)), joins)
    if workers == 1:
        one = worker(largest[0], reads)
        return {"worker": one, "decides": decides, "all": max(one, reads + decides - found.base)}
    there = [worker(size, found.fresh) for size in largest]
    return {"worker": there[0], "decides": decides, "all": max(decides, found.base + trained + sum(there))}


def training_times(config: DataConfig, plan: dict[str, Any], found: Measured) -> float:
    """How many times the characters of the sample the tokenizer is trained on."""
    limit = math.inf if config.tokenizer.kind == "char" else config.tokenizer.train_chars
    return min(plan["text_times"], max(limit / max(found.trained_on, 1), 1.0))


def seconds_of(
    config: DataConfig, plan: dict[str, Any], found: Measured, sources: list[SampledSource], sizes: list[list[int]]
) -> dict[str, float]:
    """Seconds by stage where each worker has a core of its own, of all, and what all cores together spend.

    `sizes`: bytes of the parts of each source.
    """
    workers, times = plan["workers"], plan["times"]
    out: dict[str, float] = defaultdict(float)
    spent = 0.0
    for stage in dict.fromkeys(job.stage for job in found.jobs if job.stage not in PAIRWISE):
        parts = _by_part([job.seconds for job in found.jobs if job.stage == stage], sources, sizes)
        spent += sum(parts)
        out["compare" if stage in COMPARE else stage] += makespan(parts, workers)
    others = sum(job.seconds for job in found.jobs if job.stage in PAIRWISE) * times
    alike = max(
        1, min(workers, math.ceil(plan["bands_bytes"] / BAND_LIMIT))
    )  # as many such jobs as the memory asks for
    out["compare"] += others / alike
    out["start"] = found.startup * (1 if workers == 1 else sum(seconds > 0 for seconds in out.values()))
    out["decide"] = DECIDE_SECONDS * plan["documents_in"] + PART_SECONDS * sum(map(len, sizes))
    out["tokenizer"] = found.training * training_times(config, plan, found) ** TRAINER_POWER
    out["hash"] = hash_seconds(plan["bytes_in"] + 2 * plan["disk_bytes"]["out"])
    alone = out["decide"] + out["tokenizer"] + out["hash"]
    return {**out, "all": sum(out.values()), "processor": spent + others + out["start"] * workers + alone}


def _by_part(jobs: list[float], sources: list[SampledSource], sizes: list[list[int]]) -> list[float]:
    """Seconds of each part of the corpus, by what a byte of its source took in the sample."""
    cost = [[0.0, 0.0] for _ in sources]
    owners = [(number, part.size) for number, source in enumerate(sources) for part in source.parts(0)]
    for place, ((number, size), seconds) in enumerate(zip(owners, jobs)):
        if place or len(jobs) == 1:  # the first one opens models and tables
            cost[number][0] += seconds
            cost[number][1] += size
    mean = sum(seconds for seconds, _ in cost) / max(sum(size for _, size in cost), 1)
    rates = [seconds / size if size else mean for seconds, size in cost]
    return [rate * size for rate, of in zip(rates, sizes) for size in of]


def makespan(parts: Iterable[float], workers: int) -> float:
    """Seconds until the last part is done, when each of `workers` takes the next one as it is free.

    >>> makespan([3, 1, 1, 1], 2)
    3.0
    """
    ends = [0.0] * workers
    for seconds in parts:
        heapq.heapreplace(ends, ends[0] + seconds)
    return float(max(ends))


def hash_seconds(size: float) -> float:
    """How long sha256 takes here for so many bytes."""
    block, began = bytes(HASHED), time.process_time()
    hashlib.sha256(block).digest()
    return (time.process_time() - began) * size / HASHED
