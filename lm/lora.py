"""How do adapters leave a run, and come into one? Melted into the weights, or as a folder in PEFT's format.

    python -m lm.lora merge runs/lora runs/merged
    python -m lm.lora export runs/lora adapter
    python -m lm.lora import adapter runs/base runs/adapted

Merged weights are a run like any other: `init.source`, `lm.generate`, `lm.evaluate`. A PEFT folder is adapter_config.json
and adapter_model.safetensors (`lm/peft_folder.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from lm.checkpoint import compare
from lm.config import (
    AdaptedModel,
    ConfigError,
    LoraConfig,
    ModelConfig,
    UserError,
    adapters_only,
)
from lm.hf.config_json import write_config
from lm.hf.names import Row, module_rows
from lm.hf.source import read_origin
from lm.model.adapters import base_of, make_adapters, merge
from lm.model.transformer import Model
from lm.params import Params, match_table, split_stacks
from lm.peft_folder import load_peft, save_peft
from lm.run_folder import write_run


def modules_of(workdir: str | Path, model: ModelConfig, paths: Sequence[str]) -> list[Row]:
    """Returns the modules of the family that a run goes back to, or that can hold its model."""
    family = (read_origin(Path(workdir)) or write_config(model, 1))["model_type"]
    return module_rows(family, model, paths)


def join_adapters(base: Params, model: ModelConfig, lora: LoraConfig, adapters: Params) -> Params:
    """Returns `base` with `adapters` beside it; raises UserError with one line for each tensor that does not fit."""
    paths = list(jax.eval_shape(Model(model).init_params, jax.random.key(0)))
    adapted = AdaptedModel(**vars(model), adapters=make_adapters(lora, paths, model.layers))
    shapes = jax.eval_shape(Model(adapted).init_params, jax.random.key(0))
    both = {**base, **adapters}
    problems = [
        *compare(both, shapes, cast=True),
        *(f"{path}: not in this model" for path in both if path not in shapes),
    ]
    if problems:
        raise UserError("the adapters do not fit the base model:\n  " + "\n  ".join(problems[:40]))
    return both


USAGE = """
usage: python -m lm.lora merge WORKDIR OUT [--step=best|last|N]
       python -m lm.lora export WORKDIR OUT [--step=best|last|N] [--base=NAME]
       python -m lm.lora import FOLDER WORKDIR OUT [--step=best|last|N]

merge: melts the adapters of the run in WORKDIR into its weights; OUT is a run without adapters, in float32.
export: writes them as a PEFT folder; --base names the model that PEFT should load them onto.
import: puts the adapters of a PEFT folder beside the weights of the run in WORKDIR; OUT is a run with adapters.
PEFT folders name modules as the model's family does (`c_attn` of GPT-2 holds q, k and v).

example: python -m lm.lora merge runs/lora runs/merged
"""


def main(argv: list[str]) -> None:
    from data_pipeline.schema import split_flags
    from lm import build
    from lm.checkpoint import read_meta

    words = [word for word in argv if not word.startswith("-")]
    flags, extra = split_flags([w for w in argv if w.startswith("-")], {"step": "best", "base": ""}, USAGE)
    command, folders = (words or [""])[0], words[1:]
    if extra or {"merge": 2, "export": 2, "import": 3}.get(command) != len(folders):
        raise ConfigError("say what to do: python -m lm.lora merge WORKDIR OUT; see --help")
    source, out = folders[-2:]
    loaded = build.load_run(source, flags["step"], lambda text: print(text, file=sys.stderr), any_task=True)
    config, model, params = loaded.config, loaded.model.config, split_stacks(loaded.params)
    modules = []
    if command != "merge" and model.classes:
        raise UserError(
            f"{source} is a classifier: python -m lm.lora merge, then python -m lm.hf export, take it elsewhere"
        )
    if command != "merge":
        modules = modules_of(source, model, [path for path in params if base_of(path) == path])
    if command == "export":
        trained = match_table(config.optim.train, list(params), "optim.train")
        also = [path for path, on in trained.items() if on and base_of(path) == path]
        save_peft(out, params, config.lora, modules, model.heads, also, flags["base"])
    else:
        plain = merge(params, model.adapters)[0]
        table, lora = ((".*", True),), LoraConfig()
        if command == "import":
            if config.lora.rank:
                raise UserError(f"{source} has adapters already: merge them first")
            lora, adapters = load_peft(folders[0], modules, model)
            plain = join_adapters(plain, model, lora, adapters)
            table = adapters_only("|".join(path for path in adapters if base_of(path) == path))
        changed = replace(config, lora=lora, optim=replace(config.optim, train=table, frozen_dtype="float32"))
        meta = {**read_meta(source, loaded.step), "start": f"{command}: {' '.join(folders[:-1])}"}
        write_run(out, source, changed, plain, meta, loaded.step)
    print(f"{command}: {out} is written")


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
