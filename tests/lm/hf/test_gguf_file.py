"""Does a GGUF file come in as the model that was converted, and is every bad one refused?"""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from data_pipeline.hf_folder import read_folder
from lm.config import UserError
from lm.hf.families import read_config
from lm.hf.gguf_file import open_gguf, write_gguf_tokenizer

F32, F16, Q8_0, BF16 = 0, 1, 8, 30
U32, F32_VALUE, BOOL, TEXT, ARRAY = 4, 6, 7, 8, 9


def text(value):
    content = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(content)) + content


def value(content):
    """Packs a metadata value with its type before it."""
    if isinstance(content, bytes):  # as it is
        return content
    if isinstance(content, bool):
        return struct.pack("<IB", BOOL, content)
    if isinstance(content, int):
        return struct.pack("<II", U32, content)
    if isinstance(content, float):
        return struct.pack("<If", F32_VALUE, content)
    if isinstance(content, str):
        return struct.pack("<I", TEXT) + text(content)
    kind = {bool: BOOL, int: U32, float: F32_VALUE, str: TEXT}[type(content[0])]
    return struct.pack("<IIQ", ARRAY, kind, len(content)) + b"".join(value(c)[4:] for c in content)


def pack(fields, tensors=(), version=3, counts=None, pad=0):
    """tensors: (name, dimensions as GGUF has them, number of the encoding, data, offset or None)."""
    infos, data = b"", b""
    for name, dims, kind, content, *offset in tensors:
        data += bytes(-len(data) % 32)
        at = offset[0] if offset else len(data)
        infos += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, at)
        data += content
    keys = b"".join(text(key) + value(content) for key, content in fields.items())
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(fields)))) + keys + infos
    return head + bytes(-len(head) % 32) + data + bytes(pad)


def tensor(name, array):
    kinds = {"float32": F32, "float16": F16, "bfloat16": BF16}
    return name, array.shape[::-1], kinds[array.dtype.name], array.tobytes()


def draw(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


LLAMA = {
    "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 64, "llama.embedding_length": 8,
    "llama.feed_forward_length": 12, "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
}  # fmt: skip
OTHER = {
    "embedding_length": 8,
    "block_count": 1,
    "context_length": 64,
    "feed_forward_length": 12,
    "attention.head_count": 2,
}


def other(arch, **more):
    keys = {**OTHER, "attention.layer_norm_rms_epsilon": 1e-6, **{k.replace("__", "."): v for k, v in more.items()}}
    return {"general.architecture": arch, **{f"{arch}.{key}": v for key, v in keys.items()}}


@pytest.fixture
def put(tmp_path):
    """bytes, or (fields, tensors) -> the path of a GGUF file."""

    def make(content, tensors=None):
        path = tmp_path / "model.gguf"
        path.write_bytes(content if tensors is None else pack(content, tensors))
        return path

    return make


def read(path):
    tensors, config = open_gguf(path)
    with tensors:
        arrays = {name: tensors.read(name) for name in tensors.shapes}
        assert {name: (a.dtype, a.shape) for name, a in arrays.items()} == tensors.shapes
    return arrays, config


def config_of(put, fields, *tensors):
    return read(put(fields, [tensor("token_embd.weight", draw(5, 8)), *tensors]))[1]


def test_a_llama_comes_back_with_its_heads_in_order(put):
    q, k, v = draw(8, 8), draw(4, 8), draw(4, 8)
    # head by head, llama.cpp has the two numbers that are rotated together side by side: 0 2 1 3 for heads of 4
    arrays, config = read(put(LLAMA, [
        tensor("token_embd.weight", draw(5, 8)), tensor("blk.0.attn_q.weight", q[[0, 2, 1, 3, 4, 6, 5, 7]]),
        tensor("blk.0.attn_k.weight", k[[0, 2, 1, 3]]), tensor("blk.0.attn_v.weight", v),
        tensor("blk.0.attn_q.bias", q[[0, 2, 1, 3, 4, 6, 5, 7], 0]), tensor("output_norm.weight", draw(8)),
    ]))  # fmt: skip
    assert arrays.keys() == {
        "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
    }  # fmt: skip
    assert (arrays["model.layers.0.self_attn.q_proj.weight"] == q).all()
    assert (arrays["model.layers.0.self_attn.q_proj.bias"] == q[:, 0]).all()
    assert (arrays["model.layers.0.self_attn.k_proj.weight"] == k).all()
    assert (arrays["model.layers.0.self_attn.v_proj.weight"] == v).all()
    wanted = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 5, "hidden_size": 8, "head_dim": 4,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 12,
        "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "rope_scaling": None, "max_position_embeddings": 64,
        "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
        "dtype": "float32",
    }  # fmt: skip
    assert {key: config[key] for key in wanted} == wanted


