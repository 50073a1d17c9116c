"""Shapes of published models, as changes to `config.model`. Not a run by itself: import what you need.

from configs.models import MODELS
MODELS["llama-3.2-1b"](c.model)
"""

from __future__ import annotations

from collections.abc import Callable

import ml_collections

Model = ml_collections.ConfigDict


def use_gpt2_blocks(model: Model, bias: bool = True) -> None:
    """Learned positions, LayerNorm, a plain GELU MLP and a tied head (GPT-2; `bias=False`: nanoGPT's biasless kind)."""
    model.position = "learned"
    model.norm = "layernorm"
    model.norm_eps = 1e-5
    model.mlp_gated = False
    model.activation = "gelu_tanh"
    model.mlp_bias = bias
    model.attn_bias = bias
    model.attn_out_bias = bias
    model.qk_norm = False
    model.tie_embeddings = True


def use_relu2_blocks(model: Model) -> None:
    """What learns fastest here at small sizes: squared ReLU, normalised queries and keys, branches that start at zero."""
    model.mlp_gated = False
    model.activation = "relu2"
    model.qk_norm = True
    model.init_out = "zero"


def use_muon(optim: ml_collections.ConfigDict) -> None:
    """Muon on the matrices inside blocks, Adam at half the rate on the rest, a linear decay."""
    optim.name = "muon"
    optim.peak_lr = 0.02
    optim.lr_multipliers = (("block_.*/(q|k|v|out|up|down)", 1.0), (".*", 0.5))
    optim.schedule = "linear"
    optim.weight_decay = 0.0


def gpt2(model: Model) -> None:
    """GPT-2 124M."""
    use_gpt2_blocks(model)
    model.update({"layers": 12, "dim": 768, "heads": 12, "vocab_size": 50_257, "max_len": 1024})


def llama_3_2_1b(model: Model) -> None:
    model.update({
        "layers": 16, "dim": 2048, "heads": 32, "kv_heads": 8, "head_dim": 64, "mlp_dim": 8192, "vocab_size": 128_256,
        "rope_theta": 500_000.0, "norm_eps": 1e-5, "tie_embeddings": True, "scan": True, "dtype": "bfloat16",
    })  # fmt: skip


def qwen3_0_6b(model: Model) -> None:
    model.update({
        "layers": 28, "dim": 1024, "heads": 16, "kv_heads": 8, "head_dim": 128, "mlp_dim": 3072, "vocab_size": 151_936,
        "rope_theta": 1_000_000.0, "qk_norm": True, "tie_embeddings": True, "scan": True, "dtype": "bfloat16",
    })  # fmt: skip


MODELS: dict[str, Callable[[Model], None]] = {"gpt2": gpt2, "llama-3.2-1b": llama_3_2_1b, "qwen3-0.6b": qwen3_0_6b}
