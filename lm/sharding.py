"""Which device holds which part of each array?

One ordered table of (path pattern, axis of each dimension) covers parameters and optimizer state alike, because
optimizer state repeats the parameter paths. Rows of the batch lie over `data` and `fsdp`, their places over `context`.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm.config import MeshConfig, UserError, mesh_shape
from lm.params import layer_paths, leaf_paths

ROWS = ("data", "fsdp")

# The axis of each of the last dimensions of a leaf; leading ones, of a stack's layers or of experts, are never sharded.
TABLE: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r".*(attn/[qkv]|mlp/(up|gate))(_absmax)?", ("fsdp", "tensor")),
    (r".*mlp/router", ("fsdp", None)),
    (r".*(attn/[qkv]|mlp/(up|gate))_lora_a", ("fsdp", None)),
    (r".*(attn/[qkv]|mlp/(up|gate))_lora_b", (None, "tensor")),
    (r".*(attn/[qkv]|mlp/(up|gate))_(bias|dora_scale)", ("tensor",)),
    (r".*(attn/out|mlp/down)(_absmax)?", ("tensor", "fsdp")),
    (r".*(attn/out|mlp/down)_lora_a", ("tensor", None)),
    (r".*(attn/out|mlp/down)_lora_b", (None, "fsdp")),
    (r"embed", ("tensor", "fsdp")),
    (r"head|classifier", ("fsdp", "tensor")),
    (r"positions", (None, "fsdp")),
    (r".*(scale|bias)", ()),
)


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """Builds the (data, fsdp, context, tensor) mesh over all devices; raises ConfigError when they do not fit.

    The order of the devices is JAX's, along the wires, unless it scatters the rows of a host over the batch (16 chips of
    TPU v5e in one axis) or there is none (several slices, axes that do not fit the torus): then it is by host.
    """
    devices = devices or jax.devices()
    shape = mesh_shape(config, len(devices))
    names, axis_types = tuple(shape), (AxisType.Auto,) * len(shape)
    if len({getattr(device, "slice_index", 0) for device in devices}) == 1:
        with contextlib.suppress(NotImplementedError):
            mesh = jax.make_mesh(tuple(shape.values()), names, axis_types=axis_types, devices=devices)
            if _rows_together(mesh):
                return mesh
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(tuple(shape.values())), names, axis_types=axis_types)


def _rows_together(mesh: Mesh) -> bool:
    """Says whether each process holds one unbroken range of the batch's rows, which is then all that it reads."""
    processes = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(row_shards(mesh), -1)
    blocks = [np.flatnonzero((processes == process).any(1)) for process in np.unique(processes)]
    return all(block[-1] - block[0] + 1 == len(block) for block in blocks)


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the PartitionSpec of one leaf; an axis that does not divide its dimension is left out."""
    for pattern, axes in TABLE:
        if re.fullmatch(pattern, path):
            axes = (None,) * (len(shape) - len(axes)) + axes
            fitting = [a if a and shape[i] % mesh.shape[a] == 0 else None for i, a in enumerate(axes)]
            return PartitionSpec(*fitting)
    raise AssertionError(f"lm/sharding.py: TABLE has no row for parameter {path!r}")


def param_shardings(params: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    return {path: NamedSharding(mesh, param_spec(path, leaf.shape, mesh)) for path, leaf in params.items()}


def state_shardings(state: Any, params: Mapping[str, Any], mesh: Mesh) -> Any:
    """Shards each leaf of a train state whose path ends in a parameter's, with its shape, like that parameter."""
    paths = leaf_paths(state)
    shapes = {single: leaf.shape[1:] for p, leaf in params.items() for single in layer_paths(p)}
    shapes |= {p: leaf.shape for p, leaf in params.items()}  # a state may hold single layers of what is a stack
    found = []
    for path, leaf in paths:
        owner = next((p for p in shapes if path == p or path.endswith("/" + p)), None)
        same = owner is not None and shapes[owner] == leaf.shape
        spec = param_spec(owner, leaf.shape, mesh) if owner is not None and same else PartitionSpec()
        found.append(NamedSharding(mesh, spec))
    return jax.tree.unflatten(jax.tree.structure(state), found)


def row_shards(mesh: Mesh) -> int:
    """In how many parts the rows of a batch lie."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def whole_rows(rows: int, mesh: Mesh) -> int:
    """Returns the least number of rows that is not below `rows` and divides over the devices."""
    shards = row_shards(mesh)
    return -(-rows // shards) * shards


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of [B, T, ...] arrays."""
    return NamedSharding(mesh, PartitionSpec(ROWS, "context"))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def constrain_rows(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Tells the compiler how an activation [B, T, ...] lies over the row axes and `context`."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def local_rows(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Returns the half-open range of global rows that this process's devices hold."""
    index = NamedSharding(mesh, PartitionSpec(ROWS)).addressable_devices_indices_map((batch_size,))
    spans = [slices[0].indices(batch_size)[:2] for slices in index.values() if slices is not None]
    return min(start for start, _ in spans), max(stop for _, stop in spans)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """Joins this process's rows with the others' into global arrays of `batch_size` rows."""
    sharding = batch_sharding(mesh)
    start, stop = local_rows(mesh, batch_size)
    arrays = {}
    for key, array in batch.items():
        if array.shape[0] != stop - start:
            raise UserError(f"this process has {array.shape[0]} rows of {key}, its devices need {stop - start}")

        def part(index: Any, array: np.ndarray = array) -> np.ndarray:
            first, last, _ = index[0].indices(batch_size)
            return array[first - start : last - start, *index[1:]]

        arrays[key] = jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)
    return arrays
