"""What can be counted in a text? One pass over a batch of texts; every count is exact, nothing is sampled.

Repetition is counted by 64-bit hashes of lines, paragraphs and n-grams, of which a batch of 2**17 units compares the upper
47 bits: a false pair comes about once in 16,000 batches. A unit is a word (letters and digits that stand together), or one
character of Han or kana, which are written without spaces: n words are as much as 1.6 n Chinese characters.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.rules import glyphs
from data_pipeline.rules.stretches import MIX, Sums

TOP_WORDS, REPEATED_WORDS = (2, 3, 4), (5, 6, 7, 8, 9, 10)  # Gopher's n-grams, in words
WORD_SIZES = np.array(TOP_WORDS + REPEATED_WORDS)
GRAMS = ("top_2", "top_3", "top_4", "repeated_5", "repeated_6", "repeated_7", "repeated_8", "repeated_9", "repeated_10")
CHARACTER_SIZES = np.array([3, 5, 6, 8, 10, 11, 13, 14, 16])  # 1.6 times as many
SHORT_LINE = (30, 12)  # characters of a short line: in words, in Chinese
MANY = 1 << 17  # characters measured at once: the arrays stay in the cache
LONGEST = (
    1 << 20
)  # characters of a piece: repetition in a longer text is counted within pieces of it, so memory is bounded
# Words that hold sentences together in languages of Latin letters, the most frequent ones of each.
STOP_WORDS = (
    "the be to of and that have with is in it for as was on are this not you at or if by an from can "  # English
    "de la le les et des un une que dans est pour par sur qui en au du a "  # French
    "der die und das den von zu mit ist nicht ein eine sich auf im dem für wird "  # German
    "el los las por con una no se del para como y o es al lo su "  # Spanish
    "il di che per non sono della i e questo da si come "  # Italian
    "os as do em um com não uma mais ao dos i els amb són és "  # Portuguese, Catalan
    "het een van niet op te voor zijn dat je "  # Dutch
    "och att det på som är av för inte med til og ikke er kan så "  # Swedish, Danish, Norwegian
    "w na z się że nie jest po za od jak lub v s že pro není k či nebo ale u su ili kao "  # Polish, Czech, Croatian
    "și în cu nu este sau pe mai din să care "  # Romanian
    "ja ei että tai kun voi ovat az hogy nem egy meg "  # Finnish, Hungarian
    "ve bir bu için ile olarak veya "  # Turkish
    "yang dan di untuk dengan ini dari pada adalah atau tidak anda akan "  # Indonesian, Malay
    "và của là các có không được một cho để trong những với này cách "  # Vietnamese
)


class Measures(NamedTuple):
    """Counts of one text, or arrays with a row a text. Lengths are in characters."""

    chars: Any = 0
    spaces: Any = 0  # white space and line ends
    punctuation: Any = 0
    code: Any = 0  # characters that are frequent in code: glyphs.CODE_MARKS
    symbols: Any = 0  # all that is neither letter, digit, space nor punctuation
    digits: Any = 0
    latin: Any = 0
    han: Any = 0
    kana: Any = 0
    hangul: Any = 0
    letters: Any = 0  # of other scripts
    words: Any = 0
    word_chars: Any = 0
    number_words: Any = 0  # words that begin with a digit
    stop_words: Any = 0
    units: Any = 0  # words, and Han and kana one by one
    unit_chars: Any = 0
    hashes: Any = 0  # number signs, and words' worth of ellipses
    urls: Any = 0
    braces: Any = 0
    sentences: Any = 0  # runs of characters that end one
    fillers: Any = 0  # "lorem ipsum"
    lines: Any = 0  # that are not empty
    line_chars: Any = 0  # without white space
    longest_line: Any = 0
    ended_lines: Any = 0  # by punctuation
    short_lines: Any = 0  # and not ended by punctuation
    bullet_lines: Any = 0
    ellipsis_lines: Any = 0
    repeated_lines: Any = 0  # that stood before
    repeated_line_chars: Any = 0
    paragraphs: Any = 0
    repeated_paragraphs: Any = 0
    repeated_paragraph_chars: Any = 0
    top_2: Any = 0  # characters in the 2-gram of words that takes most of the text; 0 where each stands once
    top_3: Any = 0
    top_4: Any = 0
    repeated_5: Any = 0  # characters in 5-grams of words that stood before
    repeated_6: Any = 0
    repeated_7: Any = 0
    repeated_8: Any = 0
    repeated_9: Any = 0
    repeated_10: Any = 0


LARGEST = ("longest_line", "top_2", "top_3", "top_4")  # of pieces of one text count the largest, of others the sum


def measure(text: str) -> Measures:
    """Returns the counts of one text.

    >>> counts = measure("The cat sat. 猫坐下了。")
    >>> counts.words, counts.han, counts.units, counts.sentences, counts.stop_words
    (3, 4, 7, 2, 1)
    """
    return Measures(*(int(column[0]) for column in measure_many([text])))


def measure_many(texts: Sequence[str]) -> Measures:
    """Returns the counts of many texts, int64 arrays [texts]."""
    pieces = [
        (row, text[at : at + LONGEST]) for row, text in enumerate(texts) for at in range(0, max(len(text), 1), LONGEST)
    ]
    counts, start, size = [], 0, 0
    for stop, (_, piece) in enumerate(pieces, 1):
        size += len(piece) + 1
        if size >= MANY or stop == len(pieces):
            counts.append(_Batch([piece for _, piece in pieces[start:stop]]).measure())
            start, size = stop, 0
    if len(counts) == 1 and len(pieces) == len(texts):
        return counts[0]
    columns = (
        [np.concatenate(column) for column in zip(*counts)]
        if counts
        else [np.zeros(0, np.int64)] * len(Measures._fields)
    )
    if len(pieces) > len(texts):
        first = np.flatnonzero(np.diff([row for row, _ in pieces], prepend=-1))
        columns = [
            (np.maximum if name in LARGEST else np.add).reduceat(column, first)
            for name, column in zip(Measures._fields, columns)
        ]
    return Measures(*columns)


@functools.cache
def _stop_words() -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes of the stop words, sorted, and which upper 16 bits they have."""
    words = STOP_WORDS.split()
    ends = np.cumsum([len(word) for word in words])
    starts = ends - [len(word) for word in words]
    known = np.unique(Sums(glyphs.hashes()[glyphs.rows_of("".join(words))]).hash(starts, ends))
    table = np.zeros(1 << 16, bool)
    table[known >> np.uint64(48)] = True
    return known, table


