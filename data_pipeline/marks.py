"""How is it seen in what a chat template wrote which characters the assistant said, and which a person?

Marks are code points that Unicode leaves to programs (U+FDD0 to U+FDEF), so that no text holds them. They go into the
messages, the template carries them along, and they are taken out again.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.chat_template import BEGIN, END

QUOTE, UNQUOTE = "\ufdd2", "\ufdd3"  # around what a person wrote that spells a special token
NEXT = "\ufdd4"  # in front of a message that follows a tool call
DIGITS = [chr(0xFDE0 + digit) for digit in range(10)]  # number the answers: some templates write a tool's name twice
OWN = re.compile(f"[{BEGIN}{END}{QUOTE}{UNQUOTE}{NEXT}{''.join(DIGITS)}]")
MARK = re.compile(f"([{BEGIN}{END}{QUOTE}{UNQUOTE}{NEXT}])([{''.join(DIGITS)}]*)")
Message = dict[str, Any]
Stretch = tuple[int, int]  # of a text, in characters


@dataclass(frozen=True, slots=True)
class Marked:
    """A marked text without its marks, and where they were."""

    text: str
    begins: dict[int, int]  # number of an answer -> where it begins
    ends: dict[int, int]
    literal: tuple[Stretch, ...]
    nexts: tuple[int, ...]

    def is_literal(self, begin: int, end: int) -> bool:
        return overlaps(self.literal, begin, end)


def overlaps(stretches: Sequence[Stretch], begin: int, end: int) -> bool:
    """Says whether any of the stretches, which are in order and apart, shares a character with begin..end.

    >>> [overlaps([(2, 4), (6, 7)], *at) for at in ((0, 2), (3, 5), (4, 6), (0, 9))]
    [False, True, False, True]
    """
    before = bisect.bisect_left(stretches, (end, 0)) - 1
    return before >= 0 and stretches[before][1] > begin


def strings_in(value: Any) -> Sequence[str]:
    """Returns every text in a JSON value but the keys."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for part in inner for text in strings_in(part)]


def quote(value: Any, names: re.Pattern[str]) -> Any:
    """Returns a JSON value in which marks stand around every name of a special token, but in roles and keys."""
    if isinstance(value, str):
        return names.sub(lambda match: f"{QUOTE}{match[0]}{UNQUOTE}", value)
    if isinstance(value, dict):
        return {key: part if key == "role" else quote(part, names) for key, part in value.items()}
    return [quote(part, names) for part in value] if isinstance(value, list | tuple) else value


def mark_answer(message: Message, number: int, with_begin: bool = True) -> Message:
    """Puts marks around what an assistant says, inside its outer white space, which templates may trim."""
    digits = "".join(DIGITS[int(digit)] for digit in str(number))
    begin, end = BEGIN + digits if with_begin else "", END + digits
    content, calls = message.get("content", ""), message.get("tool_calls")
    if core := content.strip():
        front, _, back = content.partition(core)
        message = {**message, "content": f"{front}{begin}{core}{'' if calls else end}{back}"}
        begin = ""
    if calls:
        *others, last = calls
        function = last.get("function", last)
        function = {**function, "name": f"{begin}{function['name']}{end}"}
        message = {
            **message,
            "tool_calls": [*others, {**last, "function": function} if "function" in last else function],
        }
    return message


def mark_next(message: Message) -> Message:
    content = message.get("content", "")
    front = content[: len(content) - len(content.lstrip())]
    return {**message, "content": f"{front}{NEXT}{content[len(front) :]}"}


def take_out(text: str) -> Marked:
    """Takes the marks out. Of those that stand twice the first counts; those without a number are counted."""
    parts: list[str] = []
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    literal: list[Stretch] = []
    nexts: list[int] = []
    quoted = at = size = 0
    for match in MARK.finditer(text):
        parts.append(text[at : match.start()])
        size += match.start() - at
        at = match.end()
        number = int("".join(str(DIGITS.index(digit)) for digit in match[2])) if match[2] else len(ends)
        if match[1] == BEGIN:
            begins.setdefault(number, size)
        elif match[1] == END:
            ends.setdefault(number, size)
        elif match[1] == QUOTE:
            quoted = size
        elif match[1] == UNQUOTE:
            literal.append((quoted, size))
        else:
            nexts.append(size)
    return Marked("".join([*parts, text[at:]]), begins, ends, tuple(literal), tuple(nexts))
