"""Which weights does a run's folder give, and how do weights become such a folder?"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from lm.checkpoint import RAW, Cast, Checkpoints, Meta, load, stored_shapes
from lm.config import Config, UserError, to_json
from lm.hf.source import keep_origin
from lm.logger import write_json
from lm.params import Params


def load_weights(workdir: str | Path, number: int, step: str, abstract: Any, cast: Cast = False) -> Params:
    """Reads the parameters that `abstract` names from the checkpoint `number`, in its grouping.

    Of trained ones that is their average where the run kept one (train.ema_decay), unless `step` ends in `RAW`.
    """
    averages = {}
    for path in () if step.endswith(RAW) else stored_shapes(workdir, number):
        _, kept, single = path.partition("/average/")
        averages |= {f"params/{single}": path} if kept else {}
    return load(workdir, number, abstract, "params/", cast, averages)


def claim_folder(out: str | Path) -> Path:
    """Returns a folder that is new or empty; raises UserError where it is neither."""
    folder = Path(out)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: name a new folder")
    return folder


def write_run(out: str | Path, source: str | Path, config: Config, params: Params, meta: Meta, step: int) -> None:
    """Writes a run folder that holds `params` alone: enough for init.source, lm.generate and lm.evaluate."""
    folder = claim_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(Path(source) / "tokenizer", folder / "tokenizer")
    keep_origin(str(source), folder)
    meta = {**meta, "config": to_json(config), "best_step": step, "saved_step": step}
    checkpoints = Checkpoints(folder, 1, lambda text: print(text, file=sys.stderr))
    checkpoints.save(step, {"params": params}, meta)
    checkpoints.close()
    write_json(folder / "config.json", to_json(config))
