"""Where does a text hold personal data, and how is it written so that it says nothing of anybody?

    find_pii("电话13800138000，谢谢")                         [Found("phone", 2, 13)]
    anonymize(text, "mask")                                 <PHONE>
    anonymize(text, "surrogate", key=read_key("PII_KEY"))   12383234667: the same value always becomes the same other one
    anonymize(text, "encrypt", key=read_key("PII_KEY"))     <PHONE:base64url>, which decrypt_text(text, key) turns back

Every way leaves text that none of them changes again. docs/privacy.md says what is found and what is not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from functools import partial
from itertools import count

from data_pipeline.config import DEFAULT_PII_KINDS as DEFAULT_KINDS
from data_pipeline.config import PII_KINDS as KINDS
from data_pipeline.config import PII_WAYS as WAYS
from data_pipeline.rules.pii_addresses import find_emails, find_ipv6, find_plates
from data_pipeline.rules.pii_cipher import encrypt_value
from data_pipeline.rules.pii_names import find_names
from data_pipeline.rules.pii_numbers import Found, find_numbers
from data_pipeline.rules.pii_surrogate import is_surrogate, surrogate

ENCRYPTED = re.compile("<(?:" + "|".join(KINDS).upper() + "):[A-Za-z0-9_-]+>")
MAX_ROUNDS = 8


def find_pii(text: str, kinds: Collection[str] = DEFAULT_KINDS) -> list[Found]:
    """Returns the personal data of these kinds, sorted and without overlap; what `anonymize` wrote is none.

    >>> find_pii("电话13800138000，请联系abc@qq.com谢谢")
    [Found(kind='phone', start=2, end=13), Found(kind='email', start=17, end=27)]
    >>> find_pii("numpy 1.26.4.1 on 10.1.2.3:80, ISBN 9787302123453")
    [Found(kind='ip', start=18, end=26)]
    """
    if kinds is not DEFAULT_KINDS and (unknown := sorted(set(kinds) - set(KINDS))):
        raise ValueError(f"no kind {', '.join(unknown)} of personal data; there are {', '.join(KINDS)}")
    found = list(find_emails(text)) if "email" in kinds else []
    if "ip" in kinds:
        found += find_ipv6(text)
    found += find_numbers(text, kinds)
    if "plate" in kinds:
        found += find_plates(text)
    if "name" in kinds:
        found += find_names(text)
    if not found:
        return []
    taken = [match.span() for match in ENCRYPTED.finditer(text)] if "<" in text else []
    found.sort(key=lambda one: (one.start, KINDS.index(one.kind), -one.end))
    kept: list[Found] = []
    end = token = 0
    for one in found:
        while token < len(taken) and taken[token][1] <= one.start:
            token += 1
        inside = token < len(taken) and taken[token][0] < one.end
        if one.start < end or inside or is_surrogate(one.kind, text[one.start : one.end]):
            continue
        kept.append(one)
        end = one.end
    return kept


def mask(kind: str, value: str) -> str:
    return f"<{kind.upper()}>"


def anonymize(
    text: str, how: str = "mask", kinds: Collection[str] = DEFAULT_KINDS, key: bytes = b""
) -> tuple[str, Counter[str]]:
    """Returns the text without its personal data, and how many of each kind were replaced.

    `how` is "mask", "surrogate" or "encrypt"; the last two need the key that `read_key` reads.

    >>> anonymize("身份证号11010519491231002X，IP是8.8.8.8")
    ('身份证号<ID>，IP是<IP>', Counter({'id': 1, 'ip': 1}))
    """
    if how not in WAYS:
        raise ValueError(f"no way {how!r} to anonymise; there are {', '.join(WAYS)}")
    if how != "mask" and len(key) < 32:
        raise ValueError(f"{how} needs a key of at least 32 bytes, from read_key")
    ways = {"mask": mask, "surrogate": partial(surrogate, key=key), "encrypt": partial(encrypt_value, key=key)}
    replace = ways[how]
    counts: Counter[str] = Counter()
    for round_ in count():
        # What stands beside a value may be one itself once the value is gone ("8.8.8.8-13800138000"): until none is left.
        found = find_pii(text, kinds)
        if not found:
            break
        if round_ == MAX_ROUNDS:  # surrogates that keep making new numbers with what is beside them
            replace = mask
        counts.update(one.kind for one in found)
        pieces, end = [], 0
        for one in found:
            pieces += text[end : one.start], replace(one.kind, text[one.start : one.end])
            end = one.end
        text = "".join([*pieces, text[end:]])
    return text, counts
