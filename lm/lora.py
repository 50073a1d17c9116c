"""How do adapters leave a run, and come into one? Melted into the weights, or as a folder in PEFT's format.

    python -m lm.lora merge runs/lora runs/merged
    python -m lm.lora export runs/lora adapter
    python -m lm.lora import adapter runs/base runs/adapted

Merged weights are a run like any other: `init.source`, `lm.generate`, `lm.evaluate`. A PEFT folder is adapter_config.json
and adapter_model.safetensors; tensors there are transposed (lora_A.weight [r, in], lora_B.weight [out, r]).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.checkpoint import Checkpoints, Meta, compare
from lm.config import (
    AdaptedModel,
    Config,
    ConfigError,
    LoraConfig,
    ModelConfig,
    UserError,
    adapters_only,
    to_json,
)
from lm.hf.config_json import write_config
from lm.hf.names import module_names
from lm.hf.source import keep_origin, read_origin
from lm.hf.tensors import open_tensors, write_tensors
from lm.logger import write_json
from lm.model.adapters import MATRIX, base_of, make_adapters, merge
from lm.model.transformer import Model
from lm.params import Params, match_table, split_stacks, to_host

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
Names = Mapping[str, str]  # {our path of a single layer: the module's name}


def names_of(workdir: str | Path, model: ModelConfig, paths: Sequence[str]) -> dict[str, str]:
    """Returns {our path: module name} in the family that a run goes back to, or that can hold its model."""
    family = (read_origin(Path(workdir)) or write_config(model, 1))["model_type"]
    return module_names(family, model, paths)


def save_peft(
    folder: str | Path, params: Mapping[str, Any], lora: LoraConfig, names: Names, also: Sequence[str] = (), base: str = ""
) -> None:  # fmt: skip
    """Writes the adapters in `params` (single layers or stacks) as a PEFT folder, with what `also` trained, whole.

    `base` is the model that PEFT should look for. Raises UserError for a trained parameter that has no module name.
    """
    leaves = split_stacks(params)
    adapted = [base_of(path) for path in leaves if path.endswith("_lora_a")]
    nameless = [path for path in (*adapted, *also) if path not in names]
    if nameless or not adapted:
        what = f"no module name for {', '.join(nameless)}" if nameless else "there are no adapters in this run"
        raise UserError(f"{what}: PEFT's format cannot hold it. Merge instead: python -m lm.lora merge WORKDIR OUT")
    tensors = {}
    for path in adapted:
        module = f"base_model.model.{names[path]}"
        tensors[f"{module}.lora_A.weight"] = to_host(leaves[f"{path}_lora_a"]).T
        tensors[f"{module}.lora_B.weight"] = to_host(leaves[f"{path}_lora_b"]).T
        if lora.dora:
            tensors[f"{module}.lora_magnitude_vector"] = to_host(leaves[f"{path}_dora_scale"])
    for path in also:
        whole = to_host(leaves[path])
        tensors[f"base_model.model.{names[path]}.weight"] = whole if path == "embed" else whole.T
    short = sorted({names[path].rpartition(".")[2] for path in adapted})
    ambiguous = {path for path, name in names.items() if name.rpartition(".")[2] in short} != set(adapted)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base or None, "inference_mode": True,
        "r": lora.rank, "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout, "use_rslora": lora.rslora, "use_dora": lora.dora, "bias": "none",
        "fan_in_fan_out": False, "target_modules": [names[path] for path in adapted] if ambiguous else short,
        "modules_to_save": [names[path] for path in also] or None,
    }  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / TENSORS, {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


# Keys of adapter_config.json that say nothing about how the adapters compute. Any other that is set is refused.
IDLE = {
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_version", "inference_mode", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "fan_in_fan_out",
    "runtime_config", "eva_config",
}  # fmt: skip
READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save", "bias", "init_lora_weights"}  # fmt: skip


def read_peft_config(path: Path) -> tuple[LoraConfig, list[str]]:
    """Returns the adapters' settings (targets left open) and modules_to_save; UserError for what we cannot compute."""
    try:
        config = json.loads(path.read_text())
        assert isinstance(config, dict)
        lora = LoraConfig(
            rank=int(config["r"]), alpha=float(config["lora_alpha"]), dropout=float(config.get("lora_dropout") or 0.0),
            rslora=bool(config.get("use_rslora")), dora=bool(config.get("use_dora")),
        )  # fmt: skip
        saved: list[str] = list(config.get("modules_to_save") or ())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: name a folder that PEFT saved") from None
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{path} is damaged or not PEFT's: {type(error).__name__}: {error}") from None
    start = config.get("init_lora_weights", True)
    problems = [f"{key}={value!r}" for key, value in sorted(config.items()) if value and key not in IDLE | READ]
    problems += [f"peft_type={config.get('peft_type')!r}"] * (config.get("peft_type") != "LORA")
    problems += [f"bias={config['bias']!r}"] * (config.get("bias", "none") != "none")
    changes_base = not (isinstance(start, bool) or start in ("gaussian", "eva", "orthogonal"))
    problems += [f"init_lora_weights={start!r} (it changes the base model's weights)"] * changes_base
    if problems or lora.rank < 1 or lora.alpha <= 0:
        what = ", ".join(problems) or f"r={lora.rank}, lora_alpha={lora.alpha:g}"
        raise UserError(
            f"{path}: {what}: adapters here have no such thing. Merge them with peft and import the whole model"
        )
    return lora, saved


