"""Small configs, batches and runs that the tests of lm share."""

import zlib
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.built_in_templates import built_in_template
from data_pipeline.config import DataConfig
from data_pipeline.tokenizer import ByteTokenizer
from lm.config import Config, LoraConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from lm.model.codes import KINDS
from lm.model.transformer import Model
from lm.optim import make_optimizer, make_schedule
from lm.params import layer_paths, make_runs, split_stacks
from lm.parts import cast_frozen, make_parts, make_step_of, model_config, param_shapes, treat
from lm.sharding import put_batch
from lm.step import TrainState

VOCAB = 32
STYLES = {
    "llama": {"kv_heads": 2, "qk_norm": True, "tie_embeddings": False},
    "gpt2": {
        "position": "learned", "norm": "layernorm", "mlp_gated": False, "mlp_bias": True, "attn_bias": True,
        "attn_out_bias": True, "activation": "gelu_tanh", "max_len": 64,
    },
    "gemma": {
        "kv_heads": 2, "norm_order": "both", "norm_offset": True, "window": 3, "global_layers": (1,), "qk_norm": True,
        "embed_scale": True, "rope_local_theta": 50.0,
    },
    "neox": {
        "position": "rope", "parallel": True, "rope_fraction": 0.5, "head_dim": 8, "norm": "layernorm", "mlp_gated": False,
        "mlp_bias": True, "attn_bias": True, "attn_out_bias": True, "tie_embeddings": False,
    },
}  # fmt: skip


@dataclass
class OneDevice:
    """A run on one device: its parts, its state, and `step(state, batch)`."""

    config: Config
    model: Model
    treatment: Any
    optimizer: Any
    make_step: Any
    state: TrainState
    jitted: Any
    key: Any

    def step(self, state, batch):
        return self.jitted(state, batch, self.key)

    def steps(self, batches):
        state = self.state
        for batch in batches:
            state, metrics = self.step(state, batch)
        return state, metrics

    def after(self, batches):
        """Per-layer parameters after a step on each batch, as numpy."""
        return {p: np.asarray(leaf) for p, leaf in split_stacks(self.steps(batches)[0].params).items()}


@pytest.fixture(scope="session")
def tokenizer():
    """Of bytes, with the chatml template."""
    made = ByteTokenizer()
    made.template = built_in_template("chatml", False, False)
    return made


@pytest.fixture(scope="session")
def make_model_config():
    """(style, **changes) -> a tiny ModelConfig with vocab_size and max_len filled in."""

    def make(style="llama", **changes):
        sizes = {"layers": 2, "dim": 16, "heads": 4, "mlp_dim": 32, "vocab_size": VOCAB, "max_len": 64, "init_std": 0.2}
        return ModelConfig(**{**sizes, **STYLES[style], **changes})

    return make


def random_params(model, seed=0):
    """Weights for a model, all of them random (biases and scales too), the same for any grouping; no compilation."""

    def draw(path, shape):
        noise = np.random.default_rng([seed, zlib.crc32(path.encode())]).normal(size=shape).astype(np.float32)
        return 1 + 0.1 * noise if path.endswith("scale") else 0.2 * noise

    flat = {p: draw(p, leaf.shape) for p, leaf in param_shapes(Model(model.config)).items()}
    groups = {p: layer_paths(p) for p in param_shapes(model)}
    return {p: flat[p] if names == [p] else np.stack([flat[name] for name in names]) for p, names in groups.items()}


@pytest.fixture(scope="session")
def make_model(make_model_config):
    """(style, runs=, seed=, **changes) -> (Model, params)."""

    def make(style="llama", runs=(), seed=0, **changes):
        model = Model(make_model_config(style, **changes), runs)
        return model, random_params(model, seed)

    return make


