"""Does a text hold keys, tokens or passwords that open something?

Two families. Tokens whose issuer gave them a form of their own are found anywhere. Values without a form are found where a
name says what they are (`password=`, `api_key:`, 密码：) and the value looks drawn at random: a name, a word, a call, a path or a
placeholder is none, so that source code stays as it is.
"""

from __future__ import annotations

import math
import re
from collections import Counter

SECRET = "<SECRET>"

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# Each token holds one character that is rare in prose, which the engine finds at 1 GB/s; a look-behind there tells whose
# it is, and only then is the form tried, from where the word begins: which characters, and how many, may stand before it.
TOKENS: tuple[tuple[str, str, int, str], ...] = (
    (
        "_(?:(?<=gh[pousr]_)|(?<=github_pat_)|(?<=[rsp]k_live_)|(?<=[rsp]k_test_)|(?<=whsec_)|(?<=hf_)|(?<=npm_)|(?<=dop_v1_))",
        LETTERS + "_",
        12,
        r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"  # GitHub
        r"|[rsp]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{32,}"  # Stripe
        r"|hf_[A-Za-z0-9]{34,}|npm_[A-Za-z0-9]{36}|dop_v1_[a-f0-9]{64}",  # Hugging Face, npm, DigitalOcean
    ),
    (
        "-(?:(?<=sk-)|(?<=xox[abeoprs]-)|(?<=xapp-)|(?<=glpat-)|(?<=GOCSPX-)|(?<=pypi-))",
        LETTERS + "_",
        12,
        r"sk-(?P<random>[A-Za-z0-9_-]{20,})"  # OpenAI, Anthropic, DeepSeek and others: the rest must look random
        r"|(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,}|glpat-[A-Za-z0-9_-]{20,}"  # Slack, GitLab
        r"|GOCSPX-[A-Za-z0-9_-]{28}|pypi-AgE[A-Za-z0-9_-]{50,}",  # Google, PyPI
    ),
    (
        r"\.(?:(?=eyJ)|(?<=ya29\.)|(?<=SG\.)|(?<=hooks\.)(?=slack\.com))",
        LETTERS + "_-",
        2000,  # the first part of a JSON Web Token
        r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"  # JSON Web Token, RFC 7519
        r"|ya29\.[A-Za-z0-9_-]{20,}|SG\.[A-Za-z0-9_-]{20,24}\.[A-Za-z0-9_-]{39,50}"  # Google, SendGrid
        r"|hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/_-]{20,}",
    ),
    (
        "A(?:[KSBC]IA|Iza|KID|(?<=LTA)I)[A-Za-z0-9_-]{12}",
        LETTERS + "_",
        12,
        r"A[KSBC]IA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|AKID[A-Za-z0-9]{32}"  # AWS, Google, Tencent Cloud
        r"|LTAI(?P<random>[A-Za-z0-9]{12,20})",  # Alibaba Cloud
    ),
    (":AA[A-Za-z0-9_-]{33}", LETTERS, 12, r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}"),  # Telegram
)
TOKEN_FORMS = [
    (re.compile(sign), before, most, re.compile(f"(?<![A-Za-z0-9_])(?:{form})(?![A-Za-z0-9_])"))
    for sign, before, most, form in TOKENS
]
# A private key in PEM (RFC 7468) or in OpenSSH's or PGP's form; one whose end is cut off ends with its last line of base64.
PEM = re.compile(
    r"-----BEGIN (?P<label>(?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?)-----"
    r"(?:(?=(?:[^-]|-(?!----))*?[A-Za-z0-9+/=]{32})(?:[^-]|-(?!----))*-----END (?P=label)-----|(?:(?:\\n|[\s\"'+,])*[A-Za-z0-9+/=]{16,})+)"
)
URL_PASSWORD = re.compile(r"://[A-Za-z0-9._%+-]{0,64}:([^\s/:@\"'<>{}$*]{6,128})@[A-Za-z0-9\[]")

NAMES = (
    r"(?:pass(?:word|wd|phrase|code)?|pwd|secret|token|credentials?|(?:api|app|access|auth|account|client|encryption|master|private|secret|service"
    r"|session|shared|signing|storage|subscription)[ _.-]?keys?)"
)
ASSIGNED = re.compile(
    r"[:=：](?<![:=!<>]=)(?<!::)[>=]?[ \t]{0,3}(?P<quote>\\?[\"'`]?)(?P<value>(?=[^\s0-9]{0,99}[0-9])[A-Za-z0-9+/_.~!@#$%^&*?=-]{8,200})(?P<after>.?)",
    re.DOTALL,
)
NAME_BEFORE = re.compile(
    rf"(?:(?i:{NAMES}(?:[ _-]?(?:id|value|key|access[ _-]?key|2))?)|密码|口令|密钥|令牌|秘钥)[是为]?[\"'`\])]{{0,2}}[ \t]{{0,16}}:?$"
)
PLACEHOLDER = re.compile(
    r"(?i:example|placeholder|change[_-]?me|redacted|password|passwd|foobar|xxxx|\.\.\.|\*\*\*"
    r"|(?<![a-z])(?:your|dummy|sample|insert|replace|secret|token|test|todo)(?![a-z]))"
)
CODE = re.compile(r"[A-Za-z_$][A-Za-z0-9_]*(?:(?:\.|::|->|-|/)[A-Za-z_$][A-Za-z0-9_]*)*[!?;.,]?")


