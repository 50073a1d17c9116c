"""Character-level tiny Shakespeare with nanoGPT's own recipe: GPT-2 blocks and AdamW, sizes as in shakespeare_char.py.

python launch.py --config=configs/shakespeare_char_nanogpt.py --config.data.path=FILE

Two CPU cores, 3 to 5 minutes: eval/loss 1.905 over the whole validation part. The same recipe in plain torch: 1.893 to 1.913
(three seeds, docs/LOG.md); nanoGPT states 1.88 for it.
"""

from __future__ import annotations

import ml_collections

from configs import shakespeare_char
from configs.models import use_gpt2_blocks


def get_config() -> ml_collections.ConfigDict:
    c = shakespeare_char.get_config()
    use_gpt2_blocks(c.model, bias=False)
    c.model.activation = "gelu"  # nanoGPT's is the exact one
    c.model.qk_norm = False
    c.model.init_out = "scaled"

    c.optim.name = "adamw"
    c.optim.peak_lr = 1e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 100
    c.optim.end_lr_ratio = 0.1
    c.optim.weight_decay = 0.1
    c.optim.b2 = 0.99
    c.optim.lr_multipliers = ((".*", 1.0),)
    return c
