"""What is one document of a source before cleaning, and what is a row that could not be read?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from data_pipeline.config import SourceConfig


@dataclass(frozen=True, slots=True)
class Record:
    """A text, or (when `completion` is there) a prompt and its completion."""

    text: str
    completion: str | None = None
    group: str = ""  # records of one group always share a split

    def parts(self) -> tuple[str, ...]:
        return (self.text,) if self.completion is None else (self.text, self.completion)


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


class Source(Protocol):
    """One entry of config.data.sources, opened."""

    name: str
    config: SourceConfig

    def identity(self) -> list[Any]: ...  # JSON values: equal where the records are equal
    def total_bytes(self) -> int: ...
    def read(self) -> Iterator[Found]: ...  # every record in a fixed order
    def load(self, place: Place) -> Record: ...  # one record that `read` found, again


def record_from_fields(row: dict[str, Any], config: SourceConfig) -> Record | Bad:
    """Picks prompt and completion, or the text, out of one row of named fields."""
    pair = config.prompt_field in row and config.completion_field in row
    names = (config.prompt_field, config.completion_field) if pair else (config.text_field,)
    values = []
    for name in names:
        if name not in row:
            wanted = f"'{config.text_field}' (or '{config.prompt_field}' and '{config.completion_field}')"
            have = ", ".join(repr(key) for key in list(row)[:8]) or "none"
            return Bad("missing field", f"no field {wanted}; the row has {have}")
        value = row[name]
        if not isinstance(value, str):
            kind = {type(None): "null"}.get(type(value), type(value).__name__)
            return Bad("wrong type", f"field {name!r} is {kind}, expected text")
        if not value.strip() and not (pair and name == config.prompt_field):
            return Bad("empty text", f"field {name!r} is empty")
        if not is_encodable(value):
            return Bad("lone surrogate", f"field {name!r} holds a lone surrogate, which is no character")
        values.append(value)
    group = ""
    if config.group_field:
        if config.group_field not in row:
            return Bad("missing group", f"no field {config.group_field!r}, which group_field names")
        group = str(row[config.group_field])
        if not is_encodable(group):
            return Bad("lone surrogate", f"field {config.group_field!r} holds a lone surrogate, which is no character")
    return Record(values[0], values[1] if pair else None, group)


def is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
