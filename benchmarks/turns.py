"""How are several programs measured beside each other without disturbing each other?

Each side is a child process that gets ready, reports, and then waits on a pipe for its turn. Only one has a turn at a
time, and turns alternate (A B C A B C ...), so that a noisy machine disturbs all alike. A side is a function
`benchmarks.MODULE:FUNCTION` of a JSON object that returns facts (a dict), or something that can `run(steps)` and knows
its `facts()`. Rows hold the medians over turns.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.schema import UserError

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "numpy", "tensorflow-cpu", "tensorflow", "grain")
# What a child sees beside the parent's environment: a compilation that was cached by an earlier run is not measured, a
# peer finds room on a GPU that both share, and the hub is not asked for anything.
ENVIRONMENT = {
    "JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3",
    "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "",
}  # fmt: skip
Row = dict[str, Any]


class Work(Protocol):
    """What a side's function returns when it wants turns."""

    def run(self, steps: int) -> None: ...  # and wait until they are done

    def facts(self) -> Row: ...


class SideFailed(UserError):
    """A child process ended with an error; the message is its last line."""


class Side:
    """A child process: started and ready when this returns, with `facts` and `start_seconds` (process start to ready)."""

    def __init__(self, name: str, target: str, spec: Mapping[str, Any], environment: Mapping[str, str] | None = None):
        self.name, self.turns = name, []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "benchmarks.turns", target, json.dumps(spec)]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={"CUDA_VISIBLE_DEVICES": "0", **os.environ, **ENVIRONMENT, "PYTHONPATH": path, **(environment or {})},
        )  # fmt: skip
        try:
            self.listen()
            self.start_seconds = time.perf_counter() - began
            self.facts: Row = self.listen()
        except BaseException:
            self.close()
            raise

    def listen(self) -> Row:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            self.process.wait()
            self.errors.seek(0)
            lines = [line for line in self.errors.read().splitlines() if line.strip()]
            raise SideFailed(f"{self.name}: {lines[-1] if lines else f'exit code {self.process.returncode}'}"[:500])
        return json.loads(line)

    def turn(self, steps: int) -> Row:
        """One untimed step, which wakes threads and fills caches, then `steps`; returns seconds and CPU seconds a step."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # `listen` says why
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        return self.listen()

    def close(self) -> None:
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def measure_once(name: str, target: str, spec: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Row:
    """Returns the facts of a side that needs no turns, in a process of its own."""
    side = Side(name, target, spec, environment)
    side.close()
    return side.facts


def alternate(sides: Sequence[Side], rounds: int, seconds: float) -> None:
    """Gives each side `rounds` turns of about `seconds`, one after the other; their results are in `side.turns`."""
    for number in range(rounds):
        order = sides if number % 2 == 0 else sides[::-1]  # so that none always follows the same one
        for side in order:
            give_turn(side, sides, max(1, round(seconds / side.facts["step_seconds"])))


def give_turn(side: Side, sides: Sequence[Side], steps: int) -> None:
    """One turn of `side` while the other `sides` wait."""
    waiting = [other for other in sides if other is not side]
    before, machine = [_cpu_seconds(other.process.pid) for other in waiting], _machine_cpu_seconds()
    began = time.perf_counter()
    turn = side.turn(steps)
    wall = time.perf_counter() - began
    turn["waiting_cores"] = sum(_cpu_seconds(o.process.pid) - b for o, b in zip(waiting, before)) / wall
    turn["busy_cores"] = (_machine_cpu_seconds() - machine) / wall
    side.turns.append({"steps": steps, **turn})


def _cpu_seconds(process: int) -> float:
    """CPU time of a process, all threads; 0 where there is no /proc."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _machine_cpu_seconds() -> float:
    """CPU time of everything on this machine; 0 where there is no /proc."""
    with contextlib.suppress(OSError):
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _peak_rss() -> int | None:
    """The most memory that this process has held so far, bytes; None where there is no /proc."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return None


def median_row(side: Side) -> Row:
    """What the turns of a side say. `others_cores`: cores that were busy with none of the sides during its turns."""
    seconds = [turn["seconds"] for turn in side.turns]
    others = [t["busy_cores"] - t["waiting_cores"] - t["cpu_seconds"] / t["seconds"] for t in side.turns]
    return {
        "side": side.name, "seconds": statistics.median(seconds), "spread": max(seconds) / min(seconds) - 1,
        "least_seconds": min(seconds), "cpu_seconds": statistics.median(turn["cpu_seconds"] for turn in side.turns),
        "waiting_cores": max(turn["waiting_cores"] for turn in side.turns), "others_cores": max(0.0, statistics.median(others)),
        "start_seconds": side.start_seconds, "steps": side.turns[0]["steps"], "rounds": len(side.turns), **side.facts,
        "rss_bytes": side.turns[-1]["rss_bytes"],
    }  # fmt: skip


def describe_machine() -> Row:
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    installed = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    return {
        "machine": f"{cpu}, {os.cpu_count()} cores", "load": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **{n: installed[n] for n in PACKAGES if n in installed}},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }  # fmt: skip


def say(text: str) -> None:
    """Progress, beside the table on stdout."""
    print(text, file=sys.stderr, flush=True)


def warn_of_others(rows: Sequence[Row]) -> None:
    """PyTorch's threads wait for each other in a loop: beside other work a step can take ten times as long."""
    worst = max(row["others_cores"] for row in rows)
    if worst > 0.15:
        print(f"\nDisturbed: {worst:.1f} cores were busy with other work. Measure again on a quiet machine.")


class Table:
    """Prints a Markdown table line by line, and adds each row with the machine to `out` as a JSON line."""

    def __init__(self, benchmark: str, columns: Sequence[str], out: str):
        self.benchmark, self.columns, self.out, self.started = benchmark, columns, out, False

    def add(self, row: Row, cells: Sequence[str]) -> None:
        if not self.started:
            print(f"| {' | '.join(self.columns)} |\n|{'---|' * len(self.columns)}")
        self.started = True
        print(f"| {' | '.join(cells)} |", flush=True)
        if self.out:
            with open(self.out, "a") as file:
                file.write(json.dumps({"benchmark": self.benchmark, **row, **describe_machine()}) + "\n")


def _child(target: str, spec: Mapping[str, Any]) -> None:
    """Runs one side: answers on the real stdout, everything that libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(row: Row) -> None:
        answers.write(json.dumps(row) + "\n")
        answers.flush()

    def timed(work: Work, steps: int) -> Row:
        began, cpu_began = time.perf_counter(), time.process_time()
        work.run(steps)
        return {
            "seconds": (time.perf_counter() - began) / steps,
            "cpu_seconds": (time.process_time() - cpu_began) / steps,
            "rss_bytes": _peak_rss(),
        }

    module, _, function = target.partition(":")
    work = getattr(importlib.import_module(f"benchmarks.{module}"), function)(spec)
    answer({})
    if isinstance(work, dict):
        return answer(work)
    work.run(1)
    ready = {"step_seconds": timed(work, 1)["seconds"], "rss_bytes": _peak_rss()}
    answer({**ready, **work.facts()})
    for line in _lines():
        work.run(1)
        answer(timed(work, int(line)))


def _lines() -> Iterator[str]:
    """Lines of stdin as they come; `for line in sys.stdin` would wait for a full buffer."""
    return iter(sys.stdin.readline, "")


if __name__ == "__main__":
    _child(sys.argv[1], json.loads(sys.argv[2]))
