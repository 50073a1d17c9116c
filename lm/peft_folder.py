"""How do adapters lie in a folder of PEFT's? adapter_config.json and adapter_model.safetensors, by the module names of a family.

Tensors there are transposed (lora_A.weight [r, in], lora_B.weight [out, r]). Where a family has one module for several of our
matrices (q, k and v of GPT-2, GPT-NeoX, Phi-3), their adapters side by side are one of that module: n adapters of rank r with
an A each are one of rank n r, whose B has a block for each; with one A in common, as PEFT trains it, the rank stays r.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import LoraConfig, ModelConfig, UserError
from lm.hf.names import Row
from lm.hf.tensors import open_tensors, write_tensors
from lm.model.adapters import MATRIX, base_of
from lm.params import Params, split_stacks, to_host

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
A, B, SCALE = "_lora_a", "_lora_b", "_dora_scale"
ENDS = {"lora_A.weight": A, "lora_B.weight": B, "lora_magnitude_vector": SCALE, "weight": ""}


def module_of(row: Row) -> str:
    return row.hf.removesuffix(".weight")


def wider(lora: LoraConfig, count: int) -> dict[str, float]:
    """Rank and alpha, as PEFT counts them, of `count` adapters that are one: the factor before x A B stays what it is."""
    return {"r": count * lora.rank, "lora_alpha": lora.alpha * (count**0.5 if lora.rslora else count)}


def save_peft(
    folder: str | Path, params: Mapping[str, Any], lora: LoraConfig, modules: Sequence[Row], heads: int,
    also: Sequence[str] = (), base: str = "",
) -> None:  # fmt: skip
    """Writes the adapters in `params` (single layers or stacks) as a PEFT folder, with what `also` trained, whole.

    `modules` are the family's (`lm.hf.names.module_rows`), `base` is the model that PEFT should look for. Raises UserError for
    a trained parameter that has no module.
    """
    leaves = split_stacks(params)
    adapted = {base_of(path) for path in leaves if path.endswith(A)}
    rows = {path: row for row in modules for path in row.ours}
    nameless = [path for path in (*sorted(adapted), *also) if path not in rows]
    nameless += [path for path in also if path in rows and len(rows[path].ours) > 1]
    used = [row for row in modules if adapted & set(row.ours)]
    if lora.dora:
        nameless += [f"{row.hf} without {path}" for row in used for path in row.ours if path not in adapted]
    if nameless or not adapted:
        what = f"no module name for {', '.join(nameless)}" if nameless else "there are no adapters in this run"
        raise UserError(f"{what}: PEFT's format cannot hold it. Merge instead: python -m lm.lora merge WORKDIR OUT")
    tensors, ranks, alphas = {}, {}, {}
    for row in used:
        held = {
            name: to_host(leaves[name]) for path in row.ours for end in (A, B, SCALE) if (name := path + end) in leaves
        }
        widths = [leaves[path].shape[-1] for path in row.ours]
        for end, tensor in join(row, held, widths, heads).items():
            tensors[f"base_model.model.{module_of(row)}.{end}"] = tensor
            if end == "lora_A.weight" and len(tensor) != lora.rank:
                numbers = wider(lora, len(row.ours))
                ranks[module_of(row)], alphas[module_of(row)] = int(numbers["r"]), numbers["lora_alpha"]
    for path in also:
        tensors[f"base_model.model.{rows[path].hf}"] = rows[path].to_hf([to_host(leaves[path])], heads)
    short = sorted({module_of(row).rpartition(".")[2] for row in used})
    ambiguous = [row for row in modules if module_of(row).rpartition(".")[2] in short] != used
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base or None, "inference_mode": True,
        "r": lora.rank, "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout, "use_rslora": lora.rslora, "use_dora": lora.dora, "bias": "none",
        "rank_pattern": ranks, "alpha_pattern": alphas, "fan_in_fan_out": not all(row.transpose for row in used),
        "target_modules": [module_of(row) for row in used] if ambiguous else short,
        "modules_to_save": [module_of(rows[path]) for path in also] or None,
    }  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / TENSORS, {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def join(row: Row, held: Mapping[str, np.ndarray], widths: Sequence[int], heads: int) -> dict[str, np.ndarray]:
    """Makes one module's tensors of the adapters of its matrices; a matrix without one counts as an adapter of zeros."""
    some_a, some_b = (next(leaf for name, leaf in held.items() if name.endswith(end)) for end in (A, B))
    a_parts = [held.get(path + A, np.zeros_like(some_a)) for path in row.ours]  # [in, r]
    b_parts = [held.get(path + B, np.zeros((len(some_b), F))) for path, F in zip(row.ours, widths)]  # [r, F]
    if all(np.array_equal(part, a_parts[0]) for part in a_parts):
        a_parts = a_parts[:1]
    else:
        b_parts = [
            np.pad(part, ((n * len(part), (len(b_parts) - 1 - n) * len(part)), (0, 0)))
            for n, part in enumerate(b_parts)
        ]
    upright = replace(row, transpose=True)
    tensors = {"lora_A.weight": np.concatenate(a_parts, axis=1).T, "lora_B.weight": upright.to_hf(b_parts, heads)}
    if row.ours[0] + SCALE in held:
        tensors["lora_magnitude_vector"] = upright.to_hf([held[path + SCALE] for path in row.ours], heads)
    return tensors


