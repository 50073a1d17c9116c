"""Does a text hold a word of a list that the user names? No list comes with the project, and none is used by default."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from data_pipeline.schema import UserError

WORD = re.compile(r"[a-z0-9]+")


def bad_words(text: str, path: str) -> str:
    """Returns the reason `bad_words` where the text holds a word of the file at `path` (UTF-8, one a line, # comments).

    Words of ASCII letters and digits match whole words, whatever stands beside them; others match anywhere.
    """
    words, phrases, rest = _read(path)
    lower = text.lower()
    found = not words.isdisjoint(WORD.findall(lower)) or any(phrase in lower for phrase in rest)
    return "bad_words" if found or (phrases and phrases.search(lower)) else ""


@functools.lru_cache(maxsize=8)
def _read(path: str) -> tuple[frozenset[str], re.Pattern[str] | None, tuple[str, ...]]:
    try:
        lines = Path(path).read_text("utf-8").lower().splitlines()
    except OSError as error:
        raise UserError(f"clean.bad_words: {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"clean.bad_words: {path}: not UTF-8 at byte {error.start}") from None
    entries = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    words = frozenset(entry for entry in entries if WORD.fullmatch(entry))
    phrases = sorted(entry for entry in entries - words if entry.isascii())
    pattern = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(map(re.escape, phrases))})(?![a-z0-9])") if phrases else None
    return words, pattern, tuple(sorted(entry for entry in entries if not entry.isascii()))
