"""With which weights does a new run begin: random ones, those of another run, or of an open-weight model?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import checkpoint
from lm.checkpoint import Cast, read_meta
from lm.config import Config, ModelConfig, UserError
from lm.hf.source import find_foreign, is_foreign
from lm.hf.weights import open_weights
from lm.model.adapters import base_of, start_magnitudes
from lm.model.codes import encode
from lm.model.transformer import Model
from lm.optim import make_optimizer, make_schedule
from lm.params import Params, count, join_stacks, layer_paths, match_table, split_stacks
from lm.parts import Parts, cast_frozen, param_shapes, with_shardings
from lm.run_folder import load_weights
from lm.sharding import param_shardings, replicated
from lm.step import TrainState

Log = Callable[[str], None]


def find_peak_lr(config: Config, log: Log) -> float | None:
    """Returns optim.peak_lr, or for "auto" a tenth of the peak that the checkpoint at init.source was trained with.

    None where nothing says it, so that a range test must find it (lm/range_test.py).
    """
    if isinstance(config.optim.peak_lr, float):
        return config.optim.peak_lr
    theirs = None
    if config.init.source and not is_foreign(config.init.source):
        step = checkpoint.find_step(config.init.source, config.init.step, log)
        theirs = read_meta(config.init.source, step)["peak_lr"]
    if theirs is None:
        start = (
            f"{config.init.source} does not say at what rate it was trained" if config.init.source else "no init.source"
        )
        log(f"optim.peak_lr='auto': {start}, so a range test finds it before the first step")
        return None
    log(f"optim.peak_lr='auto': {theirs / 10:g}, a tenth of the {theirs:g} that {config.init.source} was trained with")
    return float(theirs) / 10


def make_starts(parts: Parts) -> tuple[Callable[[Params], TrainState], Callable[[jax.Array], TrainState]]:
    """Returns two pure functions that give a new run's state: of params, and of a key, on random weights."""
    config = parts.config
    schedule = make_schedule(config.optim, parts.peak_lr, config.train.steps)
    width = parts.model.config.width_multiplier
    optimizer = make_optimizer(config.optim, parts.state.params, parts.treatment, schedule, config.train, width)

    def init(params: Params) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def draw(key: jax.Array) -> TrainState:
        random = cast_frozen(parts.model.init_params(key), parts.treatment, config.optim.frozen_dtype)
        return init(start_magnitudes(random))

    return init, draw


def start_state(parts: Parts, params: Params | None = None) -> TrainState:
    """A new run's state: on `params`, or on random weights made on the devices that hold them; the optimizer is fresh."""
    init, draw = make_starts(parts)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, parts.state)
    if params is None:
        return jax.jit(draw, out_shardings=shardings)(jax.random.key(parts.config.train.seed))
    return jax.jit(init, out_shardings=shardings, donate_argnums=0)(params)


@dataclass(frozen=True)
class Stored:
    """Parameters that lie somewhere, under per-layer paths."""

    name: str
    load: Callable[[Mapping[str, Any], Cast], Params]
    close: Callable[[], None] = lambda: None


