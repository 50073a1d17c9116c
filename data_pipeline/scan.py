"""What becomes of one record: cleaned, written as text where it is a conversation, cut, named?

Preparation and streaming both ask here, so they cannot disagree on a document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from data_pipeline.chat import Chat, open_chat
from data_pipeline.chat_template import TemplateError
from data_pipeline.clean import clean_many
from data_pipeline.config import DataConfig
from data_pipeline.conversation import Conversation
from data_pipeline.records import Bad, Record
from data_pipeline.split import cut_by_position
from data_pipeline.tokenizer import Tokenizer

SHORTENED = "the chat template, which leaves out part of an answer, so that it is not learned"


def part_for(record: Record, split: str, pinned: str, config: DataConfig) -> Record:
    """Returns what of a cleaned record belongs to `split`: all of it, unless documents are cut by position."""
    if config.split.by == "hash" or record.is_whole() or pinned:
        return record
    return replace(record, text=cut_by_position(record.text, config.split)[split])


class Outcome(NamedTuple):
    """What became of a record."""

    record: Record | Bad | str  # ready to be tokenised; what is wrong with it; the reason to drop it
    rules: tuple[str, ...]  # that changed it
    shortened: int = 0  # answers that the chat template leaves out a part of
    cleaned: Record | None = None  # as the edit rules left it, also where it is dropped
    measures: np.ndarray | None = None  # [Measures] what the rule `quality` counted, where that was asked for


class Cleaner:
    """Cleans records, and writes those that are conversations as text."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.chat: Chat | None = None  # opened when the first conversation comes

    def clean(self, record: Record) -> Record | Bad | str:
        """Returns the record ready to be tokenised, what is wrong with it, or the reason to drop it."""
        return self.clean_many([record])[0].record

    def clean_many(self, records: Sequence[Record], keep_measures: bool = False) -> list[Outcome]:
        """`clean` for many at once, which is faster, and with what the rules did."""
        return [
            Outcome(reason or record, rules, 0, record, measures)
            if reason or record.chat is None
            else self._render(record, record.chat, rules)
            for record, reason, rules, measures in clean_many(records, self.config.clean, keep_measures)
        ]

    def _render(self, record: Record, chat: Conversation, rules: tuple[str, ...]) -> Outcome:
        self.chat = self.chat or open_chat(self.tokenizer, self.config.chat)
        try:
            rendered = self.chat.render(chat)
        except TemplateError as error:
            bad = Bad("refused by the chat template", f"{self.chat.where} refuses the conversation: {error}")
            return Outcome(bad, rules, 0, record)
        return Outcome(replace(record, text=rendered.text, rendered=rendered), rules, rendered.left_out, record)


def document_key(key: bytes, split: str) -> int:
    """Names a document by its text; the parts of one cut by position get names of their own."""
    digest = hashlib.blake2b(key + split.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
