"""Which characters does no text need? Controls, zero-width characters, decomposed accents, odd spaces and widths, entities."""

from __future__ import annotations

import html
import re
import unicodedata

# C0 and C1 controls but tab, line feed and carriage return (which is line_ends' business); zero-width space, word
# joiner, Mongolian vowel separator and byte-order mark.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\u180e\ufeff]")
# Joiners mean something inside emoji and in Indic and Arabic scripts, never beside ASCII, Han, kana or a line's end.
NO_JOIN = "\x00-\x7f\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
# (?<!...) and ++ look at each run of joiners once: without them a run of n takes n * n steps, 20,000 of them 9 s.
JOINER = re.compile(
    f"(?:(?<=[{NO_JOIN}])|^)[\u200c\u200d]+|(?<![\u200c\u200d])[\u200c\u200d]++(?=[{NO_JOIN}]|$)", re.MULTILINE
)
MOJIBAKE = ("\ufffd", "锟斤拷", "烫烫烫", "屯屯屯")  # what decoders and debuggers leave behind
MANY_BLANK_LINES = re.compile("\n{4,}")
# In quotes or between tags an entity is meant: code, and text about HTML. (What begins with a character is found by memchr.)
ENTITY = re.compile(r"""&(?<!["'`>]&)(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});(?!["'`<])""")
FULL_WIDTH = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")
WIDE_SPACE = re.compile("\u3000(?<=\\S\u3000)\u3000*")  # not where it indents a line, as Chinese paragraphs are
LINE_SPACE = " \t\u3000\xa0"
SPACE_ENDS = tuple(f"{char}\n" for char in LINE_SPACE)


def line_ends(text: str) -> str:
    """Turns CR LF and a lone CR into LF.

    >>> line_ends("one\\r\\n二\\r")
    'one\\n二\\n'
    """
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def nfc(text: str) -> str:
    """Composes accents (Unicode NFC); unlike NFKC it keeps full-width Chinese punctuation.

    >>> nfc("cafe\\u0301，你好！") == "caf\\u00e9，你好！"
    True
    """
    return text if text.isascii() or unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def control(text: str) -> str:
    """Removes control and zero-width characters; keeps the joiners of emoji, Indic and Arabic text.

    >>> control("a\\x00b\\u200b c\\ufeff"), control("你\\u200d好\\u200b")
    ('ab c', '你好')
    >>> family = "\\U0001f468\\u200d\\U0001f469\\u200d\\U0001f467"
    >>> control(family) == family
    True
    """
    if CONTROL.search(text):
        text = CONTROL.sub("", text)
    return JOINER.sub("", text) if "\u200c" in text or "\u200d" in text else text


def trailing_space(text: str) -> str:
    """Removes spaces at the ends of lines, full-width ones too.

    >>> trailing_space("one \\t\\n  二　\\n")
    'one\\n  二\\n'
    """
    if not any(end in text for end in SPACE_ENDS) and text.rstrip(LINE_SPACE) == text:
        return text
    return "\n".join([line.rstrip(LINE_SPACE) for line in text.split("\n")])


def blank_lines(text: str) -> str:
    """Leaves at most two blank lines in a row.

    >>> blank_lines("一\\n\\n\\n\\n\\n\\n二"), blank_lines("a\\n\\n\\nb")
    ('一\\n\\n\\n二', 'a\\n\\n\\nb')
    """
    return MANY_BLANK_LINES.sub("\n\n\n", text) if "\n\n\n\n" in text else text


def width(text: str) -> str:
    """Turns full-width ASCII letters, digits and spaces into half-width ones; keeps Chinese punctuation and indents.

    >>> width("ＡＢＣ１２３，你好！"), width("　　甲　乙")
    ('ABC123，你好！', '　　甲 乙')
    """
    if text.isascii():
        return text
    text = FULL_WIDTH.sub(lambda match: chr(ord(match.group()) - 0xFEE0), text)
    return WIDE_SPACE.sub(lambda match: " " * len(match.group()), text) if "\u3000" in text else text


def html_entities(text: str) -> str:
    """Resolves HTML entities that end in a semicolon, also doubly escaped ones; those beside quotes and tags are meant.

    >>> html_entities("a &amp;lt; b &copy; &#20320;好 AT&T"), html_entities("s.replace('&', '&amp;')")
    ('a < b © 你好 AT&T', "s.replace('&', '&amp;')")
    """
    while "&" in text:
        resolved = ENTITY.sub(lambda match: html.unescape(match.group()), text)
        if resolved == text:
            break
        text = resolved
    return text


def mojibake(text: str) -> str:
    """Drops documents that a wrong decoder damaged: U+FFFD, 锟斤拷, runs of 烫 or 屯.

    >>> mojibake("锟斤拷锟斤拷"), mojibake("滚烫的水")
    ('mojibake', '')
    """
    return "mojibake" if not text.isascii() and any(map(text.__contains__, MOJIBAKE)) else ""
