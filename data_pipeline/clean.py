"""Which rules does a text pass before it is used, and why is a document dropped?

    python -m data_pipeline.clean                  lists the rules
    python -m data_pipeline.clean FILE             cleans a text file to standard output, counts on standard error

An edit rule is `str -> str`, a drop rule `str -> reason or ""`. All are idempotent and leave clean text alone, in any
language: none relies on ASCII, on spaces between words or on `\\b`.
"""

from __future__ import annotations

import html
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.config import CleanConfig
from data_pipeline.conversation import REASONING
from data_pipeline.records import Record

Edit = Callable[[str], str]
Drop = Callable[[str], str]

# C0 and C1 controls but tab, line feed and carriage return (which is line_ends' business); zero-width space, word
# joiner, Mongolian vowel separator and byte-order mark.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\u180e\ufeff]")
# Joiners mean something inside emoji and in Indic and Arabic scripts, never beside ASCII, Han, kana or a line's end.
NO_JOIN = "\x00-\x7f\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
# (?<!...) and ++ look at each run of joiners once: without them a run of n takes n * n steps, 20,000 of them 9 s.
JOINER = re.compile(
    f"(?:(?<=[{NO_JOIN}])|^)[\u200c\u200d]+|(?<![\u200c\u200d])[\u200c\u200d]++(?=[{NO_JOIN}]|$)", re.MULTILINE
)
MOJIBAKE = re.compile("\ufffd|锟斤拷|烫烫烫|屯屯屯")  # what decoders and debuggers leave behind
MANY_BLANK_LINES = re.compile("\n{4,}")
ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
FULL_WIDTH = {0xFF10 + i: ord("0") + i for i in range(10)}
FULL_WIDTH |= {0xFF21 + i: ord("A") + i for i in range(26)} | {0xFF41 + i: ord("a") + i for i in range(26)}
FULL_WIDTH[0x3000] = ord(" ")
FULL_WIDTH_CHAR = re.compile("[" + "".join(map(chr, FULL_WIDTH)) + "]")
LINE_SPACE = " \t\u3000\xa0"
SPACE_RULES = ("trailing_space", "blank_lines")


def line_ends(text: str) -> str:
    """Turns CR LF and a lone CR into LF.

    >>> line_ends("one\\r\\n二\\r")
    'one\\n二\\n'
    """
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def nfc(text: str) -> str:
    """Composes accents (Unicode NFC); unlike NFKC it keeps full-width Chinese punctuation.

    >>> nfc("cafe\\u0301，你好！") == "caf\\u00e9，你好！"
    True
    """
    return text if text.isascii() or unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def control(text: str) -> str:
    """Removes control and zero-width characters; keeps the joiners of emoji, Indic and Arabic text.

    >>> control("a\\x00b\\u200b c\\ufeff"), control("你\\u200d好\\u200b")
    ('ab c', '你好')
    >>> family = "\\U0001f468\\u200d\\U0001f469\\u200d\\U0001f467"
    >>> control(family) == family
    True
    """
    if CONTROL.search(text):
        text = CONTROL.sub("", text)
    return JOINER.sub("", text) if "\u200c" in text or "\u200d" in text else text


def trailing_space(text: str) -> str:
    """Removes spaces at the ends of lines, full-width ones too.

    >>> trailing_space("one \\t\\n  二　\\n")
    'one\\n  二\\n'
    """
    return "\n".join([line.rstrip(LINE_SPACE) for line in text.split("\n")])


def blank_lines(text: str) -> str:
    """Leaves at most two blank lines in a row.

    >>> blank_lines("一\\n\\n\\n\\n\\n\\n二"), blank_lines("a\\n\\n\\nb")
    ('一\\n\\n\\n二', 'a\\n\\n\\nb')
    """
    return MANY_BLANK_LINES.sub("\n\n\n", text)


def width(text: str) -> str:
    """Turns full-width ASCII letters, digits and spaces into half-width ones; keeps Chinese punctuation.

    >>> width("ＡＢＣ１２３，你好！")
    'ABC123，你好！'
    """
    return text.translate(FULL_WIDTH) if not text.isascii() and FULL_WIDTH_CHAR.search(text) else text


def html_entities(text: str) -> str:
    """Resolves HTML entities that end in a semicolon, also doubly escaped ones.

    >>> html_entities("a &amp;lt; b &copy; &#20320;好 AT&T")
    'a < b © 你好 AT&T'
    """
    while "&" in text:
        resolved = ENTITY.sub(lambda match: html.unescape(match.group()), text)
        if resolved == text:
            break
        text = resolved
    return text


