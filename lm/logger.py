"""What does a person see of a run, on the terminal and in the workdir?"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.metrics import finite_or_none

Record = dict[str, Any]


def duration(seconds: float) -> str:
    """
    >>> duration(75), duration(4000)
    ('1m15s', '1h06m')
    """
    seconds = int(seconds)
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def write_json(path: Path, value: Any) -> None:
    """Writes atomically: readers see the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=False) + "\n")
    temporary.replace(path)


def _keep_until(path: Path, step: int) -> None:
    """Drops the lines of a .jsonl file that are later than `step`, and a last line that a kill cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().split(b"\n"):  # bytes: a kill can cut a character, and text holds other line ends
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except ValueError:
            continue
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.replace(path)


def _line(record: Record) -> str:
    return json.dumps({key: finite_or_none(value) for key, value in record.items()}) + "\n"


class Logger:
    """Writes metrics.jsonl, TensorBoard events and terminal lines; on all processes but the first it is silent.

    `history` and `step` are those of the checkpoint that is resumed: what was logged after it goes.
    """

    def __init__(self, workdir: Path, main: bool, history: Sequence[Record], step: int):
        self.workdir, self.main = workdir, main
        self._live = main and sys.stdout.isatty()
        self._open_line = self._warned = False
        self._events: Any = None
        self._metrics: Any = None
        if not main:
            return
        # What a killed run logged after its last checkpoint will be logged again: start from the checkpoint's history.
        for name in ("samples.jsonl", "bad_batches.jsonl"):
            _keep_until(workdir / name, step)
        path = workdir / "metrics.jsonl"
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(_line(record) for record in history))
        temporary.replace(path)
        self._metrics = open(path, "a")  # noqa: SIM115 - lives as long as the run
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        (workdir / "tensorboard").mkdir(exist_ok=True)
        self._events = EventsWriter(str(workdir / "tensorboard" / "events"))
        if history:  # tells TensorBoard to forget what an earlier process logged after this step
            restart = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=time.time(), step=step + 1, session_log=restart))

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        if self.main:
            print(("\n" if self._open_line else "") + text, flush=True)
            self._open_line = False

    def progress(self, text: str) -> None:
        """Prints the live line: in place on a terminal, a line of its own in a file."""
        if self._live:
            width = os.get_terminal_size().columns - 1
            print("\r" + text[:width].ljust(width), end="", flush=True)
            self._open_line = True
        elif self.main:
            print(text, flush=True)

    def record(self, record: Record) -> None:
        """Appends one JSON line, and its numbers to TensorBoard."""
        if not self.main:
            return
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = [
            Summary.Value(tag=key, simple_value=value)
            for key, value in record.items()
            if key != "step" and isinstance(value, int | float) and math.isfinite(value)
        ]
        with self._tolerant():
            self._metrics.write(_line(record))
            self._metrics.flush()
            self._events.write_event(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values)))
            self._events.flush()

    def append(self, name: str, record: Record) -> None:
        """Appends one JSON line to another file of the workdir."""
        if self.main:
            with self._tolerant(), open(self.workdir / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def plot(self, history: Sequence[Record]) -> None:
        """Draws loss.png anew."""
        if self.main:
            with self._tolerant():
                plot_losses(self.workdir / "loss.png", history)

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """A full disk must not end the run: the checkpoints hold the history too. Said once."""
        try:
            yield
        except OSError as error:
            if not self._warned:
                self.say(f"warning: {self.workdir} cannot be written: {error.strerror}; training goes on")
            self._warned = True

    def close(self) -> None:
        if not self.main:
            return
        for file in (self._metrics, self._events):
            with self._tolerant():
                file.close()


class Ticker:
    """Prints `name done/total, ETA` to stderr once a task has taken two seconds."""

    def __init__(self, name: str, total: int, quiet: bool = False):
        self.name, self.total, self.quiet = name, total, quiet
        self.start = self.last = time.monotonic()
        self.shown = False

    def update(self, done: int) -> None:
        now = time.monotonic()
        if self.quiet or now - self.start < 2 or now - self.last < 1 or not sys.stderr.isatty():
            return
        self.last, self.shown = now, True
        left = duration((now - self.start) / max(done, 1) * (self.total - done))
        print(f"\r{self.name} {done}/{self.total}, {left} left   ", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.shown:
            print(file=sys.stderr)


def plot_losses(path: Path, history: Sequence[Record]) -> None:
    """Draws training and validation loss over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    forgotten = [r for r in history if r.get("forget/change") is not None]
    shape = {"figsize": (8, 6.5 if forgotten else 4.5), "dpi": 110}
    figure, panels = plt.subplots(1 + bool(forgotten), squeeze=False, sharex=True, **shape)
    axes = panels[0, 0]
    for key, style in (("train/loss", {"alpha": 0.6, "lw": 1}), ("eval/loss", {"marker": "o", "ms": 3})):
        points = [(r["step"], r[key]) for r in history if r.get(key) is not None]
        if points:
            axes.plot(*zip(*points), label=key, **style)
    evals = [
        r for r in history if r["step"] and r.get("eval/loss") is not None and r.get("eval/criterion", 0) is not None
    ]
    best = min(evals, key=lambda r: r.get("eval/criterion", r["eval/loss"]), default=None)
    if best:
        axes.axhline(best["eval/loss"], ls=":", lw=0.8, color="grey")
        axes.set_title(f"best eval/loss {best['eval/loss']:.4f} at step {best['step']}")
    for key, style in (("forget/change", {"marker": "o"}), ("forget/kl", {"marker": "s"})):
        if forgotten:
            panels[1, 0].plot([r["step"] for r in forgotten], [r[key] for r in forgotten], label=key, ms=3, **style)
    for panel in panels[1:, 0]:
        panel.set_ylabel("nats a token")
        panel.grid(alpha=0.3)
        panel.legend()
    panels[-1, 0].set_xlabel("step")
    axes.set_ylabel("nats a text" if any("eval/macro_f1" in r for r in history) else "nats a token")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    _save_figure(figure, path)


