"""Do activations and their changes stay as large on wider models, and is muP at its base width the standard model?"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.config import OptimConfig, UserError
from lm.model.transformer import Model, Transformer
from lm.mup import rate_factor, to_standard
from lm.optim import make_optimizer, make_schedule, read_tables
from lm.params import join_stacks, split_stacks
from lm.parts import make_step_of, param_shapes, treat
from lm.start import _check_width
from lm.step import TrainState

BASE = 32


def at_width(model, width, mup, heads_grow=True):
    """The model at another width, where heads grow in number, or else in size."""
    sizes = {"heads": width // 8, "kv_heads": width // 16, "head_dim": 8} if heads_grow else {"heads": 4, "kv_heads": 2}
    keys = {"base_dim": BASE, "base_head_dim": 0 if heads_grow else BASE // 4} if mup else {}
    return replace(model, dim=width, mlp_dim=2 * width, **sizes, **keys)


def look(model, params, batch):
    """{what: mean |x|-able output} of the blocks, of what is in them, and of the head."""
    inputs = (batch["tokens"], batch["positions"], batch["segments"], None)
    (x_BTD, _, _), seen = Transformer(model.config).apply(
        {"params": unflatten_dict(params, sep="/")}, *inputs, capture_intermediates=True, mutable=["intermediates"]
    )
    outputs = {
        path.removesuffix("/__call__"): out for path, out in flatten_dict(seen["intermediates"], sep="/").items()
    }
    inside = {path: jax.tree.leaves(out)[0] for path, out in outputs.items() if path.startswith("block_")}
    return {**inside, "logits": model.unembed(params[model.head_path], x_BTD)}


def coordinates(config, batches):
    """{what: (mean |x| at the start, mean |change| after a step on each of `batches`)}."""
    model = Model(config.model)
    treatment = treat(config.optim, param_shapes(model))
    step, _ = make_step_of(config, config.optim.peak_lr)(model, treatment)
    schedule = make_schedule(config.optim, config.optim.peak_lr, config.train.steps)

    @jax.jit
    def run(key):
        params = model.init_params(key)
        optimizer = make_optimizer(config.optim, params, treatment, schedule, config.model.width_multiplier)
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        state, _ = jax.lax.scan(lambda state, batch: (step(state, batch, key)[0], None), state, stacked)
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, state.params)  # one program looks at both
        seen = jax.lax.map(lambda params: look(model, params, {k: v[0] for k, v in stacked.items()}), both)
        return {name: (jnp.abs(x[0]).mean(), jnp.abs(x[1] - x[0]).mean()) for name, x in seen.items()}

    stacked = {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}
    return {name: tuple(map(float, pair)) for name, pair in run(jax.random.key(0)).items()}


def growth(config, widths, mup, batches, **keys):
    """{what: exponents of the width in (size at the start, size of the change)}."""
    found = [
        coordinates(replace(config, model=at_width(config.model, width, mup, **keys)), batches) for width in widths
    ]
    logs = np.log(widths)
    return {
        name: tuple(float(np.polyfit(logs, np.log([f[name][i] for f in found]), 1)[0]) for i in (0, 1))
        for name in found[0]
    }


@pytest.fixture
def small(make_config):
    def make(peak_lr=1e-2, name="adamw", **model):
        sizes = {"layers": 1, "init_std": 0.1, "qk_norm": False, **model}
        return make_config(
            model=sizes,
            optim={"name": name, "peak_lr": peak_lr, "clip_norm": 0.0, "weight_decay": 0.0, "momentum": 0.0},
        )

    return make


def test_coordinates_of_three_widths(small, make_batch):
    batches, config = [make_batch(i) for i in range(4)], small()
    widths = (32, 64, 128)
    mup, standard = (growth(config, widths, mup, batches) for mup in (True, False))
    print(mup, standard)
