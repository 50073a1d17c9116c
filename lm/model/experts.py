"""Which experts does a token go to, and what do they make of it? Mixture of experts, where none is ever too full.

y = sum over the k chosen experts e of p_e down_e(act(gate_e(x)) * up_e(x)), with p = softmax(x router) over all experts
(arXiv:2401.04088 section 2.1), of the chosen ones scaled to sum 1 where `model.expert_norm` says so. All in float32 up to p.

Each device sorts the tokens that it holds, and no token leaves it: matrices are gathered over `fsdp` as those of a plain
MLP are, and split by width over `tensor`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from lm.config import ModelConfig, UserError
from lm.model.codes import BLOCK, decode
from lm.model.grouped import matmul_balanced, matmul_grouped, matmul_grouped_coded
from lm.model.layers import activate, init_matrix, init_out, init_router
from lm.model.products import einsum_f32
from lm.sharding import ROWS, param_spec, row_shards

NAMES = ("up", "gate", "down")
Matrices = dict[str, tuple[jax.Array, ...]]  # by name: (w [X, D, F],), or (codes, absmax)


class Experts(nn.Module):
    """The parameters `router` [D, X], `up` and `gate` [X, D, F], `down` [X, F, D]."""

    config: ModelConfig
    mesh: Mesh | None = None
    counted: bool = False  # as `Model.counted`

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, segments_BT: jax.Array, weights_BT: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the output, and the sum of `balance` [] where there are `weights`, those of the loss."""
        config = self.config
        X, D, F = config.experts, config.dim, config.mlp_width
        router_DX = self.param("router", init_router(config), (D, X)).astype(x_BTD.dtype)
        matrices: Matrices = {}
        for name in NAMES:
            if self.has_variable("params", f"{name}_absmax"):
                matrices[name] = tuple(self.get_variable("params", path) for path in (name, f"{name}_absmax"))
                continue
            init, shape = (init_out(config), (X, F, D)) if name == "down" else (init_matrix(config), (X, D, F))
            matrices[name] = (self.param(name, init, shape).astype(x_BTD.dtype),)
        if self.is_initializing():  # which wants the parameters; under its vmap ragged_dot is not implemented
            return x_BTD, None
        run = partial(run_experts, config, counted=self.counted)
        mesh, (B, T) = self.mesh, x_BTD.shape[:2]
        # A few rows that do not fill the devices, as in generation, are left to the compiler.
        if mesh is not None and B % row_shards(mesh) == 0 and T % mesh.shape["context"] == 0:
            run = _on_mesh(run, mesh, matrices, weights_BT is not None)
        y_BTD, balance_B = run(x_BTD, router_DX, matrices, segments_BT, weights_BT)
        return y_BTD, None if balance_B is None else balance_B.sum()


