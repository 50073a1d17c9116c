"""How is a `ModelConfig` written as a config.json that every reader of Hugging Face folders understands?

Fields are spelled as transformers 4 spells them, which 5 and other programs read too. What is written is read again, and
only a family whose reading gives the same model is taken.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lm.config import ModelConfig, RopeScaling, UserError
from lm.hf.families import ACTIVATION_NAMES, CLASSIFIER, FAMILIES, ONE_LABEL, Fields, read_config
from lm.hf.source import same_model


def write_config(model: ModelConfig, longest: int, family: str = "") -> Fields:
    """Returns the config.json of a model; `longest`: positions it is meant for. `family` "": the first that can hold it.

    Raises UserError when none can, or not the one that is asked for.
    """
    for name in [family] if family else FAMILIES:
        if name not in FAMILIES:
            raise UserError(f"--family={name} is not known; known are {', '.join(FAMILIES)}")
        fields = _fields(name, model, longest)
        try:
            found = read_config(fields)[1]
        except UserError:
            continue
        if same_model(found, model):
            return {"architectures": [FAMILIES[name].architecture], "model_type": name, **fields}
    raise UserError(
        f"no {family or 'known'} model of Hugging Face computes what this one does ({', '.join(_unusual(model))}). "
        "Its weights can be used here alone"
    )


def _unusual(model: ModelConfig) -> list[str]:
    """What differs from a Llama, for the message."""
    default = ModelConfig()
    keys = (
        "activation", "mlp_gated", "mlp_bias", "position", "norm", "norm_order", "norm_offset", "parallel", "qk_norm",
        "qk_norm_joint", "attn_bias", "attn_out_bias", "attn_softcap", "logit_softcap", "embed_scale", "rope_fraction", "experts",
        "base_dim", "base_head_dim",
    )  # fmt: skip
    return [f"{key}={getattr(model, key)!r}" for key in keys if getattr(model, key) != getattr(default, key)] or [
        "sizes"
    ]


def _fields(family: str, model: ModelConfig, longest: int) -> Fields:
    if family == "gpt2":
        return {
            "model_type": family, "n_layer": model.layers, "n_embd": model.dim, "n_head": model.heads,
            "n_inner": model.mlp_width, "vocab_size": model.vocab_size, "n_positions": model.max_len,
            "layer_norm_epsilon": model.norm_eps, "tie_word_embeddings": model.tie_embeddings,
            "activation_function": "gelu_new" if model.activation == "gelu_tanh" else ACTIVATION_NAMES[model.activation],
        }  # fmt: skip
    fields: Fields = {
        "model_type": family, "num_hidden_layers": model.layers, "hidden_size": model.dim,
        "num_attention_heads": model.heads, "intermediate_size": model.mlp_width, "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tie_embeddings, "max_position_embeddings": longest, "rope_theta": model.rope_theta,
        **_scaling(model.rope_scaling),
    }  # fmt: skip
    if family == "gpt_neox":
        return fields | {
            "layer_norm_eps": model.norm_eps, "rotary_pct": model.rope_fraction, "rotary_emb_base": model.rope_theta,
            "use_parallel_residual": model.parallel, "hidden_act": ACTIVATION_NAMES[model.activation],
            "attention_bias": model.attn_bias,
        }  # fmt: skip
    gemma = family.startswith("gemma")
    fields |= {
        "num_key_value_heads": model.n_kv_heads, "head_dim": model.q_head_dim, "rms_norm_eps": model.norm_eps,
        "hidden_activation" if gemma else "hidden_act": ACTIVATION_NAMES[model.activation],
    }  # fmt: skip
    if model.rope_fraction != 1:
        fields["partial_rotary_factor"] = model.rope_fraction
    if family == "mixtral":
        fields |= {"num_local_experts": model.experts, "num_experts_per_tok": model.experts_per_token}
    if family == "qwen3_moe":  # whose intermediate_size is that of layers without experts, which it has none of
        fields |= {
            "num_experts": model.experts, "num_experts_per_tok": model.experts_per_token, "decoder_sparse_step": 1,
            "moe_intermediate_size": model.mlp_width, "norm_topk_prob": model.expert_norm, "mlp_only_layers": [],
        }  # fmt: skip
    if family in ("llama", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "olmo2"):
        fields["attention_bias"] = model.attn_bias
    if family == "llama":
        fields["mlp_bias"] = model.mlp_bias
    if gemma:
        fields |= {
            "query_pre_attn_scalar": int(model.attn_scale or model.q_head_dim),
            "attn_logit_softcapping": model.attn_softcap or None, "final_logit_softcapping": model.logit_softcap or None,
        }  # fmt: skip
    if family == "gemma3_text":
        fields["rope_local_base_freq"] = model.rope_local_theta or model.rope_theta
    return fields | _window_fields(family, model)


def _window_fields(family: str, model: ModelConfig) -> Fields:
    kinds = [model.is_local(layer) for layer in range(model.layers)]
    types = ["sliding_attention" if local else "full_attention" for local in kinds]
    if family in ("mistral", "mixtral", "phi3"):
        return {"sliding_window": model.window or None}
    if family.startswith("qwen"):
        if family == "qwen3_moe":
            return {"use_sliding_window": any(kinds), "sliding_window": model.window or None}
        window = {"sliding_window": model.window, "max_window_layers": model.layers - sum(kinds)} if any(kinds) else {}
        return {"use_sliding_window": any(kinds), "layer_types": types, **window}
    return {"sliding_window": model.window or None, "layer_types": types} if family.startswith("gemma") else {}


def _scaling(scaling: RopeScaling) -> Fields:
    kind, fields = scaling.kind, {"rope_type": scaling.kind, "factor": scaling.factor}
    if kind == "none":
        return {}
    if kind == "dynamic":
        return {"rope_scaling": fields, "max_position_embeddings": scaling.original_len}
    if kind == "llama3":
        fields |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if kind == "yarn":
        fields |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
    if kind in ("yarn", "longrope"):
        fields["attention_factor"] = scaling.attention_factor
    if kind == "longrope":
        del fields["factor"]
        fields |= {"short_factor": list(scaling.short_factor), "long_factor": list(scaling.long_factor)}
        return {"rope_scaling": fields, "original_max_position_embeddings": scaling.original_len}
    if kind != "linear":
        fields["original_max_position_embeddings"] = scaling.original_len
    return {"rope_scaling": fields}


def classifier_fields(fields: Fields, names: Sequence[str], pad: int, template: str = "") -> Fields:
    """Returns the config.json of a language model as that of its family's classifier, which reads the last token but `pad`.

    A template around the texts goes along as `text_template`, which transformers keeps and does not read.
    """
    family = fields["model_type"]
    stem = (
        "Gemma3Text"
        if family == "gemma3_text"
        else re.sub("ForCausalLM|LMHeadModel", "", FAMILIES[family].architecture)
    )
    return fields | {
        "architectures": [stem + CLASSIFIER], "problem_type": ONE_LABEL, "num_labels": len(names), "pad_token_id": pad,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        **({"text_template": template} if template else {}),
    }  # fmt: skip


def add_tokens(fields: Fields, special: Any, stop_ids: tuple[int, ...]) -> Fields:
    """Returns the fields with the ids of begin, end and padding, where the tokenizer has them."""
    ends = list(stop_ids)
    found = {
        "bos_token_id": special.bos, "eos_token_id": ends[0] if len(ends) == 1 else ends or special.eos,
        "pad_token_id": special.pad,
    }  # fmt: skip
    return fields | {name: value if value != -1 else None for name, value in found.items()}
