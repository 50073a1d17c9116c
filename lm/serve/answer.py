"""Which text does a client get of the ids that a model draws, and where does it end?"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


class Answer:
    """The text of an answer as its ids come: up to a stop id or the first of the strings in `stops`, neither of which is given.

    Text that may be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, stream: Any, stop_ids: Collection[int], stops: tuple[str, ...]):
        self.stream, self.stop_ids, self.stops = stream, frozenset(stop_ids), stops
        self.held = ""

    def push(self, number: int) -> tuple[str, bool]:
        """Returns (the text that is certain now, whether the answer ends with this id)."""
        if number in self.stop_ids:
            return self.close(), True
        text, ended = self._cut(self.held + self.stream.push(number))
        keep = 0 if ended else max((n for stop in self.stops for n in _begun(text, stop)), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], ended

    def close(self) -> str:
        """Returns what was held back."""
        return self._cut(self.held + self.stream.close())[0]

    def _cut(self, text: str) -> tuple[str, bool]:
        found = [at for at in map(text.find, self.stops) if at >= 0]
        return (text[: min(found)], True) if found else (text, False)


def _begun(text: str, stop: str) -> list[int]:
    """Returns the lengths of the ends of `text` that `stop` begins with."""
    return [n for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])]
