"""What does a Hugging Face config.json mean as a `ModelConfig`?

Twelve families. Every field is read, known to change nothing, or refused by name: a field that we do not know may change
what the model computes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lm.config import ModelConfig, UserError, from_mapping

Fields = dict[str, Any]

# Fields that change nothing that this code computes.
HARMLESS = re.compile(
    r"architectures|model_type|transformers_version|torch_dtype|dtype|use_cache|_name_or_path|.*_token_ids?|"
    r"initializer_range|max_position_embeddings|n_positions|n_ctx|auto_map|.*dropout|.*_pdrop|output_.*|return_dict|"
    r"is_decoder|is_encoder_decoder|id2label|label2id|num_labels|problem_type|text_template|tokenizer_class|torchscript|unsloth_.*|"
    r"transformers\.js_config|summary_.*|task_specific_params|gradient_checkpointing|cache_implementation|"
    r"_attn_implementation.*|pretraining_tp|use_bfloat16|tie_weights_keys|chunk_size_feed_forward|finetuning_task|"
    r"attn_implementation|layer_norm_elementwise|model_max_length|_commit_hash|_sliding_window_pattern|"
    r"router_aux_loss_coef"  # read by a training that asks for output_router_logits; ours is train.balance_loss
)
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu2": "relu2",
}  # fmt: skip
CLASSIFIER, ONE_LABEL = "ForSequenceClassification", "single_label_classification"
ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu2": "relu2"}


@dataclass
class Reader:
    """Takes fields out of a config.json, keeping note of which were read."""

    fields: Fields
    read: set[str] = field(default_factory=set)

    def get(self, name: str, default: Any = None) -> Any:
        """The field's value; null counts as absent."""
        self.read.add(name)
        value = self.fields.get(name)
        return default if value is None else value

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise UserError(f"config.json has no {name!r}")
        return value

    def fixed(self, **values: Any) -> None:
        """Refuses a field that has another value than the only one that we compute."""
        for name, wanted in values.items():
            found = self.get(name, wanted)
            if found != wanted:
                raise UserError(
                    f"config.json: {name}={found!r} changes what the model computes; only {wanted!r} is known"
                )

    def activation(self, *names: str, default: str) -> str:
        found = next((value for value in map(self.get, names) if value is not None), default)
        if found not in ACTIVATIONS:
            raise UserError(f"config.json: activation {found!r} is not known; known are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[found]


def read_config(fields: Mapping[str, Any]) -> tuple[str, ModelConfig]:
    """Returns the family and the model of a config.json; raises UserError for what we cannot compute."""
    family = fields.get("model_type")
    if family not in FAMILIES:
        hint = ": export its language model alone (Gemma3ForCausalLM)" if family == "gemma3" else ""
        raise UserError(f"config.json: model_type {family!r} is not known{hint}; known are {', '.join(FAMILIES)}")
    reader = Reader(dict(fields))
    try:
        model = from_mapping(ModelConfig, FAMILIES[family].read(reader), "config.json")
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise UserError(f"config.json of a {family} model is damaged: {error!r}") from None
    if "quantization_config" in fields:
        raise UserError("config.json: the weights are quantised (quantization_config). Take the unquantised model")
    unknown = [
        name for name, value in fields.items()
        if name not in reader.read and not HARMLESS.fullmatch(name) and value not in (None, False)
    ]  # fmt: skip
    if unknown:
        shown = ", ".join(f"{name}={fields[name]!r}" for name in unknown)
        raise UserError(
            f"config.json: {family} models are not known to have {shown}. If it does not change what the model computes, "
            f"remove it from config.json"
        )
    return family, model


def class_names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes of a config.json in the order of their numbers, where it is a sequence classifier's; else ()."""
    if not any(str(name).endswith(CLASSIFIER) for name in fields.get("architectures") or ()):
        return ()
    try:
        names = {int(number): str(name) for number, name in (fields.get("id2label") or {}).items()}
    except (AttributeError, TypeError, ValueError):
        names = {}
    if len(names) < 2 or set(names) != set(range(len(names))) or fields.get("problem_type") not in (None, ONE_LABEL):
        raise UserError(f"config.json: a sequence classifier needs id2label (0: NAME, 1: NAME, ...) and {ONE_LABEL!r}")
    return tuple(names[number] for number in range(len(names)))


def _sizes(r: Reader) -> Fields:
    heads = r.need("num_attention_heads")
    return {
        "layers": r.need("num_hidden_layers"), "dim": r.need("hidden_size"), "heads": heads,
        "kv_heads": r.get("num_key_value_heads", heads), "mlp_dim": r.need("intermediate_size"),
        "vocab_size": r.need("vocab_size"),
    }  # fmt: skip


def _rope(r: Reader, theta: float = 10_000.0, fraction: float = 1.0) -> Fields:
    """Reads RoPE fields of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters)."""
    rope = dict(r.get("rope_parameters") or {})
    rope |= r.get("rope_scaling") or {}
    theta = rope.pop("rope_theta", None) or r.get("rope_theta", r.get("rotary_emb_base", theta))
    fraction = rope.pop("partial_rotary_factor", None) or r.get("partial_rotary_factor", r.get("rotary_pct", fraction))
    return {
        "rope_theta": float(theta), "rope_fraction": float(fraction),
        "rope_scaling": _scaling(rope, r),
    }  # fmt: skip


def _scaling(rope: Fields, r: Reader) -> Fields:
    kinds = {rope.pop("rope_type", None), rope.pop("type", None)} - {None, "default"}
    if len(kinds) > 1:
        raise UserError(f"config.json: rope_scaling says both {' and '.join(sorted(kinds))}")
    kind = kinds.pop() if kinds else "none"
    kind = "longrope" if kind == "su" else kind
    longest = r.get("max_position_embeddings", 2048)
    original = (
        r.get("original_max_position_embeddings") or rope.pop("original_max_position_embeddings", None) or longest
    )
    rope.pop("original_max_position_embeddings", None)
    found: Fields = {}
    if kind == "none":
        rope.pop("factor", None)
    elif kind in ("linear", "dynamic"):
        found = {"factor": rope.pop("factor")} | ({"original_len": longest} if kind == "dynamic" else {})
        if kind == "dynamic":
            rope.pop("alpha", None)
    elif kind == "llama3":
        found = {name: rope.pop(name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
        found["original_len"] = original
    elif kind == "yarn":
        factor = rope.pop("factor", None) or longest / original
        found = {"factor": factor, "original_len": original, "attention_factor": _yarn_attention(rope, factor)}
        found |= {"beta_fast": rope.pop("beta_fast", None) or 32, "beta_slow": rope.pop("beta_slow", None) or 1}
        found["truncate"] = rope.pop("truncate", True)
    elif kind == "longrope":
        factor, attention = rope.pop("factor", None) or longest / original, rope.pop("attention_factor", None)
        if attention is None:
            attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        found = {"original_len": original, "attention_factor": attention}
        found |= {name: rope.pop(name) for name in ("short_factor", "long_factor")}
    else:
        raise UserError(f"config.json: rope_scaling of kind {kind!r} is not known")
    if rope:
        raise UserError(f"config.json: rope_scaling {kind!r} is not known to have {', '.join(sorted(rope))}")
    return {"kind": kind, **found}


def _yarn_attention(rope: Fields, factor: float) -> float:
    stated, own, whole = (rope.pop(name, None) for name in ("attention_factor", "mscale", "mscale_all_dim"))

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if stated is not None:
        return stated
    return scale(own) / scale(whole) if own and whole else scale(1)


def _windows(r: Reader, layers: int, default: list[bool]) -> Fields:
    """Which layers have the window: `layer_types`, else `default`."""
    types, window = r.get("layer_types"), r.get("sliding_window", 0)
    r.get("max_window_layers"), r.get("use_sliding_window"), r.get("sliding_window_pattern")
    if types is not None:
        odd = set(types) - {"sliding_attention", "full_attention"}
        if odd or len(types) != layers:
            raise UserError(
                f"config.json: layer_types holds {', '.join(sorted(odd)) or len(types)}, not {layers} known ones"
            )
        default = [kind == "sliding_attention" for kind in types]
    if not window or not any(default):
        return {}
    return {"window": window, "global_layers": tuple(i for i, local in enumerate(default) if not local)}


def _read_llama(r: Reader) -> Fields:
    bias = r.get("attention_bias", False)
    r.fixed(rope_interleaved=False)
    return {
        **_sizes(r), **_rope(r), "head_dim": r.get("head_dim", 0), "activation": r.activation("hidden_act", default="silu"),
        "norm_eps": r.get("rms_norm_eps", 1e-6), "tie_embeddings": r.get("tie_word_embeddings", False),
        "attn_bias": bias, "attn_out_bias": bias, "mlp_bias": r.get("mlp_bias", False),
    }  # fmt: skip


def _read_mistral(r: Reader) -> Fields:
    sizes = _read_llama(r)
    return {**sizes, **_windows(r, sizes["layers"], [True] * sizes["layers"])}


def _read_qwen2(r: Reader) -> Fields:
    sizes = _read_llama(r)
    first = r.get("max_window_layers", 28) if r.get("use_sliding_window", False) else sizes["layers"]
    local = [layer >= first for layer in range(sizes["layers"])]
    found = _windows(r, sizes["layers"], local) if r.get("use_sliding_window", False) else {}
    r.get("sliding_window"), r.get("layer_types"), r.get("max_window_layers")
    return {**sizes, "attn_bias": True, "attn_out_bias": False, **found}


def _read_qwen3(r: Reader) -> Fields:
    bias = r.get("attention_bias", False)
    return {
        **_read_qwen2(r),
        "head_dim": r.get("head_dim", 128),
        "qk_norm": True,
        "attn_bias": bias,
        "attn_out_bias": bias,
    }


def _experts(r: Reader, experts: int, chosen: int) -> Fields:
    found = r.get("num_local_experts", r.get("num_experts", experts))
    if found < 1:
        raise UserError(f"config.json: num_experts={found}, which is no mixture of experts")
    return {"experts": found, "experts_per_token": r.get("num_experts_per_tok", chosen)}


def _read_mixtral(r: Reader) -> Fields:
    r.fixed(router_jitter_noise=0.0)
    more = {"norm_eps": r.get("rms_norm_eps", 1e-5), "expert_norm": True}
    return {**_read_mistral(r), **_rope(r, 1_000_000.0), **_experts(r, 8, 2), **more}


def _read_qwen3_moe(r: Reader) -> Fields:
    r.fixed(decoder_sparse_step=1, mlp_only_layers=[])
    bias = r.get("attention_bias", False)
    found = {
        **_read_llama(r), **_experts(r, 128, 8), "mlp_dim": r.get("moe_intermediate_size", 768), "qk_norm": True,
        "attn_bias": bias, "attn_out_bias": bias, "expert_norm": r.get("norm_topk_prob", False),
    }  # fmt: skip
    window = _windows(r, found["layers"], [True] * found["layers"])  # transformers knows no max_window_layers here
    return {**found, **(window if r.get("use_sliding_window", False) else {})}


def _read_gemma2(r: Reader) -> Fields:
    sizes = _read_llama(r)
    r.fixed(use_bidirectional_attention=False)
    heads = r.get("head_dim", 256)
    return {
        **sizes, "head_dim": heads, "attn_scale": float(r.get("query_pre_attn_scalar", 256)),
        "activation": r.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh"),
        "attn_softcap": float(r.get("attn_logit_softcapping", 0.0)),
        "logit_softcap": float(r.get("final_logit_softcapping", 0.0)),
        "tie_embeddings": r.get("tie_word_embeddings", True), "norm_order": "both", "norm_offset": True, "embed_scale": True,
        **_windows(r, sizes["layers"], [layer % 2 == 0 for layer in range(sizes["layers"])]),
    }  # fmt: skip


def _read_gemma3(r: Reader) -> Fields:
    nested = dict(r.get("rope_parameters") or {})
    local = float(
        (nested.pop("sliding_attention", None) or {}).get("rope_theta") or r.get("rope_local_base_freq", 10_000.0)
    )
    whole = nested.pop("full_attention", None) or nested
    flat = Reader({**r.fields, "rope_parameters": whole}, r.read)
    every = r.get("sliding_window_pattern", r.get("_sliding_window_pattern", 6))
    sizes = _read_gemma2(flat)
    layers = range(sizes["layers"])
    return {
        **sizes, **_rope(flat, 1_000_000.0), "qk_norm": True, "rope_local_theta": local, "window": 0, "global_layers": (),
        **_windows(flat, sizes["layers"], [bool((layer + 1) % every) for layer in layers]),
    }  # fmt: skip


def _read_phi3(r: Reader) -> Fields:
    sizes = _read_mistral(r)
    return {**sizes, "norm_eps": r.get("rms_norm_eps", 1e-5)}


def _read_olmo2(r: Reader) -> Fields:
    return {**_read_llama(r), "norm_eps": r.get("rms_norm_eps", 1e-5), "norm_order": "post", "qk_norm_joint": True}


def _read_gpt2(r: Reader) -> Fields:
    r.fixed(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    r.get("reorder_and_upcast_attn")  # our scores are float32 always
    dim = r.get("n_embd", 768)
    return {
        "layers": r.get("n_layer", 12), "dim": dim, "heads": r.get("n_head", 12), "mlp_dim": r.get("n_inner", 4 * dim),
        "vocab_size": r.get("vocab_size", 50_257), "max_len": r.get("n_positions", 1024),
        "norm_eps": r.get("layer_norm_epsilon", 1e-5), "tie_embeddings": r.get("tie_word_embeddings", True),
        "activation": r.activation("activation_function", default="gelu_new"), "position": "learned",
        "norm": "layernorm", "mlp_gated": False, "mlp_bias": True, "attn_bias": True, "attn_out_bias": True,
    }  # fmt: skip


def _read_gpt_neox(r: Reader) -> Fields:
    bias = r.get("attention_bias", True)
    return {
        **_sizes(r), **_rope(r, fraction=0.25), "norm_eps": r.get("layer_norm_eps", 1e-5),
        "tie_embeddings": r.get("tie_word_embeddings", False), "parallel": r.get("use_parallel_residual", True),
        "activation": r.activation("hidden_act", default="gelu"), "norm": "layernorm", "mlp_gated": False,
        "mlp_bias": True, "attn_bias": bias, "attn_out_bias": bias,
    }  # fmt: skip


@dataclass(frozen=True)
class Family:
    read: Callable[[Reader], Fields]
    architecture: str


FAMILIES = {
    "llama": Family(_read_llama, "LlamaForCausalLM"), "mistral": Family(_read_mistral, "MistralForCausalLM"),
    "qwen2": Family(_read_qwen2, "Qwen2ForCausalLM"), "qwen3": Family(_read_qwen3, "Qwen3ForCausalLM"),
    "gemma2": Family(_read_gemma2, "Gemma2ForCausalLM"), "gemma3_text": Family(_read_gemma3, "Gemma3ForCausalLM"),
    "mixtral": Family(_read_mixtral, "MixtralForCausalLM"),
    "qwen3_moe": Family(_read_qwen3_moe, "Qwen3MoeForCausalLM"),
    "phi3": Family(_read_phi3, "Phi3ForCausalLM"), "olmo2": Family(_read_olmo2, "Olmo2ForCausalLM"),
    "gpt2": Family(_read_gpt2, "GPT2LMHeadModel"), "gpt_neox": Family(_read_gpt_neox, "GPTNeoXForCausalLM"),
}  # fmt: skip
