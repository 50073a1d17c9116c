"""Do adapters compute what peft computes, forward and backward, and do PEFT folders mean the same here and there?"""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.config import DataConfig
from lm import build
from lm.config import AdaptedModel, Config, ConfigError, LoraConfig, ModelConfig, UserError
from lm.hf.names import module_rows
from lm.hf.verify import load_ours
from lm.lora import main
from lm.model.adapters import base_of, make_adapters
from lm.model.transformer import Model
from lm.params import split_stacks
from lm.parts import param_shapes
from lm.peft_folder import load_peft, module_of, save_peft
from lm.run_folder import write_run

pytestmark = pytest.mark.slow
KINDS = {
    "lora": LoraConfig(rank=4, alpha=8.0, targets=("block_.*/attn/[qv]", "block_.*/mlp/down")),
    "rslora": LoraConfig(rank=4, alpha=3.0, rslora=True),
    "dora": LoraConfig(rank=3, alpha=6.0, dora=True),
}
TOLERANCE = 1e-5


def llama(layers):
    """The modules of a Llama."""
    model = ModelConfig(layers=layers, vocab_size=32, tie_embeddings=False)
    return module_rows("llama", model, list(param_shapes(Model(model))))


def names_of(modules):
    return {row.ours[0]: module_of(row) for row in modules}


