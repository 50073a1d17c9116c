"""Of which class is a character? One table for all that is counted in texts."""

from __future__ import annotations

import functools
import unicodedata

import numpy as np

# Classes in an order that makes sets of them ranges: SPACE <= white space <= NEWLINE < ink; WORDS are units where letters
# stand together, CHARACTERS units one by one (Han and kana are written without spaces).
SPACE, NEWLINE, PUNCTUATION, TERMINAL, BULLET, CODE, HASH, SYMBOL = range(8)
DIGIT, LATIN, HANGUL, LETTER, HAN, KANA = range(8, 14)
CLASSES = 14
FIRST_INK, FIRST_WORD, FIRST_LETTER, FIRST_CHARACTER = PUNCTUATION, DIGIT, LATIN, HAN

TERMINALS = ".!?\u2026\u3002\uff01\uff1f\uff0e\uff61\u203c\u2047\u061f\u06d4\u0964\u0965"  # end a sentence
BULLETS = "\u2022\u2023\u2043\u25aa\u25ab\u25a0\u25a1\u25cf\u25cb\u25e6\u25b6\u25ba\u2219\u30fb\u204c\u204d\u2666\u25c6\u25c7\u2605\u2606"
CODE_MARKS = "{}()[]<>=;_\\`"
# What else may end a line of prose: closing quotes and brackets, and what leads on to the next line in Chinese.
LINE_ENDS = TERMINALS + ":;\"'\u201d\u2019\u00bb\u300d\u300f\uff09\u3011\u300b\uff0c\uff1b\uff1a\u3001\u2014"
LAST = 0x10000  # the table's row of all characters beyond the basic plane but Han
WHITE = " \t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def _class(number: int) -> int:
    char, category = chr(number), unicodedata.category(chr(number))
    if char == "\n" or char in WHITE or 0x2500 <= number <= 0x257F:  # lines of boxes lay out as spaces do
        return NEWLINE if char == "\n" else SPACE
    for members, name in ((TERMINALS, TERMINAL), (BULLETS, BULLET), (CODE_MARKS, CODE), ("#", HASH)):
        if char in members:
            return name
    if 0x3400 <= number <= 0x9FFF or 0xF900 <= number <= 0xFAFF or number in (0x3005, 0x3007):
        return HAN if category[0] in "LN" else SYMBOL
    if 0x3040 <= number <= 0x30FF or 0x31F0 <= number <= 0x31FF or 0xFF66 <= number <= 0xFF9F:
        return KANA if category[0] == "L" else PUNCTUATION
    if 0xAC00 <= number <= 0xD7AF or 0x1100 <= number <= 0x11FF or 0x3130 <= number <= 0x318F:
        return HANGUL
    if category == "Nd":
        return DIGIT
    if category[0] == "L" and (number < 0x250 or 0x1E00 <= number < 0x1F00 or 0xFF21 <= number <= 0xFF5A):
        return LATIN
    if category[0] in "LM":
        return LETTER
    return PUNCTUATION if category[0] == "P" else SYMBOL


@functools.cache
def classes() -> np.ndarray:
    """Returns the class of each code point, uint8 [65538]; row LAST is all others, LAST + 1 all other Han."""
    return np.array([*map(_class, range(LAST)), SYMBOL, HAN], np.uint8)


@functools.cache
def hashes() -> np.ndarray:
    """Returns a random number for each code point, uint64 [65538], the same for upper and lower case."""
    numbers = np.random.default_rng(0x6C6D).integers(0, 2**64, LAST + 2, np.uint64)
    lower = [char.lower() for char in map(chr, range(LAST))]
    return numbers[
        np.array([ord(c) if len(c) == 1 and ord(c) < LAST else i for i, c in enumerate(lower)] + [LAST, LAST + 1])
    ]


@functools.cache
def members(characters: str) -> np.ndarray:
    """Returns which code points are among `characters`, bool [65538]."""
    table = np.zeros(LAST + 2, bool)
    table[[ord(char) for char in characters]] = True
    return table


def rows_of(text: str) -> np.ndarray:
    """Returns each character's row in the tables, uint32."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    if codes.size and codes.max() >= LAST:
        beyond = LAST + ((codes >= 0x20000) & (codes < 0x40000)).astype(np.uint32)
        codes = np.where(codes >= LAST, beyond, codes)
    return codes
