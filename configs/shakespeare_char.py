"""Character-level tiny Shakespeare at nanoGPT's small size: 4 layers x 128, context 64, batch 12, 2,000 steps.

python launch.py --config=configs/shakespeare_char.py --config.data.path=FILE

Two CPU cores, 3 to 5 minutes: eval/loss 1.587 +- 0.007 nats over the whole validation part (the last 10 % of the text).
nanoGPT with these sizes: 1.886. What differs: RoPE, qk-norm, squared ReLU, output matrices that start at zero, Muon.
"""

from __future__ import annotations

import ml_collections

from configs import base
from configs.models import use_muon, use_relu2_blocks


def get_config() -> ml_collections.ConfigDict:
    c = base.get_config()
    c.data.clean.rules = ()
    c.data.clean.exact_dedup = False
    c.data.split.by = "position"
    c.data.split.validation = 0.1
    c.data.split.test = 0.0
    c.data.tokenizer.kind = "char"
    c.data.seq_len = 64
    c.data.batch_size = 12

    c.model.layers = 4
    c.model.dim = 128
    c.model.heads = 4
    use_relu2_blocks(c.model)

    use_muon(c.optim)
    c.optim.warmup_steps = 50
    c.optim.end_lr_ratio = 0.0

    c.train.steps = 2000
    c.train.log_every = 100
    c.train.eval_every = 500
    c.train.eval_batch_size = 256
    return c
