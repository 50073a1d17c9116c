"""What is known of a sweep, on disk: its trials, what each fold gave, who works on what?

`journal.log` in the workdir is an Optuna JournalStorage, which optuna-dashboard and others read. A trial is added to it whole,
with its parameters, and each fold's result as soon as it is there, so a process may die at any moment. Locks are flocks of
files in the workdir, which the system drops when their holder dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.schema import diff
from lm.config import ConfigError, UserError
from lm.sweep.space import Range, Space, is_whole

NAME = "sweep"
IDENTITY = "lm:sweep"  # key of what the sweep is, in the study
EARLIER = "an extra is not installed: python -m pip install 'lm[adapt]' (optuna)"


def import_optuna() -> Any:
    """Returns optuna, silent; raises UserError where it is missing."""
    try:
        import optuna
    except ImportError:
        raise UserError(EARLIER) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


@dataclass(frozen=True)
class Trial:
    """One combination of values, and what is known of it."""

    number: int
    params: Mapping[str, Any]  # as the journal has them: labels in place of tables
    values: Mapping[int, float]  # of each fold that is done, the metric
    attrs: Mapping[str, Any]
    state: str  # running | complete | pruned

    def of(self, folds: int) -> list[float]:
        """The values of the first `folds` folds, which must be there."""
        return [self.values[fold] for fold in range(folds)]


class Lock:
    """An exclusive lock on a file, held inside `with`; JournalFileBackend takes it too."""

    def __init__(self, path: Path, mended: Path | None = None):
        self.path, self.mended, self.file = path, mended, -1

    def acquire(self, wait: bool = True) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(file)
            return False
        self.file = file
        if self.mended:
            mend(self.mended)
        return True

    def release(self) -> None:
        os.close(self.file)
        self.file = -1


def mend(path: Path) -> None:
    """Cuts off a last line that a crash of the machine left unfinished."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if size and file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


class Journal:
    """An opened sweep. `identity`: JSON of all that its numbers depend on; raises ConfigError where another sweep lies there."""

    def __init__(self, workdir: Path, space: Space, direction: str, identity: Mapping[str, Any]):
        self.optuna, self.workdir, self.space = import_optuna(), workdir, space
        log = workdir / "journal.log"
        journal = self.optuna.storages.journal
        try:
            backend = journal.JournalFileBackend(str(log), lock_obj=Lock(workdir / "locks/journal", log))
            self.storage = self.optuna.storages.JournalStorage(backend)
            with self.locked("ask"):
                self.study = self.optuna.create_study(
                    storage=self.storage, study_name=NAME, direction=direction, load_if_exists=True
                )
                saved = self.study.user_attrs.get(IDENTITY)
                if saved is None:
                    self.study.set_user_attr(IDENTITY, json.loads(json.dumps(identity)))
        except (ValueError, KeyError, AssertionError) as error:
            raise ConfigError(
                f"{log} is no journal of a sweep, or is damaged ({error}): use another --workdir"
            ) from None
        if saved is not None:
            _compare(workdir, saved, json.loads(json.dumps(identity)))

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Waits for a lock and holds it."""
        lock = Lock(self.workdir / "locks" / name)
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Holds a lock, or says that another process does."""
        lock = Lock(self.workdir / "locks" / name)
        got = lock.acquire(wait=False)
        try:
            yield got
        finally:
            if got:
                lock.release()

    def distributions(self) -> dict[str, Any]:
        """The space in Optuna's terms."""
        made, kinds = {}, self.optuna.distributions
        for key, entry in self.space.items():
            if isinstance(entry, Range):
                kind = kinds.IntDistribution if is_whole(key) else kinds.FloatDistribution
                made[key] = kind(entry.low, entry.high, log=entry.log)
            else:
                made[key] = kinds.CategoricalDistribution(entry.labels())
        return made

    def add(self, params: Sequence[Mapping[str, Any]]) -> None:
        """Adds trials; each is in the journal with all of its parameters, or not at all."""
        for values in params:
            self.study.add_trial(self.make_trial(values, "running", {}))

    def make_trial(self, params: Mapping[str, Any], state: str, values: Mapping[int, float]) -> Any:
        """A trial as Optuna has them."""
        states = self.optuna.trial.TrialState
        mean = sum(values.values()) / len(values) if values else None
        return self.optuna.trial.create_trial(
            params=dict(params), distributions=self.distributions(), intermediate_values=dict(values),
            state=states[state.upper()], value=mean if state == "complete" else None,
        )  # fmt: skip

    def trials(self) -> list[Trial]:
        """All trials, in order."""
        return [
            Trial(t.number, t.params, dict(t.intermediate_values), t.user_attrs, t.state.name.lower())
            for t in self.study.get_trials(deepcopy=False)
        ]

    def record(self, number: int, fold: int, value: float, more: Mapping[str, Any]) -> None:
        """Notes what a fold gave: first the rest, then the value, which says that it is all there."""
        trial = self.optuna.trial.Trial(self.study, self.storage.get_trial_id_from_study_id_trial_number(
            self.study._study_id, number
        ))  # fmt: skip
        trial.set_user_attr(f"fold {fold}", dict(more))
        trial.report(value, fold)

    def settle(self, trial: Trial, folds: int) -> None:
        """Ends a trial: complete where all folds are done, else pruned."""
        states = self.optuna.trial.TrialState
        if len(trial.values) == folds:
            self.study.tell(trial.number, sum(trial.of(folds)) / folds, states.COMPLETE)
        else:
            self.study.tell(trial.number, state=states.PRUNED)

    def note(self, key: str, value: Any) -> None:
        self.study.set_user_attr(key, value)

    def read(self, key: str) -> Any:
        return self.study.user_attrs.get(key)


def _compare(workdir: Path, saved: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    changes = diff(saved, ours)
    if changes:
        lines = [f"{key}: {old!r} there, {new!r} now" for key, old, new in changes[:10]]
        raise ConfigError([f"{workdir} holds another sweep; use another --workdir, or ask for the same", *lines])