class _Batch:
    """Texts joined by line ends, as arrays: one entry a character, a unit, a line."""

    def __init__(self, texts: list[str]):
        self.texts, self.count = texts, len(texts)
        self.joined = "\n".join(texts) + "\n"
        self.rows = glyphs.rows_of(self.joined)
        self.classes = glyphs.classes().take(self.rows, mode="clip")
        lengths = np.array([len(text) + 1 for text in texts], np.int64)
        self.stops = np.cumsum(lengths)  # behind each text's closing line end
        self.starts = self.stops - lengths
        self.sums = Sums(glyphs.hashes().take(self.rows, mode="clip"))
        self.salts = np.arange(self.count, dtype=np.uint64) * np.uint64(MIX)

    def measure(self) -> Measures:
        counts = self._characters()
        self.chinese = counts["han"] + counts["kana"] > counts["latin"] / 5  # 5 letters make a word
        counts |= self._units()
        counts |= self._lines()
        return Measures(**{name: np.asarray(counts[name], np.int64) for name in Measures._fields})

    def _text_of(self, places: np.ndarray) -> np.ndarray:
        """Returns the text that each of some ascending places is in."""
        before = np.searchsorted(places, self.starts)
        return np.repeat(np.arange(self.count), np.searchsorted(places, self.stops) - before)

    def _sum(self, text_of: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(text_of, weights, self.count).astype(np.int64)

    def _count(self, word: str) -> np.ndarray:
        return np.array([text.count(word) for text in self.texts] if word in self.joined else [0] * self.count)

    def _characters(self) -> dict[str, np.ndarray]:
        own = np.repeat(np.arange(0, self.count * glyphs.CLASSES, glyphs.CLASSES), self.stops - self.starts)
        by_class = np.bincount(own + self.classes, minlength=self.count * glyphs.CLASSES).reshape(self.count, -1).T
        by_class[glyphs.NEWLINE] -= 1  # the line end that joins texts
        terminal = self.classes == glyphs.TERMINAL
        terminal[:-1] &= self.classes[1:] != glyphs.TERMINAL
        names = {
            "digits": glyphs.DIGIT, "latin": glyphs.LATIN, "han": glyphs.HAN, "kana": glyphs.KANA,
            "hangul": glyphs.HANGUL, "letters": glyphs.LETTER, "code": glyphs.CODE,
        }  # fmt: skip
        counts = {name: by_class[number] for name, number in names.items()}
        return counts | {
            "chars": self.stops - self.starts - 1,
            "spaces": by_class[glyphs.SPACE] + by_class[glyphs.NEWLINE],
            "punctuation": by_class[glyphs.PUNCTUATION] + by_class[glyphs.TERMINAL],
            "symbols": by_class[glyphs.SYMBOL]
            + by_class[glyphs.BULLET]
            + by_class[glyphs.HASH]
            + by_class[glyphs.CODE],
            "hashes": by_class[glyphs.HASH] + self._count("...") + self._count("\u2026"),
            "urls": self._count("://") + self._count(" www."),
            "braces": self._count("{"),
            "fillers": self._count("orem ipsum"),
            "sentences": self._sum(self._text_of(np.flatnonzero(terminal))),
        }

    def _units(self) -> dict[str, np.ndarray]:
        in_word = (self.classes >= glyphs.FIRST_WORD) & (self.classes < glyphs.FIRST_CHARACTER)
        alone = self.classes >= glyphs.FIRST_CHARACTER
        begins, ends = in_word | alone, in_word | alone
        begins[1:] &= alone[1:] | ~in_word[:-1]
        ends[:-1] &= alone[:-1] | ~in_word[1:]
        first, last = np.flatnonzero(begins), np.flatnonzero(ends) + 1
        length, is_word = last - first, in_word[first]
        text_of = self._text_of(first)
        numbers = self.sums.hash(first, last)
        known, table = _stop_words()
        maybe = np.flatnonzero(table[numbers >> np.uint64(48)])
        stop = maybe[np.isin(numbers[maybe], known)]
        counts = {
            "words": self._sum(text_of, is_word), "word_chars": self._sum(text_of, length * is_word),
            "units": self._sum(text_of), "unit_chars": self._sum(text_of, length),
            "number_words": self._sum(text_of[self.classes[first] == glyphs.DIGIT]), "stop_words": self._sum(text_of[stop]),
        }  # fmt: skip
        numbers = (numbers ^ (numbers >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
        return counts | self._grams(Sums(numbers), text_of, np.concatenate([[0], np.cumsum(length)]))

    def _grams(self, sums: Sums, text_of: np.ndarray, chars_before: np.ndarray) -> dict[str, np.ndarray]:
        """Counts n-grams size after size: what holds no smaller one that is repeated is not repeated either."""
        counts = {name: np.zeros(self.count, np.int64) for name in GRAMS}
        is_chinese, total = self.chinese[text_of], len(text_of)
        end = np.searchsorted(text_of, np.arange(self.count), "right")[text_of]  # of each unit's text, in units
        start, repeated, before = np.arange(total), np.zeros(0, bool), np.zeros(0, np.int64)
        for column, name in enumerate(GRAMS):
            size = np.where(is_chinese[start], CHARACTER_SIZES[column], WORD_SIZES[column])
            stop = start + size
            keep = stop <= end[start]
            if column:
                keep &= repeated[stop - before]
            start, size, stop = start[keep], size[keep], stop[keep]
            first, times, later = self._repeats(sums.hash(start, stop), start, text_of[start])
            if not len(first):
                break
            repeated = np.zeros(total + CHARACTER_SIZES[-1], bool)
            repeated[first] = repeated[later] = True
            if column < len(TOP_WORDS):
                size = np.where(is_chinese[first], CHARACTER_SIZES[column], WORD_SIZES[column])
                chars = (chars_before[first + size] - chars_before[first]) * times
                np.maximum.at(counts[name], text_of[first], chars)
            else:
                stop = later + np.where(is_chinese[later], CHARACTER_SIZES[column], WORD_SIZES[column])
                begin = later.copy()  # stretches that overlap count once
                np.maximum(later[1:], stop[:-1], out=begin[1:])
                counts[name] = self._sum(text_of[later], chars_before[stop] - chars_before[begin])
            start = np.flatnonzero(repeated)
            before = np.where(is_chinese[start], CHARACTER_SIZES[column], WORD_SIZES[column])
        return counts

    def _repeats(
        self, numbers: np.ndarray, place: np.ndarray, text_of: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of hashes that come twice or more in a text: first places, how many times, and sorted later places."""
        bits = np.uint64(max(int(place[-1]) if len(place) else 0, 1).bit_length())
        keys = np.sort(((numbers ^ self.salts[text_of]) >> bits << bits) | place.astype(np.uint64))
        place = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
        keys >>= bits
        new = np.ones(len(keys) + 1, bool)
        np.not_equal(keys[1:], keys[:-1], out=new[1:-1])
        runs = np.flatnonzero(new)
        times = np.diff(runs)
        several = times > 1
        return place[runs[:-1][several]], times[several], np.sort(place[~new[:-1]])

    def _lines(self) -> dict[str, np.ndarray]:
        ink = np.flatnonzero(self.classes >= glyphs.FIRST_INK)
        stop = np.flatnonzero(self.classes == glyphs.NEWLINE)
        upto = np.searchsorted(ink, stop)
        size = np.diff(upto, prepend=0)
        full = np.flatnonzero(size)
        first, last, size = ink[upto[full] - size[full]], ink[upto[full] - 1], size[full]
        text_of = self._text_of(first)
        length = last + 1 - first
        rows, dot = self.rows, ord(".")
        dots = (rows[last] == dot) & (rows[last - 1] == dot) & (rows[last - 2] == dot) & (size > 2)
        dash = ((rows[first] == ord("-")) | (rows[first] == ord("*"))) & (self.classes[first + 1] == glyphs.SPACE)
        is_later = np.zeros(len(full), bool)
        is_later[self._repeats(self.sums.hash(first, last + 1), np.arange(len(full)), text_of)[2]] = True
        new = np.ones(len(full), bool)  # a paragraph: lines without an empty one between
        new[1:] = (np.diff(full) > 1) | (np.diff(text_of) > 0)
        begins = np.flatnonzero(new)
        ends = np.concatenate([begins[1:], [len(full)]]) - 1 if len(begins) else begins
        ink_of = np.concatenate([[0], np.cumsum(size)])
        again = self._repeats(self.sums.hash(first[begins], last[ends] + 1), np.arange(len(begins)), text_of[begins])[2]
        longest = np.zeros(self.count, np.int64)
        np.maximum.at(longest, text_of, length)

        def count(mask: np.ndarray) -> np.ndarray:
            return self._sum(text_of[mask])

        ended = glyphs.members(glyphs.LINE_ENDS)[rows[last]]
        return {
            "lines": self._sum(text_of), "line_chars": self._sum(text_of, size), "longest_line": longest,
            "ended_lines": count(ended),
            "short_lines": count(~ended & (length <= np.array(SHORT_LINE)[self.chinese[text_of].astype(int)])),
            "bullet_lines": count(dash | (self.classes[first] == glyphs.BULLET)),
            "ellipsis_lines": count(dots | (rows[last] == 0x2026)),
            "repeated_lines": count(is_later), "repeated_line_chars": self._sum(text_of[is_later], size[is_later]),
            "paragraphs": self._sum(text_of[begins]), "repeated_paragraphs": self._sum(text_of[begins[again]]),
            "repeated_paragraph_chars": self._sum(
                text_of[begins[again]], ink_of[ends[again] + 1] - ink_of[begins[again]]
            ),
        }  # fmt: skip
