"""What do the rows of documents.parquet add up to, by language, rule, length and cluster?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipeline.config import SPLITS
from data_pipeline.documents import COUNTED, MEASURED, RULES, Documents
from data_pipeline.mix import hash64
from data_pipeline.rules.measures import Measures
from data_pipeline.rules.quality import KINDS, kinds_of

CODE = "code"  # stands in the place of a language
BINS = 32  # of a histogram: 0, 1, 2 to 3, 4 to 7 ...
ROW_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
LARGEST, OTHERS = 2, 3  # clusters that are shown
SUMS = ("documents_in", "bytes_in", "documents_out", "bytes_out", "tokens", "token_bytes", "token_chars", "fallback", "unknown",
        "counted_tokens", "words")  # fmt: skip


class Clusters:
    """Which documents repeat each other: arrays of those that were dropped for it."""

    def __init__(self, numbers: np.ndarray, repeats: np.ndarray, near: np.ndarray):
        self.numbers, self.near = numbers, near
        while len(numbers):  # what an exact duplicate repeats may itself be dropped as a near one
            at = np.searchsorted(numbers, repeats).clip(max=len(numbers) - 1)
            again = numbers[at] == repeats
            if not again.any():
                break
            repeats = np.where(again, repeats[at], repeats)
        self.roots = repeats
        self.root, self.counts = np.unique(repeats, return_counts=True)

    def sizes(self) -> dict[str, int]:
        """How many clusters have how many documents, the one that is kept among them."""
        sizes, counts = np.unique(self.counts + 1, return_counts=True)
        return dict(zip(map(str, sizes.tolist()), counts.tolist()))

    def examples(self) -> Iterator[tuple[int, int, int]]:
        """Yields (kept document, another one, documents) of a few: the largest, then some drawn by hash, near-duplicates first."""
        is_near = np.isin(self.root, self.roots[self.near])
        largest = np.lexsort((self.root, -self.counts))[:LARGEST]
        drawn = [i for i in np.lexsort((hash64(self.root.astype(np.uint64)), ~is_near)).tolist() if i not in largest]
        for i in [*largest.tolist(), *drawn[:OTHERS]]:
            members = self.numbers[(self.roots == self.root[i]) & (self.near | ~is_near[i])]
            yield int(self.root[i]), int(members[0]), int(self.counts[i]) + 1


class Accounts:
    """Adds up the rows of a corpus; memory: 25 bytes a document that repeats another one."""

    def __init__(self, documents: Documents):
        self.languages: dict[str, Counter[str]] = {}
        self.dropped: dict[str, Counter[str]] = {}
        self.edited: dict[str, Counter[str]] = {}
        self.chars = {name: np.zeros(BINS, np.int64) for name in ("kept", "dropped")}
        self.tokens = {split: np.zeros(BINS, np.int64) for split in SPLITS}
        self.rows = {length: np.zeros(2, np.int64) for length in ROW_LENGTHS}  # documents that are longer, rows
        self.encoded = 0
        repeats: list[tuple[np.ndarray, ...]] = []
        names = (
            "language",
            "flags",
            "reason",
            "rules",
            "splits",
            "chars",
            "bytes",
            "number",
            "repeats",
            "tokens",
            "fallback",
            "unknown",
        )
        for columns in documents.read(*names, *COUNTED):
            counts = Measures(*(columns[name] for name in COUNTED))
            self._add(columns, counts)
            again = columns["repeats"] >= 0
            near = np.array([name == "near-duplicate" for name in columns["reason"][0]], bool)
            repeats.append((columns["number"][again], columns["repeats"][again], near[columns["reason"][1][again]]))
        none = np.zeros(0, np.int64)
        self.clusters = Clusters(*(np.concatenate(parts) for parts in zip((none, none, np.zeros(0, bool)), *repeats)))

    def _add(self, columns: dict[str, Any], counts: Measures) -> None:
        (languages, language), (reasons, reason) = columns["language"], columns["reason"]
        measured = (columns["flags"] & MEASURED) > 0
        is_code = measured & (kinds_of(counts) == KINDS.index("code"))
        kept = np.array([name == "" for name in reasons], bool)[reason]
        tokens = columns["tokens"]
        encoded = tokens >= 0
        for place, name in [*enumerate(languages), (-1, CODE)]:
            here = is_code if name == CODE else (language == place) & ~is_code
            if not here.any():
                continue
            done, timed = here & encoded, here & encoded & measured
            sums = (
                here.sum(), columns["bytes"][here].sum(), (here & kept).sum(), columns["bytes"][here & kept].sum(),
                tokens[done].sum(), columns["bytes"][done].sum(), columns["chars"][done].sum(),
                columns["fallback"][done].sum(), columns["unknown"][done].sum(), tokens[timed].sum(), counts.units[timed].sum(),
            )  # fmt: skip
            self.languages.setdefault(name, Counter()).update(dict(zip(SUMS, map(int, sums))))
            found = np.bincount(reason[here], minlength=len(reasons)).tolist()
            self.dropped.setdefault(name, Counter()).update({r: n for r, n in zip(reasons, found) if r and n})
            rules = columns["rules"][here & (columns["number"] >= 0)]
            bits = {rule: int((rules >> bit & 1).sum()) for bit, rule in enumerate(RULES)}
            self.edited.setdefault(name, Counter()).update({rule: n for rule, n in bits.items() if n})
        for name, which in (("kept", kept), ("dropped", ~kept)):
            self.chars[name] += histogram(columns["chars"][which])
        for bit, split in enumerate(SPLITS):
            self.tokens[split] += histogram(tokens[encoded & (columns["splits"] >> bit & 1 > 0)])
        self.encoded += int(encoded.sum())
        for length, sums in self.rows.items():
            sums += ((tokens[encoded] - 1 > length).sum(), np.maximum(-(-(tokens[encoded] - 1) // length), 1).sum())

    def by_language(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of each language, the largest first."""
        order = sorted(self.languages, key=lambda name: (-self.languages[name]["bytes_in"], name))
        wanted = ("documents_in", "bytes_in", "documents_out", "bytes_out", "tokens")
        return {
            name: {
                **{key: self.languages[name][key] for key in wanted},
                "dropped": dict(sorted(self.dropped[name].items())), "edited": dict(sorted(self.edited[name].items())),
                "fertility": fertility(self.languages[name]),
            }
            for name in order
        }  # fmt: skip

    def shapes(self) -> dict[str, Any]:
        """What the report draws: histograms, rows by length, clusters."""
        total = sum(counts["tokens"] for counts in self.languages.values())
        rows = [
            {"length": length, "longer": int(longer), "fill": round((total - self.encoded) / max(count * length, 1), 4)}
            for length, (longer, count) in self.rows.items()
        ]  # fmt: skip
        return {
            "chars": {name: counts.tolist() for name, counts in self.chars.items()},
            "tokens": {split: counts.tolist() for split, counts in self.tokens.items() if counts.any()},
            "rows": rows if self.encoded else [], "clusters": self.clusters.sizes(),
        }  # fmt: skip


def histogram(values: np.ndarray) -> np.ndarray:
    """Counts values in [0], [1], [2, 3], [4, 7] ..."""
    bins = np.zeros(len(values), np.int64)
    bins[values > 0] = np.log2(values[values > 0]).astype(np.int64) + 1
    return np.bincount(bins.clip(max=BINS - 1), minlength=BINS)


def fertility(sums: Counter[str]) -> dict[str, float | None]:
    """How many tokens a text takes: bytes a token, tokens a character and a word (or Han character), shares of bytes and unknown."""

    def share(a: str, b: str) -> float | None:
        return round(sums[a] / sums[b], 5) if sums[b] else None

    return {
        "bytes_per_token": share("token_bytes", "tokens"), "tokens_per_char": share("tokens", "token_chars"),
        "tokens_per_word": share("counted_tokens", "words"), "fallback": share("fallback", "tokens"),
        "unknown": share("unknown", "tokens"),
    }  # fmt: skip
