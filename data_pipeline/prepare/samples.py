"""Which documents show what a rule dropped or changed, and how much of them may be shown?

Of every reason and every rule the few documents with the smallest keys, so neither the order of files nor the number of processes plays a
part. Keys and passwords are never shown, and personal data is not where `clean.pii` takes it out: of a text that held any, only
what stands in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from data_pipeline.clean import EDITS, PAGE_ONLY, edit
from data_pipeline.config import CleanConfig
from data_pipeline.dedup.decontaminate import Match
from data_pipeline.records import Bad, Record
from data_pipeline.rules.measures import Measures
from data_pipeline.rules.pii import anonymize, find_pii
from data_pipeline.rules.quality import BOUNDS, KINDS, kinds_of, read_bounds

KEPT = 3  # of each reason and rule
SHOWN = 160  # characters of a text
AROUND = 40  # characters beside a change
NEAR_BY = 4000  # characters beside it that are looked at
HELD = 20_000  # characters of a document that is held until it is known whether it will be shown
BY_CHARACTER = tuple(rule for rule in EDITS if rule not in (*PAGE_ONLY, "simplified", "secrets"))
Sample = dict[str, Any]
Samples = dict[str, dict[str, dict[str, Sample]]]  # "drops" or "edits" -> reason or rule -> key -> what is shown


class Showcase:
    """Collects the samples of one part."""

    def __init__(self, config: CleanConfig):
        self.config = config
        self.held: dict[str, dict[str, dict[str, Sample | Callable[[], Sample]]]] = {"drops": {}, "edits": {}}
        self.limits = read_bounds(config.bounds)[0]

    def add_drop(
        self, reason: str, where: str, key: bytes | None, what: Record | Bad | None, measures: np.ndarray | None,
        match: Match | None,
    ) -> None:  # fmt: skip
        """Takes the cleaned record, or what is wrong with the row."""

        def show() -> Sample:
            text = what.message if isinstance(what, Bad) else first_words(what, self.config)
            sample: Sample = {"where": where, "text": shorten(hide(text, self.config))}
            if isinstance(what, Record):
                sample["chars"] = sum(map(len, what.parts()))
            if measures is not None and (found := self._bound(reason, measures)):
                sample["bound"] = found
            if match:
                sample |= {"text": shorten(hide(match.text, self.config)), "match": match.where}
            return sample

        size = 0 if isinstance(what, Bad) or what is None else sum(map(len, what.parts()))
        self._offer(
            "drops",
            reason,
            size,
            key or hashlib.blake2b(where.encode("utf-8", "replace"), digest_size=16).digest(),
            show,
        )

    def add_edit(self, rules: tuple[str, ...], where: str, key: bytes, record: Record, cleaned: Record) -> None:
        size = sum(map(len, record.parts()))
        private = [rule for rule in rules if rule == "secrets" or rule.startswith("pii_")]
        for rule in rules:
            if rule in private or not private:  # of a text that held any, the other rules have better examples
                self._offer(
                    "edits", rule, size, key, lambda rule=rule: {"where": where, **self._change(rule, record, cleaned)}
                )

    def _offer(self, kind: str, name: str, size: int, key: bytes, show: Callable[[], Sample]) -> None:
        held, rank = self.held[kind].setdefault(name, {}), key.hex()
        if rank in held or (len(held) == KEPT and rank > max(held)):
            return
        held[rank] = show if size <= HELD else show()
        if len(held) > KEPT:
            del held[max(held)]

    def samples(self) -> Samples:
        return {
            kind: {
                name: {rank: one if isinstance(one, dict) else one() for rank, one in held.items()}
                for name, held in names.items()
            }
            for kind, names in self.held.items()
        }

    def _bound(self, reason: str, measures: np.ndarray) -> list[Any] | None:
        """[value, limit, kind of text] of a bound that is broken."""
        bound = next((bound for bound in BOUNDS if bound.name == reason), None)
        if bound is None:
            return None
        row = Measures(*measures[:, None])
        kind = int(kinds_of(row)[0])
        return [round(float(bound.value(row)[0]), 4), self.limits[reason][kind], KINDS[kind]]

    def _change(self, rule: str, record: Record, cleaned: Record) -> Sample:
        """What the rule did by itself, or where that is nothing, what all of them did."""
        pairs = [(old, new) for old, new in zip(record.parts(), cleaned.parts()) if old != new]
        for old, _ in pairs:
            if rule in EDITS and rule != "secrets":
                alone = EDITS[rule](old)
                if alone != old:
                    return show_change(old, alone, self.config)
        for old, new in pairs:
            if sample := show_mark(rule, old, new, self.config):
                return sample
        return show_change(*pairs[0], self.config) if pairs and rule in EDITS else {}


def first_words(record: Record | None, config: CleanConfig) -> str:
    """The beginning of a record; where characters were lost, what is around the first of them."""
    text = next((part for part in record.parts() if part.strip()), "") if record else ""
    at = max(text.find("\ufffd") - AROUND, 0)
    return hide(text[at : at + NEAR_BY], config)


def shorten(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def hide(text: str, config: CleanConfig) -> str:
    """Takes secrets out of a text, and personal data where the corpus is to have none."""
    text = EDITS["secrets"](text)
    return anonymize(text, "mask", config.pii_kinds)[0] if config.pii else text


def is_private(text: str, config: CleanConfig) -> bool:
    """Says whether a text holds what must not be shown, also once its characters are put right."""
    for form in (text, edit(text, BY_CHARACTER)):
        if EDITS["secrets"](form) != form or (config.pii and find_pii(form, config.pii_kinds)):
            return True
    return False


def show_change(old: str, new: str, config: CleanConfig) -> Sample:
    """The first change between two texts as [[sign, text], ...]: "=" stays, "-" goes, "+" comes."""
    at = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
    begin = max(at - NEAR_BY, 0)
    if any(is_private(text[begin : at + NEAR_BY], config) for text in (old, new)):
        return {"hidden": True}
    first, end = max(at - AROUND, 0), at + 2 * AROUND
    is_cut = max(len(old), len(new)) > end
    old, new = old[first:end], new[first:end]
    found = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    if is_cut and len(found) > 2 and found[-1][0] != "equal":  # where the stretch ends, not what the rule did
        found.pop()
    parts: list[list[str]] = []
    for how, a, b, c, d in found:
        if how == "equal":
            parts.append(["=", old[a:b]])
        else:
            parts += [[sign, text] for sign, text in (("-", old[a:b]), ("+", new[c:d])) if text]
    return {"change": parts}


def show_mark(rule: str, old: str, new: str, config: CleanConfig) -> Sample:
    """What stands in the place of personal data or of a secret."""
    mark = "<SECRET>" if rule == "secrets" else f"<{rule.removeprefix('pii_').upper()}>"
    text = edit(old, tuple(rule for rule in EDITS if rule in config.rules or rule == "secrets"))
    if rule != "secrets" or config.pii:
        text = anonymize(text, "mask", config.pii_kinds)[0]
    at = text.find(mark)
    if at < 0:
        return {}
    before, after = text[max(at - AROUND, 0) : at], text[at + len(mark) : at + len(mark) + AROUND]
    return {"change": [["=", before], ["+", mark], ["=", after]]}


def merge(parts: Iterable[Samples]) -> dict[str, dict[str, list[Sample]]]:
    """Puts the samples of parts together: those with the smallest keys."""
    held = Samples(drops={}, edits={})
    for samples in parts:
        for kind, names in samples.items():
            for name, found in names.items():
                both = held[kind].setdefault(name, {}) | found
                held[kind][name] = {key: both[key] for key in sorted(both)[:KEPT]}
    return {
        kind: {name: [one | {"id": key} for key, one in names[name].items()] for name in sorted(names)}
        for kind, names in held.items()
    }
