"""What text does a field of a row hold, and what does a template make of several?"""

from __future__ import annotations

import re
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.conversation import kind_of
from data_pipeline.records import Bad, is_encodable

FIELD = re.compile(r"\{(\w+)\}")  # other braces stand for themselves


def read_field(row: dict[str, Any], name: str, may_be_empty: bool = False) -> str | Bad:
    """Returns the text in a field, or what is wrong with it."""
    value = row.get(name)
    if not isinstance(value, str):
        return Bad("wrong type", f"field {name!r} is {kind_of(value)}, expected text")
    if not value.strip() and not may_be_empty:
        return Bad("empty text", f"field {name!r} is empty")
    if not is_encodable(value):
        return Bad("lone surrogate", f"field {name!r} holds a lone surrogate, which is no character")
    return value


def read_named(row: dict[str, Any], name: str, key: str) -> str | Bad:
    """`read_field` of a field that the configuration asks for by `key`."""
    return read_field(row, name) if name in row else Bad("missing field", f"no field {name!r}, which {key} names")


def read_text(row: dict[str, Any], config: SourceConfig) -> str | Bad:
    """Returns the text of a row; of a pair both, with the separator between them."""
    text = read_named(row, config.text_field, "text_field")
    if not config.pair_field:
        return text
    parts = [text, read_named(row, config.pair_field, "pair_field")]
    texts = [part for part in parts if isinstance(part, str)]
    bad = next((part for part in parts if isinstance(part, Bad)), None)
    return bad or config.pair_separator.join(texts)


def template_fields(template: str) -> list[str]:
    """Returns the names of the fields in a template.

    >>> template_fields("{premise} {a b} {hypothesis}?")
    ['premise', 'hypothesis']
    """
    return FIELD.findall(template)


def fill_template(template: str, row: dict[str, Any]) -> str | Bad:
    """Returns the template with the fields of a row in it."""
    texts = {name: read_named(row, name, "prompt_template") for name in template_fields(template)}
    bad = next((text for text in texts.values() if isinstance(text, Bad)), None)
    return bad or FIELD.sub(lambda match: str(texts[match[1]]), template)
