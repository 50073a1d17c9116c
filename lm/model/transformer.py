"""How do ids become logits? Embedding, blocks, head; and the functional face of it all, `Model`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from lm.config import ModelConfig
from lm.model.adapters import base_of, init_adapters
from lm.model.attention import Attention, Cache, View, write_slots
from lm.model.experts import Experts
from lm.model.formula import attention_mask, softcap
from lm.model.kernels import Kernel
from lm.model.layers import MLP, Norm, init_table
from lm.model.products import einsum_f32
from lm.model.rope import rope_angles
from lm.params import Params, Runs, block_name, run_name
from lm.sharding import constrain_rows

LayerCache = tuple[jax.Array, jax.Array] | None


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)) (pre-norm); `norm_order` and `parallel` have the other ways."""

    config: ModelConfig
    local: bool | None = False  # whether its attention has the window; None: as the call says
    deterministic: bool = True
    mesh: Mesh | None = None
    kernels: tuple[Kernel, Kernel] | None = None
    counted: bool = False

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, cache: LayerCache, local: jax.Array | None, views: tuple[View, View],
        index: jax.Array | int, weights_BT: jax.Array | None,
    ) -> tuple[jax.Array, tuple[LayerCache, jax.Array | None]]:  # fmt: skip
        config = self.config
        drop = nn.Dropout(config.dropout, deterministic=self.deterministic)

        def norm(name: str, y_BTD: jax.Array, orders: tuple[str, str]) -> jax.Array:
            return Norm(config, name=name)(y_BTD) if config.norm_order in orders else y_BTD

        def before(name: str, y_BTD: jax.Array) -> jax.Array:
            return norm(name, y_BTD, ("pre", "both"))

        def after(name: str, y_BTD: jax.Array) -> jax.Array:
            return drop(norm(name, y_BTD, ("post", "both")))

        which: Any = local if self.local is None else self.local
        view = views[which] if isinstance(which, bool) else _choose(which, views)
        attn = Attention(config, self.deterministic, self.kernels, name="attn")
        y_BTD, cache = attn(before("norm_attn", x_BTD), view, which, cache, index)
        y_BTD = after("norm_attn_out", y_BTD)
        if not config.parallel:
            x_BTD, y_BTD = constrain_rows(x_BTD + y_BTD, self.mesh), None
        z_BTD, uneven = before("norm_mlp", x_BTD), None
        if config.experts:
            experts = Experts(config, self.mesh, self.counted, name="mlp")
            z_BTD, uneven = experts(z_BTD, view.segments_BT, weights_BT)
        else:
            z_BTD = MLP(config, name="mlp")(z_BTD)
        z_BTD = after("norm_mlp_out", z_BTD)
        return constrain_rows(x_BTD + (z_BTD if y_BTD is None else y_BTD + z_BTD), self.mesh), (cache, uneven)


def _choose(local: jax.Array, views: tuple[View, View]) -> View:
    return jax.tree.map(lambda others, windowed: jnp.where(local, windowed, others), *views)


def remat(block: type[Block], policy: str, scanned: bool) -> type[Block]:
    """Wraps a block so that its backward recomputes what `policy` does not keep."""
    if policy == "none":
        return block
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == "dots" else None
    return nn.remat(block, policy=keep, prevent_cse=not scanned)  # unrolled, XLA would merge it away


