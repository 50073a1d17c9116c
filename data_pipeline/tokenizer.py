"""How does text become ids and come back without loss, and how many bytes does each id stand for?"""

from __future__ import annotations

import abc
import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.marks import Stretch, overlaps
from data_pipeline.schema import UserError
from data_pipeline.sealed import open_to_read
from data_pipeline.whole_file import written_aside

FORMAT = 1
META_FILE, MODEL_FILE, TEMPLATE_FILE = "lm_tokenizer.json", "sentencepiece.model", "chat_template.jinja"
MAX_FILE = 2**28  # bytes of any file of a tokenizer


@dataclass(frozen=True)
class SpecialIds:
    """Ids that no text encodes to; -1 where a third-party tokenizer has none."""

    pad: int = 0
    bos: int = 1
    eos: int = 2
    unk: int = 3
    mask: int = 4

    def padding(self) -> int:
        """The id that fills rows: `pad`, or else `eos`, or 0."""
        return self.pad if self.pad >= 0 else max(self.eos, 0)


OURS = SpecialIds()
# How a chat template names our special tokens, and the text that stands for each in what it writes.
OUR_TEXTS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
OUR_NAMES = {text: getattr(OURS, name.removesuffix("_token")) for name, text in OUR_TEXTS.items()}
FIRST_FREE = 5  # the first id after our own special ones