def run_experts(
    config: ModelConfig, x_BTD: jax.Array, router_DX: jax.Array, matrices: Matrices, segments_BT: jax.Array,
    weights_BT: jax.Array | None, counted: bool = False, mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array | None]:  # fmt: skip
    """What one device does with its tokens; with a `mesh`, inside its `shard_map`."""
    (B, T, D), E = x_BTD.shape, config.experts_per_token
    probs_BTX = jax.nn.softmax(einsum_f32("BTD,DX->BTX", x_BTD, router_DX), axis=-1)
    shares_BTE, ids_BTE = jax.lax.top_k(probs_BTX, E)
    if config.expert_norm:
        shares_BTE /= shares_BTE.sum(-1, keepdims=True)
    order_R = jnp.argsort(ids_BTE.reshape(-1))  # stable: the sorted rows of an expert are in the order of the tokens
    back_R = jnp.argsort(order_R)
    sizes_X = jnp.bincount(ids_BTE.reshape(-1), length=config.experts).astype(jnp.int32)

    def times(y_RD: Any, name: str) -> Any:
        held = matrices[name]
        if counted:
            return matmul_balanced(y_RD, held[0] if len(held) == 1 else decode(*held).astype(y_RD.dtype))
        return (matmul_grouped if len(held) == 1 else matmul_grouped_coded)(y_RD, *held, sizes_X)

    x_RD: Any = _take(x_BTD.reshape(-1, D), order_R, back_R, E)
    h_RF = activate(config.activation, times(x_RD, "up"), times(x_RD, "gate"))
    y_RD: Any = _take(times(h_RF, "down"), back_R, order_R, 1)
    y_BTED = y_RD.reshape(B, T, E, D)
    y_BTD = (y_BTED * shares_BTE.astype(y_BTED.dtype)[..., None]).sum(2)
    if mesh is not None and mesh.shape["tensor"] > 1:
        y_BTD = jax.lax.psum(y_BTD, "tensor")
    return y_BTD, None if weights_BT is None else balance(probs_BTX, ids_BTE, segments_BT, weights_BT, mesh)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _take(x_RD: jax.Array, index_R: jax.Array, back_R: jax.Array, copies: int) -> jax.Array:
    """x with each row `copies` times, in the order `index`, which `back` undoes. Its backward takes too, and adds nowhere."""
    return x_RD[index_R // copies]


def _take_forward(x_RD: jax.Array, index_R: jax.Array, back_R: jax.Array, copies: int) -> tuple[jax.Array, jax.Array]:
    return _take(x_RD, index_R, back_R, copies), back_R


def _take_backward(copies: int, back_R: jax.Array, g_RD: jax.Array) -> tuple[jax.Array, None, None]:
    return g_RD[back_R].reshape(-1, copies, g_RD.shape[1]).sum(1), None, None


_take.defvjp(_take_forward, _take_backward)


def balance(
    probs_BTX: jax.Array, ids_BTE: jax.Array, segments_BT: jax.Array, weights_BT: jax.Array, mesh: Mesh | None = None
) -> jax.Array:
    """How uneven the choices are, a sum for each row [B]: of W_s X sum_e f_se P_se over its documents s.

    W_s is the weight of the loss in a document, f_se the share of it whose tokens chose expert e (all e together: k), P_se
    the weighted mean of p_e. Divided by all weight it is k when even, X when all go to the same k. f has no gradient.

    This is transformers' load_balancing_loss_func (arXiv:2101.03961 equations 4 to 6) taken document by document, the
    sequence-wise balance loss of DeepSeek (arXiv:2405.04434, arXiv:2412.19437). Over a batch the
    product of two means would depend on how the batch is cut. The price: it asks each single document to use all experts,
    which a short or narrow one cannot without loss, so keep it small.
    """
    places = jnp.shape(segments_BT)[1] * (1 if mesh is None else mesh.shape["context"])
    rows_B = jnp.arange(len(segments_BT))
    held_BS = jnp.zeros((len(rows_B), places + 1), jnp.float32)  # no row has more documents than places
    chosen_BSX = jnp.zeros((*held_BS.shape, probs_BTX.shape[-1]), jnp.float32)
    held_BS = held_BS.at[rows_B[:, None], segments_BT].add(weights_BT)
    chosen_BSX = chosen_BSX.at[rows_B[:, None, None], segments_BT[..., None], ids_BTE].add(weights_BT[..., None])
    if mesh is not None and mesh.shape["context"] > 1:
        held_BS, chosen_BSX = jax.lax.psum((held_BS, chosen_BSX), "context")
    share_BSX = chosen_BSX / jnp.where(held_BS > 0, held_BS, 1.0)[..., None]
    share_BTX = jnp.take_along_axis(share_BSX, segments_BT[..., None], axis=1)
    sums_B = probs_BTX.shape[-1] * (probs_BTX * share_BTX * weights_BT[..., None]).sum((1, 2))
    return sums_B if mesh is None or mesh.shape["context"] == 1 else jax.lax.psum(sums_B, "context")


def _on_mesh(run: Any, mesh: Mesh, matrices: Matrices, balanced: bool) -> Any:
    """`run` on each device's tokens."""
    specs = {}
    for name, held in matrices.items():
        leaves = zip(held, (f"mlp/{name}", f"mlp/{name}_absmax"))
        specs[name] = tuple(param_spec(path, leaf.shape, mesh) for leaf, path in leaves)
    width = matrices["up"][0].shape[-1] // mesh.shape["tensor"]
    in_pairs = len(matrices["down"]) == 2 and matrices["down"][0].dtype == jnp.uint8
    if in_pairs and mesh.shape["tensor"] > 1 and width % BLOCK:
        raise UserError(
            f"optim.frozen_dtype='nf4' codes experts' matrices in blocks of {BLOCK} rows, which mesh.tensor="
            f"{mesh.shape['tensor']} cuts: a device has {width} rows of mlp/down. Set mesh.tensor=1 or 'int8'"
        )

    def gather(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
        """The part that a device multiplies with; the way back sums gradients where their part lies, half an all-reduce."""
        if "fsdp" not in spec:
            return leaf
        return jax.lax.all_gather(leaf, "fsdp", axis=tuple(spec).index("fsdp"), tiled=True)

    def on_device(x_BTD: jax.Array, router_DX: jax.Array, parts: Matrices, *places: Any) -> Any:
        whole = {name: tuple(map(gather, held, specs[name])) for name, held in parts.items()}
        return run(x_BTD, router_DX, whole, *places, mesh=mesh)

    places = PartitionSpec(ROWS, "context")
    # check_vma off: loops that start from zeros would each have to say over which axes they vary.
    return jax.shard_map(
        on_device, mesh=mesh, check_vma=False,
        in_specs=(places, PartitionSpec(), specs, places, places if balanced else None),
        out_specs=(places, PartitionSpec(ROWS) if balanced else None),
    )  # fmt: skip