class Transformer(nn.Module):
    config: ModelConfig
    runs: Runs = ()
    deterministic: bool = True
    mesh: Mesh | None = None
    kernels: tuple[Kernel, Kernel] | None = None
    counted: bool = False

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array, cache: Cache | None,
        weights_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None, jax.Array | None]:  # fmt: skip
        """Returns the normed hidden states [B, T, D], the updated cache, and of `weights` the layers' mean of `balance`."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        embed_VD = self.param("embed", init_table(config), (config.vocab_size, config.dim))
        x_BTD = embed_VD[tokens_BT].astype(dtype)
        if config.embed_scale:
            x_BTD *= jnp.asarray(math.sqrt(config.base_dim or config.dim), dtype)
        if config.position == "learned":
            x_BTD += self.param("positions", init_table(config), (config.max_len, config.dim))[positions_BT].astype(
                dtype
            )
        x_BTD = nn.Dropout(config.dropout, deterministic=self.deterministic)(constrain_rows(x_BTD, self.mesh))
        k_segments, k_positions = segments_BT, positions_BT
        index: jax.Array | int = 0
        if cache is not None:
            index = cache["index"]
            k_segments = write_slots(cache["segments"], segments_BT, index)
            k_positions = write_slots(cache["positions"], positions_BT, index)

        def view(local: bool) -> View:
            rope = mask_BTS = None
            if config.position == "rope":
                rope = rope_angles(positions_BT, segments_BT, config, local)
            if cache is not None or self.kernels is None:
                window = config.window if local else 0
                mask_BTS = attention_mask(segments_BT, k_segments, positions_BT, k_positions, index, window)
            return View(rope, segments_BT, mask_BTS)

        kinds = sorted({config.is_local(layer) for layer in range(config.layers)}) or [False]
        views = {local: view(local) for local in kinds}
        x_BTD, layers, uneven = self._blocks(x_BTD, cache, (views[kinds[0]], views[kinds[-1]]), index, weights_BT)
        if cache is not None:
            end = jnp.asarray(index + tokens_BT.shape[1])
            keys, values = (tuple(part[which] for part in layers) for which in (0, 1))
            cache = {"k": keys, "v": values, "segments": k_segments, "positions": k_positions, "index": end}
        x_BTD = Norm(config, name="norm_out")(x_BTD)
        if config.classes and config.pooling == "mean":
            x_BTD = mean_of_segments(x_BTD, segments_BT)
        if config.head_path != "embed":
            self.param(config.head_path, init_table(config), (config.dim, config.outputs))  # used by Model.unembed
        return x_BTD, cache, uneven

    def _blocks(
        self, x_BTD: jax.Array, cache: Cache | None, views: tuple[View, View], index: jax.Array | int,
        weights_BT: jax.Array | None,
    ) -> tuple[jax.Array, Any, jax.Array | None]:  # fmt: skip
        """Runs all blocks, one by one or run after run; returns x, each run's new (k, v), and the mean balance."""
        block = remat(Block, self.config.remat, bool(self.runs))
        parts, unevens = [], []
        in_axes: Any = (0, 0, nn.broadcast, nn.broadcast, nn.broadcast)
        for number, (start, stop) in enumerate(self.runs or [(i, i + 1) for i in range(self.config.layers)]):
            kv = None if cache is None else (cache["k"][number], cache["v"][number])
            kinds = [self.config.is_local(layer) for layer in range(start, stop)]
            mixed = len(set(kinds)) > 1  # then one program does both kinds
            local = None if mixed else kinds[0]
            fields = (self.config, local, self.deterministic, self.mesh, self.kernels, self.counted)
            shared = (views, index, weights_BT)
            if self.runs:
                scanned = nn.scan(
                    block, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True},
                    in_axes=in_axes, length=stop - start,
                )(*fields, name=run_name(start, stop))  # fmt: skip
                x_BTD, (kv, uneven) = scanned(x_BTD, kv, jnp.array(kinds) if mixed else None, *shared)
            else:
                x_BTD, (kv, uneven) = block(*fields, name=block_name(start))(x_BTD, kv, None, *shared)
            parts.append(kv)
            unevens += [] if uneven is None else [uneven.sum()]
        uneven = sum(unevens, jnp.zeros(())) / self.config.layers if unevens else None
        return x_BTD, parts, uneven


