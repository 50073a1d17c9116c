"""Where did the trained weights begin, and what is their average since?

Both live in the optimizer's state, of trained leaves alone: sharded as they are, in every checkpoint, counted as numbers that
the optimizer holds; a step that is skipped changes neither.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.params import Params


class StartState(NamedTuple):
    start: Any  # the values before step 1


class AverageState(NamedTuple):
    count: jax.Array  # steps taken in
    average: Any  # float32


def _present(tree: Any) -> Params:
    return {path: leaf for path, leaf in tree.items() if not isinstance(leaf, optax.MaskedNode)}


def pull_to_start(strength: float) -> optax.GradientTransformation:
    """Adds strength x (parameter - its start) to each update: L2-SP (arXiv:1802.01483), decoupled as weight decay is.

    With strength 0 it only remembers the start, for the forgetting meter.
    """

    def init(params: Any) -> StartState:
        return StartState(jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if not strength:
            return updates, state
        pulled = {p: u + strength * (params[p] - state.start[p]) for p, u in _present(updates).items()}
        return {**updates, **pulled}, state

    return optax.GradientTransformation(init, update)


def average_weights(decay: float) -> optax.GradientTransformation:
    """Keeps a moving average of the parameters; must come last, where an update is what is added to them.

    After step t (from 1): average = d average + (1 - d) parameters, d = min(decay, t / (t + 9)): a tenth of the way stays with the
    start after the first step, and the average spans about the last tenth of the steps until it spans 1 / (1 - decay) of them.
    """

    def init(params: Any) -> AverageState:
        average = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
        return AverageState(jnp.zeros((), jnp.int32), average)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = state.count + 1
        d = jnp.minimum(decay, count / (count + 9.0))
        moved = {p: (params[p] + u).astype(params[p].dtype) for p, u in _present(updates).items()}
        average = {p: d * state.average[p] + (1 - d) * leaf for p, leaf in moved.items()}
        return updates, AverageState(count, {**state.average, **average})

    return optax.GradientTransformation(init, update)


def _find(opt_state: Any, kind: type) -> Any:
    def is_kind(node: Any) -> bool:
        return isinstance(node, kind)

    return next((node for node in jax.tree.leaves(opt_state, is_leaf=is_kind) if is_kind(node)), None)


def start_weights(opt_state: Any) -> Params | None:
    """Returns the trained leaves as they were before step 1, or None where the optimizer does not keep them."""
    found = _find(opt_state, StartState)
    return None if found is None else _present(found.start)


def averaged_weights(params: Params, opt_state: Any) -> Params:
    """Returns `params` with the average of each trained leaf in its place; `params` itself without train.ema_decay."""
    found = _find(opt_state, AverageState)
    return params if found is None else {**params, **_present(found.average)}