def _save_figure(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    temporary = path.with_name(path.stem + ".tmp.png")
    figure.savefig(temporary)
    temporary.replace(path)
    plt.close(figure)


def plot_mixes(path: Path, rows: Sequence[Mapping[str, float]], taken: float) -> None:
    """Draws loss on the task against loss on the remembered text, a point for each share of lm.interpolate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.5), dpi=110)
    axes.plot([row["forget/loss"] for row in rows], [row["eval/loss"] for row in rows], marker="o")
    for row in rows:
        mark = " (taken)" if row["share"] == taken else ""
        axes.annotate(f" {row['share']:g}{mark}", (row["forget/loss"], row["eval/loss"]))
    axes.set_xlabel("remembered text, nats a token")
    axes.set_ylabel("validation, nats a token")
    axes.set_title("share of the fine-tuned weights; the rest is the start")
    axes.grid(alpha=0.3)
    _save_figure(figure, path)


def describe_time(summary: Mapping[str, Any]) -> str:
    """Where the time of a run went, over all its starts, in one line."""
    time = summary["time"]
    words = {
        "startup": "start-up", "eval": "evaluation", "save": "saving", "profile": "profiling", "lost": "lost and done again",
        "log": "logging", "other": "the rest",
    }  # fmt: skip
    shares = [f"{word} {time['parts'][part] / max(time['seconds'], 1e-9):.1%}" for part, word in words.items()]
    starts = "one start" if time["starts"] == 1 else f"{time['starts']} starts"
    steps = f"steps that count {summary['goodput'] or 0:.1%} (goodput)"
    return f"{duration(time['seconds'])} in {starts}: {', '.join([steps, *shares])}"


def run_card(
    summary: Mapping[str, Any], receipt: Mapping[str, Any], commands: Mapping[str, str], page: str = ""
) -> str:
    """The README.md of a workdir: what was trained, from what, how well, and what to run next; `page` goes in between."""
    data, versions = summary["data"], summary["versions"]

    def number(key: str, digits: str = ".4f") -> str:
        value = summary.get(key)
        return "-" if value is None else f"{value:{digits}}"

    def line(key: str, label: str, digits: str = ".4f") -> str:
        columns = ["", "best/", *(["start/"] if "start/eval/loss" in summary else [])]
        return f"| {label} | {' | '.join(number(column + key, digits) for column in columns)} |"

    names = {"loss": "its loss, nats a token", "change": "change since the start", "kl": "KL(start, now)"}
    lines = [line(f"forget/{key}", f"remembered text: {name}") for key, name in names.items()]
    forgetting = "\n".join(lines) + "\n" if "forget/change" in summary else ""
    before = " before training |" if "start/eval/loss" in summary else ""
    shown = [("eval/loss", "eval/loss, nats a token"), ("eval/perplexity", "eval/perplexity", ".3f"),
             ("eval/bits_per_byte", "eval/bits_per_byte"), ("eval/accuracy", "eval/accuracy")]  # fmt: skip
    if "eval/macro_f1" in summary:  # a classifier
        shown = [
            ("eval/loss", "eval/loss, nats a text"),
            ("eval/accuracy", "eval/accuracy"),
            ("eval/macro_f1", "eval/macro_f1"),
        ]
    rows = "\n".join(line(*row) for row in shown)
    splits = ""
    for name, source in data["sources"].items():
        for split, part in source["splits"].items():
            splits += f"| {name} | {split} | {part['documents']:,} | {part['tokens']:,} | {part.get('rows', 0):,} |\n"
    credits = ""
    for name, source in data["sources"].items():
        if said := source.get("credits"):
            credits += f"- {name}: " + "; ".join(f"{key} {text}" for key, text in said.items()) + "\n"
    config = "\n".join(f"    {key} = {value!r}" for key, value in summary["config_changes"].items()) or "    (defaults)"
    next_steps = "\n".join(f"    {line}    # {what}" for what, line in commands.items())
    share = receipt["flops_per_step"] / max(receipt["flops_per_step_if_all_trained"], 1)
    return f"""# Run in {summary["workdir"]}

{summary["start"]}. {summary["status"]} at step {summary["steps"]:,} of {summary["steps_planned"]:,} \
after {duration(summary["wall_seconds"])}; {summary["tokens_seen"]:,} target tokens seen.

![loss](loss.png)

| | last | best (step {summary["best_step"]}) |{before}
|---|---|---|{"---|" if before else ""}
{rows}
{forgetting}
Last training loss {number("train/loss")}; {summary["tokens_per_sec"]:,.0f} target tokens a second on \
{summary["devices"]}; mfu {number("mfu", ".3f")} (peak: {summary["peak"]}).

Time: {describe_time(summary)}.

{page}
## Model

{receipt["trained_params"]:,} parameters trained, {receipt["frozen_params"]:,} frozen, {receipt["optimizer_numbers"]:,} \
numbers held by the optimizer. A step is {receipt["flops_per_step"]:.3g} FLOPs, {share:.2f} of what training everything \
would be. Weights: sha256 `{summary["params_sha256"]}`.

## Data

| source | split | documents | tokens | rows |
|---|---|---|---|---|
{splits}
{credits}
Data fingerprint `{summary["data_sha256"]}`. Training does not open the test split.

## Configuration, where it differs from the defaults

{config}

Made with {", ".join(f"{name} {version}" for name, version in versions.items())}.

## Next

{next_steps}
"""