def test_a_head_of_its_own_is_not_tied(put):
    assert config_of(put, LLAMA, tensor("output.weight", draw(5, 8)))["tie_word_embeddings"] is False


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_kept(put, dtype):
    embedding = draw(5, 8, dtype=dtype)
    arrays, config = read(put(LLAMA, [tensor("token_embd.weight", embedding)]))
    assert arrays["model.embed_tokens.weight"].tobytes() == embedding.tobytes()
    assert config["dtype"] == np.dtype(dtype).name


def test_quantised_tensors_become_float32(put):
    pytest.importorskip("gguf")
    codes, scales = np.arange(-32, 32, dtype=np.int8).reshape(2, 32), np.array([0.5, 2], np.float16)
    blocks = b"".join(scale.tobytes() + row.tobytes() for scale, row in zip(scales, codes))
    arrays, _ = read(put(LLAMA, [tensor("token_embd.weight", draw(5, 8)), ("output.weight", (32, 2), Q8_0, blocks)]))
    assert (arrays["lm_head.weight"] == codes * scales[:, None].astype(np.float32)).all()


def test_without_the_gguf_package_quantised_tensors_name_it(put, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    from lm.hf.gguf_header import find_encoding

    find_encoding.cache_clear()
    with pytest.raises(UserError, match=r"model.gguf: tensor 'output.weight': .*pip install 'lm\[gguf\]'"):
        open_gguf(put(LLAMA, [("output.weight", (32, 2), Q8_0, bytes(68))]))


def test_gemma_norms_lose_the_one_that_was_added(put):
    fields = other("gemma2", attention__key_length=4, attention__sliding_window=16, attn_logit_softcapping=50.0)
    norm = draw(8, dtype=ml_dtypes.bfloat16).astype(np.float32)
    stored = [tensor("token_embd.weight", draw(5, 8)), tensor("blk.0.post_ffw_norm.weight", norm + 1)]
    arrays, config = read(put(fields, [*stored, tensor("blk.0.attn_q.weight", draw(8, 8))]))
    assert np.abs(arrays["model.layers.0.post_feedforward_layernorm.weight"] - norm).max() < 2e-7
    assert (arrays["model.layers.0.self_attn.q_proj.weight"] == draw(8, 8)).all()
    assert (config["sliding_window"], config["layer_types"]) == (16, ["sliding_attention"])
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50, None)
    assert (config["query_pre_attn_scalar"], config["hidden_activation"]) == (4, "gelu_pytorch_tanh")


def test_gemma3_has_two_bases_and_a_pattern(put):
    fields = other("gemma3", attention__sliding_window=16, rope__freq_base=1e6, rope__scaling__type="linear")
    fields |= {"gemma3.block_count": 7, "gemma3.rope.scaling.factor": 8.0}
    config = config_of(put, fields)
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    config = config_of(put, fields | {"gemma3.attention.sliding_window_pattern": [True, False] * 3 + [False]})
    assert [kind[0] for kind in config["layer_types"]] == list("sfsfsff")


