"""Which trials of a round are worth another fold?

Folds pair trials: what is hard in a fold is hard for all. A trial is given up when, over the folds done so far, a paired t-test says
that it is worse than the best one (one-sided p < 0.05; a t-race, Birattari 2009, ch. 4), and it is behind by more than the best
one's standard error, so that no rule could choose it. Optuna's WilcoxonPruner has no such test before the fourth fold of five:
the smallest p of n pairs is 2^-n. One whose loss is not finite is given up at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lm.sweep.journal import Trial
from lm.sweep.space import Sweep

WORSE = 0.05


def stderr(values: Sequence[float]) -> float:
    """The standard error of the mean; nan of one value."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def is_behind(ours: Sequence[float], best: Sequence[float]) -> bool:
    """Says whether a trial is given up; less is better."""
    from scipy.special import stdtr

    behind = np.asarray(ours) - np.asarray(best)
    if not np.isfinite(behind).all():
        return bool(np.isfinite(best).all())
    mean, error, n = float(behind.mean()), stderr(behind.tolist()), len(behind)
    if n < 2 or mean <= stderr(best):
        return False
    return error == 0 or float(stdtr(n - 1, -mean / error)) < WORSE


def alive(trials: Sequence[Trial], sweep: Sweep, first: int, fold: int) -> list[Trial]:
    """Returns the trials of the round that begins with number `first` that go into `fold`; the folds before must be done."""
    left = [trial for trial in trials if first <= trial.number < first + sweep.round]
    others = [trial for trial in trials if trial.number < first and trial.state == "complete"]
    for done in range(1, fold + 1):
        left = [trial for trial in left if np.isfinite(trial.of(done)).all()]
        if not sweep.prune or not left:
            continue
        best = min([*others, *left], key=lambda trial: (sweep.sign * float(np.mean(trial.of(done))), trial.number))
        signed = {trial.number: [sweep.sign * value for value in trial.of(done)] for trial in (*left, best)}
        left = [trial for trial in left if not is_behind(signed[trial.number], signed[best.number])]
    return left
