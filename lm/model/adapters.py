"""What do low-rank adapters add to a matrix, how do they start, and how do they melt into it?

y = x W + s (drop(x) A) B, with s = alpha / rank (LoRA, arXiv:2106.09685) or alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732);
W + s A B is never formed in training, which would cost more than full fine-tuning. DoRA (arXiv:2402.09353) then scales each
column by m / ||W + s A B||, the norm taken as constant (section 4.3). The parameters lie beside the matrix:
`block_03/attn/q_lora_a` [D, r], `..._lora_b` [r, F], `..._dora_scale` [F].
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Adapters, LoraConfig, UserError
from lm.model.codes import decode
from lm.model.products import einsum, matmul
from lm.params import Params, block_name, layer_paths, match_table

# The matrices that `lm.model.layers.dense` multiplies by: these may have adapters, and be held as codes.
MATRIX = re.compile(r"block_[\d-]+/(attn/(q|k|v|out)|mlp/(up|gate|down))")
PART = re.compile(r"_(lora_[ab]|dora_scale|absmax)$")


def base_of(path: str) -> str:
    """The matrix that a part of an adapter, or the scale of codes, belongs to; of other paths the path itself."""
    return PART.sub("", path)


def make_adapters(config: LoraConfig, paths: Sequence[str], layers: int) -> Adapters:
    """Finds the matrices among `paths` (of single layers) that `lora.targets` names; UserError for a pattern without any.

    Experts' matrices have none: '.*' passes them over, another pattern that matches one is refused.
    """
    matrices = [path for path in paths if MATRIX.fullmatch(path)]
    experts = [path for path in matrices if f"{path.rpartition('/')[0]}/router" in paths]
    for pattern in config.targets:
        named = [path for path in experts if pattern != ".*" and re.fullmatch(pattern, path)]
        if named:
            raise UserError(
                f"lora.targets: pattern {pattern!r} matches {named[0]}, a stack of experts' matrices, which have no adapters: "
                "name those of attention, block_.*/attn/.*"
            )
    matrices = [path for path in matrices if path not in experts]
    chosen = match_table([*((p, True) for p in config.targets), (".*", False)], matrices, "lora.targets")
    names = [
        tuple(path.partition("/")[2] for path in matrices if chosen[path] and path.startswith(f"{block_name(i)}/"))
        for i in range(layers)
    ]
    scale = config.alpha / (config.rank**0.5 if config.rslora else config.rank)
    return Adapters(config.rank, scale, config.dropout, config.dora, tuple(names))


def init_adapters(matrices: Mapping[str, jax.Array], adapters: Adapters, keys: jax.Array) -> Params:
    """Returns the adapters of all layers, {`attn/q_lora_a`: [L, D, r], ...}, for `matrices` [L, D, F] and a key a layer.

    A starts uniform in +-1/sqrt(D) (peft's kaiming_uniform with a = sqrt(5)), B at zero, DoRA's scale at W's column norms.
    """
    found: Params = {}
    for name in sorted(set().union(*adapters.layers)):
        D, F = matrices[name].shape[1:]
        seeds = jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(name.encode()))
        bound = D**-0.5
        draw = jax.vmap(lambda key, D=D, bound=bound: jax.random.uniform(key, (D, adapters.rank), None, -bound, bound))
        found[f"{name}_lora_a"] = draw(seeds)
        found[f"{name}_lora_b"] = jnp.zeros((len(keys), adapters.rank, F))
        if adapters.dora:
            found[f"{name}_dora_scale"] = column_norms(matrices[name])
    return found


def column_norms(w: jax.Array) -> jax.Array:
    """[..., D, F] -> [..., F] in float32."""
    return jnp.sqrt(jnp.square(w.astype(jnp.float32)).sum(-2))


def matrix_of(params: Mapping[str, jax.Array], path: str) -> jax.Array:
    """The matrix (or stack) at `path` in float32, whichever way it is held."""
    coded = f"{path}_absmax" in params
    return decode(params[path], params[f"{path}_absmax"]) if coded else params[path].astype(jnp.float32)


def start_magnitudes(params: Params, fresh: Collection[str] | None = None) -> Params:
    """Puts DoRA's scales (all, or those of the per-layer paths in `fresh`) at the column norms of W as it is held."""
    found = dict(params)
    for path in [p for p in params if p.endswith("_dora_scale")]:
        new = [fresh is None or single in fresh for single in layer_paths(path)]
        norms, old = column_norms(matrix_of(params, base_of(path))), params[path]
        if any(new):
            found[path] = norms if all(new) else jnp.where(np.array(new)[:, None], norms, old)
    return found


def adapt(module: nn.Module, name: str, x_BTD: jax.Array, y_BTF: jax.Array) -> jax.Array:
    """Adds to y = x W what the adapter of the matrix `name` of `module` makes of x; y itself where there is none."""
    if not module.has_variable("params", f"{name}_lora_a"):
        return y_BTF
    adapters: Adapters = module.config.adapters  # pyright: ignore[reportAttributeAccessIssue]
    held = {path: leaf for path, leaf in module.variables["params"].items() if path.startswith(name)}
    a_DR, b_RF = held[f"{name}_lora_a"], held[f"{name}_lora_b"]
    dropped_BTD = x_BTD
    if adapters.dropout and module.has_rng("dropout"):
        dropped_BTD = nn.Dropout(adapters.dropout, deterministic=False, name=f"{name}_lora_dropout")(x_BTD)
    h_BTR = matmul(dropped_BTD, a_DR.astype(x_BTD.dtype)) * adapters.scale
    y_BTF += matmul(h_BTR, b_RF.astype(x_BTD.dtype))
    if adapters.dora:
        norms_F = column_norms(matrix_of(held, name) + adapters.scale * einsum("DR,RF->DF", a_DR, b_RF))
        factor_F = held[f"{name}_dora_scale"] / jax.lax.stop_gradient(norms_F)
        y_BTF *= factor_F.astype(x_BTD.dtype)[None, None]
    return y_BTF


def _product(params: Params, path: str) -> jax.Array:
    return einsum("...DR,...RF->...DF", params[f"{path}_lora_a"], params[f"{path}_lora_b"])


def merge(params: Params, adapters: Adapters) -> tuple[Params, Params]:
    """Melts the adapters into their matrices: float32 parameters of the model without adapters and codes.

    Returns (params, norms): `norms`, of DoRA, is {matrix: ||W + s A B||}, which `unmerge` needs.
    """
    merged = {p: matrix_of(params, p) for p in params if base_of(p) == p}
    norms: Params = {}
    for path in [base_of(p) for p in params if p.endswith("_lora_a")]:
        w = merged[path] + adapters.scale * _product(params, path)
        if adapters.dora:
            norms[path] = column_norms(w)
            w *= (params[f"{path}_dora_scale"] / norms[path])[..., None, :]
        merged[path] = w
    return merged, norms


def unmerge(merged: Params, adapted: Params, adapters: Adapters, norms: Params) -> Params:
    """Takes the adapters in `adapted` out of `merged` again, to float32's rounding; returns params with both apart."""
    params = {**merged, **{p: leaf for p, leaf in adapted.items() if base_of(p) != p}}
    for path in [base_of(p) for p in adapted if p.endswith("_lora_a")]:
        w = merged[path]
        if adapters.dora:
            w *= (norms[path] / adapted[f"{path}_dora_scale"])[..., None, :]
        params[path] = w - adapters.scale * _product(adapted, path)
    return params
