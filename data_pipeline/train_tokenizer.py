"""How is a tokenizer made from the texts of the train split?"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

from data_pipeline.config import TokenizerConfig
from data_pipeline.schema import ConfigError
from data_pipeline.sentencepiece_tokenizer import SentencePieceTokenizer
from data_pipeline.tokenizer import OURS, ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer

MAX_SENTENCE = 1000  # characters; sentencepiece leaves out longer sentences without a word
# Each of these is one piece whatever the training text holds, so code and Chinese paragraphs stay short.
ALWAYS_PIECES = ["\n", "\n\n", "\t", "\t\t"]


def find_tokenizer(config: TokenizerConfig) -> Tokenizer | None:
    """Returns the tokenizer that exists already, or None where one has to be trained."""
    if not config.path:
        return ByteTokenizer() if config.kind == "bytes" else None
    tokenizer = load_tokenizer(config.path)
    if config.kind not in ("auto", tokenizer.kind):
        raise ConfigError(
            f"config.data.tokenizer.kind={config.kind!r}, but {config.path} holds a {tokenizer.kind} tokenizer; "
            "set kind='auto'"
        )
    return tokenizer


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Trains the kind that `config` names; the same texts give the same tokenizer, byte for byte."""
    if config.kind == "char":
        return CharTokenizer("".join(sorted(set().union(*map(set, texts)))))
    return _train_sentencepiece(config, texts)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), MAX_SENTENCE):
                # its own space character and NUL cannot be in a training text; both are encoded as bytes later
                piece = line[start : start + MAX_SENTENCE].replace("\u2581", " ").replace("\0", " ")
                if piece.strip():
                    yield piece


def _train_sentencepiece(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts), model_writer=model, vocab_size=config.vocab_size,
            model_type=config.model_type, character_coverage=config.character_coverage,
            # lossless: text is taken as it is
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
            allow_whitespace_only_pieces=True, split_digits=True, byte_fallback=True,
            user_defined_symbols=ALWAYS_PIECES, control_symbols=["<mask>"],
            pad_id=OURS.pad, bos_id=OURS.bos, eos_id=OURS.eos, unk_id=OURS.unk,
            # deterministic and quiet
            num_threads=4, input_sentence_size=0, shuffle_input_sentence=False, minloglevel=2, max_sentence_length=8192,
        )  # fmt: skip
    except RuntimeError as error:
        raise ConfigError(_explain(str(error), config)) from None
    tokenizer = SentencePieceTokenizer(model.getvalue(), "the trained model")
    assert tokenizer.special == OURS
    return tokenizer


def _explain(message: str, config: TokenizerConfig) -> str:
    key = f"config.data.tokenizer.vocab_size={config.vocab_size}"
    if found := re.search(r"value <= (\d+)", message):
        return f"{key}: the train split has text for {found[1]} pieces only; set it to at most {found[1]}"
    if found := re.search(r"required_chars\D+\d+ vs (\d+)|(\d+)\s*$", message) if "required_chars" in message else None:
        needed = found[1] or found[2]
        return (
            f"{key}: the characters of the text alone take {needed} pieces; raise it, or lower "
            f"config.data.tokenizer.character_coverage={config.character_coverage} (the rest goes through bytes)"
        )
    return f"{key}: SentencePiece cannot train on the train split: {' '.join(message.split())[-200:]}"
