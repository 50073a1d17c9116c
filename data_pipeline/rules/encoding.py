"""Was a text decoded with the wrong code, and what did it say? Only repairs whose whole round trip is exact.

Repaired: UTF-8 read as Latin-1 or Windows-1252, also several times over; UTF-8 read as GBK; GBK read as Latin-1 or
Windows-1252. What lost bytes (U+FFFD, as from GBK read as UTF-8; 锟斤拷) cannot be repaired: the drop rule `mojibake`
refuses it. Repairs are local, so that a document with one wrong quotation keeps the rest as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# What bytes 0x80 to 0xFF become: Latin-1 gives characters of the same number, Windows-1252 gives 27 of them others.
CP1252 = {
    0x80 + i: char for i, char in enumerate(bytes(range(0x80, 0xA0)).decode("cp1252", "replace")) if char != "\ufffd"
}
TO_BYTE = {ord(char): byte for byte, char in CP1252.items()} | {byte: byte for byte in range(0x80, 0x100)}
TAIL = "".join(CP1252.values()) + "\x80-\xbf"  # as characters: the second and later bytes of UTF-8
SEQUENCE = f"[\xc2-\xdf][{TAIL}]|[\xe0-\xef][{TAIL}]{{2}}|[\xf0-\xf4][{TAIL}]{{3}}"
RUN = re.compile(f"(?:{SEQUENCE})+")
THREE_BYTES = re.compile(f"[\xe0-\xef][{TAIL}]{{2}}")
# What follows a word that ends in a capital or accented letter: `CAFÉ”`, `l'été…»`, „Ä“. No evidence by itself.
FOLLOWS = frozenset("“”‘’»«…–—›‹\xa0™®°²³¹ºª·")
QUOTES = frozenset("„“”‚‘’«»‹›\"'「」『』`")
# Blocks that text is written in. Not: NKo, Samaritan, Thaana and others that `ß“` or `à «` would make by chance.
WRITTEN = re.compile(
    "[\xa0-\u024f\u02c6\u02dc\u0300-\u036f\u0370-\u0481\u048a-\u04ff\u0531-\u058f\u05be-\u05f4\u060c-\u06ff\u0900-\u0e7f\u1000-\u11ff"
    "\u1e00-\u1fff\u2010-\u27bf\u2b00-\u2bff\u3000-\u30ff\u3100-\u312f\u3200-\u33ff\u3400-\u9fff\uac00-\ud7a3"
    "\uf900-\ufaff\ufb00-\ufb06\ufe0f\uff00-\uffef\U0001f000-\U0001faff\U00020000-\U0003ffff]+"
)
SIGNS = range(0x2010, 0x2C00)  # quotes, dashes, currencies, arrows and the like: â€™ and âˆž, never two ends of a word

# Windows-1252 read as Latin-1: quotes, dashes, the euro. Not 0x85, which is also a line end, and goes as a control.
LONE = re.compile("(?<![^\x00-\x7f])[\x80\x84\x8b\x91-\x97\x99\x9b](?![^\x00-\x7f])")

# The most frequent characters of Chinese, about two thirds of any text: what makes a repaired text clearly better.
COMMON = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学"
    "如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点正业外将"
    "两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及"
    "比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统"
    "区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共"
    "确传师观清今切院让识候带导争运这個們來國說時會對發後經學現當動還進樣開從實無與長機業將間應戰見產話給門電單書"
)
HAN = re.compile("[\u3400-\u9fff]")
CHINESE = re.compile("[\u3400-\u9fff\u3000-\u303f\u2010-\u2026\uff01-\uff5e\xb7\xd7\x20-\x7e\n\r\t]+")
# UTF-8 of Chinese, read as GBK: every other character or so is one that begins with the bytes E4 to E9 or ends in them.
LEADS = (
    "".join(
        bytes((first, second)).decode("gbk", "ignore")
        for lead in range(0xE4, 0xEA)
        for first, second in [*((lead, tail) for tail in range(0x80, 0xC0))]
    )
    + "锛銆鈥"
)
AS_GBK = re.compile(f"[{LEADS}](?:(?<=[锛銆鈥])|[^\x00-\x7f]{{0,3}}[{LEADS}])")
NOT_ASCII = re.compile("[^\x00-\x7f]+")
GBK_AS_LATIN = re.compile(f"(?:[\x81-\xfe{''.join(CP1252.values())}][\x40-\x7e\x80-\xfe{''.join(CP1252.values())}])+")
LATIN = re.compile("[\x80-\x9f\xc0-\xff]")
FOUR_HIGH = re.compile(f"[\xa1-\xfe{''.join(CP1252.values())}]{{4}}")


def repair_encoding(text: str) -> str:
    """Repairs text that was decoded with the wrong code, where that is sure and exact.

    >>> repair_encoding("itâ€™s a cafÃ©"), repair_encoding("ä½\\xa0å¥½ï¼Œä¸–ç•Œ")
    ('it’s a café', '你好，世界')
    >>> repair_encoding("浣犱粬濂瑰ソ锛�"), repair_encoding("浣犱粬濂瑰ソ鍚梐")  # of the first a byte was lost
    ('浣犱粬濂瑰ソ锛�', '你他她好吗a')
    >>> repair_encoding("ÖÐ¹úÈËÃñ"), repair_encoding("„Ä“ und CAFÉ…")
    ('中国人民', '„Ä“ und CAFÉ…')
    """
    while not text.isascii():
        start, data = text, text.encode("utf-8", "surrogatepass")
        if b"\xc3" in data:  # as UTF-8 begins the letters of Latin-1, without which neither fault is there
            text = _as_latin(_latin_as_gbk(text))
        text = _as_gbk(text)
        if b"\xc2" in data and LONE.search(text):
            text = LONE.sub(lambda match: CP1252[ord(match.group())], text)
        if text == start:
            break
    return text


def signs_of_damage(text: str) -> Iterator[int]:
    """Yields places in a text; `repair_encoding` leaves alone whatever has none."""
    if text.isascii():
        return
    data = text.encode("utf-8", "surrogatepass")
    for pattern in (AS_GBK, *([LATIN] if b"\xc3" in data or b"\xc2" in data else [])):
        yield from (match.start() for match in pattern.finditer(text))


def _to_bytes(text: str) -> bytes | None:
    try:
        return bytes([byte if (byte := ord(char)) < 0x80 else TO_BYTE[byte] for char in text])
    except KeyError:
        return None


def _as_latin(text: str) -> str:
    """Repairs UTF-8 that was read as Latin-1 or Windows-1252; runs that could be meant only beside sure ones."""
    first = RUN.search(text)
    if first is None:
        return text
    verdicts: dict[int, tuple[str, bool]] = {}
    for match in RUN.finditer(text, first.start()):
        decoded = _decode(_to_bytes(match.group()), "utf-8")
        if decoded and (WRITTEN.fullmatch(decoded) or RUN.search(decoded)):  # or it was read wrongly once more
            verdicts[match.start()] = decoded, _is_sure(text, match, decoded)
    sure = sum(is_sure for _, is_sure in verdicts.values())
    if not sure:
        return text
    all_of_them = 2 * sure >= len(verdicts)

    def replace(match: re.Match[str]) -> str:
        decoded, is_sure = verdicts.get(match.start(), ("", False))
        return decoded if decoded and (is_sure or all_of_them) else match.group()

    return RUN.sub(replace, text)


def _is_sure(text: str, match: re.Match[str], decoded: str) -> bool:
    """Says whether a run can be nothing but UTF-8, and not a word's end with the signs behind it."""
    raw, before, after = (
        match.group(),
        text[max(match.start() - 1, 0) : match.start()],
        text[match.end() : match.end() + 1],
    )
    around = (
        text[max(match.start() - 2, 0) : match.start()].strip()[-1:],
        text[match.end() : match.end() + 2].strip()[:1],
    )
    if not before.isalnum() and not after.isalnum() and QUOTES.intersection(around):
        return False  # a text about this fault: like “Ã©”
    if any(ord(char) in TO_BYTE and char not in FOLLOWS for char in before + after):
        return False  # part of a longer stretch that is no UTF-8
    if any("\x80" <= char < "\xa0" for char in raw):  # no text has such controls
        return True
    if len(decoded) > 1 and (len(raw) > 2 * len(decoded) or not before.isupper()):
        return True
    if raw[0] >= "\xf0" or (raw[0] == "â" and ord(decoded[0]) in SIGNS):
        return True
    within = after.isalpha() and after.isascii()
    if len(raw) > 2:
        free = (before.isascii() and not before.isalpha()) or within
        return FOLLOWS.isdisjoint(raw[1:]) or (free and not FOLLOWS.issuperset(raw[1:]))
    if raw[1] in FOLLOWS:
        return (before.islower() and before.isascii()) or (within and raw[1] != "\xa0")
    return raw[0] in "ÂÃÄÅÐÑÎÏ" and (within or not before.isupper())


