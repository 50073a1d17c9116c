"""What does a text look like after all changes that a configuration asks for? A pure function of text, rules and key."""

from __future__ import annotations

from data_pipeline.augment.draw import CHANGES, draw
from data_pipeline.augment.lexicon import Lexicon, read_lexicon
from data_pipeline.augment.noise import change_case, change_width, mistype
from data_pipeline.augment.sentences import paraphrase_lines, shuffle_sentences
from data_pipeline.augment.words import delete_words, replace_words, swap_words
from data_pipeline.config import AugmentConfig

# Keys of AugmentConfig that change text, in the order in which they act.
TEXT_KINDS = (
    "line_paraphrase", "sentence_shuffle", "word_synonym", "word_swap", "word_deletion", "word_case", "char_typo", "char_width",
)  # fmt: skip


def changes_text(config: AugmentConfig) -> bool:
    return any(getattr(config, kind) > 0 for kind in TEXT_KINDS)


def lexicon_of(config: AugmentConfig, key: str) -> Lexicon:
    """Reads what `synonyms`, `homophones` or `paraphrases` names; raises ConfigError for what is none."""
    paths = getattr(config, key)
    paths = paths if isinstance(paths, tuple) else (paths,) * bool(paths)
    return read_lexicon(paths, key) if paths else Lexicon({})


def augment_text(text: str, config: AugmentConfig, key: int) -> str:
    """Returns `text` as the kinds of `config` that change text make it; the same for the same `key` (64 bits), anywhere.

    >>> augment_text("The model reads text.", AugmentConfig(word_swap=0.5), 5)
    'model The reads text.'
    """
    if draw(key, CHANGES, 1)[0] >= config.text_share:
        return text
    if config.line_paraphrase:
        text = paraphrase_lines(text, config.line_paraphrase, lexicon_of(config, "paraphrases"), key)
    if config.sentence_shuffle:
        text = shuffle_sentences(text, config.sentence_shuffle, key)
    if config.word_synonym:
        text = replace_words(text, config.word_synonym, lexicon_of(config, "synonyms"), key)
    if config.word_swap:
        text = swap_words(text, config.word_swap, key)
    if config.word_deletion:
        text = delete_words(text, config.word_deletion, key)
    if config.word_case:
        text = change_case(text, config.word_case, key)
    if config.char_typo:
        text = mistype(text, config.char_typo, lexicon_of(config, "homophones"), key)
    if config.char_width:
        text = change_width(text, config.char_width, key)
    return text
