"""How does a Hugging Face tokenizer.json encode text, and which bytes does each of its ids stand for?"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from data_pipeline.hf_folder import CONFIG, TOKENIZER, Settings
from data_pipeline.marks import Stretch
from data_pipeline.schema import UserError
from data_pipeline.tokenizer import TEMPLATE_FILE, SpecialIds, Tokenizer

MAX_VOCAB = 2**22  # ids: the largest real vocabularies have 2**18
WORD_SPACE = "\u2581"
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
# Names that a tokenizer.json alone, without tokenizer_config.json, is searched for.
GUESSES = {
    "pad_token": ("<pad>", "[PAD]", "<|pad|>"),
    "bos_token": ("<s>", "<bos>", "<|begin_of_text|>"),
    "eos_token": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "mask_token": ("<mask>", "[MASK]"),
}


class HfTokenizer(Tokenizer):
    """A tokenizer.json, run by the `tokenizers` package as transformers runs it; truncation and padding are left out."""

    kind = "hf"

    def __init__(self, files: dict[str, bytes], where: str, settings: Settings, guess: bool = False):
        self.files, self.where, self.template = files, where, settings.template
        parts = _read_json(files[TOKENIZER], where)
        self.engine = self._make_engine()
        vocabulary = self._read_vocabulary(parts)
        texts = self._find_texts(vocabulary, parts, settings, guess)
        self._mark_special(self.engine, texts)
        added = self.engine.get_added_tokens_decoder()
        names = {token.content: number for number, token in added.items() if token.special and token.content.strip()}
        names |= {text: vocabulary[text] for text in texts.values() if text.strip()}
        special = SpecialIds(
            *(vocabulary.get(texts.get(f"{name}_token", ""), -1) for name in ("pad", "bos", "eos", "unk", "mask"))
        )
        hidden = set(names.values())
        pieces = [b""] * (max(vocabulary.values()) + 1)
        for number, piece in self._find_pieces(parts, vocabulary, added).items():
            pieces[number] = b"" if number in hidden else piece
        super().__init__(pieces, special, files[TOKENIZER], texts, names)
        self.forbidden = hidden - {special.unk}  # unknown text may give the unknown id; no text any other special one
        # white space that a token swallows; a run of it is looked at once, from its beginning
        spaces = {t.content: (r"(?:(?<!\s)\s++)?" * t.lstrip, r"\s*" * t.rstrip) for t in added.values()}
        patterns = [re.escape(name).join(spaces.get(name, ("", ""))) for name in sorted(names, key=len, reverse=True)]
        self.name_pattern = re.compile("|".join(patterns) or "(?!)")
        self.stop_ids = tuple(dict.fromkeys((*self.stop_ids, *settings.ids.get("eos_token", ()))))
        self.adds_space = self._begins_with_space(self.engine, "")
        self.strips = self.encode("  a ") == self.encode("a")
        self.adds_bos = _puts_bos(parts, texts) if settings.adds_bos is None else settings.adds_bos
        self._marked: Any = None
        self._inside: Any = None if self.adds_space else self.engine

    def _begins_with_space(self, engine: Any, before: str) -> bool:
        ids = self._guarded(engine.encode, f"{before}a", add_special_tokens=False).ids
        return b"".join(self.pieces[i] for i in ids).startswith(b" ")

    def _read_vocabulary(self, parts: dict[str, Any]) -> dict[str, int]:
        vocabulary: dict[str, int] = self._guarded(self.engine.get_vocab)
        largest = max(vocabulary.values(), default=-1)
        if largest < 0:
            raise UserError(f"{self.where}: the vocabulary is empty")
        if largest >= MAX_VOCAB:
            raise UserError(f"{self.where}: id {largest} is beyond any vocabulary (limit {MAX_VOCAB})")
        for token in _list(parts.get("added_tokens")):  # the package gives another id without a word
            content, number = token.get("content"), token.get("id")
            found = vocabulary.get(str(content))
            if found != number:
                raise UserError(
                    f"{self.where}: added token {content!r} has id {number}, but the vocabulary gives {found}"
                )
        return vocabulary

    def _find_texts(
        self, vocabulary: dict[str, int], parts: dict[str, Any], settings: Settings, guess: bool
    ) -> dict[str, str]:
        """Returns the text of each special token that is there: as named, as given by id, or by a usual name."""
        texts = {name: text for name, text in settings.texts.items() if text in vocabulary}
        by_id = {number: text for text, number in vocabulary.items()}
        for name, numbers in settings.ids.items():
            if name not in settings.texts and numbers and numbers[0] in by_id:
                texts[name] = by_id[numbers[0]]
        special = {token.content for token in self.engine.get_added_tokens_decoder().values() if token.special}
        for name, usual in GUESSES.items() if guess else ():
            found = next((text for text in usual if text in special), None)
            if found is not None:
                texts.setdefault(name, found)
        unknown = parts["model"].get("unk_token")
        if isinstance(unknown, str) and unknown in vocabulary:
            texts.setdefault("unk_token", unknown)
        return texts

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = self._guarded(self.engine.encode_batch_fast, list(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in found]
        whole = (self._encode_around(t) if not self.forbidden.isdisjoint(i) else i for t, i in zip(texts, ids))
        return [np.array(one, np.int32) for one in whole]

    def _encode_around(self, text: str, behind: str = "") -> list[int]:
        """Encodes a text that spells a special token where that is a word of the vocabulary like any other."""
        ids: list[int] = []
        at = 0
        for match in [*self.name_pattern.finditer(text), None]:
            cut = match.start() + 1 if match else len(text)  # after the first character of the name
            if at < cut:
                engine = self._engine_for(text[at:cut], text[at - 1] if at else behind)
                part = self._guarded(engine.encode, text[at:cut], add_special_tokens=False).ids
                ids += [number for number in part if number not in self.forbidden]
            at = cut
        return ids

    def encode_template(self, text: str, literal: Sequence[Stretch] = (), behind: str = "") -> list[int]:
        if literal or (behind and self.adds_space):
            return super().encode_template(text, literal, behind)
        return self._guarded(self._engine_marked().encode, text, add_special_tokens=False).ids

    def encode_behind(self, text: str, behind: str) -> list[int]:
        ids = self._guarded(self._engine_for(text, behind).encode, text, add_special_tokens=False).ids
        return ids if self.forbidden.isdisjoint(ids) else self._encode_around(text, behind)

    @cached_property
    def spaces_names(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.adds_space and any(
            self._begins_with_space(self._engine_marked(), n) for n in [*self.special_names][:1]
        )

    def _engine_marked(self) -> Any:
        """Makes the encoder in which the name of a special token is that token."""
        if self._marked is None:
            self._marked = self._make_engine()
            self._mark_special(self._marked, self.special_texts)
            self._marked.encode_special_tokens = False
        return self._marked

    def _engine_for(self, text: str, behind: str) -> Any:
        """Returns the encoder for a text: where it goes on behind a character, one that puts no space before it."""
        if not self.goes_on(text, behind):
            return self.engine
        if self._inside is None:
            parts = json.loads(self.files[TOKENIZER])
            lead = {key: _without_lead(parts.get(key)) for key in ("normalizer", "pre_tokenizer")}
            self._inside = self._make_engine(json.dumps({**parts, **lead}))
            self._mark_special(self._inside, self.special_texts)
        return self._inside

    def _make_engine(self, source: str = "") -> Any:
        """Makes the encoder, in which no text spells a special token."""
        import tokenizers

        engine = self._guarded(tokenizers.Tokenizer.from_str, source or self.files[TOKENIZER].decode())
        engine.no_truncation()
        engine.no_padding()
        engine.post_processor = None  # which would put special tokens around a text, and trim offsets
        engine.encode_special_tokens = True
        if getattr(engine.model, "dropout", None):
            engine.model.dropout = None  # which would give a text other ids each time
        return engine

    @staticmethod
    def _mark_special(engine: Any, texts: dict[str, str]) -> None:
        """Makes special tokens of those that tokenizer_config.json names and tokenizer.json has as ordinary ones."""
        special = {token.content for token in engine.get_added_tokens_decoder().values() if token.special}
        engine.add_special_tokens([text for text in texts.values() if text not in special])

    def _find_pieces(
        self, parts: dict[str, Any], vocabulary: dict[str, int], added: dict[int, Any]
    ) -> dict[int, bytes]:
        """Returns the bytes of every id, as the decoder of the file would write it after another token."""
        as_they_are = {number: token.content.encode() for number, token in added.items()}
        kinds = _kinds(parts.get("decoder")) or _kinds(parts.get("pre_tokenizer"))
        if "ByteLevel" in kinds:
            return {i: _from_byte_level(text) for text, i in vocabulary.items()} | as_they_are
        replaced = json.dumps(kinds.get("Replace"), ensure_ascii=False)
        if kinds.keys() & {"Metaspace", "ByteFallback"} or WORD_SPACE in replaced:
            pieces = {i: text.replace(WORD_SPACE, " ").encode() for text, i in vocabulary.items()}
            if "ByteFallback" in kinds:
                found = {i: BYTE_PIECE.fullmatch(text) for text, i in vocabulary.items()}
                pieces |= {i: bytes([int(match[1], 16)]) for i, match in found.items() if match}
            return pieces | as_they_are
        if "BPEDecoder" in kinds:
            suffix = str(kinds["BPEDecoder"].get("suffix"))
            return {i: text.replace(suffix, " ").encode() for text, i in vocabulary.items()} | as_they_are
        decoder = self.engine.decoder
        if decoder is None:  # the package then joins tokens by spaces
            return {i: f" {text}".encode() for text, i in vocabulary.items()} | as_they_are
        lead = len(self._guarded(decoder.decode, ["x"]))
        return {i: self._guarded(decoder.decode, ["x", t])[lead:].encode() for t, i in vocabulary.items()} | as_they_are

    def _guarded(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls into the package; what goes wrong there, a Rust panic too, becomes one line."""
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.where}: the tokenizers package cannot use it: {reason}") from None

    def _files(self) -> dict[str, bytes]:
        files = dict(self.files)
        if self.template and self.template.encode() != files.get(TEMPLATE_FILE):
            config = json.loads(files.get(CONFIG, b"{}"))
            if config.get("chat_template") != self.template:  # another one was set, and takes the place of theirs
                files[TEMPLATE_FILE] = self.template.encode()
                if config.pop("chat_template", None):
                    files[CONFIG] = json.dumps(config, indent=2, ensure_ascii=False).encode()
        return files


