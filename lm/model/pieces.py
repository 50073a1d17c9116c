"""How is attention computed without ever holding all scores? A piece of the queries, or of the keys, at a time.

Flash attention 2 (arXiv:2307.08691) in plain XLA: the forward goes over pieces of the queries, the backward computes the
scores again and goes over pieces of the keys. Memory grows with T, not with T^2; on a CPU a piece's scores stay in the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.model.formula import NEVER, slot_mask, softcap
from lm.model.products import einsum, einsum_f32, settle

PIECE = 512  # queries or keys at a time, where the platform does not say otherwise


def piece_size(seq_len: int, platform: str) -> int:
    """On a CPU as small as the cache likes it, but at most 16 pieces: each takes time to compile.

    >>> piece_size(256, "cpu"), piece_size(8192, "cpu"), piece_size(8192, "gpu")
    (64, 512, 512)
    """
    return 64 * max(-(-seq_len // 1024), 1) if platform == "cpu" else PIECE


def row_groups(rows: int, heads: int, seq_len: int, platform: str) -> int:
    """Into how many groups of rows attention is split, each a chain of its own: XLA computes a batched product on one core.

    Only where the scores of a piece outgrow a core's cache and the pieces are few, since each takes time to compile.

    >>> row_groups(16, 6, 256, "cpu"), row_groups(12, 4, 64, "cpu"), row_groups(16, 6, 1024, "cpu"), row_groups(16, 6, 256, "gpu")
    (4, 1, 1, 1)
    """
    size = piece_size(seq_len, platform)
    large = 4 * rows * heads * size * seq_len > 4 * 2**20
    return 4 if platform == "cpu" and large and rows % 4 == 0 and seq_len <= 4 * size else 1


@dataclass(frozen=True)
class Cut:
    """How the T queries and S keys are cut; query t is in slot `first_slot` + t (None: known only on the device)."""

    T: int
    S: int
    size: int
    first_slot: int | None
    window: int
    cap: float

    def by_queries(self) -> list[tuple[slice, slice]]:
        """Pieces of the queries, each with the keys that they may see."""
        pieces = []
        for start in range(0, self.T, self.size):
            stop, keys = min(start + self.size, self.T), slice(0, self.S)
            if self.first_slot is not None:
                slot = self.first_slot
                keys = slice(max(0, slot + start - self.window + 1) if self.window else 0, min(self.S, slot + stop))
            pieces.append((slice(start, stop), keys))
        return pieces

    def by_keys(self) -> list[tuple[slice, slice]]:
        """Pieces of the keys, each with the queries that may see them."""
        pieces = []
        for start in range(0, self.S, self.size):
            stop, rows = min(start + self.size, self.S), slice(0, self.T)
            if self.first_slot is not None:
                first = min(max(0, start - self.first_slot), self.T)
                last = max(first, stop - self.first_slot + self.window - 1) if self.window else self.T
                rows = slice(first, min(last, self.T))
            pieces.append((slice(start, stop), rows))
        return pieces


def attend_in_pieces(
    q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, q_segments_BT: jax.Array, k_segments_BS: jax.Array,
    first_slot: Any, window: int, cap: float, size: int, groups: int = 1,
) -> jax.Array:  # fmt: skip
    """The same as `attend` with `slot_mask`. Returns [B, T, K, G, H] in the dtype of `v`."""
    if groups > 1:
        arrays = (q_BTKGH, k_BSKH, v_BSKH, q_segments_BT, k_segments_BS)
        attend = partial(attend_in_pieces, first_slot=first_slot, window=window, cap=cap, size=size)
        return jnp.concatenate([attend(*part) for part in zip(*(jnp.split(x, groups) for x in arrays))])
    slot = first_slot if isinstance(first_slot, int) else None
    cut = Cut(q_BTKGH.shape[1], k_BSKH.shape[1], size, slot, window, cap)
    q_BKGTH, k_BKSH, v_BKSH = jnp.moveaxis(q_BTKGH, 1, 3), k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
    return jnp.moveaxis(_attend(cut, q_BKGTH, k_BKSH, v_BKSH, (q_segments_BT, k_segments_BS, first_slot)), 3, 1)


def _scores(cut: Cut, q: jax.Array, k: jax.Array, rows: slice, keys: slice, where: Any) -> jax.Array:
    s_BKGTS = softcap(einsum_f32("BKGTH,BKSH->BKGTS", q[:, :, :, rows], k[:, :, keys]), cut.cap)
    q_segments, k_segments, slot = where
    mask_BTS = slot_mask(q_segments[:, rows], k_segments[:, keys], slot + rows.start - keys.start, cut.window)
    return jnp.where(mask_BTS[:, None, None], s_BKGTS, NEVER)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(cut: Cut, q_BKGTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, where: Any) -> jax.Array:
    return _forward(cut, q_BKGTH, k_BKSH, v_BKSH, where)[0]


def _forward(
    cut: Cut, q_BKGTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, where: Any
) -> tuple[jax.Array, tuple[Any, ...]]:
    q, k, v = settle((q_BKGTH / math.sqrt(q_BKGTH.shape[-1]), k_BKSH, v_BKSH))
    outs, logs = [], []
    for rows, keys in cut.by_queries():
        s_BKGTS = _scores(cut, q, k, rows, keys, where)
        top_BKGT1 = s_BKGTS.max(-1, keepdims=True)
        p_BKGTS = jnp.exp(s_BKGTS - top_BKGT1)
        total_BKGT1 = p_BKGTS.sum(-1, keepdims=True)
        y_BKGTH = einsum("BKGTS,BKSH->BKGTH", p_BKGTS.astype(v.dtype), v[:, :, keys])
        outs.append((y_BKGTH / total_BKGT1).astype(v.dtype))
        logs.append(top_BKGT1 + jnp.log(total_BKGT1))
    y_BKGTH = jnp.concatenate(outs, axis=3)
    return y_BKGTH, (q, k, v, where, y_BKGTH, jnp.concatenate(logs, axis=3))


def _backward(cut: Cut, kept: tuple[Any, ...], g_BKGTH: jax.Array) -> tuple[Any, Any, Any, None]:
    q, k, v, where, y_BKGTH, log_BKGT1 = kept
    g = settle(g_BKGTH)
    delta_BKGT1 = (g.astype(jnp.float32) * y_BKGTH).sum(-1, keepdims=True)
    pieces = [rows for rows, _ in cut.by_queries()]
    q_parts: list[list[jax.Array]] = [[] for _ in pieces]
    k_parts, v_parts = [], []
    for keys, rows in cut.by_keys():
        s_BKGTS = _scores(cut, q, k, rows, keys, where)
        p_BKGTS = jnp.exp(s_BKGTS - log_BKGT1[:, :, :, rows])
        v_parts.append(einsum("BKGTS,BKGTH->BKSH", p_BKGTS.astype(v.dtype), g[:, :, :, rows]))
        p_grad_BKGTS = einsum_f32("BKGTH,BKSH->BKGTS", g[:, :, :, rows], v[:, :, keys])
        s_grad_BKGTS = p_BKGTS * (p_grad_BKGTS - delta_BKGT1[:, :, :, rows])
        if cut.cap:  # of a masked score p is 0
            s_grad_BKGTS *= 1 - jnp.square(jnp.maximum(s_BKGTS, -cut.cap) / cut.cap)
        s_grad_BKGTS = s_grad_BKGTS.astype(v.dtype)
        k_parts.append(einsum("BKGTS,BKGTH->BKSH", s_grad_BKGTS, q[:, :, :, rows]))
        q_grad_BKGTH: Any = einsum_f32("BKGTS,BKSH->BKGTH", s_grad_BKGTS, k[:, :, keys])
        for parts, piece in zip(q_parts, pieces):
            first, last = max(piece.start, rows.start), min(piece.stop, rows.stop)
            if first < last:
                part = q_grad_BKGTH[:, :, :, first - rows.start : last - rows.start]
                pad = (first - piece.start, piece.stop - last)
                parts.append(part if pad == (0, 0) else jnp.pad(part, [(0, 0)] * 3 + [pad, (0, 0)]))
    q_grad_BKGTH = jnp.concatenate([sum(parts) for parts in q_parts], axis=3) / math.sqrt(q.shape[-1])
    k_grad_BKSH, v_grad_BKSH = jnp.concatenate(k_parts, axis=2), jnp.concatenate(v_parts, axis=2)
    q_grad, k_grad, v_grad = settle((q_grad_BKGTH.astype(q.dtype), k_grad_BKSH, v_grad_BKSH))
    return q_grad, k_grad, v_grad, None


_attend.defvjp(_forward, _backward)
