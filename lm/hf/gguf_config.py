"""Which Hugging Face config.json means the same as the metadata of a GGUF file?

Checked against llama.cpp's converter (conversion/) and loader (src/models/). Only keys that are understood are let
pass: another one may change the maths.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lm.hf.gguf_header import GgufHeader
from lm.hf.gguf_metadata import Metadata
from lm.hf.gguf_rope import Config, ReadFactors, find_scaling, whole_rope


def make_config(header: GgufHeader, read_factors: ReadFactors) -> Config:
    """Returns the config.json; `read_factors(tensor)` gives a tensor of rope factors as float32."""
    meta = Metadata(header)
    if meta.get("expert_count", 0) and meta.arch not in WITH_EXPERTS:
        raise meta.refuse(
            f"a mixture of {meta.get('expert_count')} experts, which {meta.arch} models are not known to be"
        )
    meta.get("expert_used_count", 0)
    if not meta.get("attention.causal", 1):
        raise meta.refuse("its attention looks ahead (attention.causal is false)")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise meta.refuse("has no matrix token_embd.weight")
    config = _start(meta, embedding.shape[0]) | FAMILIES[meta.arch](meta, read_factors)
    meta.check_read()
    return config


def _start(meta: Metadata, vocab_size: int) -> Config:
    tied = not meta.has("output")
    config: Config = {"vocab_size": vocab_size, "tie_word_embeddings": tied, "use_cache": True}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = meta.header.fields.get(f"tokenizer.ggml.{key}_token_id")
        config[f"{name}_token_id"] = number if isinstance(number, int) else None
    return config


def _decoder(meta: Metadata, model: str, activation: str = "silu", head_dim: bool = True) -> Config:
    """What the families with rotary positions, RMSNorm and a gated MLP share."""
    dim, heads = meta.count("embedding_length"), meta.count("attention.head_count")
    size = meta.count("attention.key_length", dim // heads or 1)
    if meta.count("attention.value_length", size) != size:
        raise meta.refuse("its keys and values have heads of different sizes")
    if not head_dim and size * heads != dim:
        raise meta.refuse(f"heads of {size}, where {dim} / {heads} is all that this family can have")
    kv_heads = meta.count("attention.head_count_kv", heads)
    return {
        "model_type": model.lower(), "hidden_size": dim, "num_hidden_layers": meta.count("block_count"),
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_act": activation,
        "intermediate_size": meta.count("feed_forward_length"), "rms_norm_eps": meta.get("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": meta.count("context_length"), "rope_theta": float(meta.get("rope.freq_base", 10_000.0)),
        **({"head_dim": size} if head_dim else {}),
    }  # fmt: skip


def _layer_types(meta: Metadata, layers: int, every: int) -> Config:
    """Returns window and kind of each layer; without a pattern of its own, each `every`-th sees all."""
    window = meta.get("attention.sliding_window", 0)
    pattern = meta.array("attention.sliding_window_pattern")
    if pattern is None:
        every = meta.get("attention.sliding_window_pattern", every)
        pattern = np.array([(i + 1) % every != 0 if every else True for i in range(layers)])
    if len(pattern) != layers:
        raise meta.refuse(f"sliding_window_pattern is for {len(pattern)} layers, and it has {layers}")
    kinds = ["sliding_attention" if local and window else "full_attention" for local in pattern]
    return {"sliding_window": window or None, "layer_types": kinds}


WITH_EXPERTS = ("llama", "qwen3moe")


def _experts(meta: Metadata) -> Config:
    return {"num_local_experts": meta.count("expert_count"), "num_experts_per_tok": meta.count("expert_used_count")}


def _mixtral(meta: Metadata, read_factors: ReadFactors) -> Config:
    config = _decoder(meta, "Mixtral") | _experts(meta) | {"architectures": ["MixtralForCausalLM"]}
    return whole_rope(meta, config, read_factors)


def _qwen3moe(meta: Metadata, read_factors: ReadFactors) -> Config:
    config = _decoder(meta, "Qwen3") | _experts(meta) | {"model_type": "qwen3_moe"}
    config |= {"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "use_sliding_window": False}
    # llama.cpp scales the shares to sum 1 whatever the model says, so files say nothing.
    config |= {"moe_intermediate_size": meta.count("expert_feed_forward_length"), "norm_topk_prob": True}
    return whole_rope(meta, config, read_factors)


def _llama(meta: Metadata, read_factors: ReadFactors) -> Config:
    if meta.get("expert_count", 0):
        return _mixtral(meta, read_factors)
    config = _decoder(meta, "Llama") | {"attention_bias": "blk.0.attn_q.bias" in meta.tensors}
    config |= {"mlp_bias": "blk.0.ffn_up.bias" in meta.tensors, "architectures": ["LlamaForCausalLM"]}
    return whole_rope(meta, config, read_factors)


def _qwen2(meta: Metadata, read_factors: ReadFactors) -> Config:
    config = _decoder(meta, "Qwen2", head_dim=False)
    config |= {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}
    return whole_rope(meta, config, read_factors)


def _qwen3(meta: Metadata, read_factors: ReadFactors) -> Config:
    config = _decoder(meta, "Qwen3") | {"attention_bias": "blk.0.attn_q.bias" in meta.tensors}
    config |= {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False}
    return whole_rope(meta, config, read_factors)


def _olmo2(meta: Metadata, read_factors: ReadFactors) -> Config:
    config = _decoder(meta, "Olmo2", head_dim=False)
    config |= {"architectures": ["Olmo2ForCausalLM"], "attention_bias": "blk.0.attn_q.bias" in meta.tensors}
    return whole_rope(meta, config, read_factors)


def _gemma(meta: Metadata, model: str, large: int) -> Config:
    config: Config = _decoder(meta, model, "gelu_pytorch_tanh")
    config["hidden_activation"] = config.pop("hidden_act")
    # GGUF does not say what scores are divided by; llama.cpp tells the 27B model, which differs, by its depth.
    own = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = own if config["num_hidden_layers"] == large else config["head_dim"]
    config["attention_bias"] = False
    config["final_logit_softcapping"] = meta.get("final_logit_softcapping", None) or None
    return config


def _gemma2(meta: Metadata, read_factors: ReadFactors) -> Config:
    config: Config = _gemma(meta, "Gemma2", 46) | {"architectures": ["Gemma2ForCausalLM"]}
    config["attn_logit_softcapping"] = meta.get("attn_logit_softcapping", None) or None
    config |= _layer_types(meta, config["num_hidden_layers"], 2)
    return whole_rope(meta, config, read_factors)


def _gemma3(meta: Metadata, read_factors: ReadFactors) -> Config:
    config: Config = _gemma(meta, "Gemma3", 62) | {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    config |= _layer_types(meta, config["num_hidden_layers"], 6) | {"attn_logit_softcapping": None}
    config["rope_theta"] = float(meta.get("rope.freq_base", 1_000_000.0))
    config["rope_local_base_freq"] = float(meta.get("rope.freq_base_swa", 10_000.0))
    return whole_rope(meta, config, read_factors)


def _phi3(meta: Metadata, read_factors: ReadFactors) -> Config:
    config: Config = _decoder(meta, "Phi3", head_dim=False) | {"architectures": ["Phi3ForCausalLM"]}
    size = config["hidden_size"] // config["num_attention_heads"]
    rotated = meta.count("rope.dimension_count", size)
    config["sliding_window"] = meta.get("attention.sliding_window", 0) or None
    config["original_max_position_embeddings"] = meta.count(
        "rope.scaling.original_context_length", config["max_position_embeddings"]
    )
    if rotated != size:
        config["partial_rotary_factor"] = rotated / size
    if not meta.has("rope_factors_long"):
        return config | {"rope_scaling": find_scaling(meta, config, read_factors)}
    long, short = (read_factors(f"rope_factors_{name}.weight") for name in ("long", "short"))
    if long.shape != (rotated // 2,) or short.shape != long.shape:
        raise meta.refuse("rope_factors_long and rope_factors_short do not hold a factor for each frequency")
    scaling: Config = {"rope_type": "longrope", "long_factor": _decimals(long), "short_factor": _decimals(short)}
    ratio = config["max_position_embeddings"] / config["original_max_position_embeddings"]
    usual = math.sqrt(1 + math.log(ratio) / math.log(config["original_max_position_embeddings"])) if ratio > 1 else 1.0
    given = meta.get("rope.scaling.attn_factor", usual)
    if not math.isclose(given, usual, rel_tol=1e-5):
        scaling["attention_factor"] = given
    meta.read.add("rope.scaling.type")
    return config | {"rope_scaling": scaling}


def _decimals(values: np.ndarray) -> list[float]:
    return [float(str(value)) for value in values.astype(np.float32)]


def _gpt2(meta: Metadata, read_factors: ReadFactors) -> Config:
    dim = meta.count("embedding_length")
    heads = meta.count("attention.head_count")
    if meta.count("attention.head_count_kv", heads) != heads:
        raise meta.refuse("has fewer heads of keys than of queries")
    meta.get("feed_forward_length", 0)  # the converter writes 4 * n_embd whatever it is; the tensor says
    mlp = meta.tensors.get("blk.0.ffn_up.weight")
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new", "n_embd": dim,
        "n_layer": meta.count("block_count"), "n_head": heads, "n_positions": meta.count("context_length"),
        "n_inner": mlp.shape[0] if mlp else 4 * dim, "layer_norm_epsilon": meta.get("attention.layer_norm_epsilon"),
    }  # fmt: skip


def _gptneox(meta: Metadata, read_factors: ReadFactors) -> Config:
    dim, heads = meta.count("embedding_length"), meta.count("attention.head_count")
    if meta.count("attention.head_count_kv", heads) != heads:
        raise meta.refuse("has fewer heads of keys than of queries")
    size = dim // heads
    config: Config = {
        "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": dim,
        "num_hidden_layers": meta.count("block_count"), "num_attention_heads": heads,
        "intermediate_size": meta.count("feed_forward_length"), "layer_norm_eps": meta.get("attention.layer_norm_epsilon"),
        "max_position_embeddings": meta.count("context_length"), "use_parallel_residual": bool(meta.get("use_parallel_residual", 1)),
        "rotary_pct": meta.count("rope.dimension_count", size) / (size or 1), "attention_bias": "blk.0.attn_qkv.bias" in meta.tensors,
        "rotary_emb_base": float(meta.get("rope.freq_base", 10_000.0)),
    }  # fmt: skip
    return config | {"rope_scaling": find_scaling(meta, config, read_factors)}


FAMILIES: dict[str, Callable[[Metadata, ReadFactors], Config]] = {
    "llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3, "qwen3moe": _qwen3moe, "gemma2": _gemma2, "gemma3": _gemma3, "phi3": _phi3,
    "gpt2": _gpt2, "gptneox": _gptneox, "olmo2": _olmo2,
}  # fmt: skip
