"""What does augmentation make of a document in an epoch, beside what it was, and how much does it change?"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator

import numpy as np

from data_pipeline.augment.check import is_on
from data_pipeline.augment.mask import augment_batch, is_masking
from data_pipeline.augment.reader import RewrittenRows
from data_pipeline.augment.rewrite import Rewriter
from data_pipeline.batch import Data
from data_pipeline.quiet_tf import import_tf
from data_pipeline.rows import RowReader
from data_pipeline.schema import UserError

RED, GREEN, RESET = "\x1b[31m", "\x1b[32m", "\x1b[0m"
CONTEXT = 400  # tokens of a chunk that are shown


def preview(
    data: Data, documents: int, epoch: int, colour: bool, write: Callable[[np.ndarray], list[str]]
) -> Iterator[str]:
    """Yields the first `documents` training documents of each source, as they are and as an epoch has them.

    Removed tokens are in [-minus-], new ones in {+plus+} (red and green on a terminal); `write` makes one text of each id.
    """
    if not is_on(data.config.augment):
        raise UserError("config.data.augment: everything is off, so there is nothing to preview")
    if data.config.streaming:
        raise UserError("streamed rows are the same as prepared ones: preview them with --config.data.streaming=False")
    for number, reader in data.readers["train"]:
        for document in range(min(documents, len(reader.shard.keys))):
            yield f"{data.sources[number].name}, document {document}, epoch {epoch}:"
            yield from _document(data, reader, document, epoch, colour, write)


def _document(
    data: Data, reader: RowReader, document: int, epoch: int, colour: bool, write: Callable[[np.ndarray], list[str]]
) -> Iterator[str]:
    here = np.flatnonzero(reader.chunks.document == document)
    key = data.epoch_keys(np.full(len(here), epoch))
    if isinstance(reader, RewrittenRows):
        stretches = reader.place(np.arange(len(here)), here, key)
    else:  # only masks
        rewriter = Rewriter(data.config.augment, data.tokenizer, data.config.seq_len)
        plain = RewrittenRows(reader.shard, reader.chunks, "none", reader.bos_id, reader.pad_id, rewriter)
        stretches, reader = plain.place(np.arange(len(here)), here, key), plain
    old = reader.pieces(stretches)
    new = reader.rewriter.rewrite(old)
    for before, after, place, document_key in zip(old, new, stretches.place.tolist(), stretches.key):
        inputs = (
            _mask(data, after.ids[:-1], int(document_key), place) if is_masking(data.config.augment) else after.ids[:-1]
        )
        ids = np.append(inputs, after.ids[-1])
        a, b = write(before.ids[:CONTEXT]), write(ids[:CONTEXT])
        changed, text = _diff(a, b, colour)
        learned = int(after.weights[1:].sum())
        yield (
            f"  tokens {place} to {place + len(before.ids) - 1}: {len(before.ids) - 1} become {len(after.ids) - 1}, "
            f"{learned} of them learned; {changed} of the first {len(a)} changed"
        )
        yield from ("    " + line for line in text.split("\n"))


def _mask(data: Data, tokens: np.ndarray, key: int, place: int) -> np.ndarray:
    tf, n = import_tf(), len(tokens)
    row = {
        "tokens": tokens, "targets": tokens, "segments": np.ones(n, np.int32), "positions": np.arange(n, dtype=np.int32),
        "weights": np.ones(n, np.float32), "keys": np.full(n, key, np.uint64), "places": np.arange(place, place + n),
    }  # fmt: skip
    special = data.tokenizer.special
    batch = {name: tf.constant(array[None]) for name, array in row.items()}
    return augment_batch(batch, data.config.augment, special.bos, special.mask)["tokens"].numpy()[0]


def _diff(a: list[str], b: list[str], colour: bool) -> tuple[int, str]:
    """Returns (how many of `a` are gone or replaced, `b` with what changed marked)."""
    out, changed = "", 0
    gone, come, end = (RED, GREEN, RESET) if colour else ("[-", "{+", "")
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            out += "".join(a[i:j])
            continue
        changed += j - i
        out += f"{gone}{''.join(a[i:j])}{end or '-]'}" if j > i else ""
        out += f"{come}{''.join(b[k:m])}{end or '+}'}" if m > k else ""
    return changed, out
