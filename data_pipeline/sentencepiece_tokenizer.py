"""How does a SentencePiece model, our own or anybody's, encode text?"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from data_pipeline.schema import UserError
from data_pipeline.tokenizer import MODEL_FILE, OURS, SpecialIds, Tokenizer

WORD_SPACE = "\u2581"  # sentencepiece writes a space as this character
LINES = re.compile(r"(?s).{1,300}\n+|.{300}[^\n]*\n*|.+")  # lines with the line ends after them: some 300 characters
WORD = re.compile(r" *[^ \n]+| +|\n+")  # a word with the spaces before it
FEWEST_SPACES = (
    1 / 12
)  # a character; with fewer (Chinese without line ends) words are sentences, which hardly come again
CACHED_CHARS = 2**21  # of words whose ids are kept; then they are forgotten, all at once: some 40 MB


def _repeats_words(texts: Sequence[str]) -> bool:
    return sum(text.count(" ") + text.count("\n") for text in texts) >= FEWEST_SPACES * sum(map(len, texts))


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model: our own lossless ones, or anybody's `.model`."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, where: str):
        import sentencepiece

        try:
            if not model:
                raise ValueError("empty")
            engine: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
            size = engine.vocab_size()
        except (RuntimeError, TypeError, ValueError):
            raise UserError(f"{where} is not a SentencePiece model") from None
        self.engine = engine
        ids = range(size)
        names = [engine.id_to_piece(i) for i in ids]
        mask = next((names.index(name) for name in ("<mask>", "[MASK]") if name in names), -1)
        special = SpecialIds(engine.pad_id(), engine.bos_id(), engine.eos_id(), engine.unk_id(), mask)
        self.byte_ids = {int(name[3:5], 16): i for i, name in enumerate(names) if engine.is_byte(i)}
        raw = {i: bytes([b]) for b, i in self.byte_ids.items()}
        hidden = {i for i in ids if engine.is_control(i) or engine.is_unknown(i) or engine.is_unused(i)} | {mask}
        pieces = [b"" if i in hidden else raw.get(i) or names[i].replace(WORD_SPACE, " ").encode() for i in ids]
        # A third-party model may put a space before each text; ours does not.
        first = b"".join(pieces[i] for i in engine.encode("a"))
        self.adds_space = engine.decode(engine.encode("a")) == "a" and first.startswith(b" ")
        self.spaces_names = self.adds_space
        self.strips = engine.encode("  a ") == engine.encode("a")
        self._inside: Any = None if self.adds_space else engine
        # Where no piece joins a line end to other text, lines can be encoded apart, a few together, which is up to a third faster
        # than long texts and than lines one by one. Where none goes on behind a word either, words can, and most were there before.
        ours = special == OURS and not self.adds_space
        self.by_line = ours and all(piece.strip(b"\n") == b"" for piece in pieces if b"\n" in piece)
        self.by_word = self.by_line and not any(b" " in piece.lstrip(b" ") for piece in pieces)
        self.known: dict[str, bytes] = {}  # ids of words, as int32
        self.known_chars = 0
        texts = {f"{name}_token": names[i] for name, i in asdict(special).items() if i >= 0}
        super().__init__(pieces, special, model, texts, {names[i]: i for i in hidden if i >= 0})

    def fallback(self) -> np.ndarray:
        """Returns bool [vocab]: ids that stand for a byte, as those of characters without a piece do."""
        found = np.zeros(self.vocab_size, bool)
        found[list(self.byte_ids.values())] = True
        return found

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        if any(WORD_SPACE in text for text in texts):
            return [np.array(self._encode_around(text), np.int32) for text in texts]
        if self.by_word and _repeats_words(texts):
            return self._encode_words([WORD.findall(text) for text in texts])
        parts = [LINES.findall(text) if self.by_line else [text] for text in texts]
        encoded = self._encode_all(list(itertools.chain.from_iterable(parts)))
        ids = np.fromiter(itertools.chain.from_iterable(encoded), np.int32)
        ends = [0, *itertools.accumulate(map(len, encoded))]  # of lines
        lasts = list(itertools.accumulate(map(len, parts)))  # lines of each text and those before it
        return [ids[ends[first] : ends[last]] for first, last in zip([0, *lasts], lasts)]

    def _encode_all(self, parts: list[str]) -> list[list[int]]:
        return self.engine.encode(parts, num_threads=min(8, os.cpu_count() or 1))

    def _encode_words(self, texts: list[list[str]]) -> list[np.ndarray]:
        if self.known_chars > CACHED_CHARS:
            self.known, self.known_chars = {}, 0
        known = self.known  # other threads may begin a new one meanwhile
        new = list(set(itertools.chain.from_iterable(texts)).difference(known))
        if new:
            encoded = self._encode_all(new)
            ids = np.fromiter(itertools.chain.from_iterable(encoded), np.int32).tobytes()
            ends = [4 * end for end in itertools.accumulate(map(len, encoded))]
            known.update((word, ids[start:end]) for word, start, end in zip(new, [0, *ends], ends))
            self.known_chars += sum(map(len, new))
        return [np.frombuffer(b"".join(map(known.__getitem__, words)), np.int32) for words in texts]

    def _engine_for(self, text: str, behind: str) -> Any:
        """Returns the engine for a text: where it goes on behind a character, one that puts no space before it."""
        if not self.goes_on(text, behind):
            return self.engine
        if self._inside is None:
            from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

            model: Any = sentencepiece_model_pb2.ModelProto.FromString(self.content)  # pyright: ignore[reportAttributeAccessIssue]
            model.normalizer_spec.add_dummy_prefix = False
            self._inside = SentencePieceProcessor(model_proto=model.SerializeToString())
        return self._inside

    def _encode_around(self, text: str, behind: str = "") -> list[int]:
        """Encodes a text that holds sentencepiece's own space character, which would come back as a space."""
        if len(self.byte_ids) < 256:
            return self._engine_for(text, behind).encode(text)
        stand_in = [self.byte_ids[b] for b in WORD_SPACE.encode()]
        ids: list[int] = []
        for number, part in enumerate(text.split(WORD_SPACE)):
            engine = self._engine_for(part, "" if number else behind)
            ids += (stand_in if number else []) + (engine.encode(part) if part else [])
        return ids

    def encode_behind(self, text: str, behind: str) -> list[int]:
        if WORD_SPACE in text:
            return self._encode_around(text, behind)
        return self._engine_for(text, behind).encode(text) if self.adds_space else self.encode(text)

    def _files(self) -> dict[str, bytes]:
        return {MODEL_FILE: self.content, **super()._files()}
