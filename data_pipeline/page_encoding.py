"""In which encoding is a web page? Byte-order mark, UTF-8 where it is that, what the page or its server says, else a guess."""

from __future__ import annotations

import codecs
import re
from typing import Any

BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
DECLARED = re.compile(
    rb"""<meta[^>]{1,400}?charset\s*=\s*["']?\s*([\w.:+-]{2,40})|^\s*<\?xml[^>]{1,200}?encoding\s*=\s*["']([\w.:+-]{2,40})""",
    re.IGNORECASE,
)
DECLARED_WITHIN = 4096  # bytes; browsers look at 1,024
GUESSED_FROM = 131_072  # bytes
# What pages mean by the names: the wider sets that browsers take, and names of the guesser that Python does not know.
WIDER = {
    "gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932", "euc_kr": "cp949", "uhc": "cp949",
    "iso8859-1": "cp1252", "latin_1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254",
}  # fmt: skip
HARD_TO_MISTAKE = {"gb18030", "big5hkscs", "cp932", "cp949", "euc_jp", "utf-8"}
MAX_WRONG = 0.05  # share of the characters beyond ASCII that may be wrong: more, and it is another encoding


def decode_page(raw: bytes, named: str = "") -> str | None:
    """Returns the text of a page, or None where no encoding fits; `named` is what the server said.

    Bytes that are wrong in an encoding that else fits become U+FFFD, which the rule `mojibake` sees.

    >>> decode_page('<meta charset="gb2312">镕'.encode("gbk")), decode_page("café".encode("latin-1"), "iso-8859-1")
    ('<meta charset="gb2312">镕', 'café')
    """
    for mark, encoding in BOMS:
        if raw.startswith(mark):
            return raw[len(mark) :].decode(encoding, "replace")
    said = DECLARED.search(raw[:DECLARED_WITHIN])
    in_page = next(filter(None, said.groups()), b"").decode() if said else ""
    names = [codec for name in (named, in_page) if (codec := _codec(name))]
    escapes = next((name for name in names if name.startswith(("iso2022", "hz"))), "")  # these are ASCII to look at
    if b"\0" in raw:
        return None
    try:
        return raw.decode(escapes or "utf-8")
    except UnicodeDecodeError:
        pass
    guess = _guess(raw)
    # servers say Latin-1 of what they know nothing about, which every byte fits
    first = [guess] if guess in HARD_TO_MISTAKE and (not names or names[0] in ("cp1252", "utf-8")) else []
    for encoding in dict.fromkeys([*first, *names, guess]):
        text = raw.decode(encoding, "replace")
        others = len(text) - len(text.encode("ascii", "ignore"))
        if text.count("\ufffd") <= MAX_WRONG * others:
            return text
    return None


def _codec(name: str) -> str:
    """The Python codec that a name stands for on the web, or "" """
    name = name.strip().strip("\"'").lower().removeprefix("x-")
    name = {"sjis": "shift_jis", "windows-31j": "cp932", "ks_c_5601-1987": "cp949", "hz-gb-2312": "hz"}.get(name, name)
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):
        return ""
    # only those of text, and none that ASCII bytes are not ASCII in (a page that said so in ASCII is not in UTF-16)
    if not getattr(found, "_is_text_encoding", False) or found.name in ("utf-7", "idna", "punycode", "undefined"):
        return ""
    if found.name.startswith(("utf-16", "utf-32", "unicode", "raw", "cp037", "cp500", "cp1140")):
        return ""
    return WIDER.get(found.name, found.name)


def _guess(raw: bytes) -> str:
    from data_pipeline.page import import_resiliparse

    detect: Any = import_resiliparse("parse.encoding").detect_encoding
    return _codec(detect(raw[:GUESSED_FROM], html5_compatible=False) or "") or "utf-8"