@pytest.mark.parametrize("quantised", [False, True])
def test_experts_come_back_one_by_one(put, quantised):
    gate, down, router = draw(4, 32, 8), draw(4, 8, 32), draw(4, 8)
    down_tensor, wanted = tensor("blk.0.ffn_down_exps.weight", down), down
    if quantised:
        gguf = pytest.importorskip("gguf")
        held = gguf.quantize(down, gguf.GGMLQuantizationType.Q8_0)
        wanted = gguf.dequantize(held, gguf.GGMLQuantizationType.Q8_0).reshape(down.shape)
        down_tensor = ("blk.0.ffn_down_exps.weight", down.shape[::-1], Q8_0, held.tobytes())
    tensors = [
        tensor("token_embd.weight", draw(5, 8)), tensor("blk.0.ffn_gate_inp.weight", router),
        tensor("blk.0.ffn_gate_exps.weight", gate), tensor("blk.0.ffn_up_exps.weight", gate + 1), down_tensor,
    ]  # fmt: skip
    arrays, config = read(put(LLAMA | {"llama.expert_count": 4, "llama.expert_used_count": 2}, tensors))
    assert (config["model_type"], config["num_local_experts"], config["num_experts_per_tok"]) == ("mixtral", 4, 2)
    place = "model.layers.0.block_sparse_moe"
    assert (arrays[f"{place}.gate.weight"] == router).all()
    assert (arrays[f"{place}.experts.2.w1.weight"] == gate[2]).all()
    assert (arrays[f"{place}.experts.3.w3.weight"] == gate[3] + 1).all()
    assert (arrays[f"{place}.experts.1.w2.weight"] == wanted[1]).all()
    fields = other("qwen3moe", expert_count=4, expert_used_count=2, expert_feed_forward_length=32)
    arrays, config = read(put(fields, tensors))
    assert (config["model_type"], config["moe_intermediate_size"], config["norm_topk_prob"]) == ("qwen3_moe", 32, True)
    assert (arrays["model.layers.0.mlp.experts.2.gate_proj.weight"] == gate[2]).all()
    assert (arrays["model.layers.0.mlp.experts.1.down_proj.weight"] == wanted[1]).all()
    assert read_config(config)[1].experts == 4


def test_gpt2_weights_turn_round_and_their_biases_do_not(put):
    fields = other("gpt2", attention__layer_norm_epsilon=1e-5)
    del fields["gpt2.attention.layer_norm_rms_epsilon"]
    weight = draw(8, 24)
    stored = [tensor("blk.0.attn_qkv.weight", np.ascontiguousarray(weight.T)), tensor("blk.0.attn_qkv.bias", draw(24))]
    arrays, config = read(
        put(fields, [tensor("token_embd.weight", draw(5, 8)), *stored, tensor("position_embd.weight", draw(64, 8))])
    )
    assert (arrays["transformer.h.0.attn.c_attn.weight"] == weight).all()
    assert (arrays["transformer.h.0.attn.c_attn.bias"] == draw(24)).all()
    assert arrays["transformer.wpe.weight"].shape == (64, 8)
    assert (config["n_embd"], config["n_positions"], config["activation_function"]) == (8, 64, "gelu_new")


def test_neox_heads_hold_query_key_and_value_together(put):
    fields = other("gptneox", attention__layer_norm_epsilon=1e-5, rope__dimension_count=1, use_parallel_residual=False)
    del fields["gptneox.attention.layer_norm_rms_epsilon"]
    weight = draw(24, 8)  # 2 heads of q, k, v of 4 rows each
    stored = np.concatenate([weight.reshape(2, 3, 4, 8)[:, i].reshape(8, 8) for i in range(3)])
    arrays, config = read(
        put(fields, [tensor("token_embd.weight", draw(5, 8)), tensor("blk.0.attn_qkv.weight", stored)])
    )
    assert (arrays["gpt_neox.layers.0.attention.query_key_value.weight"] == weight).all()
    assert (config["rotary_pct"], config["use_parallel_residual"]) == (0.25, False)


def llama3_divisors(theta, size, factor, low, high, length):
    """As llama.cpp's converter has it."""
    divisors = []
    for frequency in 1 / theta ** (np.arange(0, size, 2) / size):
        wavelength = 2 * np.pi / frequency
        smooth = (length / wavelength - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        divisors.append(1 if wavelength < length / high else factor if wavelength > length / low else between)
    return np.array(divisors, np.float32)


@pytest.mark.parametrize(
    "numbers", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (8.0, 1.0, 6.0, 4096), (4.0, 2.0, 8.0, 2048)]
)
def test_llama3_divisors_become_their_four_numbers(put, numbers):
    fields = LLAMA | {
        "llama.attention.key_length": 128,
        "llama.attention.value_length": 128,
        "llama.rope.freq_base": 5e5,
    }
    divisors = llama3_divisors(5e5, 128, *numbers)
    scaling = config_of(put, fields, tensor("rope_freqs.weight", divisors))["rope_scaling"]
    factor, low, high, length = numbers
    assert scaling == {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high / low,
        "original_max_position_embeddings": length / low,
    }  # fmt: skip
    found = llama3_divisors(
        5e5, 128, factor, 1.0, scaling["high_freq_factor"], scaling["original_max_position_embeddings"]
    )
    assert np.allclose(found, divisors, rtol=1e-4)


