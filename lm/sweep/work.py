"""Who computes what, and when is a round over? Any number of processes share one workdir.

The trials of a round are asked together; then, fold by fold, those still alive are cut into chunks that train side by side. A
process takes a chunk by its lock, computes it and notes what it gave; when a fold is done everywhere, the next one begins. All of
it follows from the journal, so it does not matter who died when, nor how many work: the table is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm.check import follow_data
from lm.config import Config
from lm.logger import duration
from lm.sweep.ask import ask_round
from lm.sweep.fold_run import run_fold, value_of_result
from lm.sweep.folds import Folds, of_fold
from lm.sweep.journal import Journal, Trial
from lm.sweep.program import Program, program_key
from lm.sweep.race import alive
from lm.sweep.space import Choices, Sweep, with_keys

Log = Callable[[str], None]
PROGRAMS = 8  # compiled programs that are kept


@dataclass(frozen=True)
class Chunk:
    """Trials that one process trains side by side on one fold."""

    fold: int
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        return f"fold-{self.fold}-trial-{self.trials[0].number}"

    def is_done(self) -> bool:
        return all(self.fold in trial.values for trial in self.trials)


class Worker:
    """Works on a sweep until it is done."""

    def __init__(
        self, journal: Journal, sweep: Sweep, config: Config, folds: int, side_by_side: int, opened: Folds, say: Log
    ):  # fmt: skip
        self.journal, self.sweep, self.config, self.folds = journal, sweep, config, folds
        self.side_by_side, self.opened, self.say = side_by_side, opened, say
        self.programs: dict[tuple[Any, ...], Program] = {}
        self.spent, self.done, self.waiting = 0.0, 0, False  # of this process

    def run(self) -> list[Trial]:
        """Returns the trials, all of them ended."""
        while True:
            trials = self.journal.trials()
            first = next((t.number for t in trials if t.state == "running"), len(trials))
            first = first // self.sweep.round * self.sweep.round
            if len(trials) < self._end(first):
                self._ask(first)
            elif first >= self.sweep.trials:
                return trials
            elif (fold := self._fold(trials, first)) is None:
                self._settle(first)
            elif not any(self._take(chunk) for chunk in self.chunks(trials, first, fold) if not chunk.is_done()):
                if not self.waiting:
                    self.say("waiting for what other processes are at")
                self.waiting = True
                time.sleep(1.0)

    def _end(self, first: int) -> int:
        """The number after the last trial of the round that begins with `first`."""
        return min(first + self.sweep.round, self.sweep.trials)

    def _ask(self, first: int) -> None:
        with self.journal.locked("ask"):
            trials = self.journal.trials()
            if len(trials) < self._end(first):  # else another process has asked meanwhile
                self.journal.add(ask_round(self.journal, self.sweep, trials))

    def _settle(self, first: int) -> None:
        with self.journal.locked("ask"):
            for trial in self.journal.trials():
                if first <= trial.number < self._end(first) and trial.state == "running":  # another may have asked more
                    self.journal.settle(trial, self.folds)

    def _fold(self, trials: Sequence[Trial], first: int) -> int | None:
        """The fold that the round is at; None when it is over."""
        for fold in range(self.folds):
            left = alive(trials, self.sweep, first, fold)
            if any(fold not in trial.values for trial in left):
                return fold
        return None

    def chunks(self, trials: Sequence[Trial], first: int, fold: int) -> list[Chunk]:
        """What there is to do of a fold: trials of one program, `side_by_side` at a time."""
        groups: dict[str, list[Trial]] = {}
        for trial in alive(trials, self.sweep, first, fold):
            groups.setdefault(program_key(self.config_of(trial), self.sweep.space), []).append(trial)
        n = self.side_by_side
        return [Chunk(fold, tuple(g[i : i + n])) for g in groups.values() for i in range(0, len(g), n)]

    def config_of(self, trial: Trial) -> Config:
        """The config with a trial's values; ConfigError where they do not fit together."""
        return with_keys(self.config, values_of(trial, self.sweep))

    def _take(self, chunk: Chunk) -> bool:
        """Computes a chunk, unless another process is at it; says whether there is news."""
        with self.journal.claim(chunk.name) as got:
            if not got:
                return False
            now = {trial.number: trial for trial in self.journal.trials()}
            missing = [t.number for t in chunk.trials if chunk.fold not in now[t.number].values]
            if missing:
                self._compute(chunk, missing)
            return True

    def _compute(self, chunk: Chunk, missing: Sequence[int]) -> None:
        began, sweep = time.perf_counter(), self.sweep
        configs = [of_fold(self.config_of(trial), self.folds, chunk.fold) for trial in chunk.trials]
        data = self.opened.data(configs[0].data)
        configs = [follow_data(config, data) for config in configs]
        data.describe_steps(configs[0].train.steps)  # refuses what the rows do not suffice for
        program = self._program(configs, data.tokenizer.vocab_size)
        numbers = ", ".join(str(trial.number) for trial in chunk.trials)
        what = f"trial{'s' * (len(configs) > 1)} {numbers}, fold {chunk.fold + 1}/{self.folds}"
        results = run_fold(program, configs, data, sweep.metric, what)
        seconds = (time.perf_counter() - began) / len(configs)
        values = []
        for trial, result in zip(chunk.trials, results):
            values.append(value_of_result(result, sweep.metric, sweep.sign, configs[0].train.max_bad_steps))
            if trial.number in missing:
                self.journal.record(trial.number, chunk.fold, values[-1], {
                    "evaluation": {k: v for k, v in result.evaluation.items() if np.isfinite(v)}, "seconds": seconds,
                    "eval_curve": result.eval_curve, "train_curve": result.train_curve,
                    "trained_params": program.trained_params, "steps": configs[0].train.steps,
                })  # fmt: skip
        self.spent, self.done = self.spent + seconds * len(configs), self.done + len(configs)
        self._report(f"{what}: {sweep.metric} {' '.join(f'{value:.4f}' for value in values)}")

    def _program(self, configs: Sequence[Config], vocab_size: int) -> Program:
        count = 1
        while count < len(configs):  # powers of two: after pruning the program of more trials serves
            count *= 2
        count = min(count, self.side_by_side)
        alike = len({config.train.seed for config in configs}) == 1
        fold = of_fold(configs[0], self.folds, 0)
        if not fold.train.logit_adjustment:  # else what is added follows the counts of each fold
            fold = replace(fold, train=replace(fold.train, class_counts=()))
        key = (program_key(fold, self.sweep.space), vocab_size, count, alike)
        if key not in self.programs:
            if len(self.programs) >= PROGRAMS:
                self.programs.pop(next(iter(self.programs)))
            spread = self.side_by_side == 1
            self.programs[key] = Program(configs[0], self.sweep.space, vocab_size, count, alike, self.say, spread)
        return self.programs[key]

    def _report(self, text: str) -> None:
        trials = self.journal.trials()
        left = (self.sweep.trials - len(trials)) * self.folds
        left += sum(self.folds - len(trial.values) for trial in trials if trial.state == "running")
        eta = duration(left * self.spent / self.done)
        self.say(f"{text}  ({self.done} fold runs here, at most {left} left: {eta} for one process)")


def values_of(trial: Trial, sweep: Sweep) -> dict[str, Any]:
    """The values of a trial, where the journal has labels of some."""
    values: dict[str, Any] = {}
    for key, entry in sweep.space.items():
        label = trial.params[key]
        values[key] = entry.values[entry.labels().index(label)] if isinstance(entry, Choices) else label
    return values
