"""Does every file in configs/ build and trace a step, and do published shapes have the published sizes?"""

import math
from pathlib import Path

import jax
import pytest

from configs import base
from configs.models import MODELS
from data_pipeline.schema import from_mapping, to_json
from lm.check import read_config
from lm.config import Config
from lm.model.transformer import Model
from lm.parts import abstract_batch, make_parts, model_config, param_shapes

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RUNNABLE = sorted(p.name for p in CONFIGS.glob("*.py") if p.name not in ("__init__.py", "models.py"))


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_config_builds_and_traces_a_step(name):
    needs_path = name == "base.py" or name.startswith("shakespeare")
    overrides = {"data.batch_size": "16"}  # nanoGPT's 12 rows do not divide over eight devices
    if needs_path:
        overrides["data.path"] = "text.txt"
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
    ("name", "size"), [("gpt2", 124_439_808), ("llama-3.2-1b", 1_235_814_400), ("qwen3-0.6b", 596_049_920)]
)
def test_published_shapes_have_their_published_sizes(name, size):
    config = base.get_config()
    MODELS[name](config.model)
    model = model_config(from_mapping(Config, config), 0)
    assert sum(math.prod(leaf.shape) for leaf in param_shapes(Model(model)).values()) == size