@pytest.fixture(scope="session")
def make_config(make_model_config):
    """(style=, model=, optim=, train=, data=, mesh=, lora=) -> a Config of tiny sizes with the given keys changed."""

    def make(style="llama", model=None, optim=None, train=None, data=None, mesh=None, lora=None):
        return Config(
            data=DataConfig(**{"path": "x.txt", "seq_len": 12, "batch_size": 8, **(data or {})}),
            model=make_model_config(style, **(model or {})),
            lora=LoraConfig(**(lora or {})),
            optim=OptimConfig(**{"peak_lr": 1e-2, "schedule": "constant", **(optim or {})}),
            train=TrainConfig(**{"steps": 20, **(train or {})}),
            mesh=MeshConfig(**(mesh or {})),
        )

    return make


@pytest.fixture(scope="session")
def start():
    """config -> OneDevice. Stacks follow model.scan as in a real run; `runs` groups the layers otherwise."""

    def make(config, runs=None):
        peak_lr = config.optim.peak_lr
        resolved = model_config(config, VOCAB)
        treatment = treat(config.optim, param_shapes(Model(resolved)))
        if runs is None:
            runs = make_runs(treatment.trained, resolved.layers) if resolved.scan else ()
        model = Model(resolved, runs)
        make_step = make_step_of(config, peak_lr)
        params = jax.tree.map(jnp.asarray, random_params(model))
        if config.optim.frozen_dtype in KINDS:
            params = cast_frozen(params, treatment, config.optim.frozen_dtype)
        optimizer = make_optimizer(
            config.optim,
            params,
            treatment,
            make_schedule(config.optim, peak_lr, config.train.steps),
            config.train,
            resolved.width_multiplier,
        )
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        jitted = jax.jit(make_step(model, treatment)[0])
        return OneDevice(config, model, treatment, optimizer, make_step, state, jitted, jax.random.key(7))

    return make


@pytest.fixture(scope="session")
def start_sharded(start):
    """config -> (parts, state, step(state, batch)) over all eight devices, as a real run does it; weights as in `start`."""

    def make(config):
        parts = make_parts(config, VOCAB, config.optim.peak_lr)

        def step(state, batch):
            batch = put_batch(batch, parts.mesh, config.data.batch_size)
            return parts.train_step(state, batch, jax.random.key(7))

        state = start(config, parts.model.runs).state
        return parts, jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, parts.state)), step

    return make


@pytest.fixture(scope="session")
def pack():
    """(documents, rows, length) -> a batch; `rows` lists which documents lie in each row, in order."""

    def make(documents, rows, length):
        shape = (len(rows), length)
        batch = {k: np.zeros(shape, np.int32) for k in ("tokens", "targets", "segments", "positions")}
        batch["weights"] = np.zeros(shape, np.float32)
        for r, inside in enumerate(rows):
            at = 0
            for segment, d in enumerate(inside, 1):
                ids = documents[d]
                here = slice(at, at + len(ids) - 1)
                batch["tokens"][r, here], batch["targets"][r, here] = ids[:-1], ids[1:]
                batch["segments"][r, here], batch["weights"][r, here] = segment, 1
                batch["positions"][r, here] = np.arange(len(ids) - 1)
                at += len(ids) - 1
        return batch

    return make


@pytest.fixture(scope="session")
def make_batch(pack):
    """(seed, rows=, length=) -> a batch with two documents and some padding in each row."""

    def make(seed=0, rows=8, length=12):
        rng = np.random.default_rng(seed)
        sizes = [(rng.integers(2, length // 2), rng.integers(2, length // 2)) for _ in range(rows)]
        documents = [rng.integers(1, VOCAB, n + 1) for pair in sizes for n in pair]
        return pack(documents, [(2 * r, 2 * r + 1) for r in range(rows)], length)

    return make


@pytest.fixture(scope="session")
def change():
    """(config, section, **keys) -> the config with keys of one section changed."""

    def make(config, section, **keys):
        return replace(config, **{section: replace(getattr(config, section), **keys)})

    return make
