"""Searches a config's keys by cross-validation: `python -m lm.sweep --config=F --sweep=S --folds=5 --workdir=D`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from data_pipeline.schema import run_main, split_flags
from lm.config import ConfigError

USAGE = """
usage: python -m lm.sweep --config=FILE --sweep=FILE --workdir=DIR [--folds=5] [--trials=N] [--side_by_side=auto|N]
                          [--config.KEY=VALUE ...]

Tries combinations of the values that the sweep file names, each on K folds of what is not test; chooses by the one-standard-error
rule, trains the winner on all folds, and opens the test split once. The same command goes on after any kind of end, and
more processes or hosts with the same command and a shared workdir help; the table is the same. docs/sweep.md says more.
--trials overrides the number in the sweep file. --side_by_side: trials that train at once in one program; auto is as many as a round
has and memory holds. A sweep file is Python and runs with your rights: use only files that you have read.
Exit codes: 0 done, 1 error, 2 configuration, 75 interrupted, resumable.

example: python -m lm.sweep --config=configs/smoke.py --sweep=configs/sweeps/rates.py --folds=5 --workdir=runs/sweep
"""


def main(argv: list[str]) -> None:
    names = {"config": "", "sweep": "", "workdir": "", "folds": "5", "trials": "", "side_by_side": "auto"}
    flags, overrides = split_flags(argv, names, USAGE)
    missing = [f"--{name}" for name in ("config", "sweep", "workdir") if not flags[name]]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: name it; see --help")
    for name, words in (("folds", ()), ("side_by_side", ("auto",))):
        if not ((flags[name].isdigit() and int(flags[name]) > 0) or flags[name] in words):
            raise ConfigError(f"--{name} must be a whole number above 0{' or auto' * bool(words)}, got {flags[name]!r}")

    from lm.check import read_config
    from lm.sweep.folds import check_sweepable
    from lm.sweep.journal import import_optuna
    from lm.sweep.space import read_sweep

    config = read_config(flags["config"], overrides)
    check_sweepable(config, int(flags["folds"]))
    read_sweep(flags["sweep"], flags["trials"], config)  # what is wrong without devices is said at once
    import_optuna()

    import jax
    import numpy as np

    from data_pipeline.batch import open_data
    from lm.classify import judge_run
    from lm.evaluate import summarise
    from lm.memory import keep_memory
    from lm.sweep.conduct import Conductor
    from lm.sweep.fold_run import metric_of

    keep_memory()
    config = read_config(flags["config"], overrides, jax.device_count())  # the mesh fits the devices, of the winner too
    sweep = read_sweep(flags["sweep"], flags["trials"], config, jax.device_count())
    known = summarise(np.ones((2, 4))) | ({"macro_f1": 1.0} if config.data.task == "classify" else {})
    metric_of(known, sweep.metric)  # there is one of that name
    again = f"python -m lm.sweep {shlex.join(argv)}"
    said = lambda text: print(text, flush=True)  # noqa: E731
    conductor = Conductor(config, sweep, int(flags["folds"]), Path(flags["workdir"]), open_data, judge_run, said)
    try:
        conductor.run(flags["side_by_side"], again)
    except KeyboardInterrupt:
        print(f"\ninterrupted; what is done is kept. To go on:\n  {again}", file=sys.stderr)
        raise SystemExit(75) from None


if __name__ == "__main__":
    run_main(main)