def _read_json(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}); is the file cut short?") from None
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise UserError(f"{where}: not a tokenizer.json, which holds an object with a 'model'")
    return value


def _list(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _kinds(component: Any) -> dict[str, dict[str, Any]]:
    """Returns a component of a tokenizer.json, or those that a Sequence holds, by type."""
    if not isinstance(component, dict):
        return {}
    inner = [part for key in ("decoders", "processors", "pretokenizers") for part in _list(component.get(key))]
    return {str(part.get("type")): part for part in inner or [component]}


def _puts_space(component: dict[str, Any]) -> bool:
    """Says whether this is a normalizer that puts a space at the beginning, as the export of a SentencePiece model has it."""
    pattern = component.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    return component.get("content") in (" ", WORD_SPACE) and bool(re.fullmatch(r"(\^|\\A)(\(\?=.*\))?", str(regex)))


def _without_lead(component: Any) -> Any:
    """Returns a normalizer or pre-tokenizer, or a list of them, without what puts a space before a text."""
    if isinstance(component, list):
        return [part for part in map(_without_lead, component) if part]
    if not isinstance(component, dict) or component.get("type") == "Prepend" or _puts_space(component):
        return None
    never: dict[str, Any] = {"add_prefix_space": False, "prepend_scheme": "never"}
    changed = {key: value for key, value in never.items() if key in component}
    inner = {key: _without_lead(value) for key, value in component.items() if key in ("normalizers", "pretokenizers")}
    return {**component, **changed, **inner}


def _puts_bos(parts: dict[str, Any], texts: dict[str, str]) -> bool:
    """Says whether the file's own recipe puts the begin token before a text."""
    single = _list(_kinds(parts.get("post_processor")).get("TemplateProcessing", {}).get("single"))
    first = single[0].get("SpecialToken") if single else None
    return isinstance(first, dict) and first.get("id") == texts.get("bos_token", "")


def _byte_table() -> dict[int, int]:
    """Returns code points that byte-level tokenizers write bytes as -> the byte (GPT-2's bytes_to_unicode, inverted)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in shown]
    return dict.fromkeys(range(256), 256) | {b: b for b in shown} | {256 + n: b for n, b in enumerate(others)}


BYTES = _byte_table()  # 256, which is no byte, where byte-level tokenizers write no such character


def _from_byte_level(text: str) -> bytes:
    try:
        return text.translate(BYTES).encode("latin-1")
    except UnicodeEncodeError:  # not written in bytes: an added token
        return text.encode()