def entropy(value: str) -> float:
    """Bits per character of the value's own letters: 0 for one letter, 4 for 16 that differ.

    >>> entropy("aaaaaaaa"), entropy("0123456789abcdef")
    (0.0, 4.0)
    """
    return sum(-n / len(value) * math.log2(n / len(value)) for n in Counter(value).values()) + 0.0


def looks_random(value: str, least_length: int = 16) -> bool:
    """Whether a value looks drawn at random: long, letters and digits mixed, hardly a letter twice, no words.

    >>> looks_random("q9X2mZ7vK4bT1nRw"), looks_random("learn_version_2_of_me"), looks_random("2024-01-05T10:00")
    (True, False, False)
    """
    if len(value) < least_length or PLACEHOLDER.search(value):
        return False
    letters, digits = sum(map(str.isalpha, value)), sum(map(str.isdigit, value))
    if letters < 3 or digits < 1 or entropy(value) < min(3.0, 0.8 * math.log2(len(value))):
        return False
    changes = len(re.findall("[A-Za-z](?=[0-9])|[0-9](?=[A-Za-z])|[a-z](?=[A-Z])", value))
    words = re.findall("[A-Z]?[a-z]{4,}|[A-Z]{5,}", value)
    return changes >= 3 and sum(map(len, words)) < 0.6 * len(value)


def _assigned(text: str, match: re.Match[str]) -> bool:
    """Whether a name for a secret stands before the sign, and the value is one rather than code."""
    start = match.start()
    name = NAME_BEFORE.search(text, max(0, start - 48), start)
    if not name or "public" in text[max(0, name.start() - 12) : start].lower():
        return False
    value, quote, after = match["value"], match["quote"], match["after"]
    if (after in "([{" and after) or value.startswith(("$", "%", "http", "./", "#")):  # a call, a variable, a path
        return False
    if quote:
        # A quoted password need not be long, but letters and digits or signs must mix.
        return after == quote[-1] and (looks_random(value, 8) or _strong(value))
    return looks_random(value) or (_strong(value) and not CODE.fullmatch(value))


def _strong(value: str) -> bool:
    """Whether a short value mixes small and capital letters, digits and signs, as passwords must and names do not."""
    if PLACEHOLDER.search(value) or not 8 <= len(value) <= 64:
        return False
    return all(re.search(chars, value) for chars in ("[a-z]", "[A-Z]", "[0-9]", "[^A-Za-z0-9_.]"))


def find_secrets(text: str) -> list[tuple[int, int]]:
    """Returns (start, end) of every secret, sorted, without overlap.

    >>> find_secrets('api_key = "q9X2mZ7vK4bT1nRw"'), find_secrets("token = read_token(path)")
    ([(11, 27)], [])
    """
    found = [match.span() for match in PEM.finditer(text)] if "PRIVATE KEY" in text else []
    for sign, before, most, form in TOKEN_FORMS:
        done = 0
        for hit in sign.finditer(text):
            if hit.start() < done:
                continue
            head = text[max(0, hit.start() - most) : hit.start()]
            match = form.match(text, hit.start() - len(head) + len(head.rstrip(before)))
            if not match:
                continue
            done = match.end()
            if "random" not in form.groupindex or match["random"] is None or looks_random(match["random"], 12):
                found.append(match.span())
    if "://" in text:
        for match in URL_PASSWORD.finditer(text):
            if not PLACEHOLDER.search(match[1]) and re.search("[0-9]", match[1]) and re.search("[A-Za-z]", match[1]):
                found.append(match.span(1))
    found += [match.span("value") for match in ASSIGNED.finditer(text) if _assigned(text, match)]
    found.sort()
    kept: list[tuple[int, int]] = []
    for start, end in found:
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


def secrets(text: str) -> str:
    """Replaces keys, tokens and passwords by <SECRET>.

    >>> secrets("密钥：AKIAIOSFODNN7EXAMPLE，别外传"), secrets("密码：请输入密码，password: see below")
    ('密钥：<SECRET>，别外传', '密码：请输入密码，password: see below')
    """
    while found := find_secrets(text):
        pieces, done = [], 0
        for start, end in found:
            pieces += text[done:start], SECRET
            done = end
        text = "".join([*pieces, text[done:]])
    return text