def load_params(parts: Parts, tokenizer_sha256: str, log: Log) -> Params:
    """Loads the weights at init.source in this run's grouping; random ones for what is init.fresh, and new adapters."""
    init, shapes = parts.config.init, param_shapes(Model(parts.model.config))
    keep = match_table([*((p, True) for p in init.fresh), (".*", False)], list(shapes), "init.fresh")
    adapters = [path for path in shapes if base_of(path) != path]
    if is_foreign(init.source):
        keep |= dict.fromkeys(adapters, True)
        stored = _open_foreign(parts.config, shapes, keep)
    else:
        stored = _open_checkpoint(parts.config, shapes, keep, adapters, tokenizer_sha256, log)
    if keep.get("classifier") and not parts.treatment.trained["classifier"]:
        stored.close()
        raise UserError(
            "optim.train freezes the new head, which would stay random: put ('classifier', True) before what does"
        )
    wanted = [path for path in shapes if not keep[path]]
    held = cast_frozen(shapes, parts.treatment, parts.config.optim.frozen_dtype)
    fresh = [path for path in held if keep[path if path in shapes else base_of(path)]]
    coded = [path for path in wanted if f"{path}_absmax" in held]
    made = {*fresh, *coded, *(path for path in held if path not in shapes)}
    grouped = {path: leaf for path, leaf in parts.state.params.items() if made.isdisjoint(layer_paths(path))}
    singles = {
        p: held[p] for path in parts.state.params if path not in grouped for p in layer_paths(path) if p not in made
    }
    abstract = {**grouped, **with_shardings(singles, param_shardings(singles, parts.mesh))}
    casts = frozenset(f"params/{path}" for path in wanted if held[path].dtype != shapes[path].dtype)
    params = stored.load(abstract, init.cast or casts) if abstract else {}
    if made:

        def draw(key: jax.Array) -> Params:
            random = cast_frozen(parts.model.init_params(key), parts.treatment, parts.config.optim.frozen_dtype)
            return {path: leaf for path, leaf in split_stacks(random).items() if path in fresh}

        leaves = {**params, **_load_codes(parts, stored, {path: shapes[path] for path in coded})}
        leaves |= jax.jit(draw)(jax.random.key(parts.config.train.seed)) if fresh else {}
        mixed = {path: leaf.sharding for path, leaf in parts.state.params.items() if path not in grouped}
        joined = jax.jit(lambda leaves: join_stacks(leaves, list(mixed)), out_shardings=mixed)(leaves)
        params = {path: joined[path] if path in mixed else params[path] for path in parts.state.params}
        whole = {path: leaf.sharding for path, leaf in parts.state.params.items()}
        params = jax.jit(partial(start_magnitudes, fresh=fresh), out_shardings=whole, donate_argnums=0)(params)
    stored.close()
    numbers = f"{len(wanted)} tensors, {count({path: shapes[path] for path in wanted}):,} numbers loaded"
    random = [path for path in fresh if base_of(path) == path]
    numbers += f", random: {', '.join(random)}" if random else ""
    numbers += f", new adapters at {sum(p.endswith('_lora_a') for p in fresh)} matrices" if adapters else ""
    log(f"starting from {stored.name}: {numbers}")
    return params


def find_twins(parts: Parts, params: Params, ids: Sequence[int]) -> dict[int, int]:
    """Returns {id: how many tokens have its row of the head, within a hundredth}, where the head is frozen and that is more than one.

    Tokens that a model never saw keep the row they began with, but for decay. If it is that of an end token, no training of other weights
    can tell the end from the others.
    """
    if parts.treatment.trained[parts.model.head_path] or parts.model.config.classes:
        return {}
    rows = params["embed"] if parts.model.head_path == "embed" else params[parts.model.head_path].T

    def count_same(rows: jax.Array) -> jax.Array:
        rows = rows.astype(jnp.float32)
        gaps = [jnp.linalg.norm(rows - rows[i][None], axis=-1) / jnp.linalg.norm(rows[i]) for i in ids]
        return jnp.stack([(gap <= 0.01).sum() for gap in gaps])  # between rows that were learned it is about 1

    counts = np.asarray(jax.jit(count_same, out_shardings=replicated(parts.mesh))(rows)) if ids else []
    return {i: int(n) for i, n in zip(ids, counts) if n > 1}


