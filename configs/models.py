"""Published models by name, to plan and to train: `FILE:NAME`. Random weights; the shapes are the published ones.

python launch.py --config=configs/models.py:llama-3-8b --plan --topology=v5e:16x16
python launch.py --config=configs/models.py:llama-3-70b-top4 --plan --topology=v5e:4x4 --config.data.batch_size=16
python launch.py --config=configs/models.py:gpt2 --config.data.path=text.txt --config.data.batch_size=8

NAME-topN trains the last N layers and the last norm, the rest frozen in bfloat16. The batch is one row a chip of 256 chips
unless you say otherwise. docs/what-fits.md has the table of what fits where, with the commands. Other configs import the
functions here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import ml_collections

from configs import base
from lm.config import ConfigError, last_layers

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


def gpt2_xl(model: Model) -> None:
    """GPT-2 1.5B."""
    gpt2(model)
    model.update({"layers": 48, "dim": 1600, "heads": 25, "scan": True, "dtype": "bfloat16"})


def _llama(model: Model, layers: int, dim: int, heads: int, mlp_dim: int, head_dim: int = 128) -> None:
    model.update({
        "layers": layers, "dim": dim, "heads": heads, "kv_heads": 8, "head_dim": head_dim, "mlp_dim": mlp_dim,
        "vocab_size": 128_256, "rope_theta": 500_000.0, "norm_eps": 1e-5, "tie_embeddings": False, "scan": True,
        "dtype": "bfloat16",
    })  # fmt: skip


def llama_3_2_1b(model: Model) -> None:
    _llama(model, 16, 2048, 32, 8192, head_dim=64)
    model.tie_embeddings = True


def llama_3_8b(model: Model) -> None:
    _llama(model, 32, 4096, 32, 14_336)


def llama_3_70b(model: Model) -> None:
    _llama(model, 80, 8192, 64, 28_672)


def mistral_7b(model: Model) -> None:
    """Mistral 7B v0.1, with its sliding window."""
    _llama(model, 32, 4096, 32, 14_336)
    model.update({"vocab_size": 32_000, "rope_theta": 10_000.0, "window": 4096})


def _qwen3(model: Model, layers: int, dim: int, heads: int, mlp_dim: int, tied: bool) -> None:
    model.update({
        "layers": layers, "dim": dim, "heads": heads, "kv_heads": 8, "head_dim": 128, "mlp_dim": mlp_dim,
        "vocab_size": 151_936, "rope_theta": 1_000_000.0, "qk_norm": True, "tie_embeddings": tied, "scan": True,
        "dtype": "bfloat16",
    })  # fmt: skip


def qwen3_0_6b(model: Model) -> None:
    _qwen3(model, 28, 1024, 16, 3072, True)


def qwen3_8b(model: Model) -> None:
    _qwen3(model, 36, 4096, 32, 12_288, False)


def mixtral_8x7b(model: Model) -> None:
    """46.7 billion parameters, of which a token meets 12.9."""
    _llama(model, 32, 4096, 32, 14_336)
    model.update({"vocab_size": 32_000, "rope_theta": 1_000_000.0, "experts": 8, "experts_per_token": 2})


def qwen3_30b_a3b(model: Model) -> None:
    """30.5 billion parameters, of which a token meets 3.3."""
    _qwen3(model, 48, 2048, 32, 768, False)
    model.update({"kv_heads": 4, "experts": 128, "experts_per_token": 8})


def gemma_3_1b(model: Model) -> None:
    model.update({
        "layers": 26, "dim": 1152, "heads": 4, "kv_heads": 1, "head_dim": 256, "mlp_dim": 6912, "vocab_size": 262_144,
        "rope_theta": 1_000_000.0, "rope_local_theta": 10_000.0, "window": 512, "global_layers": (5, 11, 17, 23),
        "qk_norm": True, "norm_order": "both", "norm_offset": True, "tie_embeddings": True, "embed_scale": True,
        "activation": "gelu_tanh", "scan": True, "dtype": "bfloat16",
    })  # fmt: skip


MODELS: dict[str, Callable[[Model], None]] = {
    "gpt2": gpt2, "gpt2-xl": gpt2_xl, "llama-3.2-1b": llama_3_2_1b, "llama-3-8b": llama_3_8b, "llama-3-70b": llama_3_70b,
    "qwen3-0.6b": qwen3_0_6b, "qwen3-8b": qwen3_8b, "gemma-3-1b": gemma_3_1b, "mistral-7b": mistral_7b,
    "mixtral-8x7b": mixtral_8x7b, "qwen3-30b-a3b": qwen3_30b_a3b,
}  # fmt: skip
SEQ_LEN = {"gpt2": 1024, "gpt2-xl": 1024, "llama-3-8b": 8192, "mistral-7b": 8192}  # others: 4096


def get_config(name: str = "") -> ml_collections.ConfigDict:
    found = re.fullmatch(r"(.+?)(?:-top(\d+))?", name)
    if not found or found[1] not in MODELS:
        raise ConfigError(
            f"configs/models.py holds {', '.join(MODELS)}, each also as NAME-topN: --config=configs/models.py:llama-3-8b"
        )
    c = base.get_config()
    MODELS[found[1]](c.model)
    c.data.seq_len = SEQ_LEN.get(found[1], 4096)
    c.data.batch_size = 256
    c.model.remat = "full" if c.model.scan else "none"
    c.mesh.data = 1
    c.mesh.fsdp = -1
    c.train.balance_loss = 1e-3 if c.model.experts else 0.0
    c.optim.peak_lr = 3e-4
    c.optim.warmup_steps = 100
    c.train.eval_every = 0
    if found[2]:
        c.optim.train = last_layers(int(found[2]), c.model.layers)
        c.optim.frozen_dtype = "bfloat16"
        c.optim.peak_lr = 3e-5
    return c