class Tokenizer(abc.ABC):
    """Base of all kinds. `pieces[id]` is the bytes an id stands for, empty for special ones.

    `special_texts` is what a chat template calls the special tokens ("eos_token": "</s>"); `special_names` the id of every text
    that a template may write for one.
    """

    kind = ""
    adds_space = False  # puts a space before each text, but not where one goes on `behind` another; ours does not
    spaces_names = False  # puts one behind each name of a special token too
    strips = False  # takes away the spaces around a text
    adds_bos = False  # was made to put the begin token before each text; config.data.add_bos decides
    template = ""  # the model's own chat template (Jinja), kept with the tokenizer

    def __init__(
        self, pieces: list[bytes], special: SpecialIds, content: bytes, texts: dict[str, str], names: dict[str, int]
    ):
        self.pieces, self.special, self.content = pieces, special, content
        self.special_texts, self.special_names = texts, names
        self.stop_ids: tuple[int, ...] = (special.eos,) if special.eos >= 0 else ()  # any of them ends an answer
        self.vocab_size = len(pieces)
        by_length = sorted(names, key=len, reverse=True)
        self.name_pattern = re.compile("|".join(map(re.escape, by_length)) or "(?!)")
        meta = json.dumps([FORMAT, self.kind, asdict(special)]).encode()
        self.sha256 = hashlib.sha256(meta + content).hexdigest()

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`; special ids never come out, whatever the text says."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32."""
        return [np.array(self.encode(text), np.int32) for text in texts]

    def encode_template(self, text: str, literal: Sequence[Stretch] = (), behind: str = "") -> list[int]:
        """Encodes what a chat template wrote: names of special tokens become their ids, but in the `literal` stretches.

        The text goes on behind the character `behind`.
        """
        ids: list[int] = []
        at = 0
        for match in self.name_pattern.finditer(text):
            if not overlaps(literal, *match.span()):
                ids += self.encode_behind(text[at : match.start()], behind) if at < match.start() else []
                at = match.end()
                name = match[0].strip()
                ids.append(self.special_names[name])
                behind = "" if self.spaces_names else name[-1:]
        return ids + self.encode_behind(text[at:], behind) if at < len(text) else ids

    def encode_behind(self, text: str, behind: str) -> list[int]:
        """Returns the ids of a text that goes on behind the character `behind`, "" where it begins."""
        return self.encode(text)

    def goes_on(self, text: str, behind: str) -> bool:
        """Says whether `text` is to be encoded without the space that begins a text; where spaces are stripped it stands for them."""
        return bool(behind) and not (self.strips and (behind.isspace() or text[:1].isspace()))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, leaving special ones out; bytes that are not UTF-8 become U+FFFD.

        Ids beyond the vocabulary, which a model with a padded embedding has, stand for nothing.
        """
        text = b"".join(map(self.piece, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.adds_space else text

    def piece(self, number: int) -> bytes:
        return self.pieces[number] if number < self.vocab_size else b""

    def stream(self, begins: bool = False) -> TextStream:
        return TextStream(self, begins)

    def token_bytes(self) -> np.ndarray:
        """Returns int32 [vocab]: UTF-8 bytes each id stands for, so that they add up to the bytes of the text.

        0 for special ids and unknown ones: bits per byte can only come out worse by those. Where the tokenizer puts a space
        before each text, that space counts; where it changes the text (lower case, NFC), the changed text counts.
        """
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def fallback(self) -> np.ndarray:
        """Returns bool [vocab]: ids that stand for a part of a character, as those of rare ones do."""
        return np.array([not _is_text(piece) for piece in self.pieces])

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer to `folder`, which `load_tokenizer` reads; a file is replaced whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = self._files()
        meta = {"format": FORMAT, "kind": self.kind, "special": asdict(self.special), "sha256": self.sha256}
        meta |= {"vocab_size": self.vocab_size, "stop_ids": self.stop_ids, "adds_bos": self.adds_bos, **self._extra()}
        meta["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        files[META_FILE] = json.dumps(meta, indent=1, ensure_ascii=False).encode()
        for name, content in files.items():
            with written_aside(folder / name) as file:
                file.write(content)

    def _files(self) -> dict[str, bytes]:
        return {TEMPLATE_FILE: self.template.encode()} if self.template else {}

    def _extra(self) -> dict[str, Any]:
        return {}


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


class TextStream:
    """The text of ids as they come: the bytes of a character that is not whole yet are held back.

    `begins` says that the first id begins a text, which matters where the tokenizer puts a space before each.
    """

    def __init__(self, tokenizer: Tokenizer, begins: bool = False):
        self.tokenizer, self.strip = tokenizer, begins and tokenizer.adds_space
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, number: int) -> str:
        """Returns the characters that `number` completes."""
        text = self.decoder.decode(self.tokenizer.piece(number))
        if self.strip and text:
            text, self.strip = text.removeprefix(" "), False
        return text

    def close(self) -> str:
        """Returns what is left: U+FFFD for bytes that never became a character."""
        return self.decoder.decode(b"", final=True)


class ByteTokenizer(Tokenizer):
    """One id a byte, after the special ones."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__([b""] * FIRST_FREE + [bytes([b]) for b in range(256)], OURS, b"", OUR_TEXTS, OUR_NAMES)

    def encode(self, text: str) -> list[int]:
        return (np.frombuffer(text.encode(), np.uint8).astype(np.int32) + FIRST_FREE).tolist()


STAND_IN = ByteTokenizer()  # for one of ours that is trained later: all of them have the same special tokens


class CharTokenizer(Tokenizer):
    """One id a character of the training text; others become the unknown id, and are counted when data is prepared."""

    kind = "char"

    def __init__(self, characters: str):
        self.characters = characters
        pieces = [b""] * FIRST_FREE + [c.encode() for c in characters]
        super().__init__(pieces, OURS, characters.encode(), OUR_TEXTS, OUR_NAMES)
        self.ids = {c: i for i, c in enumerate(characters, FIRST_FREE)}

    def encode(self, text: str) -> list[int]:
        unknown = self.special.unk
        return [self.ids.get(c, unknown) for c in text]

    def _extra(self) -> dict[str, Any]:
        return {"characters": self.characters}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a folder that `save` wrote, a Hugging Face folder or tokenizer.json, or a SentencePiece `.model` file.

    Raises UserError for anything else, and for files that have changed since `save` wrote them.
    """
    from data_pipeline import hf_folder
    from data_pipeline.sentencepiece_tokenizer import SentencePieceTokenizer

    path = Path(path).expanduser()
    if path.is_file() and path.name != META_FILE:
        if path.suffix == ".json":
            return hf_folder.read_tokenizer(path)
        return SentencePieceTokenizer(read_file(path), str(path))
    folder = path.parent if path.is_file() else path
    if not (folder / META_FILE).is_file():
        return hf_folder.read_folder(folder)
    try:
        meta = json.loads(read_file(folder / META_FILE))
        kind, sha256, version, files = meta["kind"], meta["sha256"], meta["format"], dict(meta.get("files", {}))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / META_FILE}: not a tokenizer description ({error})") from None
    if version != FORMAT:
        raise UserError(f"{folder / META_FILE}: written by format {version}, this code reads format {FORMAT}")
    for name, digest in files.items():
        if not (folder / Path(name).name).is_file():
            raise UserError(f"tokenizer {folder}: {name} is missing")
        if hashlib.sha256(read_file(folder / Path(name).name)).hexdigest() != digest:
            raise UserError(f"tokenizer {folder} is damaged: {name} does not match the sha256 in {META_FILE}")
    if kind == "bytes":
        tokenizer: Tokenizer = ByteTokenizer()
    elif kind == "char":
        tokenizer = CharTokenizer(meta.get("characters", ""))
    elif kind == "sentencepiece":
        tokenizer = SentencePieceTokenizer(read_file(folder / MODEL_FILE), str(folder / MODEL_FILE))
    elif kind == "hf":
        tokenizer = hf_folder.read_tokenizer(folder / "tokenizer.json")
    else:
        raise UserError(f"{folder / META_FILE}: unknown kind {kind!r}")
    if tokenizer.sha256 != sha256:
        raise UserError(f"tokenizer {folder} is damaged: its content does not match the sha256 in {META_FILE}")
    if kind != "hf":  # whose own files say the same
        tokenizer.adds_bos, tokenizer.stop_ids = (
            meta.get("adds_bos", False),
            tuple(meta.get("stop_ids", tokenizer.stop_ids)),
        )
        tokenizer.template = hf_folder.read_text(folder / TEMPLATE_FILE) if TEMPLATE_FILE in files else ""
    return tokenizer


def read_file(path: Path) -> bytes:
    """Returns a file's bytes; raises UserError for what is missing, unreadable or larger than any tokenizer."""
    try:
        with open_to_read(path) as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if len(content) > MAX_FILE:
        raise UserError(f"{path}: over {MAX_FILE >> 20} MiB, which no tokenizer has")
    return content