def split(
    row: Row, tensors: Mapping[str, np.ndarray], rank: int, widths: Sequence[int], heads: int
) -> dict[str, np.ndarray] | None:
    """What `join` undoes: the adapters of a module's matrices; None where they have no such form."""
    if not {"lora_A.weight", "lora_B.weight"} <= set(tensors) or tensors["lora_A.weight"].ndim != 2:
        return None
    a, b, upright = tensors["lora_A.weight"].T, tensors["lora_B.weight"], replace(row, transpose=True)
    count = len(row.ours)
    if "lora_magnitude_vector" in tensors and tensors["lora_magnitude_vector"].shape != (sum(widths),):
        return None
    if b.shape != (sum(widths), a.shape[1]) or a.shape[1] not in (rank, count * rank):
        return None
    a_parts, b_parts = [a] * count, upright.to_ours(b, widths, heads)
    if a.shape[1] != rank:
        blocks = [slice(n * rank, (n + 1) * rank) for n in range(count)]
        if any(np.delete(part, block, axis=0).any() for part, block in zip(b_parts, blocks)):
            return None
        a_parts = [a[:, block] for block in blocks]
        b_parts = [part[block] for part, block in zip(b_parts, blocks)]
    found = {}
    for path, a_part, b_part in zip(row.ours, a_parts, b_parts):
        if a_part.any() or b_part.any():
            found |= {path + A: a_part, path + B: b_part}
    if "lora_magnitude_vector" in tensors:
        scales = upright.to_ours(tensors["lora_magnitude_vector"], widths, heads)
        found |= {path + SCALE: scale for path, scale in zip(row.ours, scales)}
    return found


# Keys of adapter_config.json that say nothing about how the adapters compute. Any other that is set is refused.
IDLE = {
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_version", "inference_mode", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "fan_in_fan_out",
    "runtime_config", "eva_config",
}  # fmt: skip
READ = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save", "bias", "init_lora_weights",
    "rank_pattern", "alpha_pattern",
}  # fmt: skip


def read_peft_config(path: Path, modules: Sequence[Row]) -> tuple[LoraConfig, list[str]]:
    """Returns the adapters' settings (targets left open) and modules_to_save; UserError for what we cannot compute."""
    try:
        config = json.loads(path.read_text())
        assert isinstance(config, dict)
        lora = LoraConfig(
            rank=int(config["r"]), alpha=float(config["lora_alpha"]), dropout=float(config.get("lora_dropout") or 0.0),
            rslora=bool(config.get("use_rslora")), dora=bool(config.get("use_dora")),
        )  # fmt: skip
        saved: list[str] = list(config.get("modules_to_save") or ())
        patterns = {key: dict(config.get(f"{key}_pattern") or {}) for key in ("rank", "alpha")}
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
    # Modules that hold several matrices may have as many times the rank; nothing else may have its own.
    wide = {module_of(row): wider(lora, len(row.ours)) for row in modules if len(row.ours) > 1}
    for name, key in (("rank", "r"), ("alpha", "lora_alpha")):
        if any(wide.get(module, {}).get(key) != value for module, value in patterns[name].items()):
            problems.append(f"{name}_pattern={patterns[name]!r}")
    if patterns["rank"].keys() != patterns["alpha"].keys() and not problems:
        problems.append(f"alpha_pattern={patterns['alpha']!r} beside rank_pattern={patterns['rank']!r}")
    if problems or lora.rank < 1 or lora.alpha <= 0:
        what = ", ".join(problems) or f"r={lora.rank}, lora_alpha={lora.alpha:g}"
        raise UserError(
            f"{path}: {what}: adapters here have no such thing. Merge them with peft and import the whole model"
        )
    return lora, saved


