"""Pretrains 8 layers x 128 (2.1 M parameters) on the code of Python's standard library and of installed packages.

python launch.py --config=configs/pretrain.py --workdir=runs/pretrain

Two CPU cores, about 3 minutes: eval/loss about 3.1 to 3.4 nats a token, 2.0 to 2.2 bits a byte (the text is what
your machine has).
"""

from __future__ import annotations

import ml_collections

from configs import base
from configs.models import use_muon, use_relu2_blocks


def get_config() -> ml_collections.ConfigDict:
    c = base.get_config()
    for name in ("stdlib", "jax", "flax", "optax", "numpy"):
        c.data.sources[name] = base.source(kind="package", path=name)
    c.data.split.validation = 0.05
    c.data.split.test = 0.05
    c.data.tokenizer.vocab_size = 2048
    c.data.tokenizer.train_chars = 3_000_000
    c.data.seq_len = 256
    c.data.batch_size = 8

    c.model.layers = 8
    c.model.dim = 128
    c.model.heads = 4
    use_relu2_blocks(c.model)
    c.model.tie_embeddings = False

    use_muon(c.optim)
    c.optim.warmup_steps = 20
    c.optim.end_lr_ratio = 0.05

    c.train.steps = 300
    c.train.log_every = 20
    c.train.eval_every = 100
    c.train.eval_rows = 256
    c.train.sample_prompts = ("def ", "import ")
    return c
