"""Which characters are mistyped, in the other case, or in the other width?"""

from __future__ import annotations

import re
import sys

import numpy as np

from data_pipeline.augment.draw import CASE, TYPO, WIDTH, draw, pick
from data_pipeline.augment.lexicon import HAN
from data_pipeline.augment.words import LETTER, SPELT

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # of the usual keyboard
BESIDE = {c: row[max(i - 1, 0) : i] + row[i + 1 : i + 2] for row in ROWS for i, c in enumerate(row)}
# Signs, digits and letters, and the space, that have two widths.
WIDE = {chr(c): chr(c + 0xFEE0) for c in range(0x21, 0x7F)} | {" ": "\u3000"}
OTHER_WIDTH = WIDE | {wide: narrow for narrow, wide in WIDE.items()}


def _table(characters: str) -> np.ndarray:
    """Returns of each code point whether a character class of a pattern has it."""
    table = np.zeros(sys.maxunicode + 1, bool)
    for first, last in re.findall("(.)(?:-(.))?", characters, re.S):
        table[ord(first) : ord(last or first) + 1] = True
    return table


TYPED = _table(LETTER + HAN)
TWO_WIDTHS = _table(" -~\u3000\uff01-\uff5e")


def _places(text: str, table: np.ndarray) -> np.ndarray:
    """Returns where characters of a class stand; a pattern takes ten times as long to say it."""
    return np.flatnonzero(table[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)])


def mistype(text: str, share: float, homophones: dict[str, tuple[str, ...]], key: int) -> str:
    """Mistypes `share` of the letters and Chinese characters.

    One trades places with the next, is left out, is written twice, or becomes the key beside it (letters of a usual
    keyboard) or one that sounds alike (Chinese characters that `homophones` has): each as often as the others.

    >>> mistype("the model reads", 0.2, {}, 3), mistype("春眠不觉晓处处闻啼鸟", 0.2, {"觉": ("绝",)}, 8)
    ('tthe mpdl reaf', '春眠不觉觉晓闻处啼鸟')
    """
    spots = _places(text, TYPED)
    u = draw(key, TYPO, len(spots))
    drawn = u < share
    out, at = [], 0
    for i in drawn.nonzero()[0].tolist():
        here, after = int(spots[i]), int(spots[i + 1]) if i + 1 < len(spots) else -1
        char = text[here]
        lower = char.lower()
        alike = homophones.get(char) or BESIDE.get(lower, "")
        v = float(u[i]) / share  # uniform again
        way = pick(v, 4 if alike else 3)
        v = v * (4 if alike else 3) - way
        out.append(text[at:here])
        at = here + 1
        if way == 0 and (after != here + 1 or drawn[i + 1]):
            way = 1 + (v < 0.5)  # it cannot trade places
        if way == 0:
            out.append(text[after] + char)
            at += 1
        elif way == 1 and len(spots) > 1:
            pass
        elif way == 3:
            other = alike[pick(v, len(alike))]
            out.append(other if char == lower else other.upper())
        else:
            out.append(char + char)
    return "".join(out) + text[at:]


def change_case(text: str, share: float, key: int) -> str:
    """Writes `share` of the words of letters otherwise: in lower case, in capitals, or with a capital in front.

    >>> change_case("The model reads", 1.0, 0)
    'the MODEL Reads'
    """
    matches = list(SPELT.finditer(text))
    u = draw(key, CASE, len(matches))
    out, at = [], 0
    for i in (u < share).nonzero()[0].tolist():
        word = matches[i][0]
        others = [w for w in dict.fromkeys((word.lower(), word.upper(), word.capitalize())) if w != word]
        if others:
            out += [text[at : matches[i].start()], others[pick(float(u[i]) / share, len(others))]]
            at = matches[i].end()
    return "".join(out) + text[at:]


def change_width(text: str, share: float, key: int) -> str:
    """Writes `share` of the characters that have a full and a half width in the other one.

    >>> change_width("ABC，１2", 1.0, 0)
    'ＡＢＣ,1２'
    """
    spots = _places(text, TWO_WIDTHS)
    out, at = [], 0
    for here in spots[draw(key, WIDTH, len(spots)) < share].tolist():
        out += [text[at:here], OTHER_WIDTH[text[here]]]
        at = here + 1
    return "".join(out) + text[at:]
