"""Teaches a model to answer: conversations through its own chat template, the assistant's turns alone learned, by LoRA.

python launch.py --config=configs/chat.py --config.init.source=hf:FOLDER --config.data.path=FILE.jsonl

FILE has {"messages"}, ShareGPT or Alpaca rows. Then talk to it: python -m lm.generate --workdir=runs/chat --chat
"""

from __future__ import annotations

import ml_collections

from configs import finetune_hf
from lm.config import adapters_only


def get_config() -> ml_collections.ConfigDict:
    c = finetune_hf.get_config()
    c.data.seq_len = 1024
    c.lora.rank = 16
    c.lora.alpha = 32.0
    c.optim.train = adapters_only()
    c.optim.frozen_dtype = "bfloat16"
    c.optim.peak_lr = 2e-4
    c.train.epochs = 1.0
    c.train.eval_every = 100
    return c
