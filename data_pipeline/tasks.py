"""How does a record become ids, which of them are learned, and how is a long document cut to the row length?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data_pipeline.chat import encode_rendered
from data_pipeline.config import TEXT, DataConfig
from data_pipeline.records import Record
from data_pipeline.schema import ConfigError
from data_pipeline.tokenizer import Tokenizer

PLAIN = -1  # loss start of a plain text: every id but the first is learned
CHAT = -2  # loss start of a conversation: what is learned is kept id by id


def put_in_template(records: list[Record], template: str) -> list[Record]:
    """Returns the records with their texts in a `text_template`; as they are where it is empty.

    >>> put_in_template([Record("where is it?")], "{text} Intent:")[0].text
    'where is it? Intent:'
    """
    return [replace(one, text=template.replace(TEXT, one.text)) for one in records] if template else records


def take_out_of_template(text: str, template: str) -> str:
    """Returns a text without the `text_template` around it.

    >>> take_out_of_template("Customer: where is it? Intent:", "Customer: {text} Intent:")
    'where is it?'
    """
    before, _, after = template.partition(TEXT)
    return text.removeprefix(before).removesuffix(after)


def check_tokenizer(tokenizer: Tokenizer, add_bos: bool, add_eos: bool, mask: bool) -> None:
    """Raises ConfigError that names each special id which the configuration needs and the tokenizer lacks."""
    special = tokenizer.special
    needs = [
        (add_bos and special.bos < 0, "begin", "bos", "set config.data.add_bos=False"),
        (add_eos and special.eos < 0, "end", "eos", 'which documents end with; use another or config.data.split.by="position"'),
        (mask and special.mask < 0, "mask", "mask", "set config.data.augment.token_dropout=0 and span_mask=0"),
    ]  # fmt: skip
    where = " (its tokenizer_config.json names no {}_token that is in its vocabulary)" if tokenizer.kind == "hf" else ""
    problems = [
        f"the tokenizer has no {word} token{where.format(key)}{'; ' if hint.startswith('set') else ', '}{hint}"
        for missing, word, key, hint in needs
        if missing
    ]
    if problems:
        raise ConfigError(problems)


def to_ids(
    records: list[Record], tokenizer: Tokenizer, add_bos: bool, add_eos: bool
) -> tuple[list[np.ndarray], list[int], list[list[bool] | None]]:
    """Returns (ids as int32, loss start, learned) of each record.

    A text is [bos] + text + [eos], a prompt and its completion [bos] + prompt + completion + [eos], a conversation what its
    template wrote. The loss start is the number of ids before the completion, or PLAIN, or CHAT; for the last, `learned`
    says of each id whether the assistant said it.
    """
    if tokenizer.special.eos < 0 and any(record.completion is not None for record in records):
        raise ConfigError("the tokenizer has no end token, which completions end with; use another")
    one_by_one = {
        i
        for i, record in enumerate(records)
        if record.rendered or (record.completion is not None and tokenizer.adds_space)
    }
    apart = [part for i, record in enumerate(records) if i not in one_by_one for part in record.parts()]
    pieces = iter(tokenizer.encode_batch(apart))
    head = np.array([tokenizer.special.bos] if add_bos else [], np.int32)
    end, nothing = np.array([tokenizer.special.eos], np.int32), np.array([], np.int32)
    all_ids: list[np.ndarray] = []
    starts: list[int] = []
    learned: list[list[bool] | None] = [None] * len(records)
    for number, record in enumerate(records):
        start = PLAIN
        if record.rendered:
            ids, learned[number] = encode_rendered(record.rendered, tokenizer, add_bos)
            start, parts = CHAT, [np.array(ids, np.int32)]
        elif record.completion is None:
            parts = [head, next(pieces), end if add_eos else nothing]
        elif number in one_by_one:  # a completion gets no space of its own
            prompt = tokenizer.encode(record.text)
            completion = tokenizer.encode_behind(record.completion, record.text[-1:])
            parts, start = [head, np.array(prompt + completion, np.int32), end], len(head) + len(prompt)
        else:
            prompt, completion = next(pieces), next(pieces)
            parts, start = [head, prompt, completion, end], len(head) + len(prompt)
        all_ids.append(np.concatenate(parts))
        starts.append(start)
    return all_ids, starts, learned


def whole_texts(config: DataConfig) -> str:
    """Says which part of a text that is too long a classifier reads: its beginning, or with a template its end, where the class is read."""
    return "end" if config.text_template else "beginning"


@dataclass(frozen=True)
class Cut:
    """Counts of what is lost because rows have only so many tokens."""

    pairs: int = 0  # prompt/completion documents
    cut_prompts: int = 0  # of those: prompt cut from the left
    chats: int = 0  # conversations
    lost_chats: int = 0  # of those: no answer is left, so they are not used
    cut_documents: int = 0  # pairs, conversations and texts of a class that do not fit whole
    answers: int = 0  # completions, and answers in conversations
    cut_answers: int = 0  # of those: the end cut, or all of it
    answer_tokens: int = 0
    cut_answer_tokens: int = 0


@dataclass(frozen=True)
class Chunks:
    """Stretches of documents that fit a row; arrays of one entry a chunk. A chunk has `length` inputs and targets."""

    document: np.ndarray  # int64: number of the document
    start: np.ndarray  # int64: its first input, counted over the ids of all documents
    length: np.ndarray  # int32
    learn_from: np.ndarray  # int32: targets before this one have weight 0
    put_bos: np.ndarray  # bool: the first input is the begin token, since the prompt was cut after it
    masked: np.ndarray  # bool: of the targets, only those that an assistant said have weight
    answer: np.ndarray  # int64: where in its ids a completion begins; PLAIN, CHAT
    cut: Cut  # what the row length took away


def cut_chunks(
    offsets: np.ndarray, loss_start: np.ndarray, seq_len: int, add_bos: bool, learn_prompt: bool,
    learned: np.ndarray | None = None, plain_len: int | None = None, one_chunk: str = "",
) -> Chunks:  # fmt: skip
    """Cuts documents to at most `seq_len` inputs each, plain texts to `plain_len` where it is given.

    A plain text gives as many chunks as it needs, and every id but its first is the target of exactly one. A prompt/completion
    document gives one chunk: the prompt is cut from the left first, then the completion's end. A conversation gives one
    chunk, its beginning; where no answer is in that, none. `learned` (uint8, of all ids) says what assistants said.
    `one_chunk`: a plain text gives one chunk too, its "beginning" or its "end".
    """
    sizes = np.diff(offsets)
    inputs = np.maximum(sizes - 1, 0)
    is_pair, is_chat = loss_start >= 0, loss_start == CHAT
    lost, chat_cut = _count_chats(offsets, is_chat, seq_len, learned)
    plain_len = plain_len or seq_len
    count = np.where(is_pair | is_chat | (one_chunk != ""), np.minimum(inputs, 1), -(-inputs // plain_len))
    if not learn_prompt:
        count[lost] = 0
    document = np.repeat(np.arange(len(sizes)), count)
    part = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    pair, size, begins = is_pair[document], sizes[document], np.maximum(loss_start, 0)[document]
    # a pair keeps one id before the completion, so that the completion's first id is predicted too
    cut = np.where(pair, np.minimum(np.maximum(size - seq_len - 1, 0), np.maximum(begins - 1, 0)), part * plain_len)
    plain_end = ~pair & ~is_chat[document] & (one_chunk == "end")
    cut = np.where(plain_end, np.maximum(size - 1 - plain_len, 0), cut)
    length = np.minimum(size - 1 - cut, np.where(pair | is_chat[document], seq_len, plain_len))
    learn_from = np.where(pair, np.maximum(begins - 1 - cut, 0), 0)
    kept, whole = length - learn_from, size - np.maximum(begins, 1)
    return Chunks(
        document=document,
        start=offsets[:-1][document] + cut,
        length=length.astype(np.int32),
        learn_from=(np.zeros_like(learn_from) if learn_prompt else learn_from).astype(np.int32),
        put_bos=(pair | plain_end) & (cut > 0) & add_bos,
        masked=is_chat[document] & (not learn_prompt),
        answer=np.where(pair, begins - cut, loss_start[document]),
        cut=replace(
            chat_cut,
            pairs=int(pair.sum()),
            cut_prompts=int((pair & (cut > 0)).sum()),
            lost_chats=0 if learn_prompt else chat_cut.lost_chats,
            cut_documents=chat_cut.cut_documents
            + int((pair & (size - 1 > seq_len)).sum())
            + int(((one_chunk != "") & (size - 1 > length)).sum()),
            answers=chat_cut.answers + int(pair.sum()),
            cut_answers=chat_cut.cut_answers + int((pair & (kept < whole)).sum()),
            answer_tokens=chat_cut.answer_tokens + int(whole[pair].sum()),
            cut_answer_tokens=chat_cut.cut_answer_tokens + int((whole - kept)[pair].sum()),
        ),
    )


def _count_chats(
    offsets: np.ndarray, is_chat: np.ndarray, seq_len: int, learned: np.ndarray | None
) -> tuple[np.ndarray, Cut]:
    """Returns (numbers of conversations of which a row of `seq_len` holds no answer, counts)."""
    if learned is None or not is_chat.any():
        return np.zeros(0, np.int64), Cut()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], learned, [0]]).astype(np.int8)))
    begins, ends = edges[::2], edges[1::2]
    document = np.searchsorted(offsets, begins, side="right") - 1
    begins = np.maximum(begins, offsets[document] + 1)  # a document's first id is no target
    row_ends = offsets[:-1] + np.minimum(np.diff(offsets), seq_len + 1)
    kept = np.clip(row_ends[document] - begins, 0, ends - begins)
    held = np.zeros(len(is_chat), bool)
    held[document[kept > 0]] = True
    lost = np.flatnonzero(is_chat & ~held)
    return lost, Cut(
        chats=int(is_chat.sum()),
        lost_chats=len(lost),
        cut_documents=int((is_chat & (row_ends < offsets[1:])).sum()),
        answers=len(begins),
        cut_answers=int((kept < ends - begins).sum()),
        answer_tokens=int((ends - begins).sum()),
        cut_answer_tokens=int((ends - begins - kept).sum()),
    )
