"""Which stretches of digits are a phone number, a bank card, a resident ID or an IPv4 address?

A number is never cut out of a longer one: digits, ASCII letters, `_`, and a digit with `.` or `-` on either side refuse
it, Han characters and other punctuation do not. Where the form alone proves little (ten bare digits, an old ID) a word
before it must say what it is, or Chinese beside it, where such numbers are rarely constants of a program; a word that says
it is an order or a serial number refuses bare digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from datetime import date
from typing import NamedTuple


class Found(NamedTuple):
    """One piece of personal data: text[start:end]."""

    kind: str
    start: int
    end: int


DIGITS = "0-9０-９"
BETWEEN = " .()（）\u2010-\u2015\uff0d\uff0e\xa0-"  # what may stand between the digits of one number
# A run of digits and separators that holds seven digits or four groups with dots. It starts with one character class,
# which the engine searches at 150 MB/s; a look-behind in front would make it try every position at 30.
STRETCH = re.compile(
    rf"[{DIGITS}](?<![{DIGITS}].)"
    rf"(?=[0-9]{{0,2}}\.[0-9]{{1,3}}\.[0-9]{{1,3}}\.[0-9]|(?:[{BETWEEN}]{{0,3}}[{DIGITS}]){{6}})"
    rf"[{DIGITS}]*+(?:[{BETWEEN}]{{1,3}}+[{DIGITS}]++)*+"
)
NO_DIGIT = re.compile(f"[^{DIGITS}]")
NORMAL = str.maketrans("０１２３４５６７８９（）－．\u2010\u2011\u2012\u2013\u2014\u2015\xa0", "0123456789()-.------ ")
CONTEXT = 48  # characters before a stretch in which a cue may stand
AFTER_STRETCH = 20  # an extension or an X may follow

# Letters glued to a number refuse it, but for these words.
BEFORE = r"(?=[0-9(+])(?:(?<![0-9A-Za-z_%$¥￥€£])|(?<=[Tt]el)|(?<=TEL)|(?<=hone)|(?<=obile)|(?<=I[Dd])|(?<=[Nn]o))(?<![0-9][.-])(?<![ ,(=[]-)"
AFTER = r"(?![0-9A-Za-z_%])(?![.-][0-9])(?! ?[元万亿])"
EXTENSION = r"(?:,? ?(?:x|ext\.? ?|转|分机)[0-9]{1,6})?"

PROVINCES = frozenset(["11", "12", "13", "14", "15", "21", "22", "23", "31", "32", "33", "34", "35", "36", "37", "41", "42", "43", "44", "45", "46", "50", "51", "52", "53", "54", "61", "62", "63", "64", "65", "71", "81", "82", "83"])  # fmt: skip
ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
CARD_ISSUERS = re.compile(  # prefix and lengths
    "4(?:.{12}|.{15}|.{18})|5[1-5].{14}|(?:222[1-9]|22[3-9].|2[3-6]..|27[01].|2720).{12}|220[0-4].{12,15}"  # Visa, Mastercard, Mir
    "|3[47].{13}|(?:30[0-5]|36.|3[89].).{11,16}|35.{14,17}|(?:2131|1800).{11}"  # American Express, Diners, JCB
    "|(?:6011|64[4-9].|65..|62..|60..|81..|82..|9558|9559).{12,15}"  # Discover, UnionPay, RuPay, older Chinese cards
    "|(?:5018|5020|5038|5[6-8]..|6304|6759|676[1-3]).{9,15}"  # Maestro
)
# Country codes of E.164: all of one, two and three digits that are in use.
COUNTRY = re.compile(
    "1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    "|21[1-368]|22[0-9]|23[0-9]|24[0-9]|25[0-8]|26[0-9]|29[0179]|35[0-9]|37[0-8]|38[0-35-79]|42[013]|50[0-9]|59[0-9]"
    "|67[02-9]|68[0-35-9]|69[0-2]|85[02356]|88[068]|96[0-8]|97[0-79]|99[2-68]"
)
CHINESE_AREA = "(?:10|2[0-57-9]|[3-9][1-9][0-9])"

PHONE_CUE = re.compile(
    "(?i:phone|(?<![a-z])(?:tel|call|cell|mobile|fax|text|dial|ring|contact|reach|whatsapp|sms))|电话|手机|拨|致电|联系|热线|传真|座机|号码|打"
)
LOCAL_CUE = re.compile("(?:电话|热线|传真|座机|(?i:tel|fax))(?:号码)?[是为.]?[:：]? ?$")
ID_CUE = re.compile("身份|证[号件]|(?<![A-Za-z])(?:ID|[Ii]dentity)(?![A-Za-z])")
CARD_CUE = re.compile("(?i:card|visa|credit|debit|account|pay|charge)|卡|账[号户]|帐[号户]|支付|付款|刷|转账|汇")
NOT_PERSONAL = re.compile(
    r"(?:(?<![A-Za-z])(?i:order|tracking|invoice|serial|ticket|isbn|issn|doi|sku|ean|upc|barcode|arxiv|pmid|commit|timestamp|bytes|build|seed|rng)"
    r"|订单|单号|运单|流水|发票|条[形]?码|序列|书号|刊号|编号|货号|时间戳)(?i:[ _-]?(?:numbers?|no|id|code))?[号码]*[\s.:：#=是为\"'(]{0,4}$"
)
# North American: neither code ends in 11, no area code has a 9 in the middle (NANPA).
AMERICAN = re.compile("[2-9](?!11)[0-8][0-9][2-9](?!11)[0-9]{6}")
IMEI = re.compile("35|86|01|99")
UNIT = re.compile(" ?[个亿万元次人名位条字年月日天时分秒毫微米千公吨克股手张册篇%％]")
KNOWN = re.compile("214748364.|4294967...")  # around 2**31 and 2**32
REPEATED = re.compile(r"([0-9])\1{7}")
HAN = r"[\u3001-\u303f\u3400-\u9fff\uff01-\uff5e]"  # and Chinese punctuation
HAN_BEFORE = re.compile(rf"{HAN}(?: ?[(\[“‘])? ?\Z")  # one space: two part the columns of a table
HAN_AFTER = re.compile(rf" ?(?:[)\]”’] ?)?{HAN}")
NOT_PHONE = re.compile(
    r"(?:(?<![A-Za-z])(?i:qq|uid|id)|群|微信|学号|工号|代码|返回|输[入出]|结果|等于|得到|进制|值)号?码?[\s:：#=是为的\"'(]{0,4}$|[=+^#-] ?$"
)
IN_PATH = re.compile(r"[A-Za-z0-9._~%?&=-]*[A-Za-z_][A-Za-z0-9._~%?&=-]*/$|10\.[0-9]{4,9}/$")  # the last: a DOI
IP_CUE = re.compile(
    "(?i:(?<![a-z])ips?(?![a-z])|ipv4|addr|host|server|gateway|router|dns|ping|ssh|subnet|proxy|inet|connect|log(?:ged|ging)? ?in"
    "|login|client|peer|from|request|block|traffic|network|node|machine|device|visit|attack|route|listen|lease)"
    "|地址|服务器|主机|网关|登[录陆]|访问|来自|端口|代理|连接|网络|网段|内网|外网|请求|封禁|攻击|节点|设备|机器|从"
)
VERSION_CUE = re.compile(
    r"(?:(?<![A-Za-z])(?i:versions?|ver|v|releases?|released|rel|build|rev|revision|firmware|driver|(?:upgraded?|updated?)(?: to)?|sections?"
    r"|sec|chapter|figure|fig|table|item|chrome|chromium|firefox|edge|opera|safari|player)"
    r"|版本?号?|固件|升级[到至]?|更新[到至]?|驱动|[=<>~!]=|[~^§]|第|(?<![发代])表|图)[\s.:：号为是\"'(“「（]{0,3}$"
)
WORD_BEFORE = re.compile(r"([A-Z][A-Za-z0-9+#.]*) $")
FUNCTION_WORDS = frozenset(["a", "an", "and", "are", "as", "at", "by", "for", "from", "in", "into", "is", "it", "of", "on", "or", "that", "the", "this", "to", "via", "was", "were", "with"])  # fmt: skip


def beside_han(before: str, after: str) -> bool:
    """Whether a number stands in Chinese text: Han or Chinese punctuation is next to it, but for a space or a bracket.

    >>> beside_han("拨打 (", ") then"), beside_han("x = ", "，"), beside_han("数 = ", ";")
    (True, True, False)
    """
    return bool(HAN_BEFORE.search(before) or HAN_AFTER.match(after))


def valid_id(digits: str, before: str, after: str) -> bool:
    """Whether 18 characters are a resident ID by region, date and checksum (GB 11643), or 15 an old one, in Chinese or behind a word.

    >>> valid_id("11010519491231002X", "", ""), valid_id("110105194912310021", "", ""), valid_id("110105491231002", "证号", "")
    (True, False, True)
    """
    if digits[:2] not in PROVINCES and not (digits[0] == "9" and digits[1:3] in PROVINCES):  # 9: foreigners' cards
        return False
    birth = digits[6:14] if len(digits) == 18 else "19" + digits[6:12]
    try:
        date(int(birth[:4]), int(birth[4:6]), int(birth[6:]))
    except ValueError:
        return False
    if len(digits) == 18:
        return "10X98765432"[sum(w * int(d) for w, d in zip(ID_WEIGHTS, digits)) % 11] == digits[17]
    if ID_CUE.search(before):
        return True
    # Microseconds since 1970 look the same, and one in ten may be a card or the serial number of a telephone.
    other = not luhn(digits) and (IMEI.match(digits) or CARD_ISSUERS.fullmatch(digits))
    return beside_han(before, after) and not other and not NOT_PERSONAL.search(before)


def luhn(digits: str) -> int:
    """The sum modulo 10 that is 0 for a right card number (ISO/IEC 7812).

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (0, 1)
    """
    odd, even = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, odd)) + sum(sum(divmod(2 * int(d), 10)) for d in even)) % 10


def valid_card(text: str, before: str) -> bool:
    digits = digits_of(text)
    if not CARD_ISSUERS.fullmatch(digits) or luhn(digits) or NOT_PERSONAL.search(before):
        return False
    # The check digit of an EAN-13, which goods have: German ones begin with 40 to 44, as Visa's 13 digits may.
    is_ean = sum(int(d) * (3 if i % 2 else 1) for i, d in enumerate(digits)) % 10 == 0
    return len(text) > 13 or (digits[0] == "4" and not is_ean) or bool(CARD_CUE.search(before))


def valid_ipv4(text: str, before: str, after: str) -> bool:
    """Whether four numbers with dots are an address that belongs to a host, not a version or a section number.

    A word for a version beside it refuses. Numbers that begin below 32 look like versions when but one of the others is
    larger or a capital word that may be a product's name stands before them: they need a word for an address, a port or
    a mask.
    """
    octets = [int(part) for part in text.split(".")]
    if max(octets) > 255 or octets[0] in (0, 127) or octets[:2] == [255, 255]:  # nobody's: unspecified, loopback, masks
        return False
    if VERSION_CUE.search(before) or re.match(" ?(?:版|version)", after):
        return False
    if before.endswith(("-", "/")) and not re.search("(?:://|[0-9] ?-)$", before):  # a file's name or path
        return False
    if re.match(":[0-9]{2,5}(?![0-9])|/[0-9]{1,2}(?![0-9])", after) or before.endswith(("://", "@", "[")):
        return True
    word = WORD_BEFORE.search(before)
    product = word is not None and word[1].lower() not in FUNCTION_WORDS
    if octets[0] > 31 or (sum(octet > 31 for octet in octets) > 1 and not product):
        return True
    return bool(IP_CUE.search(before[-32:]) or IP_CUE.search(after[:12]))


def valid_phone(text: str, before: str, after: str) -> bool:
    """Whether a phone's form stands where a phone can: bare digits need no order number before them, some need a cue or Chinese."""
    if IN_PATH.search(before):
        return False
    if not re.search(r"[^0-9]", text):
        octal = text[0] == "0" and REPEATED.search(text)
        if octal or NOT_PERSONAL.search(before):
            return False
        if KNOWN.fullmatch(text) or text in "01234567890123456789":
            return False
        if len(text) > 10 or PHONE_CUE.search(before):
            return True
        constant = REPEATED.search(text) or NOT_PHONE.search(before) or UNIT.match(after)
        return bool(AMERICAN.fullmatch(text)) and not constant and beside_han(before, after)
    spaced = re.fullmatch(r"[2-9][0-9]{2} [0-9]{3} [0-9]{4}", text)
    return not spaced or bool(PHONE_CUE.search(before))


