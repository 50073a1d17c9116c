"""Which settings of augmentation are impossible, by themselves, with a tokenizer or with a row length?"""

from __future__ import annotations

from typing import Any

from data_pipeline.augment.mask import is_masking
from data_pipeline.augment.rewrite import Rewriter, rewrites
from data_pipeline.augment.spans import find_marks
from data_pipeline.augment.text import TEXT_KINDS, lexicon_of
from data_pipeline.config import AugmentConfig, DataConfig
from data_pipeline.lines import hash_file
from data_pipeline.schema import ConfigError, to_json
from data_pipeline.tokenizer import Tokenizer

FIRST_KEYS = ("token_dropout", "span_mask", "span_length")  # part of what data are known by whatever they are
SHARES = ("span_corruption", "fill_in_middle", "suffix_first", "text_share", *TEXT_KINDS)
FILES = {"word_synonym": "synonyms", "line_paraphrase": "paraphrases"}  # what a kind cannot do without


def is_on(config: AugmentConfig) -> bool:
    return is_masking(config) or rewrites(config)


def augment_problems(data: DataConfig) -> list[str]:
    """Returns one line for each impossible value; reads no file."""
    config = data.augment
    tests = [(0 <= getattr(config, key) < 1, f"{key}: must be in [0, 1), got {getattr(config, key)}") for key in
             ("token_dropout", "span_mask", "noise_density", "room")]  # fmt: skip
    tests += [
        (0 <= getattr(config, key) <= 1, f"{key}: must be in [0, 1], got {getattr(config, key)}") for key in SHARES
    ]
    tests += [
        (bool(getattr(config, files)) or not getattr(config, kind), f"{kind} needs augment.{files}, a file; docs/augmentation.md")
        for kind, files in FILES.items()
    ]  # fmt: skip
    tests += [
        (config.span_length >= 1, f"span_length: must be >= 1, got {config.span_length}"),
        (config.noise_length >= 1, f"noise_length: must be >= 1, got {config.noise_length}"),
        (
            len(config.denoisers) == 3 and min(config.denoisers) >= 0 and sum(config.denoisers) > 0,
            f"denoisers: must be three shares (regular, sequential, extreme), not all 0, got {config.denoisers}",
        ),
        (config.span_corruption + config.fill_in_middle <= 1, "span_corruption + fill_in_middle: more than all chunks"),
        (
            not (is_masking(config) and (config.span_corruption or config.fill_in_middle)),
            "token_dropout and span_mask would hide the marks of span_corruption and fill_in_middle; set one pair to 0",
        ),
    ]
    problems = [f"augment.{message}" for ok, message in tests if not ok]
    if not problems and rewrites(config) and data.seq_len >= 2 and Rewriter(config, None, data.seq_len).limit() < 2:
        problems.append(f"seq_len={data.seq_len} leaves no room for what augmentation adds; raise it")
    return problems


def check_augment(config: AugmentConfig, tokenizer: Tokenizer | None) -> None:
    """Raises ConfigError for files that are no lexicons, and for marks that the tokenizer lacks (where there is one yet)."""
    for kind, key in (*FILES.items(), ("char_typo", "homophones")):
        if getattr(config, kind):
            lexicon_of(config, key)
    if tokenizer is None:
        return
    marks = find_marks(tokenizer)
    train = "train one with config.data.tokenizer.extra_tokens=('<|fim_prefix|>', '<|fim_suffix|>', '<|fim_middle|>')"
    if config.fill_in_middle and not marks.fim:
        raise ConfigError(
            f"config.data.augment.fill_in_middle: the tokenizer has no tokens for it; {train}, or set it to 0"
        )
    if config.span_corruption and not marks.sentinels and marks.mask < 0:
        raise ConfigError(
            "config.data.augment.span_corruption: the tokenizer has neither <extra_id_0> nor a mask token; use another, or "
            "set it to 0"
        )


def augment_identity(config: AugmentConfig) -> dict[str, Any] | None:
    """What batches depend on, as JSON, or None where nothing is on; of files the hash. Keys at their defaults leave no trace."""
    if not is_on(config):
        return None
    default, out = AugmentConfig(), {key: getattr(config, key) for key in FIRST_KEYS}
    out |= {key: value for key, value in to_json(config).items() if value != to_json(default)[key]}
    for key in {*FILES.values(), "homophones"} & out.keys():
        paths = getattr(config, key)
        out[key] = [hash_file(path) for path in (paths if isinstance(paths, tuple) else (paths,))]
    return out
