"""How is traditional Chinese written in simplified characters? By OpenCC's phrases, so that 皇后 stays and 以後 changes."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
from typing import Any

from data_pipeline.schema import UserError

HAN = re.compile("[\u3400-\u9fff]")


def simplified(text: str) -> str:
    """Turns traditional Chinese into simplified; needs the package `opencc` (`pip install "lm[corpus]"`).

    Turns out the same for simplified Chinese and other languages; Japanese loses its own forms, so keep it away.

    >>> simplified("皇后以後頭髮發展，乾坤"), simplified("the text"), simplified("头发")
    ('皇后以后头发发展，乾坤', 'the text', '头发')
    """
    if text.isascii() or not HAN.search(text):
        return text
    converter = _converter()
    for _ in range(8):  # a phrase can become another one: one text in 250 takes two rounds
        before, text = text, converter.convert(text)
        if text == before:
            break
    return text


@functools.cache
def _converter() -> Any:
    if importlib.util.find_spec("opencc") is None:
        raise UserError('the rule simplified needs the package opencc: pip install "lm[corpus]"')
    return importlib.import_module("opencc").OpenCC("t2s")