def valid_international(text: str, before: str, after: str) -> bool:
    """Whether + or 00 is followed by a country code in use and as many digits as a number there can have."""
    digits = re.sub(r"\(0\)|[^0-9]", "", text)
    digits = digits[2:] if text.startswith("00") else digits
    for size in (1, 2, 3):
        code, rest = digits[:size], digits[size:]
        if COUNTRY.fullmatch(code) and code not in ("1", "86"):  # these have forms of their own
            impossible = rest[:1] == ("1" if code == "39" else "6" if code == "44" else "0")
            fits = 8 < len(digits) < 16 and len(rest) > 5 and text.count(".") != 1  # one dot: a decimal number
            return fits and not impossible and valid_phone(text, before, after)
    return False


def valid_uk(text: str, before: str, after: str) -> bool:
    return len(re.sub("[^0-9]", "", text)) in (10, 11) and valid_phone(text, before, after)


def digits_of(text: str) -> str:
    return re.sub("[^0-9Xx]", "", text).upper()


Valid = Callable[[str, str, str], bool]
PHONE_FORMS: tuple[tuple[int, str, Valid], ...] = (
    # Chinese mobile
    (11, rf"{BEFORE}(?:(?:\((?:\+|00)?86\)|(?:\+|00)?86)[ -]?)?1[3-9][0-9](?:([ .-]?)[0-9]{{4}}\1[0-9]{{4}}|[0-9][ -][0-9]{{3}}[ -][0-9]{{4}}|[ -][0-9]{{3}}[ -][0-9]{{5}}){AFTER}", valid_phone),
    # Chinese landline
    (11, rf"{BEFORE}(?:(?:\((?:\+|00)86\)|(?:\+|00)86)[ -]?(?:\(0\))?{CHINESE_AREA}|\(0{CHINESE_AREA}\)|0{CHINESE_AREA})[ -]?[2-8][0-9]{{2,3}}[ -]?[0-9]{{4}}(?:-[0-9]{{1,5}}| ?(?:转|分机|ext\.? ?|x)[0-9]{{1,6}})?{AFTER}", valid_phone),
    # North America
    (10, rf"{BEFORE}(?:(?:(?:\+|00)?1[ -]?)?(?:\([2-9][0-9]{{2}}\)[ -]?|[2-9][0-9]{{2}}[ -])[2-9][0-9]{{2}}[ -]|(?:\+?1\.)?[2-9][0-9]{{2}}\.[2-9][0-9]{{2}}\.)[0-9]{{4}}{EXTENSION}{AFTER}", valid_phone),
    (10, rf"{BEFORE}(?:(?:\+|00)1)?[2-9][0-9]{{2}}[2-9][0-9]{{6}}{AFTER}", valid_phone),
    # United Kingdom
    (10, rf"{BEFORE}(?:\(0[1-35789][0-9]{{1,4}}\)|0[1-35789][0-9]{{1,4}}[ -]) ?[0-9]{{3,8}}(?:[ -][0-9]{{3,4}})?{EXTENSION}{AFTER}", valid_uk),
    (10, rf"{BEFORE}0[1-35789][0-9]{{8,9}}{AFTER}", valid_phone),
    # elsewhere
    (9, rf"{BEFORE}(?:\+|00)[1-9][0-9]*+(?:[ .()-]{{1,2}}+[0-9]++){{0,7}}{AFTER}", valid_international),
    # a local Chinese number, right behind a word for it
    (7, rf"{BEFORE}[2-8][0-9]{{2,3}}[ -]?[0-9]{{4}}{AFTER}", lambda text, before, after: bool(LOCAL_CUE.search(before))),
)  # fmt: skip
GROUPS = (r"[0-9]{4}([ -])[0-9]{4}\g[0-9]{4}\g[0-9]{1,4}", r"[0-9]{4}([ -])[0-9]{4}\g[0-9]{4}\g[0-9]{4}\g[0-9]{1,3}")
ANY_CARD = (*GROUPS, r"3[0-9]{3}([ -])[0-9]{6}\g[0-9]{4,5}", r"[0-9]{6}[ -][0-9]{13}", r"[1-9][0-9]{12,18}")
OCTET = "(?:1?[0-9]|[2-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
# kind, fewest digits, form, and whether what has it is one, given the text before and after
FORMS: tuple[tuple[str, int, re.Pattern[str], Valid], ...] = (
    ("id", 17, re.compile(rf"{BEFORE}[1-9][0-9]{{5}}[ -]?(?:1[89]|20)[0-9]{{6}}[ -]?[0-9]{{3}}[0-9Xx]{AFTER}"), lambda t, b, a: valid_id(digits_of(t), b, a)),
    ("id", 15, re.compile(rf"{BEFORE}[1-9][0-9]{{14}}{AFTER}"), valid_id),
    *(("card", 13, re.compile(BEFORE + form.replace(r"\g", r"\1") + AFTER), lambda t, b, a: valid_card(t, b)) for form in ANY_CARD),
    ("ip", 4, re.compile(rf"(?<![0-9A-Za-z_])(?<![0-9A-Za-z]\.)(?:{OCTET}\.){{3}}{OCTET}(?![0-9A-Za-z_])(?!\.[0-9A-Za-z])(?!-[A-Za-z])"), valid_ipv4),
    ("ssn", 9, re.compile(rf"{BEFORE}(?!000|666|9)[0-9]{{3}}([ -])(?!00)[0-9]{{2}}\1(?!0000)[0-9]{{4}}{AFTER}"), lambda t, b, a: True),
    *(("phone", fewest, re.compile(form), valid) for fewest, form, valid in PHONE_FORMS),
)  # fmt: skip


def find_numbers(text: str, kinds: Collection[str]) -> Iterator[Found]:
    """Yields every number of these kinds, overlapping ones too."""
    for stretch in STRETCH.finditer(text):
        first = max(0, stretch.start() - CONTEXT)
        window = text[first : stretch.end() + AFTER_STRETCH].translate(NORMAL)
        near, end = max(0, stretch.start() - first - 4), stretch.end() - first
        count = len(stretch[0]) - len(NO_DIGIT.findall(stretch[0]))
        for kind, fewest, form, valid in FORMS:
            if kind not in kinds or count < fewest:
                continue
            for match in form.finditer(window, near):
                start = match.start()
                if start >= end:
                    break
                before = window[max(0, start - CONTEXT) : start]
                if valid(window[start : match.end()], before, window[match.end() : match.end() + 16]):
                    yield Found(kind, first + start, first + match.end())