def load_peft(folder: str | Path, modules: Sequence[Row], model: ModelConfig) -> tuple[LoraConfig, Params]:
    """Reads a PEFT folder: the settings, and float32 parameters of single layers (adapters, and modules_to_save).

    Raises UserError for features that we do not have and for tensors without a place among `modules`, by name.
    """
    folder = Path(folder)
    lora, saved = read_peft_config(folder / CONFIG, modules)
    try:
        with open_tensors(folder / TENSORS) as file:
            tensors = {name: np.asarray(file.read(name), np.float32) for name in file.shapes}
    except UserError as error:
        raise UserError(f"the adapters cannot be read: {error}") from None
    rows = {module_of(row): row for row in modules}
    parts: dict[str, dict[str, np.ndarray]] = {}
    homeless, params = [], {}
    for key, tensor in tensors.items():
        found = re.fullmatch(rf"base_model\.model\.(.+?)\.({'|'.join(map(re.escape, ENDS))})", key)
        row = rows.get(found[1]) if found else None
        whole = found is not None and found[2] == "weight"
        if not found or row is None or whole != (MATRIX.fullmatch(row.ours[0]) is None):
            homeless.append(key)
        elif whole:
            params[row.ours[0]] = tensor.T if row.transpose else tensor
        else:
            parts.setdefault(found[1], {})[found[2]] = tensor
    for module, held in parts.items():
        row = rows[module]
        found = split(row, held, lora.rank, widths_of(row, model, held), model.heads)
        if found is None:
            homeless += [f"{module}.{end} {list(tensor.shape)}" for end, tensor in sorted(held.items())]
        else:
            params |= found
    homeless += [f"modules_to_save={name}" for name in saved if not any(f".{name}.weight" in key for key in tensors)]
    if homeless or not params:
        raise UserError(
            f"{folder}: no place in this model for {', '.join(homeless[:8]) or 'nothing'} ({len(homeless)} in all)"
        )
    adapted = {base_of(path) for path in params if base_of(path) != path}
    matrices = [path for row in modules for path in row.ours if MATRIX.fullmatch(path)]
    return replace(lora, targets=_targets(adapted, matrices)), dict(sorted(params.items()))


def widths_of(row: Row, model: ModelConfig, held: Mapping[str, np.ndarray]) -> list[int]:
    """The last dimensions of a module's matrices; of one alone what its tensors say, to be compared with the model later."""
    if len(row.ours) == 1:
        return [held["lora_B.weight"].shape[0] if "lora_B.weight" in held else 0]
    H = model.q_head_dim
    known = {"q": model.heads * H, "k": model.n_kv_heads * H, "v": model.n_kv_heads * H}
    return [known.get(path.rpartition("/")[2], model.mlp_width) for path in row.ours]


def _targets(adapted: set[str], matrices: list[str]) -> tuple[str, ...]:
    """Patterns for `lora.targets` that match `adapted` alone: one for each matrix that all layers adapt, else each path."""
    patterns = []
    for name in dict.fromkeys(path.partition("/")[2] for path in matrices):
        everywhere = [path for path in matrices if path.endswith(f"/{name}")]
        here = [path for path in everywhere if path in adapted]
        patterns += [f"block_.*/{name}"] if here == everywhere else here
    return tuple(patterns)
