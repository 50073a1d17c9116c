"""Into which split, or which of K folds, does a cluster go?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from data_pipeline import split
from data_pipeline.config import SPLITS, SplitConfig


def split_of_cluster(name: bytes, config: SplitConfig) -> str:
    """Deals a cluster by a stable hash of its name, as `split.split_of` deals a text: test low, validation high.

    >>> split_of_cluster(bytes(16), SplitConfig(test=1.0, validation=0.0))
    'test'
    """
    return split.split_of("", name, config)


def place_of(name: bytes, salt: str = "") -> float:
    """Returns where in [0, 1) a cluster lies: the number that `split_of` compares with the shares."""
    return split.place_of(b"text:" + name, salt)


def fold_of_cluster(name: bytes, folds: int, salt: str = "") -> int:
    """Deals a cluster to one of `folds` folds by the same hash; adding rows moves none, another number of folds all."""
    return min(int(place_of(name, salt) * folds), folds - 1)


def rank_of(config: SplitConfig):
    """Returns the order in which `names.name_clusters` prefers the names of clusters that a new row joined: train first."""
    return lambda name: SPLITS.index(split_of_cluster(name, config))


def label_clusters(rows: Iterable[tuple[bytes, str]]) -> tuple[dict[bytes, str], int]:
    """Takes (name, label) of documents; returns each cluster's most frequent label (then the smallest), and how many have several."""
    counts: dict[bytes, Counter[str]] = defaultdict(Counter)
    for name, label in rows:
        counts[name][label] += 1
    labels = {name: min(count, key=lambda label: (-count[label], label)) for name, count in counts.items()}
    return labels, sum(len(count) > 1 for count in counts.values())


def deal_splits(
    labels: Mapping[bytes, str], config: SplitConfig, known: Mapping[bytes, str] | None = None
) -> dict[bytes, str]:
    """Deals clusters so that every label has its share in each split to within one cluster.

    `known`: what an earlier call returned. Clusters in it stay where they are, and new ones make up what is missing; without it, a
    new row can move a cluster at the border of a share. Memory: all clusters of a labelled set.
    """
    shares = {"test": config.test, "train": 1 - config.test - config.validation, "validation": config.validation}
    return {name: str(where) for name, where in _deal(labels, shares, config.salt, known or {}).items()}


def deal_folds(
    labels: Mapping[bytes, str], folds: int, salt: str = "", known: Mapping[bytes, int] | None = None
) -> dict[bytes, int]:
    """The same for `folds` folds of equal size."""
    shares = dict.fromkeys(range(folds), 1 / folds)
    return {name: int(where) for name, where in _deal(labels, shares, salt, known or {}).items()}


def _deal(labels: Mapping[bytes, str], shares: Mapping, salt: str, known: Mapping) -> dict:
    by_label: dict[str, list[bytes]] = defaultdict(list)
    for name, label in labels.items():
        by_label[label].append(name)
    dealt = dict(known)
    for label in sorted(by_label):
        new = sorted((n for n in by_label[label] if n not in known), key=lambda n: (place_of(n, salt), n))
        have = Counter(known[name] for name in by_label[label] if name in known)
        lacking = _fill_up(shares, have, len(new))
        at = 0
        for where, count in lacking.items():
            dealt.update(dict.fromkeys(new[at : at + count], where))
            at += count
    return dealt


def _fill_up(shares: Mapping, have: Counter, new: int) -> dict:
    """Returns how many of `new` clusters go to each part, so that the parts come as near to their shares as can be."""
    total = new + sum(have[where] for where in shares)
    lacking = {where: max(int(share * total - have[where]), 0) for where, share in shares.items()}

    def still(where) -> tuple[float, float]:  # of parts that lack as much, the larger one
        return round(shares[where] * total - have[where] - lacking[where], 9), shares[where]

    while (missing := new - sum(lacking.values())) != 0:
        where = max(shares, key=still) if missing > 0 else min((w for w in shares if lacking[w]), key=still)
        lacking[where] += 1 if missing > 0 else -1
    return lacking
