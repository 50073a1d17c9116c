"""Character-level tiny Shakespeare at nanoGPT's GPU size: 6 layers x 384, context 256, batch 64, 5,000 steps, dropout 0.2.

python launch.py --config=configs/shakespeare_char_gpu.py --config.data.path=FILE

For one GPU; not measured here yet. nanoGPT's own figure: 1.4697, its best over estimates on random windows.
"""

from __future__ import annotations

import ml_collections

from configs import shakespeare_char_nanogpt


def get_config() -> ml_collections.ConfigDict:
    c = shakespeare_char_nanogpt.get_config()
    c.data.seq_len = 256
    c.data.batch_size = 64
    c.model.layers = 6
    c.model.dim = 384
    c.model.heads = 6
    c.model.dropout = 0.2
    c.model.dtype = "bfloat16"
    c.train.steps = 5000
    c.train.eval_every = 250
    return c
