"""What is written down of every document on its way, so that each can be accounted for without its text?"""

from __future__ import annotations

from typing import IO

import numpy as np

from data_pipeline.clean import is_emptied
from data_pipeline.config import DataConfig
from data_pipeline.dedup.decontaminate import Match
from data_pipeline.documents import EMPTY, MEASURED, RULES, WHOLE, RowWriter, split_where
from data_pipeline.prepare.samples import Showcase
from data_pipeline.records import Bad, Record, utf8_size
from data_pipeline.rules.language import language, script, script_of
from data_pipeline.rules.measures import Measures
from data_pipeline.scan import Outcome

CONTAMINATED = "contaminated"
SCRIPT_SHOWS = 200  # characters of a text that was not measured
BIT = {rule: 1 << bit for bit, rule in enumerate(RULES)}


def why_dropped(cleaned: Record | Bad | str, match: Match | None) -> str:
    """The reason; "" where a document is kept."""
    if isinstance(cleaned, Record):
        return CONTAMINATED if match else ""
    return cleaned.reason if isinstance(cleaned, Bad) else cleaned


class Account:
    """Writes a row for each document of a part, and collects what shows the rules at work."""

    def __init__(self, file: IO[bytes], config: DataConfig, source: str):
        self.writer, self.source = RowWriter(file), source
        self.by_model = config.clean.tells_languages()
        self.showcase = Showcase(config.clean)

    def note(
        self, where: str, record: Record | Bad, outcome: Outcome, reason: str, match: Match | None, key: bytes | None, splits: int
    ) -> None:  # fmt: skip
        file, line = split_where(where)
        if not file.isascii():
            file = file.encode("utf-8", "backslashreplace").decode()  # a name that is not UTF-8
        cleaned, measures = outcome.cleaned, outcome.measures
        if reason:
            what = next((one for one in (outcome.record, record) if isinstance(one, Bad)), cleaned)
            self.showcase.add_drop(reason, where, key, what, measures, match)
        if cleaned is None or not isinstance(record, Record):
            self.writer.add((self.source, file, line or 0, None, 0, 0, "und", 0, 0, reason, 0), None)
            return
        if outcome.rules and not reason:
            self.showcase.add_edit(outcome.rules, where, key or b"", record, cleaned)
        parts = cleaned.parts()
        text = parts[0] if len(parts) == 1 else "\n".join(parts)
        joints = len(parts) - 1
        chars = len(text) - joints
        size = utf8_size(text) - joints
        flags = MEASURED if measures is not None else WHOLE if joints or cleaned.is_whole() else 0
        if is_emptied(cleaned, record):
            flags |= EMPTY
        rules = sum(BIT[rule] for rule in outcome.rules)
        told = self._language(text, measures)
        row = (self.source, file, line or 0, key, chars, size, told, flags, splits, reason, rules)
        self.writer.add(row, measures)

    def _language(self, text: str, counts: np.ndarray | None) -> str:
        if self.by_model:
            return language(text)
        return script(text[:SCRIPT_SHOWS]) if counts is None else script_of(text, Measures(*counts.tolist()))

    def close(self) -> None:
        self.writer.close()
