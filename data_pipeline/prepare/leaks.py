"""Which texts are in two splits, and is that allowed?"""

from __future__ import annotations

from collections import Counter

from data_pipeline.config import SPLITS
from data_pipeline.prepare.read import CUT, read_where
from data_pipeline.prepare.stages import Context, Log
from data_pipeline.schema import UserError

MAX_EXAMPLES = 3  # shown in the message


class Leaks:
    """Counts of (split of the first document, split of the one that is like it), and the first of the latter."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.examples: list[tuple[int, int, int]] = []  # part, document, source of the one that it repeats

    def add(self, there: int, here: int, part: int, document: int, source: int) -> None:
        """Takes the bits of both splits, and where the later document lies."""
        self.counts[name_splits(there), name_splits(here)] += 1
        self.examples = sorted([*self.examples, (part, document, source)])[:MAX_EXAMPLES]

    def check(self, context: Context, log: Log) -> None:
        """Raises UserError where there are any, unless they are allowed."""
        if not self.counts:
            return
        config, sources = context.held["config"], context.held["sources"]
        counts = ", ".join(f"{count} texts of {a} are in {b} too" for (a, b), count in sorted(self.counts.items()))
        examples = (
            f"{read_where(context, part)[document]} repeats a document of source {sources[source].name}"
            for part, document, source in self.examples
        )
        message = f"{counts}; {'; '.join(examples)}"
        if not config.allow_leak:
            hint = "" if config.clean.exact_dedup else " (clean.exact_dedup=True drops repeats between unpinned splits)"
            raise UserError(f"{message}. Remove them{hint}, or set config.data.allow_leak=True to go on")
        log(f"warning: {message} (allow_leak=True)")


def name_splits(bits: int) -> str:
    """Names the split of a document; a text cut by position is in each."""
    return "every split" if bits & CUT else SPLITS[bits.bit_length() - 1]