def _decode(data: bytes | None, code: str) -> str:
    try:
        return data.decode(code) if data else ""
    except UnicodeDecodeError:
        return ""


def _share_of_common(text: str) -> float:
    han = HAN.findall(text)
    return sum(map(COMMON.__contains__, han)) / len(han) if han else 0.0


def _share_of_plain(text: str) -> float:
    """Returns the share of the Han characters that are in the first level of GB 2312 or frequent."""
    han = HAN.findall(text)
    codes = [char.encode("gb18030") for char in han]
    plain = sum((len(c) == 2 and 0xB0 <= c[0] <= 0xD7 and c[1] > 0xA0) or h in COMMON for c, h in zip(codes, han))
    return plain / len(han) if han else 0.0


def _as_gbk(text: str) -> str:
    """Repairs UTF-8 that was read as GBK: the whole text, a line, or a stretch without ASCII."""
    if not AS_GBK.search(text):
        return text
    whole = _read_again(text)
    return whole if whole != text else NOT_ASCII.sub(lambda match: _read_again(match.group()), text)


def _read_again(text: str) -> str:
    try:
        new = text.encode("gb18030").decode()
    except UnicodeError:
        return text
    plain = _share_of_plain(new)
    is_better = plain >= 0.3 and plain > 2 * _share_of_plain(text)
    return new if is_better and len(HAN.findall(new)) >= 2 and CHINESE.fullmatch(new) else text


def _latin_as_gbk(text: str) -> str:
    """Repairs GBK that was read as Latin-1 or Windows-1252."""
    if not FOUR_HIGH.search(text):
        return text
    high = sum(ord(char) in TO_BYTE for char in text)
    if 2 * sum(map(len, THREE_BYTES.findall(text))) > high:  # UTF-8, of which some parts are also GBK
        return text

    read: dict[str, str] = {}
    for run in set(GBK_AS_LATIN.findall(text)):
        data = _to_bytes(run)
        new = _decode(data, "gb18030")
        if new and new.encode("gb18030") == data and CHINESE.fullmatch(new):
            read[run] = new
    sure = "".join(new for new in read.values() if len(HAN.findall(new)) >= 4)
    if _share_of_common(sure) < 0.25:
        return text
    if len(sure) < 12:  # beside little evidence a letter and what follows it, as in `ér`, stay
        read = {run: new for run, new in read.items() if not any(char < "\x80" for char in run)}
    return GBK_AS_LATIN.sub(lambda match: read.get(match.group(), match.group()), text)
