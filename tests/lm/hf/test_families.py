"""What does a config.json mean, and which tensor is which parameter? As transformers 5.24 writes them."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from lm.config import ModelConfig, RopeScaling, UserError
from lm.hf.config_json import write_config
from lm.hf.families import read_config
from lm.hf.names import rows_of
from lm.hf.source import same_model
from lm.model.transformer import Model
from lm.parts import param_shapes

SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": True,
    "dtype": "float32", "transformers_version": "5.24.0", "attention_dropout": 0.0, "initializer_range": 0.1,
}  # fmt: skip
LLAMA = {
    **SIZES, "model_type": "llama", "num_key_value_heads": 2, "head_dim": 16, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "pretraining_tp": 1,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
GEMMA = {
    **SIZES, "model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 24, "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6, "attention_bias": False, "tie_word_embeddings": True, "query_pre_attn_scalar": 40,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "use_bidirectional_attention": None,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}  # fmt: skip
QWEN2 = {
    **{k: v for k, v in LLAMA.items() if k not in ("attention_bias", "mlp_bias", "head_dim", "pretraining_tp")},
    "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2,
    "layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 2, "tie_word_embeddings": False,
}  # fmt: skip
ROUTER = {"output_router_logits": False, "router_aux_loss_coef": 0.001}
CONFIGS = {
    "llama": LLAMA,
    "mistral": {**LLAMA, "model_type": "mistral", "sliding_window": 9, "tie_word_embeddings": False},
    "qwen2": QWEN2,
    "qwen3": {
        **QWEN2, "model_type": "qwen3", "attention_bias": False, "head_dim": 24, "use_sliding_window": False,
        "sliding_window": None, "max_window_layers": 28, "layer_types": ["full_attention"] * 4,
    },
    "gemma2": GEMMA,
    "gemma3_text": {
        **GEMMA, "model_type": "gemma3_text", "attn_logit_softcapping": None, "final_logit_softcapping": None,
        "_sliding_window_pattern": 6, "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    },
    "phi3": {
        **{k: v for k, v in LLAMA.items() if k not in ("attention_bias", "mlp_bias", "head_dim", "pretraining_tp")},
        "model_type": "phi3", "original_max_position_embeddings": 32, "sliding_window": None, "embd_pdrop": 0.0,
        "resid_pdrop": 0.0, "tie_word_embeddings": False,
        "rope_parameters": {
            "long_factor": [1.5, 2.0, 2.5, 3.0, 3.5, 4.0], "original_max_position_embeddings": 32,
            "partial_rotary_factor": 0.75, "rope_theta": 10000.0, "rope_type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        },
    },
    "mixtral": {
        **{k: v for k, v in LLAMA.items() if k not in ("attention_bias", "mlp_bias", "pretraining_tp")},
        "model_type": "mixtral", "head_dim": None, "sliding_window": None, "tie_word_embeddings": False,
        "num_local_experts": 2, "num_experts_per_tok": 1, **ROUTER, "router_jitter_noise": 0.0,
    },
    "qwen3_moe": {
        **{k: v for k, v in QWEN2.items() if k not in ("layer_types", "max_window_layers")},
        "model_type": "qwen3_moe", "attention_bias": False, "head_dim": 24, "use_sliding_window": False,
        "sliding_window": None, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 48,
        "norm_topk_prob": False, "num_experts_per_tok": 1, "num_local_experts": 2, **ROUTER,
    },
    "olmo2": {**LLAMA, "model_type": "olmo2", "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    "gpt_neox": {
        **SIZES, "model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": 1e-5, "attention_bias": True,
        "use_parallel_residual": True, "tie_word_embeddings": False, "classifier_dropout": 0.1, "hidden_dropout": 0.0,
        "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000.0, "rope_type": "default"},
    },
    "gpt2": {
        "model_type": "gpt2", "activation_function": "gelu_new", "add_cross_attention": False, "attn_pdrop": 0.1,
        "n_embd": 64, "n_head": 4, "n_inner": None, "n_layer": 4, "n_positions": 256, "layer_norm_epsilon": 1e-5,
        "reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True,
        "summary_type": "cls_index", "tie_word_embeddings": True, "vocab_size": 320, "use_cache": True,
    },
}  # fmt: skip
# Tensors of layer 1 and of no layer, as transformers saves them; `H` stands for the layer's name.
LLAMA_LAYER = {
    "H.input_layernorm.weight": (64,), "H.post_attention_layernorm.weight": (64,), "H.mlp.gate_proj.weight": (112, 64),
    "H.mlp.up_proj.weight": (112, 64), "H.mlp.down_proj.weight": (64, 112), "H.self_attn.q_proj.weight": (64, 64),
    "H.self_attn.k_proj.weight": (32, 64), "H.self_attn.v_proj.weight": (32, 64), "H.self_attn.o_proj.weight": (64, 64),
}  # fmt: skip
WIDE = {
    "H.self_attn.q_proj.weight": (96, 64), "H.self_attn.k_proj.weight": (48, 64), "H.self_attn.v_proj.weight": (48, 64),
    "H.self_attn.o_proj.weight": (64, 96),
}  # fmt: skip
AROUND = {"model.embed_tokens.weight": (320, 64), "model.norm.weight": (64,)}
HEAD = {"lm_head.weight": (320, 64)}
SANDWICH = {"H.pre_feedforward_layernorm.weight": (64,), "H.post_feedforward_layernorm.weight": (64,)}


def biased(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def with_experts(layer, mlp, width, gate, up, down):
    sizes = {gate: (width, 64), up: (width, 64), down: (64, width)}
    experts = {f"H.{mlp}.experts.{e}.{name}.weight": sizes[name] for e in range(2) for name in sizes}
    rest = {name: shape for name, shape in layer.items() if ".mlp." not in name}
    return {**rest, f"H.{mlp}.gate.weight": (2, 64), **experts}


TENSORS = {
    "llama": {**AROUND, **LLAMA_LAYER},
    "mistral": {**AROUND, **HEAD, **LLAMA_LAYER},
    "qwen2": {
        **AROUND, **HEAD, **LLAMA_LAYER, "H.self_attn.q_proj.bias": (64,), "H.self_attn.k_proj.bias": (32,),
        "H.self_attn.v_proj.bias": (32,),
    },
    "qwen3": {
        **AROUND, **HEAD, **LLAMA_LAYER, **WIDE, "H.self_attn.q_norm.weight": (24,), "H.self_attn.k_norm.weight": (24,),
    },
    "gemma2": {**AROUND, **LLAMA_LAYER, **WIDE, **SANDWICH},
    "gemma3_text": {
        **AROUND, **LLAMA_LAYER, **WIDE, **SANDWICH, "H.self_attn.q_norm.weight": (24,), "H.self_attn.k_norm.weight": (24,),
    },
    "phi3": {
        **AROUND, **HEAD, **{name: LLAMA_LAYER[name] for name in LLAMA_LAYER if re.search("norm|down|o_proj", name)},
        "H.self_attn.qkv_proj.weight": (128, 64), "H.mlp.gate_up_proj.weight": (224, 64),
    },
    "mixtral": {
        **AROUND, **HEAD, **with_experts(LLAMA_LAYER, "block_sparse_moe", 112, "w1", "w3", "w2"),
    },
    "qwen3_moe": {
        **AROUND, **HEAD, **with_experts({**LLAMA_LAYER, **WIDE}, "mlp", 48, "gate_proj", "up_proj", "down_proj"),
        "H.self_attn.q_norm.weight": (24,), "H.self_attn.k_norm.weight": (24,),
    },
    "olmo2": {
        **AROUND, **HEAD, **{name: shape for name, shape in LLAMA_LAYER.items() if "input" not in name},
        "H.post_feedforward_layernorm.weight": (64,), "H.self_attn.q_norm.weight": (64,),
        "H.self_attn.k_norm.weight": (32,),
    },
    "gpt_neox": {
        "gpt_neox.embed_in.weight": (320, 64), "embed_out.weight": (320, 64), **biased("gpt_neox.final_layer_norm", 64),
        **biased("H.attention.dense", 64, 64), **biased("H.attention.query_key_value", 192, 64),
        **biased("H.input_layernorm", 64), **biased("H.post_attention_layernorm", 64),
        **biased("H.mlp.dense_4h_to_h", 64, 112), **biased("H.mlp.dense_h_to_4h", 112, 64),
    },
    "gpt2": {
        "transformer.wte.weight": (320, 64), "transformer.wpe.weight": (256, 64), **biased("transformer.ln_f", 64),
        **biased("H.ln_1", 64), **biased("H.ln_2", 64), "H.attn.c_attn.weight": (64, 192), "H.attn.c_attn.bias": (192,),
        "H.attn.c_proj.weight": (64, 64), "H.attn.c_proj.bias": (64,), "H.mlp.c_fc.weight": (64, 256),
        "H.mlp.c_fc.bias": (256,), "H.mlp.c_proj.weight": (256, 64), "H.mlp.c_proj.bias": (64,),
    },
}  # fmt: skip
LAYER_NAME = {"gpt2": "transformer.h.1", "gpt_neox": "gpt_neox.layers.1"}


@pytest.mark.parametrize("family", CONFIGS)
def test_the_tensors_are_those_that_transformers_saves(family):
    found, model = read_config(CONFIGS[family])
    assert found == family
    shapes = {path: leaf.shape for path, leaf in param_shapes(Model(model)).items()}
    rows = {row.hf: row.hf_shape(shapes) for row in rows_of(family, model, shapes)}
    one = {name: shape for name, shape in rows.items() if not re.search(r"(layers|h)\.[023]\.", name)}
    layer = LAYER_NAME.get(family, "model.layers.1")
    assert one == {re.sub(r"^H\b", layer, name): shape for name, shape in TENSORS[family].items()}
    assert len(rows) == len(one) + 3 * sum(name.startswith("H.") for name in TENSORS[family])


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_is_written_as_it_was_read(family):
    _, model = read_config(CONFIGS[family])
    fields = write_config(model, 256, family)
    again, found = read_config(json.loads(json.dumps(fields)))
    assert again == family
    assert same_model(found, model)


@pytest.mark.parametrize(
    ("kind", "scaling", "length"),
    [
        ("linear", {"factor": 3}, 0),
        ("dynamic", {"factor": 2.0}, 256),
        ("llama3", {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 64),
        ("yarn", {"factor": 4.0}, 64),
    ],
)
@pytest.mark.parametrize("old", [True, False])
def test_rope_scaling_in_the_spelling_of_both_generations(kind, scaling, length, old):
    fields = {key: value for key, value in LLAMA.items() if key != "rope_parameters"}
    scaling = {("type" if old else "rope_type"): kind, **scaling}
    if kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = length
    fields |= (
        {"rope_theta": 5e5, "rope_scaling": scaling} if old else {"rope_parameters": {"rope_theta": 5e5, **scaling}}
    )
    _, model = read_config(fields)
    found = model.rope_scaling
    assert (model.rope_theta, found.kind, found.factor, found.original_len) == (5e5, kind, scaling["factor"], length)
    if kind == "yarn":
        assert found.attention_factor == pytest.approx(0.1 * np.log(4) + 1)
    assert same_model(read_config(write_config(model, 256))[1], model)


def test_fused_tensors_are_cut_and_joined():
    _, model = read_config(CONFIGS["gpt_neox"])
    shapes = {path: leaf.shape for path, leaf in param_shapes(Model(model)).items()}
    row = next(
        row for row in rows_of("gpt_neox", model, shapes) if row.hf.endswith("0.attention.query_key_value.weight")
    )
    tensor = np.arange(192 * 64).reshape(192, 64)  # 4 heads, each with 16 rows of q, of k and of v
    q, k, v = row.to_ours(tensor, [64, 64, 64], 4)
    np.testing.assert_array_equal(q[:, 16:32].T, tensor[48:64])
    np.testing.assert_array_equal(k[:, :16].T, tensor[16:32])
    np.testing.assert_array_equal(v[:, 48:].T, tensor[176:])
    np.testing.assert_array_equal(row.to_hf([q, k, v], 4), tensor)


def test_experts_are_read_and_found_again():
    model = read_config({**CONFIGS["qwen3_moe"], "norm_topk_prob": True, "num_experts_per_tok": 2})[1]
    assert (model.experts, model.experts_per_token, model.expert_norm, model.mlp_dim) == (2, 2, True, 48)
    published = {**CONFIGS["qwen3_moe"], "num_experts": 2, "max_window_layers": 48}  # as transformers 4 writes them
    del published["num_local_experts"]
    assert same_model(read_config(published)[1], read_config(CONFIGS["qwen3_moe"])[1])
    assert write_config(read_config(CONFIGS["mixtral"])[1], 64)["model_type"] == "mixtral"
    assert write_config(model, 64)["model_type"] == "qwen3_moe"
    windowed = read_config({**CONFIGS["qwen3_moe"], "use_sliding_window": True, "sliding_window": 9})[1]
    assert (windowed.window, windowed.global_layers) == (9, ())
    assert same_model(read_config(write_config(windowed, 64))[1], windowed)
    plain = read_config(LLAMA)[1]
    assert same_model(replace(plain, experts_per_token=3, expert_norm=False), plain)
    with pytest.raises(UserError, match="no mixtral model"):
        write_config(plain, 64, "mixtral")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mamba"}, "'mamba' is not known; known are llama, mistral"),
        ({"model_type": "gemma3"}, "language model alone"),
        ({"model_type": None}, "None is not known"),
        ({"attention_multiplier": 0.5}, "not known to have attention_multiplier=0.5"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_act": "xielu"}, "'xielu' is not known"),
        ({"hidden_size": None}, "no 'hidden_size'"),
        ({"hidden_size": "64"}, "config.json.dim"),
        ({"num_hidden_layers": [4]}, "config.json.layers"),
        ({"rope_parameters": 5}, "damaged"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "damaged"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "'spiral' is not known"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "twist": 1}}, "twist"),
        ({"rope_interleaved": True}, "rope_interleaved=True changes"),
        ({"model_type": "mixtral", "router_jitter_noise": 0.1}, "router_jitter_noise=0.1 changes"),
        ({"model_type": "mixtral", "num_local_experts": 0}, "no mixture of experts"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "decoder_sparse_step=2 changes"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [3]}, "mlp_only_layers=[3] changes"),
    ],
)
def test_what_would_change_the_computation_is_refused_by_name(changes, says):
    with pytest.raises(UserError, match=re.escape(says)):
        read_config({**LLAMA, **changes})
    assert read_config({**LLAMA, "unsloth_version": "1", "mystery": None, "torch_dtype": "bfloat16"})[0] == "llama"


def test_a_model_that_no_family_computes_is_not_written():
    with pytest.raises(UserError, match=r"activation='relu2'.*qk_norm=True"):
        write_config(ModelConfig(activation="relu2", mlp_gated=False, qk_norm=True, vocab_size=9), 64)
    with pytest.raises(UserError, match=r"no gpt2 model"):
        write_config(ModelConfig(vocab_size=9), 64, "gpt2")
    _, model = read_config(LLAMA)
    assert write_config(replace(model, rope_scaling=RopeScaling("linear", 2.0)), 64)["model_type"] == "llama"
