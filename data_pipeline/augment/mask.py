"""Which inputs of a training batch are hidden, the same on any host, in any packing, at any thread count?

Whether a token is masked is a hash of (seed, epoch, document, place in the document): no random state exists. Measured
with 2^20 tokens (tests/data_pipeline/test_augment.py): token_dropout=0.1 masks 0.100, span_mask=0.15 masks 0.150.
"""

from __future__ import annotations

from typing import Any

from data_pipeline.config import AugmentConfig
from data_pipeline.quiet_tf import import_tf
from data_pipeline.rows import BATCH_DTYPES

_GOLDEN, _MUL1, _MUL2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
DROPOUT, SPAN = 1, 2  # keep the two draws apart


def is_masking(config: AugmentConfig) -> bool:
    return config.token_dropout > 0 or config.span_mask > 0


def augment_batch(batch: dict[str, Any], config: AugmentConfig, bos_id: int, mask_id: int) -> dict[str, Any]:
    """Masks inputs of a batch of tensors; `keys` (of seed, epoch and document) and `places` (in the document) are left out.

    Targets, padding, begin tokens and documents of key 0 stay as they are. Both kinds together mask 1 - (1 - dropout)(1 - span_mask).
    """
    tf = import_tf()
    places = tf.cast(batch["places"], tf.uint64)
    masked = tf.zeros_like(batch["segments"], tf.bool)
    if config.token_dropout > 0:
        masked |= _draw(batch["keys"], places, DROPOUT, config.token_dropout)
    if config.span_mask > 0:
        # A span starts at each place with a chance that makes the expected share span_mask. Starts before the first
        # token count too (the place wraps around), so a document's head is masked as often as the rest.
        start = 1.0 - (1.0 - config.span_mask) ** (1.0 / config.span_length)
        drawn = _draw(batch["keys"], places, SPAN, start)
        masked |= drawn
        # Most starts within reach were drawn for the tokens to the left, and only those before the segment are drawn anew.
        for back in range(1, config.span_length):
            masked |= tf.pad(drawn, [[0, 0], [back, 0]])[:, :-back] & (batch["positions"] >= back)
        near = tf.where((batch["positions"] < config.span_length - 1) & (batch["segments"] > 0))
        before = tf.gather_nd(places, near)[:, None] - tf.constant(list(range(1, config.span_length)), tf.uint64)
        reached = tf.reduce_any(_draw(tf.gather_nd(batch["keys"], near)[:, None], before, SPAN, start), axis=1)
        masked = tf.tensor_scatter_nd_update(masked, near, tf.gather_nd(masked, near) | reached)
    masked &= (batch["segments"] > 0) & (batch["keys"] != 0)
    if bos_id >= 0:
        masked &= batch["tokens"] != bos_id
    out = {name: batch[name] for name in BATCH_DTYPES}
    out["tokens"] = tf.where(masked, tf.constant(mask_id, tf.int32), batch["tokens"])
    return out


def _draw(base: Any, places: Any, kind: int, share: float) -> Any:
    """True for `share` of the places."""
    tf = import_tf()
    mixed = _hash(_xor(base, _hash(_xor(places, _hash(tf.constant(kind, tf.uint64))))))
    return mixed < tf.constant(int(share * 2**64), tf.uint64)


def _hash(x: Any) -> Any:
    """The finaliser of SplitMix64 on uint64 tensors; `mix.hash64` is the same in numpy."""
    tf = import_tf()

    def constant(value: int) -> Any:
        return tf.constant(value, tf.uint64)

    def shift(value: Any, places: int) -> Any:
        return tf.bitwise.right_shift(value, constant(places))

    x = x + constant(_GOLDEN)
    x = _xor(x, shift(x, 30)) * constant(_MUL1)
    x = _xor(x, shift(x, 27)) * constant(_MUL2)
    return _xor(x, shift(x, 31))


def _xor(a: Any, b: Any) -> Any:
    return import_tf().bitwise.bitwise_xor(a, b)
