"""How does a chunk of text become a task: write what was taken out (span corruption), or what is missing in the middle?

Both are orders of the same ids between marks, so nothing is lost: the text can be put together again from what comes out.

Span corruption (T5, Raffel et al. 2020; UL2, Tay et al. 2022), in one row for a model that reads left to right:
    the <m> fox <m> over the <m>   <m> quick brown <m> jumps <m> lazy dog <eos>
The text ends with a span, so two marks in a row are the border of question and answer; only the answer is learned, without
its first mark. The marks are <extra_id_0>, <extra_id_1>, ... of the tokenizer, or its one mask token where it has none.

Fill in the middle (Bavarian et al. 2022): all of the text is learned, the marks are not.
    <prefix> A <suffix> C <middle> B <eos>   or, suffix first,   <prefix><suffix> C <middle> A B <eos>
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.augment.draw import CUTS, KEEPS, TASK, draw, pick
from data_pipeline.config import AugmentConfig
from data_pipeline.tokenizer import Tokenizer

REGULAR, SEQUENTIAL, EXTREME = range(3)  # UL2's R, S and X
EXTREME_DENSITY, EXTREME_LENGTH = 0.5, 32.0  # UL2's X has spans of 12 and more or takes out half; this does both
ADDED = 4  # ids that a task adds at most, besides two a span
SHORTEST = 4  # ids of a text that a task is made of
# What the tokenizers that know fill in the middle call the marks of prefix, suffix and middle.
FIM_NAMES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # GPT-4's, Qwen 2.5's, and what ours are trained with
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
)
Task = tuple[np.ndarray, np.ndarray]  # ids, and of each whether it is learned


@dataclass(frozen=True)
class Marks:
    """The special ids that tasks need; empty where the tokenizer has none."""

    fim: tuple[int, ...]  # prefix, suffix, middle
    sentinels: tuple[int, ...]  # one a span
    mask: int
    bos: int
    eos: int


def find_marks(tokenizer: Tokenizer) -> Marks:
    """Finds the marks among the special tokens of a tokenizer."""
    names, special = tokenizer.special_names, tokenizer.special
    fim = next((tuple(names[n] for n in triple) for triple in FIM_NAMES if all(n in names for n in triple)), ())
    sentinels = []
    while f"<extra_id_{len(sentinels)}>" in names:
        sentinels.append(names[f"<extra_id_{len(sentinels)}>"])
    return Marks(fim, tuple(sentinels), special.mask, special.bos, special.eos)


def growth(config: AugmentConfig) -> float:
    """Returns how many ids a task adds at most for each id of a text, besides ADDED."""
    if not config.span_corruption:
        return 0.0
    regular, _, extreme = config.denoisers
    return max(
        2 * config.noise_density / config.noise_length if regular else 0.0,
        2 * EXTREME_DENSITY / EXTREME_LENGTH if extreme else 0.0,
    )


def make_task(ids: np.ndarray, config: AugmentConfig, marks: Marks, key: int) -> Task | None:
    """Returns the task that a chunk of plain text becomes; None where it stays what it is."""
    first = int(ids[0] == marks.bos)
    body = ids[first : len(ids) - int(ids[-1] == marks.eos)]
    u = draw(key, TASK, 3)
    if len(body) < SHORTEST or u[0] >= config.span_corruption + config.fill_in_middle:
        return None
    if u[0] < config.span_corruption:
        shares = np.cumsum(config.denoisers)
        kind = int(np.searchsorted(shares, u[1] * shares[-1], side="right"))
        out, learned = corrupt(body, cut_spans(len(body), min(kind, EXTREME), config, marks, key), marks)
    else:
        a, b = np.sort((draw(key, CUTS, 2) * (len(body) + 1)).astype(int)).tolist()
        out, learned = fill_middle(body, a, b, marks, u[1] < config.suffix_first)
    head = ids[:first]
    tail = np.array([marks.eos] if marks.eos >= 0 else [], ids.dtype)
    weights = np.concatenate([np.zeros(len(head), bool), learned, np.ones(len(tail), bool)])
    return np.concatenate([head, out, tail]), weights


def cut_spans(n: int, kind: int, config: AugmentConfig, marks: Marks, key: int) -> np.ndarray:
    """Returns the lengths of stretches of `n` ids, kept and taken out by turns; as T5 cuts them for the kinds with many."""
    if kind == SEQUENTIAL:  # a quarter on average
        taken = 1 + pick(float(draw(key, CUTS, 1)[0]), n // 2)
        return np.array([n - taken, taken])
    dense, long = (config.noise_density, config.noise_length) if kind == REGULAR else (EXTREME_DENSITY, EXTREME_LENGTH)
    taken = min(max(round(n * dense), 1), n - 1)
    spans = min(max(round(taken / long), 1), n - taken, len(marks.sentinels) or n)
    kept, out = (_pieces(total, spans, key, kind) for total, kind in ((n - taken, KEEPS), (taken, CUTS)))
    return np.stack([kept, out], axis=1).reshape(-1)


def _pieces(total: int, pieces: int, key: int, kind: int) -> np.ndarray:
    """Cuts `total` into so many pieces of at least 1, each cut as likely as any other."""
    cuts = np.sort(np.argsort(draw(key, kind, total - 1), kind="stable")[: pieces - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)


def corrupt(body: np.ndarray, lengths: np.ndarray, marks: Marks) -> Task:
    """Takes every second stretch out of `body` and writes them behind it."""
    spans = len(lengths) // 2
    sentinels = np.array(marks.sentinels[:spans] or [marks.mask] * spans, body.dtype)
    taken = np.repeat(np.arange(2 * spans) % 2 == 1, lengths)
    question = np.insert(body[~taken], np.cumsum(lengths[::2]), sentinels)
    answer = np.insert(body[taken], np.cumsum(lengths[1::2]) - lengths[1::2], sentinels)
    return np.concatenate([question, answer]), np.arange(len(body) + 2 * spans) > len(question)


def restore(ids: np.ndarray, marks: Marks) -> np.ndarray:
    """Puts a corrupted text, as `make_task` gives it, together again; without the begin and end tokens.

    >>> m = Marks((), (), 4, 1, 2)
    >>> task = corrupt(np.arange(10, 20), np.array([3, 2, 4, 1]), m)[0]
    >>> task.tolist(), restore(task, m).tolist() == list(range(10, 20))
    ([10, 11, 12, 4, 15, 16, 17, 18, 4, 4, 13, 14, 4, 19], True)
    """
    ids = ids[(ids != marks.bos) & (ids != marks.eos)]
    at = np.flatnonzero(np.isin(ids, marks.sentinels or [marks.mask]))
    spans = len(at) // 2
    parts = np.split(ids, at)
    return np.concatenate(
        [parts[0]] + [np.concatenate([parts[spans + 1 + i][1:], parts[1 + i][1:]]) for i in range(spans)]
    )


def fill_middle(body: np.ndarray, a: int, b: int, marks: Marks, suffix_first: bool) -> Task:
    """Moves `body[a:b]` to the end."""
    prefix, suffix, middle = marks.fim
    first = 0 if suffix_first else a
    at = [0, 1 + first, 2 + first + len(body) - b]  # where the marks are
    out = np.empty(len(body) + 3, body.dtype)
    out[at] = prefix, suffix, middle
    learned = np.ones(len(out), bool)
    learned[at] = False
    out[learned] = np.concatenate([body[:first], body[b:], body[first:b]])
    return out, learned
