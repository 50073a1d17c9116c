"""What does a chunk of a training document hold in this epoch: in other words, or as a task?

A chunk is ids, the first of which is only read. Text that changes is decoded, changed and encoded again; what then is too
long for the room that the rows' plan gives the chunk is cut off. Only text changes: special tokens, and bytes at the edges of a
chunk that make no whole character, stay. Of prompt and completion only the prompt changes, and what is too long is cut from its
beginning; conversations stay as they are, since their ids do not tell the users' words from the template's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_pipeline.augment.draw import CHANGES, RUN, draw, fold
from data_pipeline.augment.spans import ADDED, find_marks, growth, make_task
from data_pipeline.augment.text import augment_text, changes_text
from data_pipeline.config import AugmentConfig
from data_pipeline.tasks import PLAIN
from data_pipeline.tokenizer import Tokenizer

TRIES = 3  # bytes of a character that an edge of a chunk can cut off


def makes_tasks(config: AugmentConfig) -> bool:
    return config.span_corruption > 0 or config.fill_in_middle > 0


def rewrites(config: AugmentConfig) -> bool:
    """Says whether chunks are more than stretches of the prepared ids."""
    return config.window_shift or makes_tasks(config) or changes_text(config)


@dataclass(frozen=True)
class Piece:
    """A stretch of a document."""

    ids: np.ndarray  # int32 [n + 1]
    weights: np.ndarray  # float32 [n + 1]: of each id as a target
    key: int  # of seed, epoch, document and place; 0: it stays as it is
    answer: int  # where in `ids` the completion begins; PLAIN, CHAT


class Rewriter:
    """Rewrites pieces; a pure function of each. Without a tokenizer it only plans."""

    def __init__(self, config: AugmentConfig, tokenizer: Tokenizer | None, seq_len: int):
        self.config, self.texts, self.tasks = config, changes_text(config), makes_tasks(config)
        self.seq_len, self.always = seq_len, replace(config, text_share=1.0)
        self.growth = growth(config)
        if tokenizer:
            self.tokenizer, self.marks = tokenizer, find_marks(tokenizer)

    def room(self, length: int | np.ndarray, plain: bool | np.ndarray = True) -> np.ndarray:
        """Returns how many inputs a piece of `length` may have in the end."""
        length = np.asarray(length, np.int64)
        text = length + np.ceil(length * self.config.room).astype(np.int64) * self.texts
        task = text + np.ceil(text * self.growth).astype(np.int64) + ADDED * self.tasks
        return np.where(plain, task, np.minimum(text, self.seq_len))

    def limit(self) -> int:
        """Returns the longest plain piece that fits a row however it grows."""
        lengths = np.arange(self.seq_len + 1)
        return int(lengths[self.window_room(lengths) <= self.seq_len].max(initial=0))

    def window_room(self, length: np.ndarray) -> np.ndarray:
        """Returns the room of a full chunk, which a moving window may cut in two pieces."""
        return self.room(length) + (ADDED + 2) * self.config.window_shift * (self.texts or self.tasks)

    def rewrite(self, pieces: Sequence[Piece]) -> list[Piece]:
        if self.texts:
            pieces = [self.cut(new, old) for new, old in zip(self.reword(pieces), pieces)]
        return [self._task(piece) for piece in pieces] if self.tasks else list(pieces)

    def _task(self, piece: Piece) -> Piece:
        turns = piece.key and piece.answer == PLAIN
        task = make_task(piece.ids, self.config, self.marks, piece.key) if turns else None
        return replace(piece, ids=task[0], weights=task[1].astype(np.float32)) if task else piece

    def cut(self, piece: Piece, old: Piece) -> Piece:
        """Cuts a reworded piece to its room: the end of a text, the beginning of a prompt."""
        extra = len(piece.ids) - 1 - int(self.room(len(old.ids) - 1, False))
        if extra <= 0:
            return piece
        if piece.answer == PLAIN:
            return replace(piece, ids=piece.ids[:-extra], weights=piece.weights[:-extra])
        first = int(piece.ids[0] == self.marks.bos)
        return replace(
            piece, ids=np.delete(piece.ids, np.s_[first : first + extra]), answer=piece.answer - extra,
            weights=np.delete(piece.weights, np.s_[first : first + extra]),
        )  # fmt: skip

    def reword(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Changes the text of pieces, however long it becomes; all of it is encoded at once."""
        edits: list[list[tuple[int, int]]] = []
        texts: list[str] = []
        for piece in pieces:
            edits.append([])
            acts = piece.key and draw(piece.key, CHANGES, 1)[0] < self.config.text_share
            for number, (begin, end, text) in enumerate(self._texts(piece) if acts else ()):
                new = augment_text(text, self.always, fold(piece.key, RUN, number))
                if new != text:
                    edits[-1].append((begin, end))
                    texts.append(new)
        spaced = self.tokenizer.adds_space  # it puts back the space that each of these texts begins with
        encoded = iter(self.tokenizer.encode_batch([text.removeprefix(" ") if spaced else text for text in texts]))
        return [_join(piece, stretches, encoded) for piece, stretches in zip(pieces, edits)]

    def _texts(self, piece: Piece) -> Iterator[tuple[int, int, str]]:
        """Yields the stretches of ids that are text and may change: (first, end, text)."""
        stop = len(piece.ids) if piece.answer == PLAIN else max(piece.answer, 0)
        pieces = self.tokenizer.pieces
        parts = [pieces[number] for number in piece.ids[:stop].tolist()]
        edges = np.flatnonzero(np.diff([False, *map(bool, parts), False]))
        for begin, end in edges.reshape(-1, 2).tolist():
            for _ in range(TRIES):  # the rest of a character that began in the chunk before
                begin += begin < end and parts[begin][0] & 0xC0 == 0x80
            if self.tokenizer.adds_space:
                begin = next((i for i in range(begin, end) if parts[i][:1] == b" "), end)
            for last in range(end, max(end - TRIES, begin) - 1, -1):
                try:
                    text = b"".join(parts[begin:last]).decode()
                except UnicodeDecodeError:
                    continue
                if text:
                    yield begin, last, text
                break


def _join(piece: Piece, stretches: list[tuple[int, int]], encoded: Iterator[np.ndarray]) -> Piece:
    """Puts encoded texts in place of stretches of a piece."""
    if not stretches:
        return piece
    ids, weights, at, answer = [], [], 0, piece.answer
    for begin, end in stretches:
        new = next(encoded).astype(piece.ids.dtype)
        ids += [piece.ids[at:begin], new]
        weights += [piece.weights[at:begin], np.full(len(new), piece.weights[end - 1], np.float32)]
        answer += (len(new) - (end - begin)) * (answer >= 0)
        at = end
    return replace(
        piece, ids=np.concatenate([*ids, piece.ids[at:]]), weights=np.concatenate([*weights, piece.weights[at:]]),
        answer=answer,
    )  # fmt: skip
