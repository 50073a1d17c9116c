"""Fine-tunes adapters of rank 8 on all linear layers of eight frozen ones (LoRA), to write a function's docstring.

python launch.py --config=configs/lora.py --workdir=runs/lora

Starts from runs/pretrain (--config.init.source=DIR for another); the base lies frozen in bfloat16. Two CPU cores, some minutes,
147,456 trained numbers of 2.2 M, 0.80 of a full step's FLOPs: to 4.25 nats a token on held-out modules, accuracy 22 %.
Only attention: --config.lora.targets="('block_.*/attn/.*',)". QLoRA: --config.optim.frozen_dtype=nf4. DoRA:
--config.lora.dora=true. Adapters on a Hugging Face model, whatever the rows are: configs/chat.py.
Melt the adapters into plain weights: python -m lm.lora merge runs/lora runs/merged
"""

from __future__ import annotations

import ml_collections

from configs import finetune
from lm.config import adapters_only


def get_config() -> ml_collections.ConfigDict:
    c = finetune.get_config()
    c.lora.rank = 8
    c.lora.alpha = 16.0
    c.optim.train = adapters_only()
    c.optim.frozen_dtype = "bfloat16"
    c.optim.name = "adamw"
    c.optim.peak_lr = 5e-3  # adapters take about ten times the rate of full fine-tuning
    c.optim.lr_multipliers = ((".*", 1.0),)
    return c
