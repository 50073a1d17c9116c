"""Hugging Face's Trainer example as it runs here: GPT-2, 3 epochs, batch 4 a device, evaluated and saved every 500 steps.

python launch.py --config=configs/finetune_gpt2.py --config.init.source=hf:openai-community/gpt2 --config.data.path=FILE.txt

The source is a hub name or a folder with GPT-2's weights. All layers train. docs/from-hf-trainer.md has both side by side.
"""

from __future__ import annotations

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    c = base.get_config()
    c.init.source = "hf:"  # --config.init.source=hf:openai-community/gpt2
    c.data.split.validation = 0.1
    c.data.seq_len = 1024
    c.data.batch_size = 4  # on all devices together: 4 x devices for 4 on each

    c.optim.peak_lr = 5e-5
    c.optim.schedule = "linear"
    c.optim.end_lr_ratio = 0.0
    c.optim.weight_decay = 0.0
    c.optim.b2 = 0.999
    c.optim.clip_norm = 1.0

    c.train.epochs = 3.0
    c.train.eval_every = 500
    c.train.save_every = 500
    return c
