"""Fine-tunes the top layers of any open-weight model, on plain text or conversations.

python launch.py --config=configs/finetune_hf.py --config.init.source=hf:FOLDER --config.data.path=FILE.jsonl

FOLDER is a Hugging Face folder (also hf:ORG/NAME@REVISION, gguf:FILE); its architecture and tokenizer are taken over. Rows are
{"messages"}, {"prompt", "completion"}, Alpaca, ShareGPT or {"text"}; only answers are learned. The last two layers and
the last norm train; `block_-03/.*` would be the third from the end. SmolLM2-135M on two CPU cores: docs/huggingface.md.
"""

from __future__ import annotations

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    c = base.get_config()
    c.init.source = "hf:"  # which model is for the command line to say
    c.model.scan = True  # 30 layers of SmolLM2 with LoRA: 5.4 GiB instead of 12, 5 % slower
    c.data.split.validation = 0.1
    c.data.seq_len = 512
    c.data.batch_size = 8

    c.optim.train = (("block_-0[12]/.*", True), ("norm_out/.*", True), (".*", False))
    c.optim.peak_lr = 1e-4
    c.optim.weight_decay = 0.0
    c.optim.warmup_steps = 10
    c.optim.b2 = 0.999

    c.train.steps = 200
    c.train.eval_every = 50
    c.train.eval_at_start = True
    c.train.early_stop_patience = 4
    return c
