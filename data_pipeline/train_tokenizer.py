"""How is a tokenizer made from the texts of the train split?"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

from data_pipeline.config import TokenizerConfig
from data_pipeline.schema import ConfigError
from data_pipeline.sentencepiece_tokenizer import WORD_SPACE, SentencePieceTokenizer
from data_pipeline.tokenizer import OURS, ByteTokenizer, CharTokenizer, Tokenizer, load_tokenizer

MAX_SENTENCE = 1000  # characters; sentencepiece leaves out longer sentences without a word
# Each of these is one piece whatever the training text holds, so code and Chinese paragraphs stay short.
ALWAYS_PIECES = ["\n", "\n\n", "\t", "\t\t"]
# Scores of unigram pieces are whole multiples of this. sentencepiece adds scores in 32 bits, which is exact for such ones up to
# 65536, some 8000 pieces in a line: whoever adds them in another precision finds the same pieces.
SCORE_STEP = 2.0**-8


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
                piece = line[start : start + MAX_SENTENCE].replace(WORD_SPACE, " ").replace("\0", " ")
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
            required_chars=WORD_SPACE,  # without a piece of its own, which Chinese may not show, a space comes back as another character
            user_defined_symbols=ALWAYS_PIECES, control_symbols=["<mask>", *config.extra_tokens],
            pad_id=OURS.pad, bos_id=OURS.bos, eos_id=OURS.eos, unk_id=OURS.unk,
            # deterministic and quiet
            num_threads=4, input_sentence_size=0, shuffle_input_sentence=False, minloglevel=2, max_sentence_length=8192,
        )  # fmt: skip
    except RuntimeError as error:
        raise ConfigError(_explain(str(error), config)) from None
    tokenizer = SentencePieceTokenizer(_settle(model.getvalue(), config.model_type == "unigram"), "the trained model")
    assert tokenizer.special == OURS
    missing = [name for name in config.extra_tokens if name not in tokenizer.special_names]
    if missing:
        raise ConfigError(
            f"config.data.tokenizer.extra_tokens: {', '.join(map(repr, missing))} cannot be a special token"
        )
    return tokenizer


def _settle(model: bytes, rounds: bool) -> bytes:
    """Takes what was asked for out of the model, so that one that needed nothing is what it was without; rounds scores.

    User-defined pieces, whose scores sentencepiece adds up itself, become ordinary ones in a model with rounded scores.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]
    proto.trainer_spec.ClearField("required_chars")
    normal, user_defined = 1, 4
    pieces = [piece for piece in proto.pieces if piece.type == normal] if rounds else []
    for piece in pieces:
        piece.score = round(piece.score / SCORE_STEP) * SCORE_STEP
    best = max((piece.score for piece in pieces), default=0.0)
    for piece in proto.pieces if rounds else ():
        if piece.type == user_defined:  # one of two is better than two of one, as 0.1 makes it in sentencepiece
            piece.type, piece.score = normal, len(piece.piece) * best - 0.125
    return proto.SerializeToString(deterministic=True)


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
