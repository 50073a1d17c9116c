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


def _between(*ranges: tuple[int, int]) -> np.ndarray:
    """Returns which code points lie in ranges, of which both ends belong to them."""
    table = np.zeros(LAST, bool)
    for first, last in ranges:
        table[first : last + 1] = True
    return table


@functools.cache
def classes() -> np.ndarray:
    """Returns the class of each code point, uint8 [65538]; row LAST is all others, LAST + 1 all other Han."""
    category = np.array([*map(unicodedata.category, map(chr, range(LAST)))])
    major = category.astype("U1")
    letter, mark = major == "L", major == "M"
    han = _between((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x3005, 0x3005), (0x3007, 0x3007))
    kana = _between((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))
    hangul = _between((0xAC00, 0xD7AF), (0x1100, 0x11FF), (0x3130, 0x318F))
    latin = letter & _between((0, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A))
    boxes = _between((0x2500, 0x257F))  # lines of boxes lay out as spaces do
    sets = [members(chars)[:LAST] for chars in ("\n", WHITE, TERMINALS, BULLETS, CODE_MARKS, "#")]
    rules = [  # the first that holds
        (sets[0], NEWLINE), (sets[1] | boxes, SPACE), *zip(sets[2:], (TERMINAL, BULLET, CODE, HASH)),
        (han & (letter | (major == "N")), HAN), (han, SYMBOL), (kana & letter, KANA), (kana, PUNCTUATION),
        (hangul, HANGUL), (category == "Nd", DIGIT), (latin, LATIN), (letter | mark, LETTER), (major == "P", PUNCTUATION),
    ]  # fmt: skip
    found = np.select([where for where, _ in rules], [np.uint8(name) for _, name in rules], np.uint8(SYMBOL))
    return np.append(found, np.array([SYMBOL, HAN], np.uint8))


@functools.cache
def hashes() -> np.ndarray:
    """Returns a random number for each code point, uint64 [65538], the same for upper and lower case."""
    numbers = np.random.default_rng(0x6C6D).integers(0, 2**64, LAST + 2, np.uint64)
    upper = [
        char for char in map(chr, range(LAST)) if len(low := char.lower()) == 1 and low != char and ord(low) < LAST
    ]
    rows = np.arange(LAST + 2)
    rows[[ord(char) for char in upper]] = [ord(char.lower()) for char in upper]
    return numbers[rows]


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
