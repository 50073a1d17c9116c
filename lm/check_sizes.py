"""Which sizes do not fit together: heads and rotations, a model and its devices?"""

from __future__ import annotations

import math
from dataclasses import fields

from lm.config import Config, ConfigError, MeshConfig, mesh_shape


def check_rope(config: Config) -> list[str]:
    model, scaling = config.model, config.model.rope_scaling
    dims = int(model.q_head_dim * model.rope_fraction)
    problems = []
    if model.rope_fraction > 1:
        problems.append(f"config.model.rope_fraction: must be in (0, 1], got {model.rope_fraction:g}")
    elif dims % 2 or not dims:
        fraction = f" x rope_fraction={model.rope_fraction:g}" if model.rope_fraction != 1 else ""
        problems.append(f"config.model.head_dim: rope needs an even head size, got {model.q_head_dim}{fraction}")
    if scaling.kind not in ("none", "linear") and not scaling.original_len:
        problems.append(f"config.model.rope_scaling.original_len: {scaling.kind!r} needs the length of the pretraining")
    for key in ("short_factor", "long_factor") if scaling.kind == "longrope" else ():
        found = len(getattr(scaling, key))
        if found != dims // 2:
            problems.append(f"config.model.rope_scaling.{key}: needs {dims // 2} numbers, one a pair, got {found}")
    if scaling.kind == "llama3" and scaling.low_freq_factor >= scaling.high_freq_factor:
        problems.append("config.model.rope_scaling: low_freq_factor must be below high_freq_factor")
    return problems


def check_mesh(config: Config, devices: int | None) -> list[str]:
    sizes = {field.name: getattr(config.mesh, field.name) for field in fields(MeshConfig)}
    problems = [f"config.mesh.{k}: must be -1 or >= 1, got {n}" for k, n in sizes.items() if n == 0 or n < -1]
    if list(sizes.values()).count(-1) > 1:
        problems.append("config.mesh: only one axis may be -1 (all devices that are left)")
    if problems or devices is None:
        return problems
    text = " x ".join(f"{k}={n}" for k, n in sizes.items())
    try:
        shape = mesh_shape(config.mesh, devices)
    except ConfigError:
        needed = math.prod(max(n, 1) for n in sizes.values())
        several = "a multiple of " if -1 in sizes.values() else ""
        return [f"config.mesh {text} needs {several}{needed} devices, found {devices}"]
    model, rows = config.model, shape["data"] * shape["fsdp"]
    micro_rows = config.data.batch_size // max(config.train.micro_batches, 1)
    if micro_rows % rows:
        text = f"{micro_rows} rows (data.batch_size={config.data.batch_size} / train.micro_batches={config.train.micro_batches})"
        problems.append(f"config.data.batch_size: {text} do not divide over mesh data x fsdp = {rows} devices")
    for key, size, axis in [
        ("model.dim", model.dim, "fsdp"),
        ("data.seq_len", config.data.seq_len, "context"),
        ("model.heads", model.heads, "tensor"),
        ("model.kv_heads", model.n_kv_heads, "tensor"),
        ("model.mlp_dim", model.mlp_width, "tensor"),
    ]:
        if size % shape[axis]:
            problems.append(f"config.{key}={size} is not divisible by mesh.{axis}={shape[axis]}")
    return problems
