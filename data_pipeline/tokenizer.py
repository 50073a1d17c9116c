"""How does text become ids and come back without loss, and how many bytes does each id stand for?"""

from __future__ import annotations

import abc
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.schema import UserError

FORMAT = 1
META_FILE, MODEL_FILE = "lm_tokenizer.json", "sentencepiece.model"
WORD_SPACE = "\u2581"  # sentencepiece writes a space as this character

LINE = re.compile(r"[^\n]+\n*|\n+")  # a line with the line ends after it


@dataclass(frozen=True)
class SpecialIds:
    """Ids that no text encodes to; -1 where a third-party tokenizer has none."""

    pad: int = 0
    bos: int = 1
    eos: int = 2
    unk: int = 3
    mask: int = 4


OURS = SpecialIds()
FIRST_FREE = 5  # the first id after our own special ones


class Tokenizer(abc.ABC):
    """Base of the three kinds. `pieces[id]` is the bytes an id stands for, empty for special ones."""

    kind = ""

    def __init__(self, pieces: list[bytes], special: SpecialIds, content: bytes):
        self.pieces, self.special, self.content = pieces, special, content
        self.vocab_size = len(pieces)
        meta = json.dumps([FORMAT, self.kind, asdict(special)]).encode()
        self.sha256 = hashlib.sha256(meta + content).hexdigest()

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`; special ids never come out, whatever the text says."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, leaving special ones out; bytes that are not UTF-8 become U+FFFD."""
        return b"".join([self.pieces[i] for i in ids]).decode("utf-8", "replace")

    def token_bytes(self) -> np.ndarray:
        """Returns int32 [vocab]: UTF-8 bytes each id stands for, so that they add up to the bytes of the text.

        0 for special ids. The character tokenizer's unknown id counts 0 too: bits per byte can only come out worse by it.
        """
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer to `folder`, which `load_tokenizer` reads; a file is replaced whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        meta = {"format": FORMAT, "kind": self.kind, "special": asdict(self.special), "sha256": self.sha256}
        meta |= {"vocab_size": self.vocab_size, **self._extra()}
        files = {META_FILE: json.dumps(meta, indent=1, ensure_ascii=False).encode()}
        if self.kind == "sentencepiece":
            files[MODEL_FILE] = self.content
        for name, content in files.items():
            part = folder / f".{name}.{os.getpid()}"
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, folder / name)

    def _extra(self) -> dict[str, Any]:
        return {}


class ByteTokenizer(Tokenizer):
    """One id a byte, after the special ones."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__([b""] * FIRST_FREE + [bytes([b]) for b in range(256)], OURS, b"")

    def encode(self, text: str) -> list[int]:
        return (np.frombuffer(text.encode(), np.uint8).astype(np.int32) + FIRST_FREE).tolist()


class CharTokenizer(Tokenizer):
    """One id a character of the training text; others become the unknown id, and are counted when data is prepared."""

    kind = "char"

    def __init__(self, characters: str):
        self.characters = characters
        super().__init__([b""] * FIRST_FREE + [c.encode() for c in characters], OURS, characters.encode())
        self.ids = {c: i for i, c in enumerate(characters, FIRST_FREE)}

    def encode(self, text: str) -> list[int]:
        unknown = self.special.unk
        return [self.ids.get(c, unknown) for c in text]

    def _extra(self) -> dict[str, Any]:
        return {"characters": self.characters}


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
        self.mask_name = names[mask] if mask >= 0 else ""
        # A third-party model may put a space before each text; ours does not.
        self.adds_space = engine.decode(engine.encode("a")) == "a" and b"".join(
            pieces[i] for i in engine.encode("a")
        ).startswith(b" ")
        # Where no piece joins a line end to other text, lines can be encoded one by one, which is twice as fast.
        by_line = all(piece.strip(b"\n") == b"" for piece in pieces if b"\n" in piece)
        self.by_line = by_line and special == OURS and not self.adds_space
        super().__init__(pieces, special, model)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if any(WORD_SPACE in text for text in texts):
            return [self._encode_around(text) for text in texts]
        threads = min(8, os.cpu_count() or 1)
        if not self.by_line:
            return self.engine.encode(list(texts), num_threads=threads)
        lines = [LINE.findall(text) for text in texts]
        encoded = iter(self.engine.encode(list(itertools.chain.from_iterable(lines)), num_threads=threads))
        return [list(itertools.chain.from_iterable(itertools.islice(encoded, len(parts)))) for parts in lines]

    def _encode_around(self, text: str) -> list[int]:
        """Encodes a text that holds sentencepiece's own space character, which would come back as a space."""
        if len(self.byte_ids) < 256:
            return self.engine.encode(text)
        stand_in = [self.byte_ids[b] for b in WORD_SPACE.encode()]
        ids: list[int] = []
        for number, part in enumerate(text.split(WORD_SPACE)):
            ids += (stand_in if number else []) + (self.engine.encode(part) if part else [])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        text = super().decode(ids)
        return text.removeprefix(" ") if self.adds_space else text


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a folder that `save` wrote, or a SentencePiece `.model` file; raises UserError for anything else."""
    path = Path(path).expanduser()
    if path.is_file() and path.name != META_FILE:
        return SentencePieceTokenizer(path.read_bytes(), str(path))
    folder = path.parent if path.is_file() else path
    if not (folder / META_FILE).is_file():
        models = sorted(folder.glob("*.model"))
        if len(models) == 1:
            return SentencePieceTokenizer(models[0].read_bytes(), str(models[0]))
        what = f"holds no {META_FILE}" if folder.is_dir() else "does not exist"
        raise UserError(f"tokenizer {folder}: {what}; name a tokenizer folder of a run, or a SentencePiece .model file")
    try:
        meta = json.loads((folder / META_FILE).read_text("utf-8"))
        kind, sha256, version = meta["kind"], meta["sha256"], meta["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / META_FILE}: not a tokenizer description ({error})") from None
    if version != FORMAT:
        raise UserError(f"{folder / META_FILE}: written by format {version}, this code reads format {FORMAT}")
    if kind == "bytes":
        tokenizer: Tokenizer = ByteTokenizer()
    elif kind == "char":
        tokenizer = CharTokenizer(meta.get("characters", ""))
    elif kind == "sentencepiece":
        model = folder / MODEL_FILE
        if not model.is_file():
            raise UserError(f"tokenizer {folder}: {MODEL_FILE} is missing")
        tokenizer = SentencePieceTokenizer(model.read_bytes(), str(model))
    else:
        raise UserError(f"{folder / META_FILE}: unknown kind {kind!r}")
    if tokenizer.sha256 != sha256:
        raise UserError(f"tokenizer {folder} is damaged: its content does not match the sha256 in {META_FILE}")
    return tokenizer
