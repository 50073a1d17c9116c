"""Which tokenizer.json means the same as the vocabulary of a GGUF file?

GGUF names the splitter of a byte-level vocabulary (`tokenizer.ggml.pre`) and does not describe it, so only names that
are known are read: with another splitter, a model gets ids that it never saw, and no error.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import UserError
from lm.hf.gguf_header import GgufHeader, read_gguf_header
from lm.hf.vocabulary import find_merges, put_ends

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
WORD_SPACE = "\u2581"
WAY_OUT = "take tokenizer.json and tokenizer_config.json of the original model instead"
SPECIAL = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "sep": "seperator",
    "mask": "mask",
}  # GGUF's spelling
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + "|" + WORDS + r"|\p{N}{1,3}" + REST
QWEN2 = CONTRACTIONS + "|" + WORDS + r"|\p{N}" + REST
CJK = "[一-龥ࠀ-一가-퟿]+"
DIGIT = r"\p{N}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
REST_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = CASED % ((CONTRACTIONS + "?",) * 2) + r"|\p{N}{1,3}" + REST_SLASH
TEKKEN = CASED % ("", "") + r"|\p{N}" + REST_SLASH


@dataclass(frozen=True)
class Splitter:
    """How a text is cut before byte pairs are merged."""

    patterns: tuple[str, ...]  # applied one after the other
    whole_words: bool = field(default=False)  # a word of the vocabulary is one token, whatever the merges say
    composes: bool = field(default=False)  # the text is brought to NFC first
    adds_bos: bool = field(default=False)  # where the file does not say


SPLITTERS = {
    "gpt-2": Splitter((GPT2,)),
    "phi-2": Splitter((GPT2,)),
    "mpt": Splitter((GPT2,), composes=True),
    "olmo": Splitter((GPT2,), composes=True),
    "smollm": Splitter((DIGIT, GPT2)),
    "starcoder": Splitter((DIGIT, GPT2)),
    "refact": Splitter((DIGIT, GPT2)),
    "codeshell": Splitter((DIGIT, GPT2)),
    "command-r": Splitter((DIGIT, GPT2), composes=True),
    "llama-bpe": Splitter((LLAMA3,), whole_words=True, adds_bos=True),
    "llama3": Splitter((LLAMA3,), whole_words=True, adds_bos=True),
    "llama-v3": Splitter((LLAMA3,), whole_words=True, adds_bos=True),
    "smaug-bpe": Splitter((LLAMA3,)),
    "dbrx": Splitter((LLAMA3,)),
    "qwen2": Splitter((QWEN2,), composes=True),
    "deepseek-r1-qwen": Splitter((QWEN2,), composes=True),
    "deepseek-coder": Splitter((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGIT)),
    "gpt-4o": Splitter((GPT4O,)),
    "tekken": Splitter((TEKKEN,), whole_words=True, adds_bos=True),
}


@dataclass(frozen=True)
class _Vocabulary:
    path: Path
    fields: dict[str, Any]
    tokens: list[str]
    kinds: list[int]

    def refuse(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}; {WAY_OUT}")

    def of_kind(self, *kinds: int) -> list[str]:
        return [token for token, kind in zip(self.tokens, self.kinds) if kind in kinds]

    def ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def flag(self, key: str, default: bool) -> bool:
        value = self.fields.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            raise self.refuse(f"tokenizer.ggml.{key} is {value!r:.80}, expected true or false")
        return value

    def special(self, key: str) -> str | None:
        """Returns the token that a key such as `bos` names, if it names one."""
        number = self.fields.get(f"tokenizer.ggml.{key}_token_id")
        if number is None or number in (-1, 2**32 - 1):
            return None
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            raise self.refuse(
                f"tokenizer.ggml.{key}_token_id is {number!r:.80}, and there are {len(self.tokens):,} tokens"
            )
        return self.tokens[number]


def write_gguf_tokenizer(path: str | Path, folder: str | Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json from the vocabulary of a GGUF file."""
    path, folder = Path(path), Path(folder)
    with ExitStack() as files:
        vocabulary = _read_vocabulary(read_gguf_header(path, files)[0])
    kind = vocabulary.fields.get("tokenizer.ggml.model")
    make = {"gpt2": _make_byte_level, "llama": _make_sentencepiece}.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise vocabulary.refuse(f"tokenizer.ggml.model is {kind!r:.80}; gpt2 and llama are known")
    try:
        engine, adds_bos = make(vocabulary)
        _add_special(engine, vocabulary, adds_bos)
        content = engine.to_str(pretty=True)
    except UserError:
        raise
    except BaseException as error:  # a panic of the package is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise vocabulary.refuse(
            f"the tokenizers package cannot use its vocabulary: {' '.join(str(error).split())[:200]}"
        ) from None
    texts = {f"{name}_token": vocabulary.special(key) for name, key in SPECIAL.items()}
    config: dict[str, Any] = {name: text for name, text in texts.items() if text is not None}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": adds_bos,
    }
    config |= {"add_eos_token": vocabulary.flag("add_eos_token", False)}
    if template := _find_template(vocabulary):
        config["chat_template"] = template
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        for name, value in (("tokenizer_config.json", config), ("generation_config.json", _find_ends(vocabulary))):
            (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def _read_vocabulary(header: GgufHeader) -> _Vocabulary:
    tokens, kinds = (header.fields.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{header.path}: holds no vocabulary (tokenizer.ggml.tokens); {WAY_OUT}")
    if kinds is None:
        kinds = np.full(len(tokens), NORMAL)
    vocabulary = _Vocabulary(
        header.path, header.fields, tokens, kinds.tolist() if isinstance(kinds, np.ndarray) else []
    )
    if len(vocabulary.kinds) != len(tokens):
        raise vocabulary.refuse(f"{len(tokens):,} tokens, but {len(vocabulary.kinds):,} kinds of tokens")
    ids = vocabulary.ids()
    if twice := [number for number, token in enumerate(tokens) if ids[token] != number]:
        raise vocabulary.refuse(
            f"{len(twice)} tokens come twice, so their ids cannot be told apart: {[tokens[n] for n in twice[:8]]}"
        )
    return vocabulary


def _make_byte_level(vocabulary: _Vocabulary) -> tuple[Any, bool]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = vocabulary.fields.get("tokenizer.ggml.pre", "default")
    splitter = SPLITTERS.get(name) if isinstance(name, str) else None
    if splitter is None:
        raise vocabulary.refuse(
            f"tokenizer.ggml.pre is {name!r:.80}, and how that cuts a text is not known here (known: {', '.join(SPLITTERS)})"
        )
    merges = vocabulary.fields.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) and " " in merge[1:-1] for merge in merges):
        raise vocabulary.refuse("tokenizer.ggml.merges is no list of pairs of tokens")
    pairs: Any = [tuple(merge.split(" ", 1)) for merge in merges]
    engine = Tokenizer(models.BPE(vocab=vocabulary.ids(), merges=pairs, ignore_merges=splitter.whole_words))
    if splitter.composes:
        engine.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    cuts: Any = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in splitter.patterns]
    engine.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    engine.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return engine, vocabulary.flag("add_bos_token", splitter.adds_bos)


