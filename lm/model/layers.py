"""What are the parts of a block, besides attention? Norms, products, the MLP."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.model.adapters import adapt
from lm.model.codes import matmul_coded
from lm.model.products import matmul, settle

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


def init_table(config: ModelConfig) -> nn.initializers.Initializer:
    """How embedding, positions and head start."""
    return nn.initializers.normal(config.init_std)


def init_matrix(config: ModelConfig) -> nn.initializers.Initializer:
    """How the matrices in blocks start; narrower with the width in muP (lm/mup.py)."""
    return nn.initializers.normal(config.init_std / math.sqrt(config.width_multiplier))


def init_router(config: ModelConfig) -> nn.initializers.Initializer:
    return nn.initializers.normal(config.init_std / config.width_multiplier)


def init_out(config: ModelConfig) -> nn.initializers.Initializer:
    """How the matrices that write to the residual stream start (GPT-2 section 2.3; zero: muP, modded-nanogpt)."""
    if config.init_out == "zero":
        return nn.initializers.zeros
    return nn.initializers.normal(config.init_std / math.sqrt(2 * max(config.layers, 1) * config.width_multiplier))


def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> jax.Array:
    """RMSNorm over the last dimension (arXiv:1910.07467), or LayerNorm (arXiv:1607.06450) when there is a bias.

    Computed in float32, returned in the dtype of `x`. The backward is written out: it computes the normalised `x` again
    from its mean and deviation, which takes half the passes over memory of what differentiation makes.
    """
    return _normalise(x, scale, bias, eps)


def _rows(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.reshape(*(1,) * (x.ndim - 1), -1)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> jax.Array:
    return _normalise_forward(x, scale, bias, eps)[0]


def _normalise_forward(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> tuple[jax.Array, Any]:
    y = x.astype(jnp.float32)
    mean = jnp.zeros((1,) * x.ndim, jnp.float32) if bias is None else y.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(y - mean).mean(-1, keepdims=True) + eps)
    mean, inverse = settle((mean, inverse))
    y = (y - mean) * inverse * _rows(scale, x)
    return (y if bias is None else y + _rows(bias, x)).astype(x.dtype), (x, scale, bias, mean, inverse)


def _normalise_backward(eps: float, kept: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    del eps
    x, scale, bias, mean, inverse = kept
    g, y = g.astype(jnp.float32), (x.astype(jnp.float32) - mean) * inverse
    scaled = g * _rows(scale, x)
    along = (scaled * y).mean(-1, keepdims=True)
    shift = jnp.zeros_like(along) if bias is None else scaled.mean(-1, keepdims=True)
    along, shift = settle((along, shift))
    x_grad = ((scaled - shift - y * along) * inverse).astype(x.dtype)
    front = tuple(range(x.ndim - 1))
    bias_grad = None if bias is None else g.sum(front).astype(bias.dtype)
    return x_grad, (g * y).sum(front).astype(scale.dtype), bias_grad


_normalise.defvjp(_normalise_forward, _normalise_backward)


def norm_scale(module: nn.Module, name: str, config: ModelConfig, width: int) -> jax.Array:
    """The parameter `name` [width] of `module`, starting so that it does nothing."""
    if config.norm_offset:
        return 1 + module.param(name, nn.initializers.zeros, (width,)).astype(jnp.float32)
    return module.param(name, nn.initializers.ones, (width,))


class Norm(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        scale = norm_scale(self, "scale", self.config, x_BTD.shape[-1])
        layernorm = self.config.norm == "layernorm"
        bias = self.param("bias", nn.initializers.zeros, (x_BTD.shape[-1],)) if layernorm else None
        return normalise(x_BTD, scale, bias, self.config.norm_eps)


def dense(
    module: nn.Module, name: str, x_BTD: jax.Array, width: int, init: nn.initializers.Initializer, bias: bool
) -> jax.Array:
    """x W, or x W + b, with the parameters `name` [D, width] and `name`_bias of `module`; in the dtype of `x`.

    W may be held as codes (lm/model/codes.py), and have an adapter (lm/model/adapters.py).
    """
    if module.has_variable("params", f"{name}_absmax"):
        y = matmul_coded(x_BTD, *(module.get_variable("params", path) for path in (name, f"{name}_absmax")))
    else:
        y = matmul(x_BTD, module.param(name, init, (x_BTD.shape[-1], width)))
    y = adapt(module, name, x_BTD, y)
    if bias:
        y += module.param(f"{name}_bias", nn.initializers.zeros, (width,)).astype(x_BTD.dtype)[None, None]
    return y


def _activate(name: str, up_BTF: jax.Array, gate_BTF: jax.Array | None) -> jax.Array:
    return ACTIVATIONS[name](up_BTF) if gate_BTF is None else ACTIVATIONS[name](gate_BTF) * up_BTF


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate(name: str, up_BTF: jax.Array, gate_BTF: jax.Array | None = None) -> jax.Array:
    """act(up), or act(gate) * up. Its backward keeps what came in and computes the rest again.

    Differentiation kept six arrays of that size a layer for GELU: 42 % of a scanned step's temporaries (8x384/256x8).
    """
    return _activate(name, up_BTF, gate_BTF)


activate.defvjp(
    lambda name, *parts: (_activate(name, *parts), parts),
    lambda name, parts, g_BTF: jax.vjp(partial(_activate, name), *settle(parts))[1](g_BTF),
)


class MLP(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) * up(x)) (SwiGLU, arXiv:2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        config = self.config
        F, wide, bias = config.mlp_width, init_matrix(config), config.mlp_bias
        up_BTF = dense(self, "up", x_BTD, F, wide, bias)
        gate_BTF = dense(self, "gate", x_BTD, F, wide, bias) if config.mlp_gated else None
        h_BTF: Any = activate(config.activation, up_BTF, gate_BTF)
        return dense(self, "down", h_BTF, config.dim, init_out(config), bias)
