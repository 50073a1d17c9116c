"""As finetune.py, and a fifth of all rows is text of the pretraining, read again; shows at each evaluation what is forgotten.

python launch.py --config=configs/finetune_replay.py --workdir=runs/finetune_replay

Starts from runs/pretrain (--config.init.source=DIR for another). Validation is of docstrings alone. docs/forgetting.md says what
replay, smaller rates, the pull to the start, averages and mixes with the start do, with numbers.
"""

from __future__ import annotations

import ml_collections

from configs import base, finetune, pretrain


def get_config() -> ml_collections.ConfigDict:
    c = finetune.get_config()
    for name, source in pretrain.get_config().data.sources.items():
        c.data.sources[f"replay_{name}"] = base.source(kind=source.kind, path=source.path, replay=True)
    c.data.replay = 0.2
    c.train.remember = "pretraining"
    return c
