"""Which split does a document belong to, and which documents count as the same text?"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator

from data_pipeline.config import SPLITS, SplitConfig
from data_pipeline.conversation import Conversation
from data_pipeline.records import Record

# Spaces and punctuation, in ASCII, Latin-1, general, CJK and full-width forms. What is left are letters, digits, Han,
# and the vowel signs that Python's \w leaves out.
NOT_COMPARED = re.compile(
    r"[\s\x00-/:-@\[-`{-\xa9\xab-\xb1\xb4\xb6-\xb8\xbb\xbf\u2000-\u206f\u3000-\u3003\u3008-\u3020\u3030"
    "\ufe10-\ufe1f\ufe30-\ufe6f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+"
)
# The same in two steps, of which the second, of bytes, takes next to no time. One by one they go faster than in runs.
WIDE = re.compile(
    "[\x80-\xa9\xab-\xb1\xb4\xb6-\xb8\xbb\xbf\u1680\u2000-\u206f\u3000-\u3003\u3008-\u3020\u3030"
    "\ufe10-\ufe1f\ufe30-\ufe6f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)
NARROW = bytes(code for code in range(0x80) if NOT_COMPARED.match(chr(code)))


def text_key(record: Record) -> bytes:
    """Returns 16 bytes that are equal where two documents hold the same letters, digits and Han.

    >>> text_key(Record("Hello, world!")) == text_key(Record("hello world"))
    True
    >>> text_key(Record("你好，世界。")) == text_key(Record("你好世界")), text_key(Record("你好")) == text_key(Record("您好"))
    (True, False)
    """
    parts = record.parts() if record.chat is None else _said(record.chat)
    # a text of signs only is compared as it stands
    content = b"".join([(compared_bytes(part) or part.encode()) + b"\0" for part in parts])
    return hashlib.blake2b(content, digest_size=16).digest()


def compared_bytes(text: str) -> bytes:
    """Returns what is compared of a text, as UTF-8: case-folded, without NOT_COMPARED."""
    text = text.casefold()
    return (text if text.isascii() else WIDE.sub("", text)).encode().translate(None, NARROW)


def _said(chat: Conversation) -> Iterator[str]:
    for message in chat.messages:
        rest = {key: value for key, value in message.items() if key not in ("role", "content")}
        yield f"{message['role']}: {message.get('content', '')} {json.dumps(rest, ensure_ascii=False, sort_keys=True)}"
    yield json.dumps(chat.tools, ensure_ascii=False, sort_keys=True)


def split_of(group: str, key: bytes, config: SplitConfig) -> str:
    """Deals by a stable hash of the group, or of the text where there is no group.

    Test lies at the low end of the hash and validation at the high end, so enlarging one never moves the other, and new
    documents never move old ones.
    """
    return split_at(place_of(b"group:" + group.encode() if group else b"text:" + key, config.salt), config)


def split_at(place: float, config: SplitConfig) -> str:
    """Returns the split of a place in [0, 1).

    >>> [split_at(place, SplitConfig(test=0.1, validation=0.1)) for place in (0.05, 0.5, 0.95)]
    ['test', 'train', 'validation']
    >>> [split_at(place, SplitConfig(test=0.1, folds=3, fold=1)) for place in (0.05, 0.35, 0.5, 0.9)]
    ['test', 'train', 'validation', 'train']
    """
    if place < config.test:
        return "test"
    if config.folds:
        fold = min(int((place - config.test) / (1 - config.test) * config.folds), config.folds - 1)
        return "validation" if fold == config.fold else "train"
    return "validation" if place >= 1 - config.validation else "train"


def place_of(what: bytes, salt: str) -> float:
    """Returns a stable hash as a number in [0, 1)."""
    digest = hashlib.blake2b(salt.encode() + b"\0" + what, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def cut_by_position(text: str, config: SplitConfig) -> dict[str, str]:
    """Cuts one text into its first, middle and last part, for train, validation and test.

    >>> cut_by_position("abcdefghij", SplitConfig(by="position", validation=0.1, test=0.0))
    {'train': 'abcdefghi', 'validation': 'j', 'test': ''}
    """
    n = len(text)
    train_end = int(n * round(1 - config.validation - config.test, 9))  # 1 - 0.05 - 0.05 is a hair below 0.9
    test_start = n - int(n * config.test) if config.test else n
    parts = (text[:train_end], text[train_end:test_start], text[test_start:])
    return dict(zip(SPLITS, parts))
