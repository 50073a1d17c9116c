"""Which trial wins, and how good is it on text that nobody has looked at?

The winner is trained anew by the ordinary trainer on everything that is not test; then the test split is opened, once.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.build import make_run
from lm.check import follow_data
from lm.clock import Clock
from lm.config import Config, UserError
from lm.evaluate import EvalStep, evaluate
from lm.lease import Lease
from lm.sharding import local_rows, whole_rows
from lm.summary import EVENTS, begin, check_workdir_config, finish, finished
from lm.sweep.journal import Journal, Trial
from lm.sweep.race import stderr
from lm.sweep.space import Sweep
from lm.train import train

OPENED = "lm:test_opened"  # when, in the study
TESTED = "lm:test"  # what came of it
Log = Callable[[str], None]
Row = dict[str, Any]


def make_row(trial: Trial, sweep: Sweep, folds: int) -> Row:
    """What sweep.json says of an ended trial."""
    values = [trial.values[fold] for fold in sorted(trial.values)]
    finite = all(map(math.isfinite, values))
    status = "diverged" if not finite else "finished" if len(values) == folds else "pruned"
    known = trial.attrs.get("fold 0", {})
    error = stderr(values) if finite else math.nan
    return {
        "number": trial.number, "params": dict(trial.params), "values": [v if math.isfinite(v) else None for v in values],
        "mean": float(np.mean(values)) if finite else None, "stderr": error if math.isfinite(error) else None,
        "status": status, "trained_params": known.get("trained_params"), "steps": known.get("steps"),
        "peak_lr": trial.params.get("optim.peak_lr"),
    }  # fmt: skip


def choose(rows: Sequence[Row], sweep: Sweep) -> tuple[Row, Row]:
    """Returns (winner, best). UserError where no trial went through all folds.

    one_standard_error (Breiman et al. 1984, sec. 3.4.3): of the trials whose mean is within one standard error of the best one's
    mean, the simplest: fewest trained numbers, then fewest steps, then the lowest peak_lr, then the better mean.
    """
    done = [row for row in rows if row["status"] == "finished"]
    if not done:
        raise UserError(
            "no trial went through all folds: every one diverged. Lower the ends of sweep.space['optim.peak_lr'], or look at the data"
        )
    best = min(done, key=lambda row: (sweep.sign * row["mean"], row["number"]))
    if sweep.rule == "best":
        return best, best
    near = [row for row in done if sweep.sign * (row["mean"] - best["mean"]) <= (best["stderr"] or 0.0)]

    def simple(row: Row) -> tuple[float, ...]:
        rate = row["peak_lr"]
        rate = rate if isinstance(rate, int | float) else 0.0
        return row["trained_params"], row["steps"], rate, sweep.sign * row["mean"], row["number"]

    return min(near, key=simple), best


def refit(config: Config, data: Any, workdir: Path, say: Log) -> None:
    """Trains the winner as `launch.py` would, in a workdir of its own, and leaves what a run leaves."""
    check_workdir_config(workdir, config)
    lease, clock = Lease(workdir), Clock()
    try:
        if finished(workdir, config, say):
            return
        config = follow_data(config, data)
        clock.open(workdir / EVENTS)
        job, receipt, parts = make_run(config, data, workdir, lease, say, clock)
        begin(job, receipt)
        outcome = train(job)
        finish(job, outcome, receipt, parts.treatment)
        job.logger.close()
    finally:
        lease.close()
    if outcome.status == "interrupted":
        raise KeyboardInterrupt


def open_test(
    journal: Journal, loaded: Any, eval_step: EvalStep, data: Any, metric_of: Callable[[Any], float], say: Log
) -> dict[str, Any]:
    """Evaluates the refitted winner on the test split, once; afterwards returns what was found then.

    A process that died while it was open is counted: `count` then says 2. Only one process may be here.
    """
    known = journal.read(TESTED)
    if known:
        return known
    opened = [*(journal.read(OPENED) or []), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")]
    journal.note(OPENED, opened)
    again = "" if len(opened) == 1 else " again, for a process died while it was open"
    say(f"opening the test split{again}; nothing is chosen after this")
    size = whole_rows(loaded.config.train.eval_batch_size, loaded.mesh)
    batches = data.eval_batches("test", size, local_rows(loaded.mesh, size))
    model = loaded.model.config
    found = evaluate(eval_step, loaded.params, batches, loaded.mesh, size, model.vocab_size, classes=model.classes)
    assert found is not None
    finite = {f"eval/{key}": value for key, value in found.items() if math.isfinite(value)}
    test = {"value": metric_of(found), "opened_at": opened[0], "count": len(opened), **finite}
    journal.note(TESTED, test)
    return test
