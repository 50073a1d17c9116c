"""Which words are an e-mail address, an IPv6 address or a Chinese number plate?"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from data_pipeline.rules.pii_numbers import Found

LOCAL = (
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._%+'-"  # what people use of RFC 5322's characters
)
DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+(?:xn--[A-Za-z0-9-]{1,59}|[A-Za-z]{2,24})(?![A-Za-z0-9_(\[])"
)
FILE_ENDS = frozenset(
    [
        "bmp",
        "css",
        "gif",
        "html",
        "ico",
        "jpeg",
        "jpg",
        "js",
        "json",
        "md",
        "pdf",
        "png",
        "py",
        "svg",
        "ts",
        "webp",
        "zip",
    ]
)
IPV6_SIGN = re.compile(r":(?<![G-Zg-z_]:)[0-9A-Fa-f]{0,4}:(?![G-Zg-z_\s])")  # begins with a letter: found by memchr
IPV6_CHARS = "0123456789abcdefABCDEF:"
IPV6_REST = re.compile(r"[0-9A-Fa-f:]*(?:[0-9A-Fa-f]|::)(?:(?<=:[0-9]|[0-9]{2})(?:\.[0-9]{1,3}){3}|)(?![0-9A-Za-z_])")
PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
SERIAL = "A-HJ-NP-Z0-9"  # GA 36: never I, never O
PLATE = re.compile(
    rf"[{PROVINCES}][A-Z][·•・. -]?(?:[DF][{SERIAL}][0-9]{{4}}|[0-9]{{5}}[DF]|(?=[A-Z]*[0-9][A-Z]*[0-9])[{SERIAL}]{{4}}[{SERIAL}挂学警港澳])"
    "(?![A-Za-z0-9])"
)


def find_emails(text: str) -> Iterator[Found]:
    """Yields e-mail addresses; `git@host`, `user:pass@host` of a URL, `logo@2x.png` and `x @ y.T` are none."""
    for sign in "@＠":
        at = text.find(sign)
        while at >= 0:
            head = text[max(0, at - 65) : at]
            local = head[len(head.rstrip(LOCAL)) :].lstrip("._%+'-")
            domain = DOMAIN.match(text, at + 1) if local and local[-1] != "." and len(local) < 65 else None
            if domain and local != "git" and domain[0].rpartition(".")[2].lower() not in FILE_ENDS:
                start = at - len(local)
                if not re.search(r"://(?:[^\s/@]*:)?$", text[max(0, start - 80) : start]):
                    yield Found("email", start, domain.end())
            at = text.find(sign, at + 1)


def find_ipv6(text: str) -> Iterator[Found]:
    """Yields IPv6 addresses (RFC 4291), not loopback, nor what may be a slice, a time, a MAC or a C++ name."""
    done = 0
    for sign in IPV6_SIGN.finditer(text):
        if sign.start() < done:
            continue
        first = max(0, sign.start() - 40)
        start = first + len(text[first : sign.start()].rstrip(IPV6_CHARS))
        rest = IPV6_REST.match(text, start, start + 50)
        if not rest:
            continue
        done = rest.end()
        if start and ((text[start - 1].isalnum() and text[start - 1].isascii()) or text[start - 1] == "_"):
            continue
        word = rest[0]
        try:
            address = ipaddress.IPv6Address(word)
        except ValueError:
            continue
        digits = len(word.replace(":", ""))
        enough = digits >= (4 if "::" in word else 12) and word.strip(":").count(":")  # `[::1000]` is a slice
        if enough and re.search("[0-9]", word) and not address.is_loopback:
            yield Found("ip", start, done)


def find_plates(text: str) -> Iterator[Found]:
    """Yields Chinese number plates: a province, a letter and five characters, or six of a new-energy car."""
    if not text.isascii():
        for match in PLATE.finditer(text):
            yield Found("plate", *match.span())