def _make_sentencepiece(vocabulary: _Vocabulary) -> tuple[Any, bool]:
    """Byte pairs by score, bytes where no piece fits, and, unless the file says otherwise, a space before the text."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    unknown = vocabulary.special("unknown") or next(iter(vocabulary.of_kind(UNKNOWN)), None)
    model = models.BPE(
        vocab=vocabulary.ids(), merges=_find_scored_merges(vocabulary), unk_token=unknown, fuse_unk=True,
        byte_fallback=len(vocabulary.of_kind(BYTE)) == 256,
    )  # fmt: skip
    engine = Tokenizer(model)
    adds_space = vocabulary.flag("add_space_prefix", True)
    steps: Any = [normalizers.Prepend(WORD_SPACE)] if adds_space else []
    engine.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", WORD_SPACE)])  # pyright: ignore[reportAttributeAccessIssue]
    back: Any = [decoders.Replace(WORD_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    engine.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if adds_space else [])])  # pyright: ignore[reportAttributeAccessIssue]
    return engine, vocabulary.flag("add_bos_token", True)


def _find_scored_merges(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    scores = vocabulary.fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(vocabulary.tokens) or not np.isfinite(scores).all():
        raise vocabulary.refuse("tokenizer.ggml.scores does not hold a number for each token")
    pieces = {t: n for n, (t, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds)) if kind == NORMAL}
    return find_merges(pieces, scores.tolist())


def _add_special(engine: Any, vocabulary: _Vocabulary, adds_bos: bool) -> None:
    from tokenizers import AddedToken

    kinds = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    for token, kind in zip(vocabulary.tokens, vocabulary.kinds):
        if kind in kinds and token:
            add = engine.add_special_tokens if kinds[kind] else engine.add_tokens
            add([AddedToken(token, special=kinds[kind], normalized=False)])
    bos = vocabulary.special("bos") if adds_bos else None
    eos = vocabulary.special("eos") if vocabulary.flag("add_eos_token", False) else None
    if (adds_bos and bos is None) or (eos is None and vocabulary.flag("add_eos_token", False)):
        raise vocabulary.refuse("says that a text begins or ends with a token, and not with which")
    put_ends(engine, vocabulary.ids(), bos, eos)


def _find_template(vocabulary: _Vocabulary) -> str | list[dict[str, str]]:
    """Returns the chat template; where there are several, each with its name."""
    template = vocabulary.fields.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise vocabulary.refuse(f"tokenizer.chat_template is {type(template).__name__}, expected a text")
    prefix = "tokenizer.chat_template."
    named = {
        k.removeprefix(prefix): v for k, v in vocabulary.fields.items() if k.startswith(prefix) and isinstance(v, str)
    }
    if not named:
        return template
    every = ({"default": template} if template else {}) | named
    return [{"name": name, "template": text} for name, text in every.items()]


def _find_ends(vocabulary: _Vocabulary) -> dict[str, Any]:
    """Returns generation_config.json: an answer ends at the end of a text, or of a turn."""
    ids = vocabulary.ids()
    found = {
        key: ids[token] for key in ("bos", "eos", "eot", "padding") if (token := vocabulary.special(key)) is not None
    }
    ends = list(dict.fromkeys(found[key] for key in ("eos", "eot") if key in found))
    config: dict[str, Any] = {"bos_token_id": found.get("bos"), "pad_token_id": found.get("padding")}
    config["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    return {key: value for key, value in config.items() if value is not None}
