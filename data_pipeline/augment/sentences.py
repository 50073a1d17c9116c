"""In which order do the sentences of a paragraph stand, and which lines are said in other words?"""

from __future__ import annotations

import re

import numpy as np

from data_pipeline.augment.draw import PARAPHRASE, SHUFFLE, draw, fold, pick

# A sentence with the space behind it. After a Latin full stop there must be space: 3.14, e-mail addresses.
SENTENCE = re.compile(r"(.*?(?:[。！？…]+[”’」』）)\"]*|[.!?]+[”’)\"]*(?=\s|$)|$))([^\S\n]*)", re.S)

LATIN_ENDS = '.!?")'


def split_sentences(line: str) -> list[tuple[str, str]]:
    """Returns the (sentence, space behind it) of one line.

    >>> split_sentences("It is 3.14. Yes! 他说：“走吧。”我走了。")
    [('It is 3.14.', ' '), ('Yes!', ' '), ('他说：“走吧。”', ''), ('我走了。', '')]
    """
    return [(sentence, space) for sentence, space in SENTENCE.findall(line) if sentence or space]


def shuffle_sentences(text: str, share: float, key: int) -> str:
    """Puts the sentences of `share` of the lines that have several in another order.

    >>> shuffle_sentences("One. Two! Three?", 1.0, 2), shuffle_sentences("一。二！三？", 1.0, 2)
    ('Two! Three? One.', '二！三？一。')
    """
    lines, number = text.split("\n"), 0
    for i, line in enumerate(lines):
        parts = split_sentences(line)
        if len(parts) > 1:
            number += 1
            u = draw(fold(key, number), SHUFFLE, len(parts) + 1)
            if u[0] < share:
                order = np.argsort(u[1:], kind="stable")
                if (np.diff(order) > 0).all():  # the old order is none
                    order = np.roll(order, 1)
                lines[i] = _join([parts[j] for j in order.tolist()], parts[-1])
    return "\n".join(lines)


def _join(parts: list[tuple[str, str]], last: tuple[str, str]) -> str:
    """Writes sentences with the space behind each; the one that stood last gets one where its sign wants it."""
    between = [" " if not space and part == last[0] and part[-1] in LATIN_ENDS else space for part, space in parts]
    return "".join(part + space for (part, _), space in zip(parts, [*between[:-1], last[1]]))


def paraphrase_lines(text: str, share: float, paraphrases: dict[str, tuple[str, ...]], key: int) -> str:
    """Says `share` of the lines for which there are paraphrases with one of these.

    >>> paraphrase_lines("a\\n b \\nc", 1.0, {"b": ("B",)}, 0)
    'a\\n B \\nc'
    """
    lines, number = text.split("\n"), 0
    for i, line in enumerate(lines):
        core = line.strip()
        others = paraphrases.get(core)
        if others:
            u = draw(fold(key, number), PARAPHRASE, 2).tolist()
            number += 1
            if u[0] < share:
                lines[i] = line.replace(core, others[pick(u[1], len(others))])
    return "\n".join(lines)
