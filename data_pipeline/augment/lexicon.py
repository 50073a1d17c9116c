"""Which words may stand for which? A text file that anybody can make or mend.

    # a comment: where it is from, its licence
    happy<TAB>glad<TAB>cheerful
    高兴<TAB>开心<TAB>愉快
    研究生

A word without others is never replaced, but keeps its parts from being: 研究 in 研究生. Words of letters are looked up in lower
case. The same format holds characters that are mistaken for one another (`homophones`) and, with lines of text in place of
words, paraphrases (`paraphrases`); `python -m data_pipeline.augment.make_lexicon` makes such files from packages.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from data_pipeline.schema import ConfigError

HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003134f"
RUN = re.compile(f"[{HAN}]+")
LONGEST = 8  # characters of a Chinese word that are looked for


class Lexicon(dict[str, tuple[str, ...]]):
    """Words and what may stand for each, with the lengths of Chinese words by their first and last two characters."""

    def __init__(self, words: dict[str, tuple[str, ...]]):
        super().__init__(words)
        heads: dict[str, set[int]] = {}
        tails: dict[str, set[int]] = {}
        for word in words:
            if 1 < len(word) <= LONGEST:
                heads.setdefault(word[:2], set()).add(len(word))
                tails.setdefault(word[-2:], set()).add(len(word))
        self.heads, self.tails = (
            {edge: sorted(lengths, reverse=True) for edge, lengths in edges.items()} for edges in (heads, tails)
        )


@lru_cache(maxsize=4)
def read_lexicon(paths: tuple[str, ...], key: str) -> Lexicon:
    """Reads and joins lexicon files; raises ConfigError with file and line, and the `key` that names it, for what is none."""
    lexicon: dict[str, tuple[str, ...]] = {}
    for path in paths:
        try:
            text = Path(path).expanduser().read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise ConfigError(f"config.data.augment.{key}: {path}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"config.data.augment.{key}: {path}: not UTF-8 at byte {error.start}") from None
        for number, line in enumerate(text.split("\n"), 1):
            word, *others = (part.strip() for part in line.rstrip("\r").split("\t"))
            if word.startswith("#") or not (word or others):
                continue
            if not word or not all(others):
                raise ConfigError(
                    f"config.data.augment.{key}: {path}:{number}: expected WORD<TAB>OTHER<TAB>OTHER..., one part is empty"
                )
            lexicon[word] = tuple(dict.fromkeys([*lexicon.get(word, ()), *others]))
    if not any(lexicon.values()):
        raise ConfigError(f"config.data.augment.{key}: {', '.join(paths)}: no line has a word, a tab and another")
    return Lexicon(lexicon)


def find_words(run: str, lexicon: Lexicon) -> list[tuple[int, int]]:
    """Returns where words of the lexicon stand in a run of Chinese characters.

    Only those that longest match finds both from the left and from the right: where the two disagree, the border is in doubt.

    >>> find_words("研究生命的起源", Lexicon({"研究": ("钻研",), "研究生": (), "生命": ("性命",), "起源": ("来源",)}))
    [(5, 7)]
    """
    n = len(run)
    rightwards, at = set(), 0
    while at < n:
        end = at + 1
        for length in lexicon.heads.get(run[at : at + 2], ()):
            if at + length <= n and run[at : at + length] in lexicon:
                end = at + length
                break
        rightwards.add((at, end))
        at = end
    found, end = [], n
    while end > 0:
        at = end - 1
        for length in lexicon.tails.get(run[max(end - 2, 0) : end], ()):
            if length <= end and run[end - length : end] in lexicon:
                at = end - length
                break
        if end - at > 1 and (at, end) in rightwards:
            found.append((at, end))
        end = at
    return found[::-1]
