"""Does a model of each family compute what transformers computes: logits, gradients, greedy text, and the same bytes out again?

Tiny random models that transformers makes from a config; needs torch and transformers (`make test-slow` without them skips).
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import MeshConfig
from lm.generate import generate
from lm.hf.__main__ import main
from lm.hf.source import find_foreign
from lm.hf.tensors import open_folder
from lm.hf.weights import open_weights, tensors_of
from lm.model.transformer import Model
from lm.params import split_stacks
from lm.parts import make_model, param_shapes, with_shardings
from lm.sampling import Sampling
from lm.sharding import make_mesh, param_shardings
from tests.data_pipeline.small_tokenizers import save_folder

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V, T, NEW = 512, 128, 64
BASE = {
    "vocab_size": V, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.1,
}  # fmt: skip


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "original_max_position_embeddings": 32,
    **rope(
        "longrope", partial_rotary_factor=0.75, short_factor=[1 + 0.1 * i for i in range(6)],
        long_factor=[1.5 + 0.5 * i for i in range(6)],
    ),
}  # fmt: skip
CASES = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "llama, llama3": ("Llama", rope("llama3", **LLAMA3)),
    "llama, linear": ("Llama", rope("linear", factor=3.0)),
    "llama, dynamic": ("Llama", {"max_position_embeddings": 32, **rope("dynamic", factor=2.0)}),
    "llama, yarn": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "mistral": ("Mistral", {"sliding_window": 9}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", {"head_dim": 24, "sliding_window": 9, "query_pre_attn_scalar": 40}),
    "gemma3": (
        "Gemma3Text",
        {"num_hidden_layers": 7, "head_dim": 24, "sliding_window": 9, "query_pre_attn_scalar": 40},
    ),
    "phi3": ("Phi3", {}),
    "phi3, longrope": ("Phi3", LONG),
    "gpt_neox": ("GPTNeoX", {"num_key_value_heads": None}),
    "gpt_neox, one after the other": ("GPTNeoX", {"num_key_value_heads": None, "use_parallel_residual": False}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "head_dim": 24,
            "moe_intermediate_size": 48,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
        },
    ),
    "qwen3_moe, shares as they are": (
        "Qwen3Moe",
        {"moe_intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": True},
    ),
    "olmo2": ("Olmo2", {}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256}),
}


@pytest.fixture(params=CASES)
def theirs(request, tmp_path):
    """(folder, transformers model): random weights, norms and biases too."""
    kind, changes = CASES[request.param]
    base = {"vocab_size": V, "initializer_range": 0.1} if kind == "GPT2" else BASE
    fields = {key: value for key, value in {**base, **changes}.items() if value is not None}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "model")
    save_folder(tmp_path / "model", "byte_bpe")
    return tmp_path / "model", model


def load(folder, runs):
    found = find_foreign(f"hf:{folder}")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model, _ = make_model(found.model, runs, mesh, T)
    weights = open_weights(found, param_shapes(Model(found.model)))
    shapes = param_shapes(model)
    params = weights.load(with_shardings(shapes, param_shardings(shapes, mesh)))
    weights.close()
    return found.family, model, params


def gradient_of(named, name):
    """Of the tensor `name` of a folder, which transformers may hold as a part of a parameter."""
    if (expert := re.fullmatch(r"(.*)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight", name)) is None:
        name = name.replace("block_sparse_moe", "mlp")
        return named[name if name in named else name.replace("embed_out", "lm_head")].grad.numpy()
    kind = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.get(expert[3], expert[3])
    fused = named[f"{expert[1]}.mlp.experts.{'down_proj' if kind == 'down_proj' else 'gate_up_proj'}"].grad.numpy()
    whole = fused[int(expert[2])]
    return whole if kind == "down_proj" else np.split(whole, 2)[kind == "up_proj"]


@pytest.mark.parametrize("scanned", [False, True])
def test_logits_gradients_and_greedy_text(theirs, scanned):
    folder, reference = theirs
    layers = find_foreign(f"hf:{folder}").model.layers
    family, model, params = load(folder, ((0, 1), (1, layers)) if scanned else ())
    ids = np.random.default_rng(0).integers(3, V, (2, T))
    positions, segments = np.broadcast_to(np.arange(T), ids.shape), np.ones(ids.shape, np.int32)

    def loss(params):
        logits = model.apply(params, jnp.asarray(ids), jnp.asarray(positions), jnp.asarray(segments))
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), jnp.asarray(ids[:, 1:, None]), -1)
        return -picked.mean(), logits

    (_, ours), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    logits = reference(torch.tensor(ids)).logits
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    torch.nn.functional.cross_entropy(flat, torch.tensor(ids[:, 1:]).reshape(-1)).backward()
    np.testing.assert_allclose(ours, logits.detach().numpy(), atol=1e-4)

    shapes, make = tensors_of(split_stacks(gradients), family, model.config, lambda path: np.dtype("float32"))
    for name in shapes:
        wanted = gradient_of(dict(reference.named_parameters()), name)
        size = np.linalg.norm(wanted)
        assert np.linalg.norm(make(name) - wanted) <= 1e-4 * size + 1e-9, name

    prompt = ids[0, :20].tolist()
    text = reference.generate(
        torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    found = generate(model, params, [prompt], max_new_tokens=NEW, sampling=Sampling(temperature=0.0))[0]
    assert found == text[0, 20:].tolist()


def test_balance_of_one_document_is_that_of_transformers(tmp_path):
    sizes = {"num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = transformers.MixtralConfig(**{**BASE, **sizes, "router_aux_loss_coef": 1.0, "output_router_logits": True})
    torch.manual_seed(0)
    reference = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    reference.save_pretrained(tmp_path)
    _, model, params = load(tmp_path, ())
    ids = np.random.default_rng(0).integers(3, V, (1, T))
    places, ones = jnp.arange(T)[None], jnp.ones((1, T))

    def uneven(params):
        return model.hidden_and_balance(params, jnp.asarray(ids), places, ones.astype(int), ones)[1] / T

    ours, gradients = jax.jit(jax.value_and_grad(uneven))(params)
    theirs = reference(torch.tensor(ids)).aux_loss
    theirs.backward()
    assert abs(float(ours) - float(theirs.detach())) < 1e-5
    assert float(ours) > 2.01
    for path, parameter in {
        "block_00/mlp/router": reference.model.layers[0].mlp.gate.weight,
        "block_00/attn/v": reference.model.layers[0].self_attn.v_proj.weight,
    }.items():
        wanted = parameter.grad.numpy().T
        assert np.linalg.norm(gradients[path] - wanted) <= 1e-4 * np.linalg.norm(wanted), path


def test_in_and_out_again_are_the_same_bytes(theirs, tmp_path, capsys):
    folder, _ = theirs
    main(["import", str(folder), str(tmp_path / "run")])
    main(["export", str(tmp_path / "run"), str(tmp_path / "out")])  # verifies it with transformers
    assert json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("done: "))["ok"]
    with open_folder(folder) as before, open_folder(tmp_path / "out") as after:
        assert set(before.shapes) == set(after.shapes)
        assert all(before.read(name).tobytes() == after.read(name).tobytes() for name in before.shapes)