def load_peft(folder: str | Path, names: Names) -> tuple[LoraConfig, Params]:
    """Reads a PEFT folder: the settings, and float32 parameters of single layers (adapters, and modules_to_save).

    Raises UserError for features that we do not have and for tensors without a place among `names`, by name.
    """
    folder = Path(folder)
    lora, saved = read_peft_config(folder / CONFIG)
    try:
        with open_tensors(folder / TENSORS) as file:
            tensors = {name: np.asarray(file.read(name), np.float32) for name in file.shapes}
    except UserError as error:
        raise UserError(f"the adapters cannot be read: {error}") from None
    ours, params, homeless = {name: path for path, name in names.items()}, {}, []
    parts = {
        "lora_A.weight": "_lora_a",
        "lora_B.weight": "_lora_b",
        "lora_magnitude_vector": "_dora_scale",
        "weight": "",
    }
    for key, tensor in tensors.items():
        found = re.fullmatch(rf"base_model\.model\.(.+?)\.({'|'.join(map(re.escape, parts))})", key)
        path = ours.get(found[1]) if found else None
        whole = found is not None and found[2] == "weight"
        if not found or path is None or (whole != (MATRIX.fullmatch(path) is None)):
            homeless.append(key)
            continue
        params[path + parts[found[2]]] = tensor if path == "embed" or tensor.ndim < 2 else tensor.T
    homeless += [f"modules_to_save={name}" for name in saved if not any(f".{name}.weight" in key for key in tensors)]
    if homeless or not params:
        raise UserError(
            f"{folder}: no place in this model for {', '.join(homeless[:8]) or 'nothing'} ({len(homeless)} in all)"
        )
    adapted = {base_of(path) for path in params if base_of(path) != path}
    lora = replace(lora, targets=_targets(adapted, [path for path in names if MATRIX.fullmatch(path)]))
    return lora, dict(sorted(params.items()))


def _targets(adapted: set[str], matrices: list[str]) -> tuple[str, ...]:
    """Patterns for `lora.targets` that match `adapted` alone: one for each matrix that all layers adapt, else each path."""
    patterns = []
    for name in dict.fromkeys(path.partition("/")[2] for path in matrices):
        everywhere = [path for path in matrices if path.endswith(f"/{name}")]
        here = [path for path in everywhere if path in adapted]
        patterns += [f"block_.*/{name}"] if here == everywhere else here
    return tuple(patterns)


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


def write_run(out: str | Path, source: str | Path, config: Config, params: Params, meta: Meta, step: int) -> None:
    """Writes a run folder that holds `params` alone: enough for init.source, lm.generate and lm.evaluate."""
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(Path(source) / "tokenizer", folder / "tokenizer")
    keep_origin(str(source), folder)
    meta = {**meta, "config": to_json(config), "best_step": step, "saved_step": step}
    checkpoints = Checkpoints(folder, 1, lambda text: print(text, file=sys.stderr))
    checkpoints.save(step, {"params": params}, meta)
    checkpoints.close()
    write_json(folder / "config.json", to_json(config))


USAGE = """
usage: python -m lm.lora merge WORKDIR OUT [--step=best|last|N]
       python -m lm.lora export WORKDIR OUT [--step=best|last|N] [--base=NAME]
       python -m lm.lora import FOLDER WORKDIR OUT [--step=best|last|N]

merge: melts the adapters of the run in WORKDIR into its weights; OUT is a run without adapters, in float32.
export: writes them as a PEFT folder; --base names the model that PEFT should load them onto.
import: puts the adapters of a PEFT folder beside the weights of the run in WORKDIR; OUT is a run with adapters.
PEFT folders name modules as the model's family does; where q, k and v are one tensor (GPT-2, Phi-3), they have no place.

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
    loaded = build.load_run(source, flags["step"], lambda text: print(text, file=sys.stderr))
    config, model, params = loaded.config, loaded.model.config, split_stacks(loaded.params)
    names = {}
    if command != "merge":
        names = names_of(source, model, [path for path in params if base_of(path) == path])
    if command == "export":
        trained = match_table(config.optim.train, list(params), "optim.train")
        also = [path for path, on in trained.items() if on and base_of(path) == path]
        save_peft(out, params, config.lora, names, also, flags["base"])
    else:
        plain = merge(params, model.adapters)[0]
        table, lora = ((".*", True),), LoraConfig()
        if command == "import":
            if config.lora.rank:
                raise UserError(f"{source} has adapters already: merge them first")
            lora, adapters = load_peft(folders[0], names)
            plain = join_adapters(plain, model, lora, adapters)
            table = adapters_only("|".join(path for path in adapters if base_of(path) == path))
        changed = replace(config, lora=lora, optim=replace(config.optim, train=table, frozen_dtype="float32"))
        meta = {**read_meta(source, loaded.step), "start": f"{command}: {' '.join(folders[:-1])}"}
        write_run(out, source, changed, plain, meta, loaded.step)
    print(f"{command}: {out} is written")


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
