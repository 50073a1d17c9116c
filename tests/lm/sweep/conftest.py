"""A labelled corpus and a tiny model that the sweep's tests share."""

import json
import random

import pytest

from configs import base
from data_pipeline.schema import from_mapping
from lm.config import Config

CONFIG = '''
from configs import base

def get_config():
    c = base.get_config()
    c.data.sources.rows = base.source(path={path!r}, label_field="label")
    c.data.split.test = 0.2
    c.data.split.stratify = True
    c.data.tokenizer.kind = "bytes"
    c.data.seq_len, c.data.batch_size, c.data.cache_dir = 16, 8, {cache!r}
    c.model.layers, c.model.dim, c.model.heads, c.model.mlp_dim = 1, 16, 2, 16
    c.optim.schedule, c.optim.warmup_steps = "cosine", 1
    c.train.steps, c.train.eval_every, c.train.log_every, c.train.eval_batch_size = 6, 3, 2, 64
    return c
'''  # fmt: skip


def write_rows(path, labels, seed=0):
    rng = random.Random(seed)
    with open(path, "w") as file:
        for label in labels:
            text = f"{label}: " + " ".join(rng.choice(["alpha", "beta", "gamma", "delta", "epsilon"]) for _ in range(8))
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    return path


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    rows = write_rows(folder / "rows.jsonl", ["good", "bad", "so-so"] * 30)
    path = folder / "tiny.py"
    path.write_text(CONFIG.format(path=str(rows), cache=str(folder / "cache")))
    return path


@pytest.fixture(scope="module")
def config(config_file):
    from lm.check import read_config

    return read_config(str(config_file), {})


@pytest.fixture
def make_rows_config(tmp_path):
    """(labels, keys of the split) -> a Config over rows with these labels."""

    def make(labels, **split):
        c = base.get_config()
        c.data.sources.rows = base.source(path=str(write_rows(tmp_path / "rows.jsonl", labels)), label_field="label")
        c.data.tokenizer.kind, c.data.cache_dir, c.data.seq_len, c.data.batch_size = "bytes", str(tmp_path / "c"), 16, 2
        c.data.split.update({"test": 0.2, **split})
        return from_mapping(Config, c)

    return make
