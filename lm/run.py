"""What does a run need, and what must it remember, whoever makes its steps?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lm.batch import Data
from lm.checkpoint import Checkpoints
from lm.clock import Clock
from lm.config import Config, ModelConfig
from lm.evaluate import EvalStep
from lm.forgetting import Meter
from lm.lease import Lease
from lm.logger import Logger
from lm.step import TrainState

UNFINISHED = 75  # exit code: saved, run the same command again


@dataclass
class Progress:
    """What a run must remember besides its arrays. All of it goes into checkpoints as JSON."""

    step: int = 0
    tokens: int = 0  # non-padding tokens processed
    targets: float = 0.0  # summed loss weight
    history: list[dict[str, Any]] = field(default_factory=list)  # the lines of metrics.jsonl
    last_eval: int = -1  # step of the last evaluation
    best_step: int | None = None
    best_loss: float | None = None  # eval/loss, or what train.stop_on makes of it
    evals_since_best: int = 0
    bad_in_a_row: int = 0
    window_loss: float = 0.0  # sum over the steps since the last log line
    window_targets: float = 0.0
    window_steps: int = 0
    wall_seconds: float = 0.0


@dataclass
class Phase:
    """A stretch of a run in which more trains than before (lm/phases.py)."""

    step: int  # steps done when it begins
    enter: Callable[
        [TrainState], tuple[TrainState, dict[str, Any]]
    ]  # -> (the state in it, fields of `Run` that change)


@dataclass
class Run:
    """Everything `train` needs; `lm.build.make_run` makes one."""

    config: Config
    workdir: Path
    mesh: Mesh
    state: TrainState
    key: jax.Array
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    eval_step: EvalStep
    observe_eval: Callable[[TrainState, float], TrainState] | None  # reduce-on-plateau
    sample: Callable[[Any, str], str]  # (params, prompt) -> text
    data: Data
    data_state: bytes | None
    model: ModelConfig  # with what the data decide filled in
    flops_per_token: float
    peak_flops: float  # of all devices together
    peak_source: str  # where that figure is from
    checkpoints: Checkpoints
    meta: dict[str, Any]  # what every checkpoint records of the configuration
    progress: Progress
    logger: Logger
    lease: Lease | None
    clock: Clock
    later: list[Phase] = field(default_factory=list)  # phases that have not begun
    meter: Meter | None = None  # train.remember


@dataclass
class Outcome:
    state: TrainState
    status: str  # finished | stopped early | interrupted
    train_seconds: float  # in steps, without compiling, evaluating and saving
    train_tokens: int  # in those
    train_flops: float