def test_rope_scaling_by_key(put):
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 16,
    }
    assert config_of(put, LLAMA | yarn)["rope_scaling"] == {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
    }  # fmt: skip
    tuned = {"llama.rope.scaling.yarn_beta_fast": 20.0, "llama.rope.scaling.yarn_attn_factor": 1.5}
    scaling = config_of(put, LLAMA | yarn | tuned)["rope_scaling"]
    assert (scaling["beta_fast"], scaling["attention_factor"]) == (20, 1.5)
    assert config_of(put, LLAMA | {"llama.rope.scale_linear": 2.0})["rope_scaling"] == {
        "rope_type": "linear",
        "factor": 2.0,
    }
    longrope = other("phi3", rope__scaling__original_context_length=16, rope__dimension_count=2, rope__freq_base=1e4)
    factors = [
        tensor(f"rope_factors_{name}.weight", np.array([x], np.float32)) for name, x in (("long", 2.5), ("short", 1.1))
    ]
    config = config_of(put, longrope, *factors)
    assert config["rope_scaling"] == {"rope_type": "longrope", "long_factor": [2.5], "short_factor": [1.1]}
    assert (config["original_max_position_embeddings"], config["partial_rotary_factor"]) == (16, 0.5)


EMBEDDING = tensor("token_embd.weight", draw(5, 8))
HUGE, FOUR = 2**62, bytes(4)


def raw(count, pairs, rest=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, count, pairs) + rest


