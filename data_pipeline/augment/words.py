"""Which words change places, are left out or are said otherwise?

A word is a run of letters, or one Chinese character; for synonyms a Chinese word is what the lexicon says. Numbers, signs and
line ends stay what and where they are.
"""

from __future__ import annotations

import re

from data_pipeline.augment.draw import DELETE, SWAP, SYNONYM, draw, pick
from data_pipeline.augment.lexicon import HAN, RUN, Lexicon, find_words

LETTER = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03ff\u0400-\u04ff"
WORD = re.compile(f"[{LETTER}]+(?:['’-][{LETTER}]+)*|[{HAN}]")
SPELT = re.compile(f"[{LETTER}]+(?:['’-][{LETTER}]+)*")


def swap_words(text: str, share: float, key: int) -> str:
    """Lets `share` of the words trade places with a neighbour in the same line.

    >>> swap_words("one two three four", 0.5, 4), swap_words("春眠不觉晓", 0.5, 1)
    ('two one three four', '眠春不晓觉')
    """
    spots = [match.span() for match in WORD.finditer(text)]
    u, limit = draw(key, SWAP, len(spots)).tolist(), share / (2 - share)  # as a pair that traded is passed over
    out, at, i = [], 0, 0
    while i + 1 < len(spots):
        (a, b), (c, d) = spots[i], spots[i + 1]
        if u[i] < limit and "\n" not in text[b:c]:
            out += [text[at:a], text[c:d], text[b:c], text[a:b]]
            at, i = d, i + 1
        i += 1
    return "".join(out) + text[at:]


def delete_words(text: str, share: float, key: int) -> str:
    """Leaves out `share` of the words, with the space behind each, but never the only one.

    >>> delete_words("one two three four", 0.5, 3), delete_words("春眠不觉晓", 0.4, 3)
    ('one three ', '春不晓')
    """
    spots = [match.span() for match in WORD.finditer(text)]
    gone = (draw(key, DELETE, len(spots)) < share).tolist()
    if all(gone):
        gone[:1] = [False] * len(gone[:1])
    out, at = [], 0
    for (begin, end), is_gone in zip(spots, gone):
        if is_gone:
            out.append(text[at:begin])
            at = end + text.startswith(" ", end)
    return "".join(out) + text[at:]


def replace_words(text: str, share: float, lexicon: Lexicon, key: int) -> str:
    """Says `share` of the words that the lexicon has others for with one of these, in the same case.

    >>> replace_words("Happy days. 我很高兴。", 1.0, Lexicon({"happy": ("glad",), "高兴": ("开心",)}), 0)
    'Glad days. 我很开心。'
    """
    spots = [(m.start(), m.end()) for m in SPELT.finditer(text) if lexicon.get(m[0].lower())]
    for match in RUN.finditer(text):
        begin = match.start()
        found = ((begin + a, begin + b) for a, b in find_words(match[0], lexicon))
        spots += [(a, b) for a, b in found if lexicon[text[a:b]]]
    spots.sort()
    u = draw(key, SYNONYM, 2 * len(spots)).tolist()
    out, at = [], 0
    for i, (begin, end) in enumerate(spots):
        if u[2 * i] < share:
            word = text[begin:end]
            others = lexicon[word.lower()]
            out += [text[at:begin], _in_case_of(word, others[pick(u[2 * i + 1], len(others))])]
            at = end
    return "".join(out) + text[at:]


def _in_case_of(word: str, other: str) -> str:
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[0].upper() + other[1:] if word[0].isupper() else other
