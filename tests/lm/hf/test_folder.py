"""Do the weights of a Hugging Face folder come in whole, onto any devices, and go out as they came?"""

import json
import re
import shutil
from contextlib import ExitStack
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from lm import build
from lm.checkpoint import find_damage
from lm.config import Config, InitConfig, MeshConfig, ModelConfig, OptimConfig, UserError
from lm.hf.__main__ import main
from lm.hf.families import read_config
from lm.hf.source import ORIGIN, find_foreign, follow_source
from lm.hf.tensors import Tensors, open_folder, write_folder
from lm.hf.weights import Source, open_weights, tensors_of
from lm.model.transformer import Model
from lm.params import split_stacks
from lm.parts import make_parts, param_shapes, with_shardings
from lm.sharding import make_mesh, param_shardings
from lm.start import find_twins, load_params
from tests.data_pipeline.small_tokenizers import MAKERS, save_folder
from tests.lm.hf.test_families import CONFIGS

FROZEN_HEAD = (("block_-01/.*", True), (".*", False))
VOCAB = 448  # rows of the embedding; the tokenizer has fewer


def random_tensors(family, fields, dtype):
    """Tensors of a model with random numbers, under their Hugging Face names."""
    model = read_config(fields)[1]
    rng = np.random.default_rng(0)
    params = {
        path: (rng.standard_normal(leaf.shape) * 0.1).astype(dtype) for path, leaf in param_shapes(Model(model)).items()
    }
    shapes, make = tensors_of(params, family, model, lambda path: np.dtype(dtype))
    return {name: make(name) for name in shapes}


