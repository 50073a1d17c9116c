"""Classifies texts, such as what a customer wants, with a pretrained model and a new head.

python launch.py --config=configs/classify.py:top --config.init.source=DIR --config.data.path=FILE

FILE holds rows {"text", "label"} (JSONL or CSV) and is split here; or name --config.data.train_path, and validation_path
and test_path where you have them. DIR is a run of ours, or hf:FOLDER. The word `top` trains the last two blocks, `head`
the new head alone; without a word everything is trained, and without init.source from random weights, over bytes.
A language model tells classes far better behind words that ask for them: --config.data.text_template=$'{text}\\nClass:'.
"""

from __future__ import annotations

import ml_collections

from configs import base

TRAINED = {
    "all": ((".*", True),),
    "top": (("block_-0[12]/.*", True), ("norm_out/.*|classifier", True), (".*", False)),
    "head": (("norm_out/.*|classifier", True), (".*", False)),
}


def get_config(trained: str = "all") -> ml_collections.ConfigDict:
    c = base.get_config()
    c.data.task = "classify"
    c.data.split.stratify = True
    c.data.split.validation = 0.1
    c.data.split.test = 0.1
    c.data.tokenizer.kind = "bytes"  # that of init.source takes its place
    c.data.seq_len = 128
    c.data.batch_size = 16

    c.optim.train = TRAINED[trained]
    c.optim.peak_lr = 5e-4
    c.optim.warmup_steps = 10
    c.optim.schedule = "linear"
    c.optim.end_lr_ratio = 0.0

    c.train.epochs = 5.0
    c.train.eval_every = 50
    c.train.early_stop_patience = 4
    return c