HOSTILE = {
    "empty": (b"", "first 8 bytes"),
    "another format": (b"PK\3\4" + bytes(20), "no GGUF file"),
    "cut after the magic": (b"GGUF\3", "first 8 bytes"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (raw(0, 0, version=1), "version 1"),
    "version 99": (raw(0, 0, version=99), "version 99"),
    "keys beyond the file": (raw(0, HUGE), "metadata keys"),
    "keys more than bytes": (raw(0, 10, bytes(60)), "10 metadata keys"),
    "tensors beyond the file": (raw(HUGE, 0), "tensors"),
    "overlong key": (raw(0, 1, struct.pack("<Q", HUGE) + bytes(40)), "the name of a metadata key should take"),
    "key not UTF-8": (raw(0, 1, text(b"\xff\xfe") + value(1) + bytes(9)), "not UTF-8"),
    "key twice": (raw(0, 2, (text("a.b") + value(1)) * 2), "'a.b' comes twice"),
    "unknown type": (raw(0, 1, text("a") + struct.pack("<I", 77) + bytes(40)), "type 77"),
    "overlong text": (raw(0, 1, text("a") + struct.pack("<IQ", TEXT, HUGE) + bytes(40)), "value of 'a' should take"),
    "overlong array": (raw(0, 1, text("a") + struct.pack("<IIQ", ARRAY, U32, 10**6) + bytes(40)), "1,000,000 elements of 'a'"),
    "array without end": (raw(0, 1, text("a") + struct.pack("<IIQ", ARRAY, TEXT, HUGE) + bytes(40)), "beyond any model"),
    "arrays in arrays": (raw(0, 1, text("a") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 50), "type 9"),
    "cut in the metadata": (pack(LLAMA)[:100], "GGUF file"),
    "alignment": (pack(LLAMA | {"general.alignment": 24}, [EMBEDDING]), "general.alignment is 24"),
    "alignment zero": (pack(LLAMA | {"general.alignment": 0}, [EMBEDDING]), "general.alignment is 0"),
    "alignment a text": (pack(LLAMA | {"general.alignment": "32"}, [EMBEDDING]), "general.alignment is '32'"),
    "five dimensions": (pack(LLAMA, [("a", (1,) * 5, F32, FOUR)]), "5 dimensions"),
    "dimensions without end": (raw(1, 0, text("a") + struct.pack("<I", 2**31) + bytes(40)), "2147483648 dimensions"),
    "size overflows": (pack(LLAMA, [("a", (2**33, 2**33), F32, FOUR)]), "beyond any model"),
    "no name": (pack(LLAMA, [("", (1,), F32, FOUR)]), "name of 0 characters"),
    "tensor twice": (pack(LLAMA, [EMBEDDING, EMBEDDING]), "'token_embd.weight' comes twice"),
    "past the end": (pack(LLAMA, [EMBEDDING])[:-1], "'token_embd.weight': its 160 bytes"),
    "offset past the end": (pack(LLAMA, [(*EMBEDDING, 2**50)]), "'token_embd.weight': its 160 bytes"),
    "offset wraps round": (pack(LLAMA, [(*EMBEDDING, 2**64 - 32)]), "'token_embd.weight': its 160 bytes"),
    "offset not aligned": (pack(LLAMA, [(*EMBEDDING, 8)], pad=32), "in steps of 32"),
    "overlap": (pack(LLAMA, [EMBEDDING, (*tensor("output.weight", draw(5, 8)), 32)]), "overlap"),
    "cut in the tensors": (pack({}, [EMBEDDING])[:40], "GGUF file"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused(put, content, message):
    with pytest.raises(UserError, match=message) as caught:
        open_gguf(put(content))
    assert "model.gguf" in str(caught.value)
    assert len(str(caught.value)) < 1000
    with pytest.raises(UserError):
        write_gguf_tokenizer(put(content), put(content).parent / "out")


def test_every_cut_of_a_file_is_refused(put):
    whole = pack(LLAMA | {"tokenizer.ggml.tokens": ["a", "b"]}, [EMBEDDING])
    for size in range(0, len(whole), 7):
        with pytest.raises(UserError):
            open_gguf(put(whole[:size]))


def test_every_changed_byte_is_refused_or_read(put):
    whole = bytearray(
        pack(LLAMA | {"tokenizer.ggml.tokens": ["a", "b"]}, [EMBEDDING, tensor("blk.0.attn_q.weight", draw(8, 8))])
    )
    outcomes = set()
    for at in range(0, len(whole) - 200, 3):
        for bits in (0x01, 0x80, 0xFF):
            changed = bytearray(whole)
            changed[at] ^= bits
            try:
                read(put(bytes(changed)))
                outcomes.add("read")
            except UserError as error:
                outcomes.add("lines" if "\n" in str(error) else "refused")
    assert outcomes == {"read", "refused"}


REFUSED = {
    "unknown architecture": ({"general.architecture": "mamba"}, [EMBEDDING], "'mamba' is not read; known: gemma2"),
    "no architecture": ({}, [EMBEDDING], "None is not read"),
    "an adapter": (LLAMA | {"general.type": "adapter"}, [EMBEDDING], "'adapter', not a model"),
    "split": (LLAMA | {"split.count": 3}, [EMBEDDING], "one of 3 parts"),
    "vocabulary only": (LLAMA, [], "no tensors"),
    "no embedding": (LLAMA, [tensor("output_norm.weight", draw(8))], "no matrix token_embd.weight"),
    "experts": (other("qwen3", expert_count=8), [EMBEDDING], "8 experts, which qwen3 models are not known to be"),
    "experts that are too few": (
        LLAMA | {"llama.expert_count": 4, "llama.expert_used_count": 2},
        [EMBEDDING, tensor("blk.0.ffn_up_exps.weight", draw(3, 12, 8))], r"\[3, 12, 8\], which are no 4 experts' matrices",
    ),
    "key missing": ({k: v for k, v in LLAMA.items() if "block_count" not in k}, [EMBEDDING], "no metadata key llama.block_count"),
    "key a text": (LLAMA | {"llama.block_count": "3"}, [EMBEDDING], "llama.block_count is '3'"),
    "key zero": (LLAMA | {"llama.attention.head_count": 0}, [EMBEDDING], "head_count is 0"),
    "key not a number": (LLAMA | {"llama.rope.freq_base": float("nan")}, [EMBEDDING], "freq_base is nan"),
    "heads that differ": (LLAMA | {"llama.attention.head_count": [2, 4]}, [EMBEDDING], "head_count is array"),
    "unknown key": (LLAMA | {"llama.logit_scale": 0.5}, [EMBEDDING], "llama.logit_scale may change the maths"),
    "partial rotation": (LLAMA | {"llama.rope.dimension_count": 2}, [EMBEDDING], "rotates 2 of the 4"),
    "unknown scaling": (LLAMA | {"llama.rope.scaling.type": "magic"}, [EMBEDDING], "'magic'"),
    "divisors of nothing": (LLAMA, [EMBEDDING, tensor("rope_freqs.weight", np.array([3, 1.5], np.float32))], "follows no rope"),
    "divisors too few": (LLAMA, [EMBEDDING, tensor("rope_freqs.weight", np.ones(1, np.float32))], "each frequency"),
    "unknown tensors": (
        LLAMA, [EMBEDDING, *(tensor(f"blk.{i}.ffn_gate_shexp.weight", draw(8)) for i in range(10))],
        "10 tensors that llama does not have here: 'blk.0.ffn_gate_shexp.weight'.* and 2 more",
    ),
    "leading zero": (LLAMA, [EMBEDDING, tensor("blk.00.attn_v.weight", draw(8))], "'blk.00.attn_v.weight'"),
    "no whole heads": (LLAMA, [EMBEDDING, tensor("blk.0.attn_q.weight", draw(6, 8))], "6 rows"),
    "causal": (LLAMA | {"llama.attention.causal": False}, [EMBEDDING], "looks ahead"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "tensors", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_model_that_would_mean_something_else_is_refused(put, fields, tensors, message):
    with pytest.raises(UserError, match=message):
        open_gguf(put(fields, tensors))


def test_an_unknown_encoding_is_refused(put):
    pytest.importorskip("gguf")
    for kind in (31, 999, 24):  # taken back, never there, whole numbers
        with pytest.raises(UserError, match=f"'token_embd.weight': its encoding, number {kind}"):
            open_gguf(put(LLAMA, [("token_embd.weight", (8, 5), kind, bytes(400))]))
    with pytest.raises(UserError, match="no whole blocks of Q8_0"):
        open_gguf(put(LLAMA, [("token_embd.weight", (8, 5), Q8_0, bytes(400))]))


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        open_gguf(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="not a file"):
        open_gguf(tmp_path)


BYTES = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256)), *map(chr, range(256, 324))]
BYTE_LEVEL = {
    "general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": ["<|end|>", "<|turn|>", *BYTES, "he", "12", "hello", "  "],
    "tokenizer.ggml.token_type": [3, 3, *[1] * 259, 4], "tokenizer.ggml.merges": ["h e", "1 2"],
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 1,
    "tokenizer.chat_template": "{{ messages }}",
}  # fmt: skip
PIECES = {
    "general.architecture": "llama", "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "ab", "▁ab", "▁a"],
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 6],
    "tokenizer.ggml.scores": [0.0] * 259 + [-5.0, -6.0, -7.0, -1.0, -3.0, -2.0],
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
}  # fmt: skip


@pytest.fixture
def tokenizer_of(put, tmp_path):
    """fields -> our tokenizer of what was written."""

    def make(fields):
        write_gguf_tokenizer(put(pack(fields)), tmp_path / "out")
        return read_folder(tmp_path / "out")

    return make


def test_a_byte_level_vocabulary_comes_back(tokenizer_of, tmp_path):
    tokenizer = tokenizer_of(BYTE_LEVEL)
    tokens = BYTE_LEVEL["tokenizer.ggml.tokens"]
    ids = tokenizer.encode("hello he  12é<|end|>")
    assert [tokens[i] for i in ids[:3]] == ["hello", "Ġ", "he"]  # a word of the vocabulary, whatever the merges say
    assert [tokens[i] for i in ids[3:5]] == ["  ", "12"]
    assert 0 not in ids
    assert tokenizer.decode(ids) == "hello he  12é<|end|>"
    assert tokenizer.encode_template("<|end|>he") == [0, tokens.index("he")]
    assert (tokenizer.special.bos, tokenizer.special.eos, tokenizer.adds_bos) == (1, 0, True)
    assert tokenizer.template == "{{ messages }}"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": [0, 1],
    }
    assert set(tokenizer.stop_ids) == {0, 1}


