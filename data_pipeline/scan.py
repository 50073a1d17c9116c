"""Which documents are kept, in which split, and what happened to the others? One pass over all sources.

Preparation and streaming both start from this pass, so they cannot disagree on a single document.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from data_pipeline.chat import Chat, open_chat
from data_pipeline.chat_template import TemplateError
from data_pipeline.clean import clean_record
from data_pipeline.config import SPLITS, DataConfig
from data_pipeline.records import Bad, Place, Record, Source
from data_pipeline.schema import UserError
from data_pipeline.split import cut_by_position, split_of, text_key
from data_pipeline.tokenizer import STAND_IN, Tokenizer

PROGRESS_SECONDS = 2.0  # between progress lines; shorter work prints none
WHOLE_OR_CUT = (*SPLITS, "every split")  # a text cut by position is in each
SHORTENED = "the chat template, which leaves out part of an answer, so that it is not learned"
MAX_EXAMPLES = 3  # shown in a message about leaks


class Document(NamedTuple):
    """A kept document, cleaned; of one cut by position, the part that belongs to `split`."""

    source: int
    split: str
    record: Record
    key: int  # 64 bits that name the document, whatever the order of files: augmentation is keyed by it
    place: Place


@dataclass
class Tally:
    """What became of the records of one source."""

    read: int = 0
    kept: Counter[str] = field(default_factory=Counter)  # by split
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    changed: Counter[str] = field(default_factory=Counter)  # by rule

    def to_json(self) -> dict[str, Any]:
        return {
            "read": self.read,
            **{k: dict(sorted(getattr(self, k).items())) for k in ("kept", "dropped", "changed")},
        }


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


class Scan:
    """Iterates over the kept documents; afterwards `tallies` says what happened, by source."""

    def __init__(
        self, sources: list[Source], config: DataConfig, log: Callable[[str], None],
        on_drop: Callable[[str, str, str], None] = lambda source, where, reason: None,
        tokenizer: Tokenizer = STAND_IN,
    ):  # fmt: skip
        self.sources, self.config, self.log, self.on_drop = sources, config, log, on_drop
        self.cleaner = Cleaner(config, tokenizer)
        self.tallies = [Tally() for _ in sources]
        self.seen: dict[bytes, int] = {}  # text key -> its first document: source, and place in WHOLE_OR_CUT
        self.leaks: Counter[tuple[str, str]] = Counter()
        self.leak_examples: list[str] = []
        self.began = self.said = time.monotonic()

    def __iter__(self) -> Iterator[Document]:
        total = sum(source.total_bytes() for source in self.sources)
        done = 0
        for number, source in enumerate(self.sources):
            yield from self._scan_source(number, source, done, total)
            done += source.total_bytes()
        self._check_leaks()

    def _scan_source(self, number: int, source: Source, done: int, total: int) -> Iterator[Document]:
        tally = self.tallies[number]
        bad = passed = 0
        first_bad = ""
        for place, where, record in source.read():
            if source.config.max_documents and tally.read >= source.config.max_documents:
                break
            tally.read += 1
            passed = passed + place.length if place.item == 0 else passed
            if tally.read % 256 == 0:
                self._progress(source.name, tally.read, done + passed, total)
            if isinstance(record, Record):
                record = self.cleaner.clean(record, tally.changed)
                if isinstance(record, str):
                    self._drop(number, where, record)
                    continue
            if isinstance(record, Bad):
                if record.fatal and self.config.on_bad == "error":
                    hint = '; config.data.on_bad="skip" counts such rows and goes on'
                    raise UserError(f"{where}: {record.message}{hint if record.reason != 'empty file' else ''}")
                bad += record.fatal
                if record.fatal:
                    first_bad = first_bad or f"{where}: {record.message}"
                self._drop(number, where, record.reason)
                continue
            yield from self._keep(number, place, where, record)
        if bad > self.config.max_bad_fraction * tally.read:
            raise UserError(
                f"source {source.name}: {bad} of {tally.read} rows are bad, more than "
                f"config.data.max_bad_fraction={self.config.max_bad_fraction:g} allows; the first: {first_bad}"
            )
        if not tally.kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in tally.dropped.most_common())
            raise UserError(
                f"source {source.name}: none of its {tally.read} documents is left ({reasons or 'no documents'})"
            )

    def _keep(self, number: int, place: Place, where: str, cleaned: Record) -> Iterator[Document]:
        config, tally = self.config, self.tallies[number]
        pinned = self.sources[number].config.split
        key = text_key(cleaned)
        if config.split.by == "position" and not cleaned.is_whole() and not pinned:
            if self._is_repeat(number, where, key, WHOLE_OR_CUT[-1], pinned=False):
                return self._drop(number, where, "duplicate")
            splits = [s for s in SPLITS if part_for(cleaned, s, pinned, config).text]
        else:
            splits = [pinned or split_of(cleaned.group, key, config.split)]
            if self._is_repeat(number, where, key, splits[0], bool(pinned)):
                return self._drop(number, where, "duplicate")
        for split in splits:
            tally.kept[split] += 1
            part = part_for(cleaned, split, pinned, config)
            yield Document(number, split, part, document_key(key, split), place)

    def _is_repeat(self, number: int, where: str, key: bytes, split: str, pinned: bool) -> bool:
        """Says whether a document goes as a repeat of an earlier one; notes a leak where it stays in another split."""
        here = number * len(WHOLE_OR_CUT) + WHOLE_OR_CUT.index(split)
        if key not in self.seen:
            self.seen[key] = here
            return False
        first_source, first_split = divmod(self.seen[key], len(WHOLE_OR_CUT))
        across = WHOLE_OR_CUT[first_split] != split
        if across and (pinned or self.sources[first_source].config.split or not self.config.clean.exact_dedup):
            self.leaks[WHOLE_OR_CUT[first_split], split] += 1
            if len(self.leak_examples) < MAX_EXAMPLES:
                self.leak_examples.append(f"{where} repeats a document of source {self.sources[first_source].name}")
            return False
        return self.config.clean.exact_dedup

    def _check_leaks(self) -> None:
        if not self.leaks:
            return
        counts = ", ".join(f"{count} texts of {a} are in {b} too" for (a, b), count in self.leaks.items())
        message = f"{counts}; {'; '.join(self.leak_examples)}"
        if not self.config.allow_leak:
            hint = (
                ""
                if self.config.clean.exact_dedup
                else " (clean.exact_dedup=True drops repeats between unpinned splits)"
            )
            raise UserError(f"{message}. Remove them{hint}, or set config.data.allow_leak=True to go on")
        self.log(f"warning: {message} (allow_leak=True)")

    def _drop(self, number: int, where: str, reason: str) -> None:
        self.tallies[number].dropped[reason] += 1
        self.on_drop(self.sources[number].name, where, reason)

    def _progress(self, name: str, count: int, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.said >= PROGRESS_SECONDS and done:
            self.said = now
            left = (now - self.began) * max(total - done, 0) / done
            self.log(
                f"reading {name}: {count:,} documents, {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {left:.0f} s left"
            )
