"""What will a preparation take, before it runs: hours, memory, disk, and what will each rule drop?

The real stages run on a sample of a few megabytes, in a folder that is removed; each job is measured in a process of its own, as a worker
is. Processor seconds are extrapolated, not those on the wall: what else this machine does at the moment is no part of the plan.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.config import DataConfig
from data_pipeline.dedup.stages import Each
from data_pipeline.prepare.build import TRAINING, Log, run_stages
from data_pipeline.prepare.estimate import ALONE, Job, Measured, disk_of, memory_of, quantities, seconds_of
from data_pipeline.prepare.read import PART_BYTES
from data_pipeline.prepare.sample import SampledSource, part_sizes
from data_pipeline.prepare.stages import PROGRESS_SECONDS, Context, do, processes
from data_pipeline.schema import UserError
from data_pipeline.sources import open_sources
from data_pipeline.train_tokenizer import find_tokenizer

Plan = dict[str, Any]
SAMPLE_BYTES = 5_000_000
STAGES = {"read": "reading", "encode": "encoding"}
DUPLICATES = ("duplicate", "near-duplicate")


class Meter:
    """Does jobs in one other process and measures them, and what this one does between them."""

    def __init__(self, pool: Any, log: Log):
        self.pool, self.say, self.said = pool, log, time.monotonic()
        self.found = Measured([], base=peak_bytes())
        self.left, self.training = (
            0.0,
            (0.0, 0.0),
        )  # when the last job was done; when training began, and the memory then

    def log(self, text: str) -> None:
        if text.startswith(TRAINING):
            self.training = time.process_time(), peak_bytes()
            self.found.trained_on = int(text.rpartition(" of ")[2].split()[0].replace(",", ""))

    def spread(self, work: Path) -> Each:
        return self.each

    def each(self, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> None:
        found = self.found
        if self.training[0] and not found.training:
            found.training, found.trainer = time.process_time() - self.training[0], peak_bytes() - self.training[1]
        for job in jobs:
            stage = job[1] if function is do else function.__name__
            if time.monotonic() - self.said >= PROGRESS_SECONDS:
                self.said = time.monotonic()
                self.say(f"  {STAGES.get(stage, 'comparing')} it")
            (before, fresh), (after, memory) = self.pool.submit(measured, function, job).result()
            if not found.jobs:
                found.startup, found.fresh = before, fresh
            found.jobs.append(Job(stage, after - before, memory))


def measured(function: Callable[..., Any], job: tuple[Any, ...]) -> list[tuple[float, float]]:
    """Does a job; returns the seconds of this process and its peak memory, before and after it."""
    before = time.process_time(), peak_bytes()
    function(*job)
    return [before, (time.process_time(), peak_bytes())]


def peak_bytes() -> float:
    """The most memory that this process had."""
    try:
        with open("/proc/self/status") as file:  # getrusage gives a child what its parent had
            return next(float(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)


def make_plan(config: DataConfig, workers: int, log: Log) -> Plan:
    """Returns the plan as JSON values; reads a sample and leaves nothing on the disk."""
    began = time.monotonic()
    asked, config = config, replace(config, on_bad="skip", max_bad_fraction=1.0, allow_leak=True)
    opened = open_sources(config, log, twins=False)
    total = sum(source.total_bytes() for source in opened)
    log(f"sampling {min(SAMPLE_BYTES, total) / 1e6:,.1f} of {total / 1e6:,.0f} MB")
    sources = [
        SampledSource(source, max(SAMPLE_BYTES * source.total_bytes() // max(total, 1), 2**16)) for source in opened
    ]
    sizes = [
        [int(sample.total_bytes() * sample.scale)]
        if sample.config.max_documents
        else part_sizes(sample.source, PART_BYTES)
        for sample in sources
    ]
    folder = Path(tempfile.mkdtemp(prefix="plan-"))
    try:
        with processes(Context(folder, config=config), 1, "the sample") as pool:
            meter = Meter(pool, log)
            log("running the stages on it")
            report = run_stages(
                config, list(sources), find_tokenizer(config.tokenizer), folder / "new", folder / "work", 1, meter.log,
                meter.spread,
            )  # fmt: skip
        disk = disk_of(folder)
    except UserError as error:
        raise UserError(f"the sample of {sum(source.documents for source in sources):,} documents: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    plan = {"workers": workers, **quantities(sources, report, total)}
    work = (disk["work"] - disk["bands"]) * plan["text_times"] + disk["bands"] * plan["times"]
    plan["bands_bytes"] = disk["bands"] * plan["times"]
    plan["disk_bytes"] = {"work": work, "out": disk["new"] * plan["text_times"] + disk["fixed"]}
    plan["memory_bytes"] = memory_of(config, plan, meter.found, sizes)
    plan["seconds"] = seconds_of(config, plan, meter.found, sources, sizes)
    plan["warnings"] = _warnings(asked, plan, sources, max(map(max, sizes)), meter.found.trained_on)
    plan["took_seconds"] = round(time.monotonic() - began, 1)
    return plan


def _warnings(config: DataConfig, plan: Plan, sources: list[SampledSource], largest: int, chars: int) -> list[str]:
    found = []
    if config.clean.exact_dedup or config.clean.near_dedup:
        found.append(
            "duplicates: a sample shows few of the pairs, so their share, and what comparing takes, are lower bounds"
        )
    bad = plan["bad"]
    if bad and config.on_bad == "error":
        found.append(f"about {bad:.2%} of rows are bad: config.data.on_bad='error' would stop at the first of them")
    elif bad > config.max_bad_fraction:
        found.append(f"about {bad:.2%} of rows are bad, more than config.data.max_bad_fraction allows")
    for source in sources:
        if source.at_beginnings:
            found.append(f"source {source.name}: the sample is beginnings of its files, which may be unlike the rest")
    if 0 < chars < 200 * config.tokenizer.vocab_size and plan["times"] > 1:
        found.append(
            f"{config.tokenizer.vocab_size:,} pieces learned from the sample fit it too well: expect more tokens"
        )
    if largest > 4 * PART_BYTES:
        found.append(
            f"one file of {largest / 1e6:,.0f} MB cannot be cut (packed, CSV, documents of many lines, TFDS): one worker reads "
            "it alone and holds all its tokens; cut it into files of about 100 MB"
        )
    return found


def format_plan(plan: Plan) -> str:
    """The plan as the page that is printed."""
    seconds, memory, disk, n = plan["seconds"], plan["memory_bytes"], plan["disk_bytes"], plan["workers"]
    hours = 0 if seconds["processor"] >= 36_000 else 3  # digits
    shared = ", ".join(f"{row} {duration(seconds[row])}" for row in seconds if row not in ALONE and seconds[row])
    alone = ", ".join(f"{row} {duration(seconds[row])}" for row in ("decide", "tokenizer", "hash") if seconds[row])
    lines = [
        f"sample           {size(plan['sample_bytes'])} in {plan['sample_documents']:,} documents of {size(plan['bytes_in'])}; it took "
        f"{plan['took_seconds']:.0f} s",
        f"documents        about {plan['documents_in']:,.0f}, of which {plan['documents_out']:,.0f} stay",
        f"tokens           about {plan['tokens']:,.0f}",
        f"time             {duration(seconds['all'])} with {n} {'workers on cores of their own' if n > 1 else 'process'}; "
        f"{seconds['processor'] / 3600:,.{hours}f} core-hours, {plan['bytes_in'] / 1e6 / max(seconds['processor'], 1e-9):.1f} MB a core-second",
        f"  shared         {shared}, processes started {duration(seconds['start'])}",
        f"  in one process {alone} (sha256 of input and output, at the speed of one core; a slow disk takes longer)",
        f"memory           {size(memory['all'])} in all: {size(memory['decides'])} for the process that decides and trains"
        + (
            f", {size(memory['worker'])} for each of {n} workers"
            if n > 1
            else f"; {size(memory['worker'])} while it reads and encodes"
        ),
        f"disk             {size(disk['work'] + disk['out'])} while it runs, of which {size(disk['out'])} stay",
        "",
        f"{'dropped by':<28}{'share':>9}   95 % interval, were each document drawn by itself",
    ]
    for reason, (share, low, high) in plan["dropped"].items():
        bound = "at least" if reason in DUPLICATES else ""
        lines.append(f"  {reason:<26}{share:>9.3%}   {low:.3%} to {high:.3%}  {bound}".rstrip())
    lines.append(f"{'changed by':<28}{'share':>9}")
    for rule, (share, low, high) in plan["edited"].items():
        lines.append(f"  {rule:<26}{share:>9.3%}   {low:.3%} to {high:.3%}")
    return "\n".join([*lines, "", *(f"warning: {text}" for text in plan["warnings"])])


def size(count: float) -> str:
    """
    >>> size(3.2e9), size(15e6)
    ('3.20 GB', '15 MB')
    """
    return next(
        (f"{count / unit:.2f} {name}" for unit, name in ((1e12, "TB"), (1e9, "GB")) if count >= unit),
        f"{count / 1e6:.0f} MB",
    )


def duration(seconds: float) -> str:
    """
    >>> duration(7.4), duration(75), duration(4000)
    ('7s', '1m15s', '1h06m')
    """
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
