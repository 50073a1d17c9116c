"""What becomes of one record: cleaned, written as text where it is a conversation, cut, named?

Preparation and streaming both ask here, so they cannot disagree on a document.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

from data_pipeline.chat import Chat, open_chat
from data_pipeline.chat_template import TemplateError
from data_pipeline.clean import clean_record
from data_pipeline.config import DataConfig
from data_pipeline.records import Bad, Record
from data_pipeline.split import cut_by_position
from data_pipeline.tokenizer import Tokenizer

SHORTENED = "the chat template, which leaves out part of an answer, so that it is not learned"


def part_for(record: Record, split: str, pinned: str, config: DataConfig) -> Record:
    """Returns what of a cleaned record belongs to `split`: all of it, unless documents are cut by position."""
    if config.split.by == "hash" or record.is_whole() or pinned:
        return record
    return Record(cut_by_position(record.text, config.split)[split], None, record.group)


class Cleaner:
    """Cleans records, and writes those that are conversations as text."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.chat: Chat | None = None  # opened when the first conversation comes

    def clean(self, record: Record, changed: Counter[str] | None = None) -> Record | Bad | str:
        """Returns the record ready to be tokenised, what is wrong with it, or the reason to drop it.

        Counts in `changed` which rules did something, and the answers that the chat template shortened.
        """
        cleaned = clean_record(record, self.config.clean, changed)
        if isinstance(cleaned, str) or cleaned.chat is None:
            return cleaned
        self.chat = self.chat or open_chat(self.tokenizer, self.config.chat)
        try:
            rendered = self.chat.render(cleaned.chat)
        except TemplateError as error:
            return Bad("refused by the chat template", f"{self.chat.where} refuses the conversation: {error}")
        if changed is not None and rendered.left_out:
            changed[SHORTENED] += rendered.left_out
        return replace(cleaned, text=rendered.text, rendered=rendered)


def document_key(key: bytes, split: str) -> int:
    """Names a document by its text; the parts of one cut by position get names of their own."""
    digest = hashlib.blake2b(key + split.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
