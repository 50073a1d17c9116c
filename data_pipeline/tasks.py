"""How does a record become ids, which of them are learned, and how is a long document cut to the row length?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.records import Record
from data_pipeline.schema import ConfigError
from data_pipeline.tokenizer import Tokenizer

PLAIN = -1  # loss start of a plain text: every id but the first is learned


def check_tokenizer(tokenizer: Tokenizer, add_bos: bool, add_eos: bool, mask: bool) -> None:
    """Raises ConfigError that names each special id which the configuration needs and the tokenizer lacks."""
    special = tokenizer.special
    needs = [
        (add_bos and special.bos < 0, "no begin token; set config.data.add_bos=False"),
        (add_eos and special.eos < 0, 'no end token, which documents end with; use another or config.data.split.by="position"'),
        (mask and special.mask < 0, "no mask token; set config.data.augment.token_dropout=0 and span_mask=0"),
    ]  # fmt: skip
    problems = [f"the tokenizer has {what}" for missing, what in needs if missing]
    if problems:
        raise ConfigError(problems)


def to_ids(
    records: list[Record], tokenizer: Tokenizer, add_bos: bool, add_eos: bool
) -> tuple[list[list[int]], list[int]]:
    """Returns (ids, loss start) of each record: [bos] + text + [eos], or [bos] + prompt + completion + [eos].

    The loss start is the number of ids before the completion, or PLAIN.
    """
    if tokenizer.special.eos < 0 and any(record.completion is not None for record in records):
        raise ConfigError("the tokenizer has no end token, which completions end with; use another")
    pieces = tokenizer.encode_batch([part for record in records for part in record.parts()])
    head = [tokenizer.special.bos] if add_bos else []
    tail = [tokenizer.special.eos] if add_eos else []
    all_ids, starts, at = [], [], 0
    for record in records:
        if record.completion is None:
            all_ids.append(head + pieces[at] + tail)
            starts.append(PLAIN)
            at += 1
        else:
            all_ids.append(head + pieces[at] + pieces[at + 1] + [tokenizer.special.eos])
            starts.append(len(head) + len(pieces[at]))
            at += 2
    return all_ids, starts


@dataclass(frozen=True)
class Chunks:
    """Stretches of documents that fit a row; arrays of one entry a chunk. A chunk has `length` inputs and targets."""

    document: np.ndarray  # int64: number of the document
    start: np.ndarray  # int64: its first input, counted over the ids of all documents
    length: np.ndarray  # int32
    learn_from: np.ndarray  # int32: targets before this one have weight 0
    put_bos: np.ndarray  # bool: the first input is the begin token, since the prompt was cut after it
    pairs: int  # prompt/completion documents
    cut_prompts: int  # of those: prompt cut from the left
    cut_completions: int  # of those: end of the completion cut


def cut_chunks(offsets: np.ndarray, loss_start: np.ndarray, seq_len: int, add_bos: bool, learn_prompt: bool) -> Chunks:
    """Cuts documents to at most `seq_len` inputs each.

    A plain text gives as many chunks as it needs, and every id but its first is the target of exactly one. A
    prompt/completion document gives one chunk: the prompt is cut from the left first, then the completion's end.
    """
    sizes = np.diff(offsets)
    inputs = np.maximum(sizes - 1, 0)
    is_pair = loss_start >= 0
    count = np.where(is_pair, np.minimum(inputs, 1), -(-inputs // seq_len))
    document = np.repeat(np.arange(len(sizes)), count)
    part = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    pair, size, begins = is_pair[document], sizes[document], np.maximum(loss_start, 0)[document]
    # a pair keeps one id before the completion, so that the completion's first id is predicted too
    cut = np.where(pair, np.minimum(np.maximum(size - seq_len - 1, 0), np.maximum(begins - 1, 0)), part * seq_len)
    length = np.minimum(size - 1 - cut, seq_len)
    learn_from = np.where(pair, np.maximum(begins - 1 - cut, 0), 0)
    kept = length - learn_from
    whole = size - np.maximum(begins, 1)
    return Chunks(
        document=document,
        start=offsets[:-1][document] + cut,
        length=length.astype(np.int32),
        learn_from=(np.zeros_like(learn_from) if learn_prompt else learn_from).astype(np.int32),
        put_bos=pair & (cut > 0) & add_bos,
        pairs=int(pair.sum()),
        cut_prompts=int((pair & (cut > 0)).sum()),
        cut_completions=int((pair & (kept < whole)).sum()),
    )
