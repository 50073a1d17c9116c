"""What do the devices do during some steps? `debug.profile_steps` traces them into WORKDIR/profile."""

from __future__ import annotations

import re
import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lm.clock import Clock

TOP = 15


class Profiler:
    """Traces steps `steps` = (first, last), both included and counted from 1 as the log does; (): none.

    `done` steps lie behind the run when it starts or resumes.
    """

    def __init__(self, steps: tuple[int, ...], workdir: Path, done: int, clock: Clock, say: Callable[[str], None]):
        self.folder, self.clock, self.say = workdir / "profile", clock, say
        self.first, self.last = steps or (0, 0)
        self.begun = 0  # the first step of the trace that is running; 0: none is
        if steps and done >= self.last:
            say(f"debug.profile_steps: steps {self.first} to {self.last} are past at step {done}; nothing is profiled")
        elif steps and done >= self.first:
            say(f"debug.profile_steps: steps {self.first} to {done} are past; the profile starts with step {done + 1}")

    def start_before(self, step: int, wait: Callable[[], None]) -> None:
        """Starts the trace if `step` is to be the first in it; `wait` returns when the devices have nothing to do."""
        if not self.begun and self.first <= step <= self.last:
            wait()
            with self.clock.part("profile"):
                self._start(step)

    def stop_after(self, done: int, wait: Callable[[], None]) -> None:
        """Ends the trace if step `done` was the last in it."""
        if self.begun and done >= self.last:
            wait()
            self.close(done)

    def close(self, done: int) -> None:
        """Ends the trace if one is running: a run that is interrupted or fails keeps what it has."""
        if self.begun:
            with self.clock.part("profile"):
                self._stop(done)

    def _start(self, step: int) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # each Python call as an event slows the loop that is measured
        self.begun = step
        try:
            jax.profiler.start_trace(self.folder, create_perfetto_trace=True, profiler_options=options)
        except (RuntimeError, OSError) as error:  # another profiler holds the device, or the disk is full
            self.begun, self.last = 0, 0
            self.say(f"warning: no profile: {' '.join(str(error).split())[:300]}")

    def _stop(self, done: int) -> None:
        began, steps, self.begun = time.perf_counter(), done - self.begun + 1, 0
        what = f"profile of steps {done - steps + 1} to {done}"
        try:
            jax.profiler.stop_trace()
            written = max(self.folder.glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        except (RuntimeError, OSError, ValueError) as error:  # a trace is never worth a run
            self.say(f"warning: no {what}: {' '.join(str(error).split())[:300]}")
            return
        summary = self.folder / "summary.txt"
        try:
            text = format_operations(top_operations(written), max(steps, 1), what)
            with open(summary, "a", encoding="utf-8") as file:
                file.write(text + "\n")
            slowest = f"{summary}    # the slowest operations"
        except Exception as error:  # the format of a trace is XLA's and may change: the trace itself is what counts
            slowest = f"(no summary: {type(error).__name__}: {error})"
        self.say(
            f"{what}, written in {time.perf_counter() - began:.1f} s:\n  {slowest}\n"
            f"  {written.parent / 'perfetto_trace.json.gz'}    # to open at https://ui.perfetto.dev\n"
            f"  tensorboard --logdir={shlex.quote(str(self.folder))}    # tab Profile; pip install tensorboard xprof"
        )


@dataclass(frozen=True)
class Operation:
    """One operation of a compiled program, over all devices and calls of a trace."""

    name: str
    seconds: float  # without what it contains
    calls: int


def top_operations(xplane: Path) -> list[Operation]:
    """Returns the operations in a trace, slowest first.

    On TPUs these are the line `XLA Ops` of each chip, on GPUs the kernels of each stream by the operation that they
    belong to, on CPUs what the threads of XLA ran.
    """
    planes = list(jax.profiler.ProfileData.from_file(str(xplane)).planes)
    lines = [line for plane in planes if plane.name.startswith("/device:") for line in _device_lines(plane)]
    if not lines:
        lines = [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines]
    seconds: defaultdict[str, float] = defaultdict(float)
    calls: defaultdict[str, int] = defaultdict(int)
    for line in lines:
        for name, own in _self_seconds(_operations(line)):
            seconds[name] += own
            calls[name] += 1
    found = [Operation(name, seconds[name], calls[name]) for name in seconds]
    return sorted(found, key=lambda operation: -operation.seconds)


def _device_lines(plane: Any) -> list[Any]:
    lines = list(plane.lines)
    whole = [line for line in lines if line.name == "XLA Ops"]
    return whole or [line for line in lines if line.name.startswith("Stream")]


def _operations(line: Any) -> Iterable[tuple[float, float, str]]:
    """(start, end, name) in ns of the events that are operations of a compiled program, or transfers of a GPU."""
    on_host = not (line.name == "XLA Ops" or line.name.startswith("Stream"))
    for event in line.events:
        stats = {key: value for key, value in event.stats if key in ("hlo_op", "hlo_module", "tf_op")}
        if on_host and "hlo_op" not in stats:
            continue
        operation = str(stats.get("hlo_op") or event.name)
        if operation.startswith("command_buffer"):  # a CUDA graph of hundreds of kernels: each goes by its own name
            operation = event.name
        name = operation.split(" = ")[0].lstrip("%")
        module = f" of {stats['hlo_module']}" if "hlo_module" in stats else ""
        source = f" ({stats['tf_op']})" if stats.get("tf_op") else ""
        yield event.start_ns, event.start_ns + event.duration_ns, name + module + source


def _self_seconds(events: Iterable[tuple[float, float, str]]) -> Iterable[tuple[str, float]]:
    """(name, seconds without the events inside it) for the events of one line, where a loop contains its body."""
    open_events: list[list[Any]] = []  # [end, name, own ns], the outermost first
    for start, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_events and open_events[-1][0] <= start:
            _, done, own = open_events.pop()
            yield done, own / 1e9
        if open_events:
            open_events[-1][2] -= min(end, open_events[-1][0]) - start
        open_events.append([end, name, end - start])
    yield from ((name, own / 1e9) for _, name, own in open_events)


def format_operations(operations: list[Operation], steps: int, what: str) -> str:
    """The table of summary.txt, and the shares of operations that are of one kind (`fusion.12` is a `fusion`)."""
    total = sum(operation.seconds for operation in operations)
    kinds: defaultdict[str, float] = defaultdict(float)
    for operation in operations:
        kinds[re.sub(r"[.\d]+$", "", operation.name.split(" ")[0])] += operation.seconds / max(total, 1e-12)
    shares = [f"{kind} {share:.1%}" for kind, share in sorted(kinds.items(), key=lambda item: -item[1])[:8]]
    lines = [
        f"{what}: {1e3 * total / steps:.3f} ms a step in operations, summed over devices (on a CPU: over threads)",
        f"by kind: {', '.join(shares)}",
        f"{'ms a step':>12} {'share':>7} {'calls/step':>11}  operation, without what it contains",
    ]
    for operation in operations[:TOP]:
        share, calls = operation.seconds / max(total, 1e-12), operation.calls / steps
        lines.append(f"{1e3 * operation.seconds / steps:>12.3f} {share:>7.1%} {calls:>11.1f}  {operation.name}")
    return "\n".join(lines) + "\n"
