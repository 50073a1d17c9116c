"""What do trials give that train side by side on one fold?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from lm.anchor import averaged_weights
from lm.batch import check_batch
from lm.config import Config, ConfigError, UserError
from lm.evaluate import EvalStep, evaluate
from lm.logger import Ticker
from lm.params import Params
from lm.plan import is_out_of_memory
from lm.sharding import local_rows, put_batch, whole_rows
from lm.sweep.program import Program

Curve = list[list[float]]  # [step, value]


@dataclass
class Result:
    """What one trial gave on one fold."""

    evaluation: dict[str, float] = field(default_factory=dict)  # of the last step, without `eval/`
    eval_curve: Curve = field(default_factory=list)  # of the metric
    train_curve: Curve = field(default_factory=list)  # of train/loss
    bad: int = 0  # steps that were skipped, in a row


def metric_of(evaluation: Mapping[str, float], metric: str) -> float:
    """Takes the metric of a sweep out of an evaluation; raises ConfigError for one that this task has not."""
    name = metric.removeprefix("eval/")
    if name not in evaluation:
        raise ConfigError(
            f"sweep.metric={metric!r}: this task's evaluation has {', '.join(f'eval/{k}' for k in evaluation)}"
        )
    return evaluation[name]


class _OneByOne:
    """An eval step for one trial at a time, whose numbers for all are computed at the first one's turn."""

    def __init__(self, step: EvalStep, params: Params):
        self.step, self.params, self.sums = step, params, []

    def of(self, trial: int) -> EvalStep:
        numbers = itertools.count()

        def eval_step(params: Params, batch: Mapping[str, Any]) -> dict[str, Any]:
            number = next(numbers)
            if number == len(self.sums):
                self.sums.append(jax.device_get(self.step(params, batch)))
            return {key: value[trial] for key, value in self.sums[number].items()}

        return eval_step


def evaluate_all(program: Program, params: Params, data: Any, split: str, trials: int) -> list[dict[str, float]]:
    """Evaluates the trials on a whole split, or its first train.eval_rows rows."""
    config, parts = program.parts.config.train, program.parts
    size = whole_rows(config.eval_batch_size, parts.mesh)
    step = program.eval_step(data.tokenizer.token_bytes())
    shared = _OneByOne(step, params) if program.count > 1 else None
    results = []
    for trial in range(trials):
        batches = data.eval_batches(split, size, local_rows(parts.mesh, size))
        one = shared.of(trial) if shared else step
        found = evaluate(one, params, batches, parts.mesh, size, parts.model.config, config.eval_rows)
        assert found is not None
        results.append(found)
    return results


def run_fold(program: Program, configs: Sequence[Config], data: Any, metric: str, name: str) -> list[Result]:
    """Trains and evaluates the trials with these configs on an opened fold; fewer than program.count: the last one fills up."""
    try:
        return _FoldRun(program, configs, data, metric, name).run()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory with {program.count} trials side by side: use another --workdir with --side_by_side="
            f"{max(program.count // 2, 1)}, or a smaller config.data.batch_size"
        ) from None


class _FoldRun:
    def __init__(self, program: Program, configs: Sequence[Config], data: Any, metric: str, name: str):
        self.program, self.data, self.metric, self.name = program, data, metric, name
        self.results = [Result() for _ in configs]
        self.configs = [*configs, *[configs[-1]] * (program.count - len(configs))]
        self.config = configs[0].train
        self.pending: list[tuple[int, Mapping[str, jax.Array]]] = []

    def run(self) -> list[Result]:
        program, config, parts = self.program, self.config, self.program.parts
        state = program.start(self.configs, self.data.tokenizer.sha256)
        keys, dials = program.arguments(self.configs)
        size = self.configs[0].data.batch_size
        ticker = Ticker(self.name, config.steps)
        batches = self.data.train_batches(0, local_rows(parts.mesh, size), None)
        try:
            for step in range(config.steps):
                batch = next(batches)
                check_batch(batch, parts.model.config, f"batch of step {step}")
                state, metrics = program.step(state, keys, dials, put_batch(batch, parts.mesh, size))
                self.pending.append((step + 1, metrics))
                last = step + 1 == config.steps
                if last or (step + 1) % config.log_every == 0:
                    self._log()
                    ticker.update(step + 1)
                    if all(result.bad >= config.max_bad_steps for result in self.results):
                        break
                if last or (config.eval_every and (step + 1) % config.eval_every == 0):
                    self._evaluate(averaged_weights(state.params, state.opt_state), step + 1)
        finally:
            batches.close()
            ticker.close()
        return self.results

    def _log(self) -> None:
        """Takes in the numbers of the steps since the last time."""
        fetched = jax.device_get([metrics for _, metrics in self.pending])
        for trial, result in enumerate(self.results):
            summed = weight = 0.0  # over targets, as a run's log does it
            for metrics in fetched:
                loss, targets, skipped = (
                    float(np.atleast_1d(metrics[key])[trial]) for key in ("train/loss", "targets", "skipped")
                )
                if result.bad < self.config.max_bad_steps:  # else it stays given up
                    result.bad = result.bad + 1 if skipped else 0
                if not skipped:
                    summed, weight = summed + loss * targets, weight + targets
            if weight:
                result.train_curve.append([self.pending[-1][0], summed / weight])
        self.pending = []

    def _evaluate(self, params: Params, step: int) -> None:
        found = evaluate_all(self.program, params, self.data, "validation", len(self.results))
        for result, evaluation in zip(self.results, found):
            result.evaluation = evaluation
            result.eval_curve.append([step, metric_of(evaluation, self.metric)])


def value_of_result(result: Result, metric: str, sign: float, max_bad_steps: int) -> float:
    """The value of a fold; infinitely bad where training diverged."""
    value = metric_of(result.evaluation, metric) if result.evaluation else math.nan
    return value if math.isfinite(value) and result.bad < max_bad_steps else sign * math.inf