def mojibake(text: str) -> str:
    """Drops documents that a wrong decoder damaged: U+FFFD, 锟斤拷, runs of 烫 or 屯.

    >>> mojibake("锟斤拷锟斤拷"), mojibake("滚烫的水")
    ('mojibake', '')
    """
    return "mojibake" if MOJIBAKE.search(text) else ""


EDITS: dict[str, Edit] = {
    rule.__name__: rule for rule in (line_ends, nfc, control, trailing_space, blank_lines, width, html_entities)
}
DROPS: dict[str, Drop] = {"mojibake": mojibake}
RULES = (*EDITS, *DROPS)


def edit(text: str, rules: tuple[str, ...], touched: set[str] | None = None) -> str:
    """Runs the edit rules in order until none changes anything: removing one character can expose work for another.

    Adds the names of the rules that changed something to `touched`.
    """
    while True:
        start = text
        for rule in rules:
            if rule in EDITS:
                before, text = text, EDITS[rule](text)
                if touched is not None and text != before:
                    touched.add(rule)
        if text == start:
            return text


def clean_record(record: Record, config: CleanConfig, changed: Counter[str] | None = None) -> Record | str:
    """Returns the cleaned record, or the reason to drop it; counts in `changed` which rules did something."""
    touched: set[str] = set()
    if record.chat is not None:
        messages = tuple(_clean_message(message, config.rules, touched) for message in record.chat.messages)
        if any(
            not new.get("content", "x").strip() and old["content"].strip()
            for new, old in zip(messages, record.chat.messages)
        ):
            return "too short"
        cleaned = replace(record, chat=replace(record.chat, messages=messages))
    elif record.completion is None:
        cleaned = Record(edit(record.text, config.rules, touched), None, record.group)
    else:
        # White space where prompt and completion meet is part of the format ("Answer: "), so it stays.
        body = record.text.rstrip()
        kept = tuple(rule for rule in config.rules if rule not in SPACE_RULES)
        prompt = edit(body, config.rules, touched) + edit(record.text[len(body) :], kept, touched)
        cleaned = Record(prompt, edit(record.completion, config.rules, touched), record.group)
    for rule in config.rules:
        if rule in DROPS and (reason := next(filter(None, map(DROPS[rule], cleaned.parts())), "")):
            return reason
    if changed is not None:
        changed.update(touched)
    length = sum(map(len, cleaned.parts()))
    if length < config.min_chars or not (cleaned.chat or cleaned.parts()[-1].strip()):
        return "too short"
    return "too long" if config.max_chars and length > config.max_chars else cleaned


def _clean_message(message: dict[str, Any], rules: tuple[str, ...], touched: set[str]) -> dict[str, Any]:
    texts = {name: edit(message[name], rules, touched) for name in ("content", *REASONING) if name in message}
    return {**message, **texts}


USAGE = """
usage: python -m data_pipeline.clean [FILE] [--rules=RULE,RULE]

Without FILE: lists the rules. With FILE (UTF-8 text): writes the cleaned text to standard output and what was changed
to standard error.

example: python -m data_pipeline.clean notes.txt --rules=line_ends,control,width > clean.txt
"""


def main(argv: list[str]) -> None:
    from data_pipeline.schema import ConfigError, UserError, nearest, split_flags

    files = [word for word in argv if not word.startswith("-")]
    default = ",".join(CleanConfig().rules)
    flags, _ = split_flags([word for word in argv if word.startswith("-")], {"rules": default}, USAGE)
    rules = tuple(filter(None, flags["rules"].split(",")))
    unknown = [f"no rule {rule!r}{nearest(rule, list(RULES))}" for rule in rules if rule not in RULES]
    if unknown:
        raise ConfigError(unknown)
    if not files:
        for name, rule in (EDITS | DROPS).items():
            kind = "on by default" if name in CleanConfig().rules else "off by default"
            print(f"{name:16} {kind:15} {(rule.__doc__ or '').strip().splitlines()[0]}")
        return
    if len(files) > 1:
        raise ConfigError(f"name one file, not {len(files)}; see --help")
    try:
        text = Path(files[0]).read_bytes().decode()
    except OSError as error:
        raise UserError(f"{files[0]}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{files[0]}: not UTF-8 at byte {error.start}") from None
    changed: Counter[str] = Counter()
    cleaned = clean_record(Record(text), CleanConfig(rules=rules), changed)
    edited = ", ".join(rule for rule in rules if changed[rule]) or "nothing"
    if isinstance(cleaned, str):
        print(f"the document would be dropped: {cleaned}", file=sys.stderr)
        return
    sys.stdout.buffer.write(cleaned.text.encode())  # UTF-8 as it came, whatever the terminal's encoding
    sys.stdout.buffer.flush()
    print(f"changed by: {edited}; {len(text):,} -> {len(cleaned.text):,} characters", file=sys.stderr)


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