def check_classes(source: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Raises UserError where the head of a classifier tells other classes apart than the data have, or in another order."""
    if tuple(theirs) == tuple(ours):
        return
    if set(theirs) == set(ours):
        text = "the same classes in another order. Set --config.data.labels=" + f'"{tuple(theirs)}"'
    else:
        lost, new = (sorted(set(a) - set(b)) for a, b in ((theirs, ours), (ours, theirs)))
        parts = [f"{word} {', '.join(names[:8])}" for word, names in (("lacks", new), ("has besides", lost)) if names]
        text = "other classes: it " + " and ".join(parts)
    raise UserError(f"{source} is a classifier of {text}. Or --config.init.fresh=classifier, for a new head")


def _open_foreign(config: Config, shapes: Mapping[str, Any], keep: dict[str, bool]) -> Stored:
    """A classifier's head is taken where the source is a classifier; `keep` says whether it is."""
    init, found = config.init, find_foreign(config.init.source)
    if "classifier" in shapes and not keep["classifier"]:
        keep["classifier"] = not found.labels
        if found.labels:
            check_classes(init.source, found.labels, config.data.labels)
            if config.model.pooling != "last":
                raise UserError(f"{init.source}: its head reads the last token; leave config.model.pooling out")
    left_out = set() if found.labels else {"classifier"}
    base = {path: leaf for path, leaf in shapes.items() if base_of(path) == path and path not in left_out}
    weights = open_weights(found, base, frozenset(path for path in base if keep[path]))
    return Stored(f"{init.source} ({weights.place})", lambda abstract, cast: weights.load(abstract), weights.close)


def _open_checkpoint(
    config: Config, shapes: Mapping[str, Any], keep: dict[str, bool], adapters: list[str], tokenizer_sha256: str, log: Log
) -> Stored:  # fmt: skip
    """Raises UserError for a checkpoint of another tokenizer, or with parameters that this model has no place for.

    Where it is a base without adapters, `keep` says from then on that they are made now.
    """
    init = config.init
    step = checkpoint.find_step(init.source, init.step, log)
    meta = read_meta(init.source, step)
    theirs = meta["tokenizer_sha256"]
    if theirs != tokenizer_sha256:
        raise UserError(
            f"the tokenizer differs from the one that {init.source} was trained with (sha256 {tokenizer_sha256[:12]}, "
            f"theirs {theirs[:12]}). Set config.data.tokenizer.path={init.source}/tokenizer"
        )
    _check_width(init.source, meta["config"]["model"], config.model)
    stored = checkpoint.stored_shapes(init.source, step)
    if not any(f"params/{path}" in stored for path in adapters):
        keep |= dict.fromkeys(adapters, True)
    if "classifier" in shapes and "params/classifier" not in stored:  # a language model: its head has no use here
        keep["classifier"] = True
        stored = {path: leaf for path, leaf in stored.items() if path != "params/head"}
    elif "classifier" in shapes and not keep["classifier"]:
        check_classes(init.source, meta["config"]["data"]["labels"], config.data.labels)
    wanted = {path for path in shapes if not keep[path]}
    extra = [p.removeprefix("params/") for p in stored if p.startswith("params/")]
    extra = [p for p in extra if p not in wanted and not any(re.fullmatch(f, p) for f in init.fresh)]
    if extra:
        lines = "\n  ".join(
            f"{p}: in the checkpoint ({checkpoint.describe(stored[f'params/{p}'])}), not in this model" for p in extra
        )
        hint = ""
        if any(base_of(p) != p for p in extra):
            hint = f"\nTo start from it as a plain model: python -m lm.lora merge {init.source} OUT"
        raise UserError(f"checkpoint {init.source} step {step} does not fit the config:\n  {lines}{hint}")
    return Stored(
        f"{init.source} step {step}",
        lambda abstract, cast: load_weights(init.source, step, init.step, abstract, cast),
    )


def _check_width(source: str, theirs: Mapping[str, Any], model: ModelConfig) -> None:
    """Raises UserError where the checkpoint's muP keys scale logits or scores in another way than this model's."""
    keys = ("base_dim", "base_head_dim")
    old = replace(model, **{key: theirs.get(key, 0) for key in keys})
    if (old.width_multiplier, old.score_scale) != (model.width_multiplier, model.score_scale):
        text, here = (", ".join(f"model.{key}={getattr(m, key)}" for key in keys) for m in (old, model))
        raise UserError(
            f"{source} was trained with {text}, the config has {here}: its weights would make other logits. "
            f"Set {' '.join(f'--config.model.{key}={getattr(old, key)}' for key in keys)}"
        )


def _load_codes(parts: Parts, stored: Stored, shapes: Mapping[str, Any]) -> Params:
    """Reads matrices and turns them into codes, a layer at a time: few exist whole at once."""
    kind, layers = parts.config.optim.frozen_dtype, {}
    for path in shapes:
        layers.setdefault(path.split("/")[0], []).append(path)
    shardings, held = param_shardings(shapes, parts.mesh), {}
    code = jax.jit(lambda matrices: [encode(w, kind) for w in matrices])
    for paths in layers.values():
        abstract = with_shardings({p: shapes[p] for p in paths}, {p: shardings[p] for p in paths})
        matrices = stored.load(abstract, True)
        for path, (codes, absmax) in zip(paths, code([matrices[path] for path in paths])):
            held |= {path: codes, f"{path}_absmax": absmax}
    return held
