"""The peers: the same decoder in compact PyTorch, as nanoGPT writes it, and Hugging Face's GPT-2 and Llama.

All train with AdamW (fused), decay on matrices only, the gradient's norm clipped at 1.0; in bfloat16 under autocast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from benchmarks.cases import make_config
from lm.config import Config, ModelConfig


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        D = config.dim
        self.heads = config.heads
        self.norm_attn, self.norm_mlp = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, config.mlp_width), nn.Linear(config.mlp_width, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = (
            part.view(B, T, self.heads, D // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm_attn(x)).split(D, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x)), approximate="tanh"))


class Plain(nn.Module):
    """GPT-2: learned positions, LayerNorm before each branch, a tied head."""

    def __init__(self, config: ModelConfig, seq_len: int):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.max_len or seq_len, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.dim)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=config.init_std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm_out(x), self.embed.weight)


class HuggingFace(nn.Module):
    """transformers' own model; its GELU is the fused one, which is faster than the `gelu_new` that it comes with."""

    def __init__(self, config: ModelConfig, seq_len: int):
        super().__init__()
        import transformers

        how: Any = {"use_cache": False, "attn_implementation": "sdpa"}
        if config.position == "learned":
            shape = transformers.GPT2Config(
                vocab_size=config.vocab_size, n_positions=config.max_len or seq_len, n_embd=config.dim,
                n_layer=config.layers, n_head=config.heads, activation_function="gelu_pytorch_tanh", resid_pdrop=0.0,
                embd_pdrop=0.0, attn_pdrop=0.0, **how,
            )  # fmt: skip
            self.model: Any = transformers.GPT2LMHeadModel(shape)
        else:
            shape = transformers.LlamaConfig(
                vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.mlp_width,
                num_hidden_layers=config.layers, num_attention_heads=config.heads, head_dim=config.q_head_dim,
                num_key_value_heads=config.n_kv_heads, max_position_embeddings=max(seq_len, 2048),
                rms_norm_eps=config.norm_eps, tie_word_embeddings=config.tie_embeddings,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                **how,
            )  # fmt: skip
            self.model = transformers.LlamaForCausalLM(shape)
        if config.remat != "none":
            self.model.gradient_checkpointing_enable()
        self.model.train()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens).logits


MODELS = {"plain": Plain, "huggingface": HuggingFace}


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.optim.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    optim, rate = config.optim, float(config.optim.peak_lr)
    return torch.optim.AdamW(groups, lr=rate, betas=(optim.b1, optim.b2), eps=optim.eps, fused=True)


def freeze_below(model: nn.Module, layers: int, top: int) -> None:
    """Lets only the top layers and the last norm train, as users of transformers do it."""
    kept = (*(f".h.{layer}." for layer in range(layers - top, layers)), ".ln_f.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in kept))


def add_adapters(model: HuggingFace, rank: int) -> None:
    """peft's LoRA on all linear layers of a GPT-2, whose q, k and v are one."""
    import peft

    config = peft.LoraConfig(
        r=rank, lora_alpha=16, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    model.model = peft.get_peft_model(model.model, config)


class Steps:
    """The step of a spec {case, dtype, model, peer, compiled, train_top, lora_rank, warm}; run once, so compiled, unless not `warm`.

    With `train_top` only that many layers at the top train, and the norm after them; with `lora_rank` only adapters.
    """

    def __init__(self, spec: Mapping[str, Any]):
        self.config = config = make_config(spec["case"], spec.get("dtype", "float32"), changes=spec.get("model"))
        self.where = "cuda" if torch.cuda.is_available() else "cpu"
        if self.where == "cuda":
            torch.set_float32_matmul_precision("high")  # as nanoGPT; only what autocast leaves in float32
        torch.manual_seed(0)
        self.model: Any = MODELS[spec["peer"]](config.model, config.data.seq_len).to(self.where)
        if spec.get("train_top"):
            freeze_below(self.model, config.model.layers, spec["train_top"])
        if spec.get("lora_rank"):
            add_adapters(self.model, spec["lora_rank"])
        self.forward = torch.compile(self.model) if spec.get("compiled") else self.model
        self.optimizer = make_optimizer(config, self.model)
        rng, shape = np.random.default_rng(0), (config.data.batch_size, config.data.seq_len)
        ids = [rng.integers(0, config.model.vocab_size, shape, dtype=np.int64) for _ in range(2)]
        self.tokens, self.targets = (torch.from_numpy(part).to(self.where) for part in ids)
        if spec.get("warm", True):
            self.run(1)

    def step(self) -> torch.Tensor:
        half = self.config.model.dtype == "bfloat16"
        with torch.autocast(self.where, torch.bfloat16) if half else contextlib.nullcontext():
            logits = self.forward(self.tokens)
            loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), self.targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad], self.config.optim.clip_norm
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        if self.where == "cuda":
            torch.cuda.synchronize()

    def facts(self) -> dict[str, Any]:
        parameters = list(self.model.parameters())
        return {
            "threads": torch.get_num_threads(),
            "params": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
            "device_bytes": torch.cuda.max_memory_allocated() if self.where == "cuda" else None,
        }