def save(folder, fields, tensors):
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(folder, shapes, tensors.__getitem__, max_shard_bytes=100_000)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder in bfloat16, in several shards, with a tokenizer; and its tensors."""
    folder = tmp_path_factory.mktemp("llama") / "model"
    save_folder(folder, sorted(MAKERS)[0])
    fields = {**CONFIGS["llama"], "vocab_size": VOCAB, "dtype": "bfloat16"}
    tensors = random_tensors("llama", fields, ml_dtypes.bfloat16)
    return save(folder, fields, tensors), tensors


@pytest.mark.parametrize("family", CONFIGS)
def test_weights_come_in_on_any_mesh_in_any_grouping(tmp_path, family):
    tensors = random_tensors(family, CONFIGS[family], np.float32)
    found = find_foreign(f"hf:{save(tmp_path, CONFIGS[family], tensors)}")
    flat = param_shapes(Model(found.model))
    source = open_weights(found, flat)
    for runs, mesh in [((), MeshConfig()), (((0, 1), (1, 4)), MeshConfig(data=1, fsdp=2, tensor=4))]:
        shapes = param_shapes(Model(found.model, runs))
        params = source.load(with_shardings(shapes, param_shardings(shapes, make_mesh(mesh))))
        single = split_stacks(params)
        _, make = tensors_of(single, family, found.model, lambda path: np.dtype("float32"))
        for name, tensor in tensors.items():
            assert make(name).tobytes() == tensor.tobytes(), name


def source_of(tensors, name="llama", **changes):
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    family, model = read_config({**CONFIGS[name], **changes})
    return Source(Tensors("held", shapes, tensors.__getitem__, ExitStack()), family, model, param_shapes(Model(model)))


def test_every_tensor_that_does_not_fit_is_named():
    tensors = random_tensors("llama", CONFIGS["llama"], np.float32)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    tensors["model.layers.4.mlp.up_proj.weight"] = np.zeros((112, 64), np.float32)
    tensors["model.norm.weight"] = np.zeros(63, np.float32)
    tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((64, 64), np.int8)
    with pytest.raises(UserError) as error:
        source_of(tensors)
    text = str(error.value)
    assert "model.layers.2.mlp.up_proj.weight [112, 64]: missing" in text
    assert "model.layers.4.mlp.up_proj.weight: no such parameter" in text
    assert "model.norm.weight: has shape [63], the model wants [64]" in text
    assert "q_proj.weight: holds int8" in text


def test_a_head_beside_a_tied_embedding_must_be_equal_to_it():
    tensors = random_tensors("llama", CONFIGS["llama"], np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    assert "head" not in source_of(tensors).rows
    tensors["lm_head.weight"][3, 3] += 1
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        source_of(tensors)


def test_names_without_the_prefix_of_base_models():
    tensors = random_tensors("llama", CONFIGS["llama"], np.float32)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    assert source_of(bare).names["model.embed_tokens.weight"] == "embed_tokens.weight"


def test_missing_experts_are_named():
    tensors = random_tensors("mixtral", CONFIGS["mixtral"], np.float32)
    name = "model.layers.2.block_sparse_moe.experts.1.w3.weight"
    del tensors[name]
    with pytest.raises(UserError, match=re.escape(f"{name} [112, 64]: missing")):
        source_of(tensors, "mixtral")


def test_import_and_export_give_the_same_bytes(llama, tmp_path, capsys):
    folder, tensors = llama
    main(["import", str(folder), str(tmp_path / "run")])
    loaded = build.load_run(str(tmp_path / "run"), "best", log=lambda text: None)
    assert {str(leaf.dtype) for leaf in loaded.params.values()} == {"bfloat16"}
    main(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    with open_folder(tmp_path / "out") as found:
        assert {name: found.read(name).tobytes() for name in found.shapes} == {
            n: t.tobytes() for n, t in tensors.items()
        }
        assert {str(dtype) for dtype, _ in found.shapes.values()} == {"bfloat16"}
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads((folder / "config.json").read_text())
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert "verify" in capsys.readouterr().out
    with pytest.raises(UserError, match="is there already"):
        main(["export", str(tmp_path / "run"), str(tmp_path / "out")])


@pytest.mark.slow
def test_a_run_from_a_folder_goes_on_without_it(llama, tmp_path, monkeypatch, capsys):
    import launch

    monkeypatch.chdir(tmp_path)
    shutil.copytree(llama[0], tmp_path / "model")
    rows = [{"prompt": f"say {i}", "completion": f"{i} is said"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        f"--config={build.__file__.removesuffix('lm/build.py')}configs/finetune_hf.py", "--workdir=run",
        "--config.init.source=hf:model", "--config.data.path=rows.jsonl", "--config.data.seq_len=32",
        "--config.data.batch_size=8", "--config.train.steps=12", "--config.train.eval_every=6",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as done:
        launch.main([*words, "--config.optim.warmup_steps=2", "--config.train.keep_last=3"])
    assert done.value.code == 0, capsys.readouterr().err
    receipt = json.loads((tmp_path / "run/receipt.json").read_text())
    assert [row["pattern"] for row in receipt["table"]][:2] == ["block_-0[12]/.*", "norm_out/.*"]
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert (saved["model"]["layers"], saved["model"]["vocab_size"], saved["model"]["heads"]) == (4, VOCAB, 4)
    main(["export", "run", "out"])
    with open_folder(tmp_path / "out") as found:
        frozen = [name for name in found.shapes if ".0." in name or ".1." in name or "embed" in name]
        assert len(frozen) == 19
        assert all(found.read(name).tobytes() == llama[1][name].tobytes() for name in frozen)
        moved = found.read("model.layers.3.mlp.up_proj.weight")
        assert moved.dtype == ml_dtypes.bfloat16
        assert moved.tobytes() != llama[1]["model.layers.3.mlp.up_proj.weight"].tobytes()
    (tmp_path / "model/model.safetensors.index.json").rename(tmp_path / "gone")  # weights are not read twice
    with pytest.raises(SystemExit) as done:
        launch.main([*words, "--config.optim.warmup_steps=2", "--config.train.steps=14"])
    assert done.value.code == 0, capsys.readouterr().err
    assert "resumed run at step 12" in capsys.readouterr().out


def test_an_end_that_cannot_be_told_from_other_tokens_is_warned_of(llama, tmp_path):
    tensors = {name: tensor.copy() for name, tensor in llama[1].items()}
    tensors["model.embed_tokens.weight"][[2, 5, 9]] = 0.5
    folder = save(tmp_path / "model", json.loads((llama[0] / "config.json").read_text()), tensors)
    config = follow_source(Config(init=InitConfig(source=f"hf:{folder}"), optim=OptimConfig(train=FROZEN_HEAD)))
    config = replace(config, data=replace(config.data, seq_len=16, batch_size=8))
    parts = make_parts(config, VOCAB, 1e-3)
    params = load_params(parts, "", log=lambda text: None)
    assert find_twins(parts, params, [1, 2, 5]) == {2: 3, 5: 3}
    trained = make_parts(replace(config, optim=OptimConfig()), VOCAB, 1e-3)
    assert find_twins(trained, params, [1, 2, 5]) == {}


def test_the_source_decides_what_is_computed_and_the_config_how(llama):
    source = f"hf:{llama[0]}"
    config = follow_source(
        Config(model=ModelConfig(dtype="bfloat16", scan=True, layers=4), init=InitConfig(source=source))
    )
    assert (config.model.dim, config.model.dtype, config.model.scan) == (64, "bfloat16", True)
    assert (config.data.tokenizer.kind, config.data.tokenizer.path) == ("auto", str(llama[0]))
    with pytest.raises(UserError, match=r"config\.model\.layers: 5, but hf:.* has 4: leave it out"):
        follow_source(Config(model=ModelConfig(layers=5), init=InitConfig(source=source)))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hf:nowhere/at/all", "is no folder, and no name of a model on the hub"),
        ("hf:.", "config.json does not exist"),
        ("gguf:nothing.gguf", "nothing.gguf"),
    ],
)
def test_a_source_that_is_not_there(source, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says.replace(".", r"\.")):
        follow_source(Config(init=InitConfig(source=source)))


def test_a_tokenizer_that_is_larger_than_the_embedding(llama, tmp_path):
    shutil.copytree(llama[0], tmp_path / "model")
    fields = {**CONFIGS["llama"], "vocab_size": 300}
    (tmp_path / "model/config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"tokenizer has \d+ pieces, config\.model\.vocab_size=300"):
        main(["import", str(tmp_path / "model"), str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_an_export_that_fails_leaves_nothing(llama, tmp_path, monkeypatch):
    main(["import", str(llama[0]), str(tmp_path / "run")])
    assert find_damage(tmp_path / "run/checkpoints/0") is None
    assert (tmp_path / "run" / ORIGIN).is_file()
    from lm.hf import tensors

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "write_folder", fail)
    with pytest.raises(UserError, match="No space left"):
        main(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
