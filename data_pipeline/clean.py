"""Which rules does a text pass before it is used, and why is a document dropped?

    python -m data_pipeline.clean                          lists the rules
    python -m data_pipeline.clean < in.jsonl > out.jsonl   cleans lines of {"text": ...}
    python -m data_pipeline.clean FILE                     cleans a text file to standard output, counts on standard error

An edit rule is `str -> str`, a drop rule `str -> reason or ""`; they live in `data_pipeline/rules/`. All are idempotent and
leave clean text alone, in any language: none relies on ASCII, on spaces between words or on `\\b`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.config import CleanConfig
from data_pipeline.conversation import REASONING
from data_pipeline.records import Record
from data_pipeline.rules.bad_words import bad_words
from data_pipeline.rules.boilerplate import boilerplate
from data_pipeline.rules.characters import (
    blank_lines,
    control,
    html_entities,
    line_ends,
    mojibake,
    nfc,
    trailing_space,
    width,
)
from data_pipeline.rules.encoding import repair_encoding, signs_of_damage
from data_pipeline.rules.joined import Joined, groups
from data_pipeline.rules.language import not_kept
from data_pipeline.rules.measures import measure_many
from data_pipeline.rules.pii import anonymize, find_pii
from data_pipeline.rules.pii_cipher import read_key
from data_pipeline.rules.quality import Limits, judge, quality, read_bounds
from data_pipeline.rules.secrets import secrets
from data_pipeline.rules.variants import simplified
from data_pipeline.schema import ConfigError

Edit = Callable[[str], str]
Drop = Callable[[str], str]
LONG = 1000  # characters of a text of which the rules' work is more than the calls
SPACE_RULES = ("trailing_space", "blank_lines")
LOCAL = ("line_ends", "nfc", "control", "trailing_space", "blank_lines", "width", "html_entities", "secrets")
PAGE_ONLY = ("boilerplate",)  # rules about whole pages: questions and answers are none
BY_NUMBERS = ("too short", "too long", "language")  # drops that what is counted can decide again, without the text

EDITS: dict[str, Edit] = {
    rule.__name__: rule
    for rule in (
        line_ends, repair_encoding, nfc, control, trailing_space, blank_lines, width, html_entities, boilerplate, simplified,
        secrets,
    )
}  # fmt: skip
DROPS: dict[str, Drop] = {"mojibake": mojibake, "quality": quality}
RULES = (*EDITS, *DROPS)


class Cleaned(NamedTuple):
    """What became of a record."""

    record: Record  # as the edit rules left it, also where it is dropped
    reason: str  # of the drop; "": it is kept
    rules: tuple[str, ...]  # the edit rules that changed it; of personal data "pii_email" and the like
    measures: np.ndarray | None  # [Measures] what the rule `quality` counted, where that was asked for


def edit(text: str, rules: tuple[str, ...], touched: set[str] | None = None) -> str:
    """Runs the edit rules in order until none changes anything: removing one character can expose work for another.

    Adds the names of the rules that changed something to `touched`.
    """
    edits = _edits(rules)
    while True:
        start = text
        for name, rule in edits:
            before, text = text, rule(text)
            if touched is not None and text != before:
                touched.add(name)
        if text == start:
            return text


def clean_text(text: str, rules: tuple[str, ...], config: CleanConfig, touched: set[str]) -> str:
    """Edits a text, then takes the personal data out of it."""
    text = edit(text, rules, touched)
    if not config.pii:
        return text
    key = b"" if config.pii == "mask" else _key(config.pii_key_env)
    text, counts = anonymize(text, config.pii, config.pii_kinds, key)
    touched.update(f"pii_{kind}" for kind in counts)
    return text


def clean_texts(texts: Sequence[str], config: CleanConfig) -> list[tuple[str, set[str]]]:
    """`clean_text` for many: (cleaned text, what changed it) of each. Short ones are tried joined, which saves calls."""
    cleaned, touched = list(texts), [set[str]() for _ in texts]
    for i in (i for i, text in enumerate(texts) if len(text) > LONG):
        cleaned[i] = clean_text(texts[i], config.rules, config, touched[i])
    for numbers in groups([i for i, text in enumerate(texts) if len(text) <= LONG], texts):
        _edit_joined(cleaned, touched, numbers, config.rules)
        if config.pii:
            joined = Joined([cleaned[i] for i in numbers])
            for at in joined.of(found.start for found in find_pii(joined.text, config.pii_kinds)):
                cleaned[numbers[at]] = clean_text(cleaned[numbers[at]], (), config, touched[numbers[at]])
    return list(zip(cleaned, touched))


def _edit_joined(texts: list[str], touched: list[set[str]], numbers: Sequence[int], rules: tuple[str, ...]) -> None:
    """`edit` for the texts with these numbers, in place: of each rule only where it finds work."""
    while numbers:
        changed: set[int] = set()
        joined = Joined([texts[i] for i in numbers])
        for name, rule in _edits(rules):
            stale = False
            for at in _with_work(joined, name, rule):
                i = numbers[at]
                before, texts[i] = texts[i], rule(texts[i])
                if texts[i] != before:
                    touched[i].add(name)
                    changed.add(i)
                    stale = True
            if stale:
                joined = Joined([texts[i] for i in numbers])
        numbers = sorted(changed)


def _with_work(joined: Joined, name: str, rule: Edit) -> Iterable[int]:
    """Which texts an edit rule changes, and perhaps some more."""
    if name in LOCAL:
        return joined.changed_by(rule)
    return joined.of(signs_of_damage(joined.text)) if name == "repair_encoding" else range(len(joined.texts))


_key = functools.lru_cache(maxsize=4)(read_key)


@functools.lru_cache(maxsize=64)
def _edits(rules: tuple[str, ...]) -> tuple[tuple[str, Edit], ...]:
    return tuple((rule, EDITS[rule]) for rule in rules if rule in EDITS)


@functools.lru_cache(maxsize=64)
def _drops(rules: tuple[str, ...]) -> tuple[Drop, ...]:
    return tuple(DROPS[rule] for rule in rules if rule in DROPS and rule != "quality")


def clean_many(records: Sequence[Record], config: CleanConfig, keep_measures: bool = False) -> list[Cleaned]:
    """Cleans records; `quality` measures many at once, which is ten times as fast as one by one.

    With `keep_measures` it also measures those that are dropped by their length or language, of which other bounds may keep some.
    """
    plain = [row for row, record in enumerate(records) if not record.is_whole()]
    texts = iter(clean_texts([records[row].text for row in plain], config))
    results = [
        _clean(record, config) if record.is_whole() else _judge(record, *next(texts), config) for record in records
    ]
    if "quality" not in config.rules:
        return results
    measured = ("", *BY_NUMBERS) if keep_measures else ("",)
    rows = [row for row in plain if results[row].reason in measured]
    measures = measure_many([results[row].record.text for row in rows])
    counted = np.column_stack(measures) if keep_measures else [None] * len(rows)
    for row, found, counts in zip(rows, judge(measures, _limits(config.bounds)), counted):
        record, reason, touched, _ = results[row]
        results[row] = Cleaned(record, reason or found, touched, counts)
    return results


@functools.lru_cache(maxsize=8)
def _limits(changes: tuple[str, ...]) -> Limits:
    limits, problems = read_bounds(changes)
    if problems:
        raise ConfigError([f"clean.bounds: {problem}" for problem in problems])
    return limits


def _judge(record: Record, text: str, touched: set[str], config: CleanConfig) -> Cleaned:
    """Runs every drop rule but `quality` on a record of which `text` is the cleaned text."""
    if not touched:
        return Cleaned(record, _why_drop(record, config), (), None)
    cleaned = replace(record, text=text)
    return Cleaned(cleaned, _why_drop(cleaned, config), _in_order(touched, config.rules), None)


def _clean(record: Record, config: CleanConfig) -> Cleaned:
    """Runs every rule but `quality` on a prompt and its completion, or a conversation."""
    touched: set[str] = set()
    rules = tuple(rule for rule in config.rules if rule not in PAGE_ONLY)
    if record.chat is not None:
        messages = tuple(_clean_message(message, rules, config, touched) for message in record.chat.messages)
        cleaned = replace(record, chat=replace(record.chat, messages=messages))
        reason = "too short" if is_emptied(cleaned, record) else _why_drop(cleaned, config)
        return Cleaned(cleaned, reason, _in_order(touched, rules), None)
    # White space where prompt and completion meet is part of the format ("Answer: "), so it stays.
    body = record.text.rstrip()
    kept = tuple(rule for rule in rules if rule not in SPACE_RULES)
    prompt = clean_text(body, rules, config, touched) + edit(record.text[len(body) :], kept, touched)
    completion = clean_text(record.completion or "", rules, config, touched)
    choices = tuple(clean_text(choice, rules, config, touched) for choice in record.choices)
    cleaned = replace(record, text=prompt, completion=completion, choices=choices)
    return Cleaned(cleaned, _why_drop(cleaned, config), _in_order(touched, rules), None)


def _in_order(touched: set[str], rules: tuple[str, ...]) -> tuple[str, ...]:
    return (*(rule for rule in rules if rule in touched), *sorted(touched - set(rules)))


def _why_drop(record: Record, config: CleanConfig) -> str:
    parts = record.parts()
    for drop in _drops(config.rules):
        for part in parts:
            if reason := drop(part):
                return reason
    length = sum(map(len, parts))
    if length < config.min_chars or not (record.chat or parts[-1].strip()):
        return "too short"
    if config.max_chars and length > config.max_chars:
        return "too long"
    text = parts[0] if len(parts) == 1 else "\n".join(parts)
    if config.bad_words and (reason := bad_words(text, config.bad_words)):
        return reason
    return not_kept(text, config.keep_languages) if config.keep_languages else ""


def is_emptied(cleaned: Record, record: Record) -> bool:
    """Says whether nothing is left to learn: of a text, a completion, or a message that said something."""
    if cleaned.chat is None or record.chat is None:
        return not cleaned.parts()[-1].strip()
    pairs = zip(cleaned.chat.messages, record.chat.messages)
    return any(not new.get("content", "x").strip() and old["content"].strip() for new, old in pairs)


def _clean_message(
    message: dict[str, Any], rules: tuple[str, ...], config: CleanConfig, touched: set[str]
) -> dict[str, Any]:
    names = [name for name in ("content", *REASONING) if name in message]
    texts = {name: clean_text(message[name], rules, config, touched) for name in names}
    return {**message, **texts}


if __name__ == "__main__":
    from data_pipeline.clean_lines import main
    from data_pipeline.schema import run_main

    run_main(main)