@pytest.fixture(scope="module")
def base():
    """(make, config, params): `make()` gives a tiny random LlamaForCausalLM, always the same; its weights in ours."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    theirs = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, rms_norm_eps=1e-6,
        attn_implementation="eager", initializer_range=0.2,
    )  # fmt: skip

    def make():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(theirs).eval()

    state = {k: v.detach().numpy() for k, v in make().state_dict().items()}
    names = {p: n for p, n in names_of(llama(2)).items() if "norm" not in p or p == "norm_out/scale"}
    params = {
        p: state[f"{n}.weight"] if p in ("embed", "norm_out/scale") else state[f"{n}.weight"].T
        for p, n in names.items()
    }
    for i in range(2):
        for ours, norm in (("norm_attn", "input_layernorm"), ("norm_mlp", "post_attention_layernorm")):
            params[f"block_{i:02d}/{ours}/scale"] = state[f"model.layers.{i}.{norm}.weight"]
    config = ModelConfig(
        layers=2,
        dim=32,
        heads=4,
        kv_heads=2,
        mlp_dim=48,
        vocab_size=61,
        max_len=64,
        tie_embeddings=False,
        norm_eps=1e-6,
    )
    return make, config, params


def adapted(config, lora):
    paths = list(jax.eval_shape(Model(config).init_params, jax.random.key(0)))
    return Model(AdaptedModel(**vars(config), adapters=make_adapters(lora, paths, config.layers)))


def draw(model, seed=1):
    """Adapters that are not zero."""
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    rng = np.random.default_rng(seed)
    found = {p: rng.normal(size=s.shape).astype(np.float32) for p, s in shapes.items() if base_of(p) != p}
    return {p: 1 + 0.2 * np.abs(x) if p.endswith("dora_scale") else 0.3 * x for p, x in found.items()}


def ours(model, params, adapters, tokens, cotangent):
    """Logits, and the gradient of their product with `cotangent` for each part of an adapter."""
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)

    def objective(adapters):
        logits = model.apply({**params, **adapters}, tokens, positions, np.ones_like(tokens))
        return (logits * cotangent).sum(), logits

    grads, logits = jax.grad(objective, has_aux=True)(jax.tree.map(jnp.asarray, adapters))
    return np.asarray(logits), {p: np.asarray(g) for p, g in grads.items()}


def close(a, b):
    """Relative to the largest number."""
    return np.abs(a - b).max() / np.abs(b).max() < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_we_save_computes_the_same_in_peft_with_the_same_gradients(base, kind, tmp_path):
    import peft
    import torch

    make, config, params = base
    lora, names = KINDS[kind], names_of(llama(2))
    model = adapted(config, lora)
    adapters = draw(model)
    save_peft(tmp_path, {**params, **adapters}, lora, llama(2), 4, base="tiny")
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path, is_trainable=True)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 61, (2, 9))
    cotangent = rng.normal(size=(2, 9, 61)).astype(np.float32)
    logits, grads = ours(model, params, adapters, tokens, cotangent)
    out = theirs(torch.tensor(tokens)).logits
    (out * torch.tensor(cotangent)).sum().backward()
    with torch.no_grad():
        plain = make()(torch.tensor(tokens)).logits.numpy()
    assert np.abs(plain - logits).max() > 0.1  # the adapters do something
    print(kind, "logits", np.abs(logits - out.detach().numpy()).max(), "of", np.abs(logits).max())
    assert close(logits, out.detach().numpy())
    worst, seen = 0.0, 0
    for name, leaf in theirs.named_parameters():
        for part, end in (("lora_A", "_lora_a"), ("lora_B", "_lora_b"), ("lora_magnitude_vector", "_dora_scale")):
            if part in name:
                path = {v: k for k, v in names.items()}[name.removeprefix("base_model.model.").split(f".{part}")[0]]
                g, h = grads[path + end], leaf.grad.numpy()
                worst, seen = max(worst, np.abs(g - (h.T if h.ndim == 2 else h)).max() / np.abs(h).max()), seen + 1
    print(kind, "gradients", worst)
    assert seen == len(grads)
    assert worst < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_peft_saves_computes_the_same_here(base, kind, tmp_path):
    import peft
    import torch

    make, config, params = base
    lora = KINDS[kind]
    modules = ["q_proj", "v_proj", "down_proj"] if kind == "lora" else "all-linear"
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=int(lora.alpha), use_rslora=lora.rslora, use_dora=lora.dora, target_modules=modules,
        modules_to_save=["lm_head", "embed_tokens"] if kind == "lora" else None, init_lora_weights=False,
    )  # fmt: skip
    theirs = peft.get_peft_model(make(), settings).eval()
    with torch.no_grad():
        for name, leaf in theirs.named_parameters():
            if "magnitude" in name or "modules_to_save" in name:
                leaf *= 1.1
    theirs.save_pretrained(tmp_path)
    read, found = load_peft(tmp_path, llama(2), config)
    assert (read.rank, read.alpha, read.rslora, read.dora) == (lora.rank, lora.alpha, lora.rslora, lora.dora)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 9))
    logits, _ = ours(adapted(config, read), {**params, **found}, {}, tokens, 1.0)
    with torch.no_grad():
        out = theirs(torch.tensor(tokens)).logits.numpy()
    print(kind, "logits", np.abs(logits - out).max(), "of", np.abs(out).max())
    assert close(logits, out)
    also = [p for p in found if base_of(p) == p]
    assert also == (["embed", "head"] if kind == "lora" else [])
    save_peft(tmp_path / "again", {**params, **found}, read, llama(2), 4, also)
    again, same = load_peft(tmp_path / "again", llama(2), config)
    assert again == read
    assert set(same) == set(found)
    assert all((same[p] == found[p]).all() for p in found)
    back = peft.PeftModel.from_pretrained(make(), tmp_path / "again").eval()
    with torch.no_grad():
        np.testing.assert_array_equal(back(torch.tensor(tokens)).logits.numpy(), out)


def test_what_the_tensors_hold_beyond_our_modules_is_named(base, tmp_path):
    from safetensors.numpy import load_file, save_file

    _, config, params = base
    lora = KINDS["lora"]
    save_peft(tmp_path, {**params, **draw(adapted(config, lora))}, lora, llama(2), 4)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((4, 61), np.float32)}, file)
    with pytest.raises(UserError, match="lora_embedding_A"):
        load_peft(tmp_path, llama(2), config)
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"layers\.1\.mlp"):
        load_peft(tmp_path, llama(1), config)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    some = replace(lora, targets=("block_01/attn/q",))
    save_peft(tmp_path, {**params, **draw(adapted(config, some))}, some, llama(2), 4)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == [
        "model.layers.1.self_attn.q_proj"
    ]
    assert load_peft(tmp_path, llama(2), config)[0].targets == ("block_01/attn/q",)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot be read"):
        load_peft(tmp_path, llama(2), config)


def test_the_commands_bring_a_folder_in_and_out_again(base, tmp_path):
    _, model, params = base
    config = Config(model=replace(model, vocab_size=0, max_len=0), data=DataConfig(path="x.txt", seq_len=64))
    (tmp_path / "made" / "tokenizer").mkdir(parents=True)
    meta = {"vocab_size": 61, "tokenizer_sha256": "x", "peak_lr": 1e-3, "data_sha256": "y", "progress": {}}
    write_run(tmp_path / "base", tmp_path / "made", config, {p: jnp.asarray(x) for p, x in params.items()}, meta, 3)
    lora = KINDS["dora"]
    adapters = {**draw(adapted(model, lora)), "head": params["head"] * 1.5}
    save_peft(tmp_path / "in", {**params, **adapters}, lora, llama(2), 4, also=["head"])
    main(["import", *(str(tmp_path / name) for name in ("in", "base", "run"))])
    main(["export", *(str(tmp_path / name) for name in ("run", "out")), "--base=tiny"])
    read, found = load_peft(tmp_path / "out", llama(2), model)
    assert read == replace(
        lora,
        targets=tuple(
            f"block_.*/{p}" for p in ("attn/q", "attn/k", "attn/v", "attn/out", "mlp/gate", "mlp/up", "mlp/down")
        ),
    )
    assert all(np.array_equal(found[p], adapters[p]) for p in adapters)
    main(["merge", *(str(tmp_path / name) for name in ("run", "merged"))])
    tokens = np.random.default_rng(0).integers(0, 61, (2, 9))
    merged = build.load_run(str(tmp_path / "merged"), "best", print)
    assert merged.config.lora == LoraConfig()
    one, _ = ours(Model(merged.model.config), merged.params, {}, tokens, 1.0)
    two, _ = ours(adapted(model, lora), {**params, **adapters}, {}, tokens, 1.0)
    assert close(one, two)
    with pytest.raises(UserError, match="merge them first"):
        main(["import", *(str(tmp_path / name) for name in ("in", "run", "twice"))])
    with pytest.raises(ConfigError, match="say what to do"):
        main(["export", str(tmp_path / "run")])


FUSED = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, ["c_attn", "c_fc"]),
    "gpt_neox": ("GPTNeoX", {"hidden_size": 32, "intermediate_size": 48}, ["query_key_value"]),
    "phi3": ("Phi3", {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2}, ["qkv_proj", "gate_up_proj"]),
}  # fmt: skip


@pytest.fixture(params=FUSED)
def several_in_one(request, tmp_path):
    """(make, model, params, modules, names for PEFT): families with one module for several of our matrices."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    kind, sizes, targets = FUSED[request.param]
    sizes = sizes if kind == "GPT2" else {**sizes, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=61, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")

    def make():
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
        return model.float().eval()

    model, params = load_ours(tmp_path / "model")
    params = split_stacks(params)
    return make, model.config, params, module_rows(request.param, model.config, list(params)), targets


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_one_module_for_several_matrices_means_the_same_here_and_there(several_in_one, kind, tmp_path):
    import peft
    import torch

    make, config, params, modules, targets = several_in_one
    tokens = np.random.default_rng(0).integers(0, 61, (2, 9))

    def run(theirs):
        with torch.no_grad():
            return theirs(torch.tensor(tokens)).logits.numpy()

    lora = replace(KINDS[kind], targets=("block_.*",))
    if kind == "lora":  # and one of the three alone
        lora = replace(lora, targets=("block_00/attn/q", "block_01/.*"))
    model = adapted(config, lora)
    adapters = draw(model)
    logits, _ = ours(model, params, adapters, tokens, 1.0)
    save_peft(tmp_path / "ours", {**params, **adapters}, lora, modules, 4)
    found = run(peft.PeftModel.from_pretrained(make(), tmp_path / "ours").eval())
    assert np.abs(run(make()) - logits).max() > 0.1
    assert close(logits, found)
    read, same = load_peft(tmp_path / "ours", modules, config)
    assert set(same) == set(adapters)
    assert all((same[p] == adapters[p]).all() for p in adapters)
    assert replace(read, targets=()) == replace(lora, targets=())

    settings = peft.LoraConfig(
        r=3, lora_alpha=7, use_rslora=kind == "rslora", use_dora=kind == "dora", target_modules=targets,
        init_lora_weights=False, fan_in_fan_out=targets[0] == "c_attn",
    )  # fmt: skip
    theirs = peft.get_peft_model(make(), settings).eval()
    with torch.no_grad():
        for name, leaf in theirs.named_parameters():
            if "magnitude" in name:
                leaf *= 1.1
    theirs.save_pretrained(tmp_path / "theirs")
    read, adapters = load_peft(tmp_path / "theirs", modules, config)
    logits, _ = ours(adapted(config, read), {**params, **adapters}, {}, tokens, 1.0)
    assert close(logits, run(theirs))
    save_peft(tmp_path / "again", {**params, **adapters}, read, modules, 4)
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["rank_pattern"] == {}
    np.testing.assert_array_equal(run(peft.PeftModel.from_pretrained(make(), tmp_path / "again").eval()), run(theirs))