def mean_of_segments(x_BTD: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Returns at each place the mean over all places of its document; summed in float32, document by document."""

    def of_row(x_TD: jax.Array, segments_T: jax.Array) -> jax.Array:
        ends = len(segments_T) + 1  # documents of a row count from 1, and there are no more than places
        sums = jax.ops.segment_sum(x_TD.astype(jnp.float32), segments_T, ends)
        sizes = jax.ops.segment_sum(jnp.ones(len(segments_T)), segments_T, ends)
        return (sums[segments_T] / sizes[segments_T][:, None]).astype(x_TD.dtype)

    return jax.vmap(of_row)(x_BTD, segments_BT)


@dataclass(frozen=True)
class Model:
    """The decoder as functions of `params`, a flat dict {path: array}; `config` has vocab_size and max_len filled in."""

    config: ModelConfig
    runs: Runs = ()  # layers held as stacks; (): one by one
    mesh: Mesh | None = None
    # Attention of whole rows without and with the window, lm/model/kernels.py; None: the plain formula.
    kernels: tuple[Kernel, Kernel] | None = None
    counted: bool = False  # experts as XLA counts their FLOPs right, not as they give right numbers (lm/receipt.py)

    @property
    def head_path(self) -> str:
        """The parameter that turns hidden states into logits."""
        return self.config.head_path

    def init_params(self, key: jax.Array) -> Params:
        """Random weights; the same numbers for any grouping into runs."""
        config = self.config
        ids = jnp.zeros((1, 1), jnp.int32)
        trunk = Transformer(replace(config, layers=0)).init(key, ids, ids, ids, None)["params"]
        block, x = Block(config), jnp.zeros((1, 1, config.dim))
        rope = rope_angles(ids, ids, config) if config.position == "rope" else None
        view = View(rope, ids, jnp.ones((1, 1, 1), bool))
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(1, config.layers + 1))
        layers = jax.vmap(lambda k: block.init(k, x, None, None, (view, view), 0, None)["params"])(keys)
        # Else XLA may fuse, and round, by the grouping that follows; leaf by leaf, so that unused ones are not computed.
        layers = jax.tree.map(jax.lax.optimization_barrier, dict(flatten_dict(layers, sep="/")))
        layers |= jax.tree.map(jax.lax.optimization_barrier, init_adapters(layers, config.adapters, keys))
        blocks = {}
        for start, stop in self.runs or [(i, i + 1) for i in range(config.layers)]:
            name = run_name(start, stop) if self.runs else block_name(start)
            adapted = config.adapters.layers[start] if config.adapters.layers else ()
            here = {p: leaf for p, leaf in layers.items() if base_of(p) == p or base_of(p) in adapted}
            blocks |= {f"{name}/{p}": leaf[start:stop] if self.runs else leaf[start] for p, leaf in here.items()}
        return dict(sorted({**flatten_dict(trunk, sep="/"), **blocks}.items()))

    def hidden(
        self, params: Params, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array,
        dropout_key: jax.Array | None = None, cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:  # fmt: skip
        """Returns hidden states [B, T, D] ready for `unembed`, and the cache. No key: no dropout."""
        return self._run(params, dropout_key, tokens_BT, positions_BT, segments_BT, cache)[:2]

    def hidden_and_balance(
        self, params: Params, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array,
        weights_BT: jax.Array, dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:  # fmt: skip
        """Returns hidden states, and how unevenly experts are chosen: a sum over the `weights` of the loss (lm/model/experts.py)."""
        x_BTD, _, uneven = self._run(params, dropout_key, tokens_BT, positions_BT, segments_BT, None, weights_BT)
        return x_BTD, uneven

    def _run(self, params: Params, dropout_key: jax.Array | None, *inputs: Any) -> Any:
        module = Transformer(self.config, self.runs, dropout_key is None, self.mesh, self.kernels, self.counted)
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        return module.apply({"params": unflatten_dict(params, sep="/")}, *inputs, rngs=rngs)

    def unembed(self, head: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """Returns logits [B, T, V] (of a classifier [B, T, C]) in float32; `head` is the parameter at `head_path`."""
        equation = "BTD,VD->BTV" if self.head_path == "embed" else "BTD,DV->BTV"
        logits_BTV: Any = einsum_f32(equation, x_BTD, head.astype(x_BTD.dtype))
        if self.config.width_multiplier != 1:
            logits_BTV /= self.config.width_multiplier
        if self.config.classes:
            return logits_BTV
        return softcap(logits_BTV, self.config.logit_softcap)

    def apply(
        self, params: Params, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """Returns logits [B, T, V] in float32."""
        x_BTD, _ = self.hidden(params, tokens_BT, positions_BT, segments_BT, dropout_key)
        return self.unembed(params[self.head_path], x_BTD)

    def init_cache(self, batch_size: int, length: int) -> Cache:
        """An empty key/value cache with `length` slots."""
        config = self.config
        shape = (batch_size * config.n_kv_heads, length, config.q_head_dim)
        shapes = [(stop - start, *shape) for start, stop in self.runs] or [shape] * config.layers
        ids = jnp.zeros((batch_size, length), jnp.int32)
        k = tuple(jnp.zeros(shape, config.dtype) for shape in shapes)
        return {"k": k, "v": k, "segments": ids - 1, "positions": ids, "index": jnp.zeros((), jnp.int32)}
