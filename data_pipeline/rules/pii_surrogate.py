"""Which other value stands for a personal one, always the same under one key, and nobody's?

A surrogate keeps the form and lies where no real value lies and `find_pii` does not look: phones and cards begin as none
does, IDs name no region, plates use a letter that plates do not. E-mail and IP addresses have no such place that is not
looked at too, so theirs carry check characters: one in 65,000 others is taken for a surrogate, of IPv4 one in 4,000.
Names in letters are made of syllables that no name is, Chinese ones get a surname that `find_pii` does not look for.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from datetime import date, timedelta

from data_pipeline.rules.pii_addresses import PROVINCES
from data_pipeline.rules.pii_name_words import (
    COMPOUND,
    HEADS,
    MIDDLES,
    OTHER_COMPOUND,
    OTHER_GIVEN,
    OTHER_SURNAMES,
    TAILS,
)
from data_pipeline.rules.pii_names import NAME_WORD, PARTICLES
from data_pipeline.rules.pii_numbers import COUNTRY, ID_WEIGHTS, NORMAL, digits_of, luhn

SYLLABLES = [c + v for c in "bdfgklmnprstvwxz" for v in "aeio"]  # 64: six bits each
EMAIL_LENGTH, EMAIL_CHECK = 6, 3  # syllables: 36 bits of the value, then 18 of check
DOMAINS = ("example.com", "example.net", "example.org")  # RFC 2606
SURROGATE_EMAIL = re.compile(r"((?:[b-z][a-z]){3}\.(?:[b-z][a-z]){3})((?:[b-z][a-z]){3})@example\.(?:com|net|org)")
SURROGATE_WORD = re.compile(f"(?:{'|'.join(HEADS)})(?:{'|'.join(MIDDLES)})(?:{'|'.join(TAILS)})")
MOBILE = re.compile(r"(?:\(?(?:\+|00)?86\)?[ -]?)?1[3-9][0-9]")


class Draw:
    """Numbers that a value decides under a key: HMAC-SHA512, taken apart digit by digit."""

    def __init__(self, kind: str, value: str, key: bytes):
        digest = hmac.digest(key, f"surrogate {kind} {value}".encode(), "sha512")
        self.pool = int.from_bytes(digest, "big")

    def below(self, size: int) -> int:
        self.pool, drawn = divmod(self.pool, size)
        return drawn

    def digits(self, count: int) -> str:
        return "".join(str(self.below(10)) for _ in range(count))


def check_number(body: str) -> int:
    return int.from_bytes(hashlib.sha256(b"lm surrogate " + body.encode()).digest()[:8], "big")


def surrogate(kind: str, value: str, key: bytes) -> str:
    """Returns the value that stands for this one, in the same form.

    >>> surrogate("phone", "138-0013-8000", b"k" * 32), surrogate("phone", "13800138000", b"k" * 32)
    ('123-8323-4667', '12383234667')
    """
    return MAKERS[kind](value, key)


def fill(form: str, digits: str) -> str:
    """Writes the digits over those (and the last X) of the form, from the right: '138-0013' with '4567' is '138-4567'."""
    chars = list(form.translate(NORMAL))
    places = [match.start() for match in re.finditer("[0-9]|[Xx]$", "".join(chars))][-len(digits) :]
    for place, digit in zip(places, digits):
        chars[place] = digit
    return "".join(chars)


def _phone(value: str, key: bytes) -> str:
    """The country code or trunk 0 stays; what follows begins as no number there does."""
    form = value.translate(NORMAL)
    digits = re.sub("[^0-9]", "", form.replace("(0)", ""))
    abroad = re.match(r"\(?(\+|00)", form)
    number = digits[2:] if abroad and abroad[1] == "00" else digits
    if MOBILE.match(form) and len(number) in (11, 13):
        number, lead = number[-11:], "12"  # mobiles begin with 13 to 19
    elif abroad or re.fullmatch(r"1[2-9][0-9]{9,}", number):
        size = next(n for n in (1, 2, 3) if n == 3 or COUNTRY.fullmatch(number[:n]))
        code, number = number[:size], number[size:]
        lead = {"1": "1", "86": "60", "44": "60", "39": "1"}.get(code, "0")
    elif number[0] == "0":
        number, lead = number[1:], "60"  # 060 is neither a Chinese nor a British code
    else:
        lead = "1"  # no number in North America and no local one in China begins with 1
    return fill(form, lead + Draw("phone", number, key).digits(len(number) - len(lead)))


def _id(value: str, key: bytes) -> str:
    """Region 99 is none; the date is another; the checksum is right."""
    digits = digits_of(value.translate(NORMAL))
    draw = Draw("id", digits, key)
    birth = (date(1940, 1, 1) + timedelta(draw.below(24000))).strftime("%Y%m%d")
    body = "99" + draw.digits(4) + (birth if len(digits) == 18 else birth[2:]) + draw.digits(3)
    if len(digits) == 18:
        body += "10X98765432"[sum(w * int(d) for w, d in zip(ID_WEIGHTS, body)) % 11]
    return fill(value, body)


def _card(value: str, key: bytes) -> str:
    """9999 is no issuer (ISO/IEC 7812: 9 and a country's number, 999 is none); the check digit is right.

    No digit is 0: a group that begins with it would look like an area code.
    """
    digits = digits_of(value.translate(NORMAL))
    draw = Draw("card", digits, key)
    body = "9999" + "".join(str(1 + draw.below(9)) for _ in range(len(digits) - 5))
    return fill(value, body + str(-luhn(body + "0") % 10))


def _ssn(value: str, key: bytes) -> str:
    digits = digits_of(value)
    return fill(value, "000" + Draw("ssn", digits, key).digits(6))  # 000 was never issued


def _email(value: str, key: bytes) -> str:
    draw = Draw("email", value.replace("＠", "@").lower(), key)
    words = [SYLLABLES[draw.below(64)] for _ in range(EMAIL_LENGTH)]
    body = "".join(words[:3]) + "." + "".join(words[3:])
    return f"{body}{_email_check(body)}@{DOMAINS[draw.below(3)]}"


def _email_check(body: str) -> str:
    number = check_number(body)
    return "".join(SYLLABLES[number >> 6 * i & 63] for i in range(EMAIL_CHECK))


def _ip(value: str, key: bytes) -> str:
    """IPv6 in 2001:db8::/32 (RFC 3849). RFC 5737 has but 762 IPv4 addresses, so they lie in 240/4, which no host has."""
    if ":" not in value:
        draw = Draw("ip", value.translate(NORMAL), key)
        body = f"{240 + draw.below(15)}.{draw.below(256)}.{draw.below(256)}"
        return f"{body}.{check_number(body) % 256}"
    draw = Draw("ip", ipaddress.IPv6Address(value).compressed, key)
    body = ":".join(["2001", "db8", *(f"{draw.below(0xF000) + 0x1000:x}" for _ in range(5))])
    return f"{body}:{check_number(body) % 0xF000 + 0x1000:x}"


def _plate(value: str, key: bytes) -> str:
    """Another province and letter; the first of the last five or six is I or O, which none has there."""
    draw = Draw("plate", re.sub(f"[^{PROVINCES}A-Z0-9挂学警港澳]", "", value), key)
    serial = re.search("[A-Z0-9]{4,6}.?$", value[2:])
    assert serial
    between, old = value[2 : 2 + serial.start()], serial[0]
    new = [str(draw.below(10)) if c.isdigit() else "ABCDEFGHJK"[draw.below(10)] if c.isascii() else c for c in old[1:]]
    return (
        PROVINCES[draw.below(len(PROVINCES))] + "ABCDEFGH"[draw.below(8)] + between + "IO"[draw.below(2)] + "".join(new)
    )


def _name(value: str, key: bytes) -> str:
    """Word by word, surname and given name each by itself, so that Dr. Smith and Mary Smith, 王先生 and 王小明 stay who they are."""
    if value[0] < "\u0250":
        return NAME_WORD.sub(lambda word: _name_word(word[0], key), value)
    size = 2 if value[:2] in COMPOUND else 1
    surnames = OTHER_COMPOUND if size == 2 else OTHER_SURNAMES
    surname = surnames[Draw("name", value[:size], key).below(len(surnames))]
    draw = Draw("name", value[size:], key)
    return surname + "".join(OTHER_GIVEN[draw.below(len(OTHER_GIVEN))] for _ in value[size:])


def _name_word(word: str, key: bytes) -> str:
    draw = Draw("name", word.casefold(), key)
    if word in PARTICLES:
        return word
    if word[1:] == ".":
        return "ABCDEFGHJKLMNPRSTVW"[draw.below(19)] + "."
    other = "".join(part[draw.below(len(part))] for part in (HEADS, MIDDLES, TAILS))
    return other.upper() if word.isupper() else other.capitalize()


MAKERS = {
    "email": _email, "phone": _phone, "id": _id, "card": _card, "ip": _ip, "plate": _plate, "ssn": _ssn, "name": _name,
}  # fmt: skip


def is_surrogate(kind: str, value: str) -> bool:
    """Whether `surrogate` wrote this, under whatever key: by its check characters, or as a name in letters that nobody has."""
    if kind == "email":
        match = SURROGATE_EMAIL.fullmatch(value)
        return match is not None and match[2] == _email_check(match[1])
    if kind == "name":
        words = [word.casefold() for word in NAME_WORD.findall(value) if word[1:] != "." and word not in PARTICLES]
        return bool(words) and all(map(SURROGATE_WORD.fullmatch, words))
    if kind != "ip":
        return False
    body, _, last = value.rpartition(":" if ":" in value else ".")
    if ":" not in value:
        return int(value.partition(".")[0]) >= 240 and int(last) == check_number(body) % 256
    return value.startswith("2001:db8:") and last == f"{check_number(body) % 0xF000 + 0x1000:x}"