def test_splitters_differ(tokenizer_of):
    tokens = BYTE_LEVEL["tokenizer.ggml.tokens"]
    cuts = {}
    for name in ("gpt-2", "smollm", "qwen2", "llama-bpe", "gpt-4o", "tekken", "dbrx", "deepseek-coder"):
        fields = BYTE_LEVEL | {"tokenizer.ggml.pre": name}
        cuts[name] = [tokens[i] for i in tokenizer_of(fields).encode("12 hello")]
    assert cuts["gpt-2"][0] == cuts["llama-bpe"][0] == cuts["gpt-4o"][0] == cuts["dbrx"][0] == "12"
    assert cuts["smollm"][:2] == cuts["qwen2"][:2] == cuts["tekken"][:2] == cuts["deepseek-coder"][:2] == ["1", "2"]


def test_pieces_with_scores_come_back(tokenizer_of):
    tokenizer = tokenizer_of(PIECES)
    tokens = PIECES["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in tokenizer.encode("ab a")] == ["▁ab", "▁a"]
    assert [tokens[i] for i in tokenizer.encode("é")] == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("ab aé")) == "ab aé"
    assert (tokenizer.special.bos, tokenizer.special.eos, tokenizer.special.unk, tokenizer.adds_bos) == (1, 2, 0, True)
    bare = tokenizer_of(PIECES | {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False})
    assert [tokens[i] for i in bare.encode("ab a")] == ["ab", "▁a"]
    assert not bare.adds_bos


