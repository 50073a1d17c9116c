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

from lm.anchor import averaged_weights
from lm.build import make_run
from lm.check import follow_data
from lm.clock import Clock
from lm.config import Config, UserError
from lm.evaluate import evaluate
from lm.lease import Lease
from lm.parts import Parts
from lm.run import Outcome, Run
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
Judge = Callable[[Run, Parts, Outcome, str, Log], tuple[dict[str, float], str]]  # lm.classify.judge_run


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


def refit(
    config: Config, data: Any, workdir: Path, journal: Journal, metric_of: Callable[[Any], float], judge: Judge, say: Log
) -> dict[str, Any]:  # fmt: skip
    """Trains the winner as `launch.py` would, in a workdir of its own, opens the test split, and leaves what a run leaves.

    Returns what `open_test` does; the winner's summary and run card have it too.
    """
    config = follow_data(config, data)
    check_workdir_config(workdir, config)
    lease, clock = Lease(workdir), Clock()
    try:
        known = journal.read(TESTED)
        if known and finished(workdir, config, say):
            return known
        clock.open(workdir / EVENTS)
        job, receipt, parts = make_run(config, data, workdir, lease, say, clock)
        begin(job, receipt)
        outcome = train(job)
        interrupted = outcome.status == "interrupted"
        test = {} if interrupted else known or open_test(journal, job, parts, outcome, metric_of, judge, say)
        numbers = {key.replace("eval/", "test/"): value for key, value in test.items() if "/" in key}
        page = workdir / "classification-test.md"
        finish(job, outcome, receipt, parts.treatment, numbers, page.read_text("utf-8") if page.is_file() else "")
        job.logger.close()
    finally:
        lease.close()
    if interrupted:
        raise KeyboardInterrupt
    return test


def open_test(
    journal: Journal, job: Run, parts: Parts, outcome: Outcome, metric_of: Callable[[Any], float], judge: Judge, say: Log
) -> dict[str, Any]:  # fmt: skip
    """Evaluates the refitted winner on the test split, once; of a classifier beside baselines.

    A process that died while it was open is counted: `count` then says 2. Only one process may be here.
    """
    opened = [*(journal.read(OPENED) or []), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")]
    journal.note(OPENED, opened)
    again = "" if len(opened) == 1 else " again, for a process died while it was open"
    say(f"opening the test split{again}; nothing is chosen after this")
    size = whole_rows(job.config.train.eval_batch_size, job.mesh)
    batches = job.data.eval_batches("test", size, local_rows(job.mesh, size))
    params = averaged_weights(outcome.state.params, outcome.state.opt_state)
    found = evaluate(job.eval_step, params, batches, job.mesh, size, job.model)
    assert found is not None
    numbers = {f"eval/{key}": value for key, value in found.items()}
    numbers |= judge(job, parts, outcome, "test", say)[0] if job.model.classes else {}
    finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
    test = {"value": metric_of(found), "opened_at": opened[0], "count": len(opened), **finite}
    journal.note(TESTED, test)
    return test
