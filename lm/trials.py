"""How good does a model get when one block alone is trained for a few steps?

All trials share one compiled program: which parameters move is an argument, 0 or 1 of each layer, and so is the rate. Gradients of
the others are zeros before anything sees them, and so are their updates: it is the arithmetic of a run that trains that block
alone, at the FLOPs and the memory of one that trains all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.batch import check_batch
from lm.config import OptimConfig
from lm.evaluate import evaluate, make_eval_step
from lm.optim import Schedule, make_optimizer, make_schedule
from lm.params import Params, layer_paths
from lm.parts import Parts, make_loss, trained_paths
from lm.sharding import put_batch
from lm.step import GradFn, TrainState, make_grad_fn, make_train_step

Rows = Iterable[Mapping[str, np.ndarray]]
Mask = dict[str, jax.Array]  # of each trained path, 0 or 1: one number, or one a layer of a stack


def make_mask(paths: Iterable[str], moves: Callable[[str], bool]) -> Mask:
    """Says of each possibly stacked path which of its layers move."""
    found = {path: [float(moves(single)) for single in layer_paths(path)] for path in paths}
    return {p: jnp.asarray(on if layer_paths(p) != [p] else on[0], jnp.float32) for p, on in found.items()}


def _only(mask: Mask, leaves: Mapping[str, Any]) -> Params:
    """Zeros where the mask is 0, whatever stood there."""

    def keep(path: str, leaf: Any) -> Any:
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        on = mask[path] > 0
        return jnp.where(on.reshape(-1, *[1] * (leaf.ndim - 1)) if on.ndim else on, leaf, jnp.zeros_like(leaf))

    return {path: keep(path, leaf) for path, leaf in leaves.items()}


def make_gradient(parts: Parts) -> GradFn:
    """The gradient function of the run's own step."""
    config = parts.config
    loss = make_loss(parts.model, config, parts.treatment.trained[parts.model.head_path])
    drop = config.model.dropout > 0 or config.lora.dropout > 0
    return make_grad_fn(
        loss if drop else lambda params, batch, key: loss(params, batch, None), config.train.micro_batches
    )


class Trials:
    """Trains parts of a model, one after the other, from the same start on the same batches."""

    def __init__(self, parts: Parts, params: Params, token_bytes: np.ndarray):
        self.parts, self.params = parts, params
        self.eval_step = make_eval_step(parts.model, token_bytes, parts.config.train.loss_chunk)
        gradient, self.trained = make_gradient(parts), trained_paths(parts.state.params, parts.treatment)

        def optimizer_at(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
            config, width = parts.config, parts.model.config.width_multiplier
            return make_optimizer(config.optim, parts.state.params, parts.treatment, schedule, config.train, width)

        def step(state: TrainState, batch: Any, key: jax.Array, rate: jax.Array, mask: Mask) -> TrainState:
            optimizer = optimizer_at(lambda step: rate)

            def masked_gradient(*args: Any) -> Any:
                grads, sums = gradient(*args)
                return _only(mask, grads), sums

            def masked_update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
                moved: Any
                moved, state = optimizer.update(updates, state, params, **extra)
                return _only(mask, moved), state

            alone = optax.GradientTransformationExtraArgs(optimizer.init, masked_update)
            return make_train_step(masked_gradient, alone, lambda step: rate, self.trained)(state, batch, key)[0]

        def init(params: Params) -> TrainState:
            optimizer = optimizer_at(lambda step: jnp.zeros(()))
            return TrainState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), optimizer.init(params))

        shardings = jax.tree.map(lambda leaf: leaf.sharding, parts.state)
        self.init = jax.jit(init, out_shardings=shardings)
        self.step = jax.jit(step, out_shardings=shardings, donate_argnums=0)

    def train(self, moves: Callable[[str], bool], batches: Rows, optim: OptimConfig, steps: int) -> Params:
        """Takes the `steps` steps of a run; returns the parameters, of which only those that `moves(path)` have changed.

        `optim` says how the rate goes over them.
        """
        config, mesh, schedule = self.parts.config, self.parts.mesh, make_schedule(optim, self.parts.peak_lr, steps)
        state = self.init(self.params)
        key, mask = jax.random.key(config.train.seed), make_mask(self.trained, moves)
        for number, batch in zip(range(steps), batches):
            check_batch(batch, self.parts.model.config, f"batch of step {number}")
            state = self.step(state, put_batch(batch, mesh, config.data.batch_size), key, schedule(number), mask)
        return state.params

    def evaluate(self, params: Params, rows: Rows, size: int, max_rows: int = 0) -> dict[str, float]:
        """Returns loss, accuracy and the like on batches of `size` rows."""
        found = evaluate(self.eval_step, params, rows, self.parts.mesh, size, self.parts.model.config, max_rows)
        assert found is not None
        return found
