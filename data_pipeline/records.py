"""What is one document of a source, and what is a row that could not be read?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from data_pipeline.config import SourceConfig
from data_pipeline.conversation import Conversation
from data_pipeline.lines import WHOLE, Span
from data_pipeline.marks import Stretch


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a chat template wrote, and stretches of it."""

    text: str
    learned: tuple[Stretch, ...] = ()  # what the assistant says, with the end of its turn
    literal: tuple[Stretch, ...] = ()  # what people wrote that spells a special token, and is none
    left_out: int = 0  # answers that the template shows shortened (without their reasoning), which are not learned


@dataclass(slots=True)
class Record:
    """A text; or (when `completion` is there) a prompt and its completion; or (when `chat` is) a conversation.

    A conversation has no text before it is rendered. Nobody changes a record; frozen, it would take five times as long to make.
    """

    text: str
    completion: str | None = None
    group: str = ""  # records of one group always share a split
    chat: Conversation | None = None
    rendered: Rendered | None = None
    label: str = ""  # the class it belongs to; "": it has none
    choices: tuple[str, ...] = ()  # multiple choice: all that the row offers, of which the completion is one

    def parts(self) -> tuple[str, ...]:
        if self.rendered or self.chat is None:
            return (self.text,) if self.completion is None else (self.text, self.completion)
        return self.chat.contents()

    def is_whole(self) -> bool:
        """Says whether the record makes sense only in one piece."""
        return self.completion is not None or self.chat is not None


def pack_record(record: Record) -> bytes:
    """Writes what `tasks.to_ids` needs of a record: a text behind a zero byte, all else as JSON."""
    rendered = record.rendered
    if rendered is None and record.completion is None:
        return b"\0" + record.text.encode()
    values = [record.text, record.completion, [rendered.learned, rendered.literal] if rendered else None]
    return json.dumps(values, ensure_ascii=False).encode()


def unpack_record(content: bytes) -> Record:
    if content[:1] == b"\0":
        return Record(content[1:].decode())
    text, completion, stretches = json.loads(content)
    if stretches is None:
        return Record(text, completion)
    learned, literal = (tuple((a, b) for a, b in part) for part in stretches)
    return Record(text, rendered=Rendered(text, learned, literal))


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that is no record; `fatal` ones stop the run unless config.data.on_bad is "skip"."""

    reason: str  # a few words, the same for all such rows: the ledger counts by it
    message: str
    fatal: bool = True


class Place(NamedTuple):
    """Where a record lies, small enough to keep one for every document of a large source."""

    file: int
    offset: int  # byte offset in the unpacked file
    length: int
    item: int  # number of the record within these bytes


class Found(NamedTuple):
    """What reading a source gives: a record or a bad row, and where."""

    place: Place
    where: str  # file:line, for messages and the ledger
    record: Record | Bad


class Part(NamedTuple):
    """What of a source is read by itself: files `first` to `end` (left out), or a span of one."""

    first: int
    end: int
    size: int  # bytes on the disk, for progress
    span: Span = WHOLE


def add_file(parts: list[Part], number: int, size: int, goal: int) -> None:
    """Adds a whole file to the last part, where that has only whole files and room, or as a part of its own."""
    if parts and parts[-1].span == WHOLE and parts[-1].size + size <= goal:
        parts[-1] = parts[-1]._replace(end=number + 1, size=parts[-1].size + size)
    else:
        parts.append(Part(number, number + 1, size))


class Named(Protocol):
    """What of a source is needed where its text is prepared already."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> SourceConfig: ...


CREDITS = ("license", "citation", "url")  # keys of a SourceConfig, and what a source may know of itself


def credit(sources: Sequence[Source]) -> dict[str, dict[str, str]]:
    """Returns of each source its licence, citation and address: what the configuration says, else what the source does."""
    return {source.name: credits_of(source.config, source.credits()) for source in sources}


def credits_of(config: SourceConfig, known: dict[str, str]) -> dict[str, str]:
    said = known | {key: text for key, text in zip(CREDITS, (config.license, config.citation, config.url)) if text}
    return {key: said[key] for key in CREDITS if said.get(key)}


class Source(Protocol):
    """One entry of config.data.sources, opened."""

    name: str
    config: SourceConfig

    def identity(self) -> list[Any]: ...  # JSON values: equal where the records are equal
    def total_bytes(self) -> int: ...
    def credits(self) -> dict[str, str]: ...  # of CREDITS what the source itself says; {} where it says nothing
    def parts(self, goal: int) -> list[Part]: ...  # of about `goal` bytes; a function of the source and `goal` alone
    def read(self, part: Part | None = None) -> Iterator[Found]: ...  # every record in a fixed order
    def load(self, place: Place) -> Record: ...  # one record that `read` found, again


def utf8_size(text: str) -> int:
    """Returns the bytes of a text."""
    return len(text) if text.isascii() else len(text.encode())


def is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