def without(fields, key):
    return {k: v for k, v in fields.items() if k != f"tokenizer.ggml.{key}"}


BAD_VOCABULARIES = {
    "unknown splitter": (BYTE_LEVEL | {"tokenizer.ggml.pre": "falcon"}, "pre is 'falcon'"),
    "no splitter": (without(BYTE_LEVEL, "pre"), "pre is 'default'"),
    "unknown kind": (BYTE_LEVEL | {"tokenizer.ggml.model": "bert"}, "model is 'bert'; gpt2 and llama are known"),
    "no kind": (without(BYTE_LEVEL, "model"), "model is None"),
    "no tokens": (without(BYTE_LEVEL, "tokens"), "no vocabulary"),
    "tokens are numbers": (BYTE_LEVEL | {"tokenizer.ggml.tokens": [1, 2]}, "no vocabulary"),
    "kinds too few": (BYTE_LEVEL | {"tokenizer.ggml.token_type": [1]}, "262 tokens, but 1 kinds"),
    "token twice": (
        BYTE_LEVEL | {"tokenizer.ggml.tokens": ["a", "b", "a"], "tokenizer.ggml.token_type": [1] * 3}, r"come twice.*\['a'\]",
    ),
    "no merges": (without(BYTE_LEVEL, "merges"), "no list of pairs"),
    "merge of one": (BYTE_LEVEL | {"tokenizer.ggml.merges": ["he"]}, "no list of pairs"),
    "merge of unknown": (BYTE_LEVEL | {"tokenizer.ggml.merges": ["he lp"]}, "tokenizers package"),
    "end beyond": (BYTE_LEVEL | {"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id is 9999"),
    "begin not named": (without(BYTE_LEVEL, "bos_token_id"), "begins or ends with a token"),
    "flag a number": (BYTE_LEVEL | {"tokenizer.ggml.add_bos_token": 1}, "expected true or false"),
    "template a number": (BYTE_LEVEL | {"tokenizer.chat_template": 1}, "expected a text"),
    "no scores": (without(PIECES, "scores"), "a number for each token"),
    "score not a number": (PIECES | {"tokenizer.ggml.scores": [float("nan")] * 265}, "a number for each token"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD_VOCABULARIES.values(), ids=BAD_VOCABULARIES.keys())
def test_a_vocabulary_that_would_give_other_ids_is_refused(put, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        write_gguf_tokenizer(put(pack(fields)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_named_templates_are_kept_by_name(put, tmp_path):
    fields = BYTE_LEVEL | {"tokenizer.chat_template.tool_use": "{{ tools }}"}
    write_gguf_tokenizer(put(pack(fields)), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert {t["name"]: t["template"] for t in config["chat_template"]} == {
        "default": "{{ messages }}",
        "tool_use": "{{ tools }}",
    }
    assert read_folder(tmp_path / "out").template == "{{ messages }}"
