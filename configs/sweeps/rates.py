"""Which rate, decay and moments suit a config? Five values that are all dials: every trial runs the same compiled program.

python -m lm.sweep --config=configs/smoke.py --sweep=configs/sweeps/rates.py --folds=5 --workdir=runs/sweep

20 trials of 5 folds, of 60 steps each: a hundred short runs at most, four side by side (docs/sweep.md). No time or loss is quoted: none was
measured on a quiet machine.
"""

from __future__ import annotations

from typing import Any

from lm.sweep.space import log_range, uniform


def get_sweep() -> dict[str, Any]:
    return {
        "sampler": "tpe",
        "trials": 20,
        "metric": "eval/loss",
        "space": {
            "optim.peak_lr": log_range(1e-4, 1e-1),
            "optim.weight_decay": uniform(0.01, 0.3),
            "optim.b1": uniform(0.8, 0.95),
            "optim.b2": uniform(0.9, 0.999),
            "optim.end_lr_ratio": uniform(0.01, 1.0),
        },
    }
