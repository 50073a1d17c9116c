"""How are parameters named, selected by pattern, grouped into stacks of layers, and hashed?

`params` is a flat dict {path: array}; paths are API (`embed`, `block_03/attn/q`, `norm_out/scale`, `head`). With
`model.scan`, a run of neighbouring blocks is one array with a leading layer axis under `block_00-27/...`. Patterns,
checkpoints, receipts and hashes always speak of single layers; `split_stacks` and `join_stacks` convert.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import UserError

V = TypeVar("V")
Params = dict[str, Any]  # {path: array}
Runs = tuple[tuple[int, int], ...]  # half-open (start, stop) of each run of layers; () when unrolled

STACK = re.compile(r"block_(\d+)-(\d+)")


def block_name(layer: int) -> str:
    return f"block_{layer:02d}"


def run_name(start: int, stop: int) -> str:
    return f"block_{start:02d}-{stop - 1:02d}"


def layer_paths(path: str) -> list[str]:
    """Returns the per-layer paths that one path stands for.

    >>> layer_paths("block_01-02/attn/q")
    ['block_01/attn/q', 'block_02/attn/q']
    """
    found = STACK.search(path)
    if not found:
        return [path]
    layers = range(int(found[1]), int(found[2]) + 1)
    return [path[: found.start()] + block_name(layer) + path[found.end() :] for layer in layers]


def match_table(table: Sequence[tuple[str, V]], paths: Sequence[str], key: str) -> dict[str, V]:
    """Gives each path the value of the first pattern that matches all of it.

    A pattern with `block_-` counts layers from the end: of 12, `block_-02/.*` means block_10.

    Raises UserError for a path that nothing matches and for a pattern that matches no path (a final '.*' may idle).
    """
    values: dict[str, V] = {}
    used = set()
    from_end = _count_from_end(paths)
    for path in paths:
        for row, (pattern, value) in enumerate(table):
            if re.fullmatch(pattern, from_end.get(path, path) if "block_-" in pattern else path):
                values[path] = value
                used.add(row)
                break
    unmatched = [path for path in paths if path not in values]
    if unmatched:
        patterns = ", ".join(repr(pattern) for pattern, _ in table)
        raise UserError(
            f"{key}: no pattern matches {', '.join(unmatched)} (patterns: {patterns}). End with ('.*', ...)"
        )
    for row, (pattern, _) in enumerate(table):
        if row not in used and pattern != ".*":
            first = [p for p in paths if re.fullmatch(pattern, from_end.get(p, p) if "block_-" in pattern else p)]
            why = f"only what earlier rows took ({first[0]} ...)" if first else "no parameter"
            raise UserError(f"{key}: pattern {pattern!r} matches {why}. {_inventory(paths)} Remove or change it")
    return values


def _count_from_end(paths: Sequence[str]) -> dict[str, str]:
    """Returns {path: the same with its layer counted from the end} for all paths in blocks.

    >>> _count_from_end(["block_00/attn/q", "block_01/attn/q"])["block_00/attn/q"]
    'block_-02/attn/q'
    """
    found = [(path, re.match(r"block_(\d+)(/.*)", path)) for path in paths]
    blocks = [(path, int(match[1]), match[2]) for path, match in found if match]
    layers = max((layer for _, layer, _ in blocks), default=-1) + 1
    return {path: f"block_-{layers - layer:02d}{rest}" for path, layer, rest in blocks}


def _inventory(paths: Sequence[str]) -> str:
    blocks = sorted({path.split("/")[0] for path in paths if path.startswith("block_")})
    rest = [path for path in paths if not path.startswith("block_")]
    inside = sorted({path.split("/", 1)[1] for path in paths if path.startswith("block_")})
    span = f"{blocks[0]} .. {blocks[-1]}, each with {', '.join(inside)}; " if blocks else ""
    return f"This model has {span}{', '.join(rest)}."


def make_runs(trained: Mapping[str, Any], layers: int) -> Runs:
    """Groups neighbouring layers whose leaves are treated alike, from a per-layer mask or other values."""
    kinds = []
    for layer in range(layers):
        prefix = block_name(layer) + "/"
        kinds.append(tuple((p[len(prefix) :], on) for p, on in sorted(trained.items()) if p.startswith(prefix)))
    starts = [i for i in range(layers) if i == 0 or kinds[i] != kinds[i - 1]]
    return tuple(zip(starts, [*starts[1:], layers]))


def in_stacks(values: Mapping[str, V], paths: Sequence[str]) -> dict[str, list[V]]:
    """Collects per-layer `values` for each possibly stacked path, in layer order."""
    return {path: [values[single] for single in layer_paths(path)] for path in paths}


def split_stacks(leaves: Mapping[str, Any]) -> Params:
    """Returns the same leaves in per-layer paths; a stack's leading axis becomes separate arrays."""
    single: Params = {}
    for path, leaf in leaves.items():
        names = layer_paths(path)
        if names == [path]:
            single[path] = leaf
        else:
            single.update({name: leaf[i] for i, name in enumerate(names)})
    return dict(sorted(single.items()))


def join_stacks(leaves: Mapping[str, Any], paths: Sequence[str]) -> Params:
    """Returns per-layer leaves as the (possibly stacked) `paths`."""
    joined = {}
    for path in paths:
        names = layer_paths(path)
        joined[path] = leaves[path] if names == [path] else jnp.stack([leaves[name] for name in names])
    return joined


def leaf_paths(tree: Any) -> list[tuple[str, Any]]:
    """Returns (path, leaf) for any pytree; dict keys, fields and indices joined by '/'."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in found]


def count(leaves: Mapping[str, Any]) -> int:
    """Number of scalars in all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in leaves.values())


def keeps(stored: Any, wanted: Any) -> bool:
    """Says whether numbers of one dtype stay what they are in another, as bfloat16 does in float32."""
    return jnp.promote_types(stored, wanted) == wanted


def to_host(leaf: Any) -> np.ndarray:
    """Returns the whole array on this host, gathering it when its shards live on several."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def hash_leaves(params: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of each per-layer leaf: dtype, shape and bytes."""
    hashes = {}
    for path, leaf in params.items():
        names = layer_paths(path)
        for i, name in enumerate(names):
            part = to_host(leaf if names == [path] else leaf[i])  # a layer at a time: a stack may not fit this host
            digest = hashlib.sha256(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
            hashes[name] = digest.hexdigest()
    return dict(sorted(hashes.items()))


def params_sha256(params: Mapping[str, Any]) -> str:
    """SHA-256 over the hashes of all leaves in path order; equal for any grouping, mesh or device count."""
    text = "".join(f"{path} {digest}\n" for path, digest in hash_leaves(params).items())
    return hashlib.sha256(text.encode()).hexdigest()
