"""Does every file in configs/ build and trace a step, and do published shapes have the published sizes?"""

import math
from pathlib import Path

import jax
import pytest

from data_pipeline.schema import from_mapping, to_json
from lm.check import read_config
from lm.config import Config, ConfigError
from lm.model.transformer import Model
from lm.parts import abstract_batch, make_parts, model_config, param_shapes

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
HF = ("finetune_hf.py", "finetune_gpt2.py", "chat.py")  # which need a model
RUNNABLE = sorted(p.name for p in CONFIGS.glob("*.py") if p.name not in ("__init__.py", "models.py"))


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_config_builds_and_traces_a_step(name):
    needs_path = name in ("base.py", "corpus.py", *HF) or name.startswith("shakespeare")
    overrides = {"data.batch_size": "16"}  # nanoGPT's 12 rows do not divide over eight devices
    if needs_path:
        overrides["data.path"] = "text.txt"
    if name == "classify.py":
        overrides |= {"data.path": "text.csv", "model.classes": "3"}
    if name in HF:
        overrides["init.source"] = ""  # tests/lm/hf/test_folder.py has it with a model
    config = read_config(str(CONFIGS / name), overrides, jax.device_count())
    assert from_mapping(Config, to_json(config)) == config
    parts = make_parts(config, 300, 1e-3)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state, metrics = jax.eval_shape(parts.train_step, parts.state, abstract_batch(config), key)
    assert metrics["train/loss"].shape == ()
    assert jax.tree.structure(state) == jax.tree.structure(parts.state)


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_config_says_how_to_run_it(name):
    text = (CONFIGS / name).read_text()
    assert f"--config=configs/{name}" in text or name == "base.py"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-xl", 1_557_611_200),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("mistral-7b", 7_241_732_096),
        ("gemma-3-1b", 999_885_952),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-30b-a3b", 30_532_122_624),
    ],
)
def test_published_shapes_have_their_published_sizes(name, size):
    model = model_config(read_config(f"{CONFIGS}/models.py:{name}", {}, needs_data=False), 0)
    assert sum(math.prod(leaf.shape) for leaf in param_shapes(Model(model)).values()) == size


def test_a_model_that_is_not_there_is_named():
    for name in ("models.py", "models.py:llama-9", "models.py:gpt2-top"):
        with pytest.raises(ConfigError, match=r"holds gpt2, gpt2-xl, .* NAME-topN"):
            read_config(f"{CONFIGS}/{name}", {}, 8, needs_data=False)


def test_top_layers_of_a_published_model():
    config = read_config(f"{CONFIGS}/models.py:llama-3-70b-top4", {"data.batch_size": "16"}, 16, needs_data=False)
    assert [pattern for pattern, on in config.optim.train if on] == [f"block_{i}/.*" for i in range(76, 80)] + [
        "norm_out/.*"
    ]
    assert (config.optim.frozen_dtype, config.mesh.fsdp, config.data.seq_len) == ("bfloat16", -1, 4096)
