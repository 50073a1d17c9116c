"""Which values does trial number n try? A function of the sweep and of the rounds before, and of nothing else.

So a sweep that was killed, or that several processes share, tries what it would have tried undisturbed. Optuna's samplers keep
a random state as they go; here each trial gets its own sampler, seeded by (sweep.seed, n), and a history in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.sweep.journal import Journal, Trial
from lm.sweep.space import Choices, Sweep


def ask_round(journal: Journal, sweep: Sweep, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Returns the values of the trials that are missing in the round that comes after `trials`, of which it may have the first."""
    first = len(trials) // sweep.round * sweep.round
    asked = [dict(trial.params) for trial in trials[first:]]
    for number in range(len(trials), min(first + sweep.round, sweep.trials)):
        asked.append(ask(journal, sweep, number, trials[:first], asked))
    return asked[len(trials) - first :]


def ask(
    journal: Journal, sweep: Sweep, number: int, before: Sequence[Trial], beside: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the values of one trial; `before` are ended trials of earlier rounds, `beside` those of its own that are asked."""
    if sweep.sampler == "grid":
        labels = [entry.labels() for entry in sweep.space.values() if isinstance(entry, Choices)]
        return dict(zip(sweep.space, next(itertools.islice(itertools.product(*labels), number, None))))
    optuna = journal.optuna
    seed = int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0])
    if sweep.sampler == "random":
        sampler = optuna.samplers.RandomSampler(seed)
    else:
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(sweep.round, 4), multivariate=True, constant_liar=True
        )
    study = optuna.create_study(direction=sweep.direction, sampler=sampler)
    study.add_trials([journal.make_trial(t.params, t.state, t.values) for t in before])
    study.add_trials([journal.make_trial(params, "running", {}) for params in beside])
    return study.ask(journal.distributions()).params
