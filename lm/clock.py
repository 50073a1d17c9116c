"""Where does the time of a run go, in this process and over all its restarts?

Every second of a process counts for exactly one part, so the parts add up to its life. `events.jsonl` keeps them, a line
at each turn of a run; because a killed process says no last word, the lines alone must tell what was lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.profiler import TraceAnnotation

# Waiting for a batch, putting it on the devices, the step and its numbers.
STEPS: tuple[str, ...] = ("input", "put", "step")
LOOP: tuple[str, ...] = (*STEPS, "log", "other")  # all that a step costs; `other`: whatever has no name
PARTS: tuple[str, ...] = ("startup", *LOOP, "eval", "save", "profile")


@dataclass(frozen=True)
class Lap:
    """What happened between two log lines, besides evaluations, saves and profiles."""

    seconds: dict[str, float]  # of each part in LOOP
    steps: int
    tokens: int
    flops: float  # that the model needs for those tokens, with what trained then

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def record(self) -> dict[str, float | None]:
        """Milliseconds a step, for metrics.jsonl: `time/input_ms` and so on; their sum is the whole time a step took."""
        steps = self.steps
        return {f"time/{part}_ms": 1e3 * s / steps if steps else None for part, s in self.seconds.items()}


class Clock:
    """A stop-watch that always runs for one part: `startup` until the first step is through, then what `part` says.

    `began` is `time.perf_counter()` at the start of the process; default: now.
    """

    def __init__(self, began: float | None = None):
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.steps = self.tokens = 0  # whose numbers have arrived, since the first step was through
        self.flops = 0.0
        self.warm = False
        self._part, self._since = "startup", time.perf_counter() if began is None else began
        self._lap = self._all()
        self._events: Path | None = None
        self._noted = 0.0

    def _switch(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[self._part] += now - self._since
        self._part, self._since = part, now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts the block for `name`; a part inside it counts for itself alone. Profiles show it by that name."""
        outer = self._part
        self._switch(name)
        try:
            with TraceAnnotation(name):
                yield
        finally:
            self._switch(outer)

    def count(self, tokens: int, flops: float = 0.0) -> None:
        """The numbers of a step have arrived; `tokens` without padding."""
        self.steps, self.tokens, self.flops = self.steps + 1, self.tokens + tokens, self.flops + flops

    def start_counting(self) -> None:
        """The first step, which compiles, is through: what it took belongs to the start-up."""
        self._switch("other")
        for part in LOOP:
            self.seconds["startup"] += self.seconds[part]
            self.seconds[part] = 0.0
        self.steps = self.tokens = 0
        self.flops = 0.0
        self.warm = True
        self._lap = self._all()

    def _all(self) -> Lap:
        self._switch(self._part)
        return Lap({part: self.seconds[part] for part in LOOP}, self.steps, self.tokens, self.flops)

    def lap(self) -> Lap | None:
        """What happened since the last call; None before `start_counting`."""
        if not self.warm:
            return None
        last, self._lap = self._lap, self._all()
        spent = {part: seconds - last.seconds[part] for part, seconds in self._lap.seconds.items()}
        return Lap(spent, self.steps - last.steps, self.tokens - last.tokens, self.flops - last.flops)

    def whole(self) -> Lap:
        """All of this process since `start_counting`."""
        return self._all() if self.warm else Lap(dict.fromkeys(LOOP, 0.0), 0, 0, 0.0)

    def open(self, path: Path) -> None:
        """Notes events in `path` from now on, and this start as the first."""
        self._events = path
        with contextlib.suppress(OSError), open(path, "rb+") as file:  # a kill can cut the last line
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
        self.note("start", pid=os.getpid(), host=socket.gethostname())

    def note(self, event: str, **facts: Any) -> None:
        """Appends an event with the seconds of each part so far; on processes that opened no file, nothing."""
        if self._events is None:
            return
        self._switch(self._part)
        self._noted = self._since
        seconds = {part: round(s, 4) for part, s in self.seconds.items() if s}
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts, "seconds": seconds})
        # A full disk must not end the run; the logger says so. Only the account of its time is poorer then.
        with contextlib.suppress(OSError), open(self._events, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def beat(self, step: int) -> None:
        """Notes that the run is alive; so often that a kill hides at most a hundredth of its time (1 to 60 s)."""
        age = sum(self.seconds.values())
        if time.perf_counter() - self._noted > min(max(0.01 * age, 1.0), 60.0):
            self.note("running", step=step)


def account(path: Path) -> dict[str, Any]:
    """Adds up events.jsonl over all starts of a run.

    Returns `goodput`, the share of the time that went into steps which count (their wait for input included), and `time`:
    `starts`, `seconds` in all, `parts` of it, and `down` from the last word of a process to the next start, in no sum.
    The part `lost` is what a process did after the checkpoint that a later one went on from.
    """
    starts = _read(path)
    resumed = [next((e["step"] for e in events if e["event"] == "ready"), None) for events in starts]
    total = dict.fromkeys((*PARTS, "lost"), 0.0)
    down = 0.0
    for i, events in enumerate(starts):
        kept = min((step for step in resumed[i + 1 :] if step is not None), default=None)
        for part, seconds in _kept_and_lost(events, kept).items():
            total[part] += seconds
        if i:
            began = events[0]["time"] - sum(events[0]["seconds"].values())
            down += max(began - starts[i - 1][-1]["time"], 0.0)
    whole = sum(total.values())
    return {
        "goodput": sum(total[part] for part in STEPS) / whole if whole else None,
        "time": {
            "starts": len(starts),
            "seconds": round(whole, 3),
            "parts": {part: round(seconds, 3) for part, seconds in total.items()},
            "down": round(down, 3),
        },
    }


def _read(path: Path) -> list[list[dict[str, Any]]]:
    """The events of each start; lines that a kill or a full disk cut short are left out."""
    starts: list[list[dict[str, Any]]] = []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
            event["time"], event["seconds"] = float(event["time"]), dict(event["seconds"])
            if event["event"] == "start":
                starts.append([])
            starts[-1].append(event)
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    return starts


def _kept_and_lost(events: list[dict[str, Any]], kept: int | None) -> dict[str, float]:
    """Seconds by part of one process, when a later one went on from step `kept` (None: none did)."""
    last = events[-1]["seconds"]
    if kept is None or max((e.get("step", 0) for e in events), default=0) <= kept:
        return last
    points = [e for e in events if e["event"] in ("ready", "saved") and (e["event"] == "ready" or e["step"] <= kept)]
    if not points:
        return last
    point = points[-1]["seconds"]
    startup = last.get("startup", 0.0)
    lost = sum(last.values()) - startup - sum(s for part, s in point.items() if part != "startup")
    return {**point, "startup": startup, "lost": max(lost, 0.0)}
