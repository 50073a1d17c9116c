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


def label_clusters(rows: Iterable[tuple[bytes, str]]) -> tuple[dict[bytes, str], int]:
    """Takes (name, label) of documents; returns each cluster's most frequent label (then the smallest), and how many have several."""
    counts: dict[bytes, Counter[str]] = defaultdict(Counter)
    for name, label in rows:
        counts[name][label] += 1
    labels = {name: min(count, key=lambda label: (-count[label], label)) for name, count in counts.items()}
    return labels, sum(len(count) > 1 for count in counts.values())


def deal_parts(
    labels: Mapping[bytes, str], config: SplitConfig, known: Mapping[bytes, str] | None = None
) -> dict[bytes, str]:
    """Deals clusters to `parts_of(config)` so that every label has its share in each to within one cluster.

    `known`: what an earlier call returned. Clusters in it stay where they are, and new ones make up what is missing; without it, a
    new row can move a cluster at the border of a share. Memory: all clusters of a labelled set.
    """
    by_label: dict[str, list[bytes]] = defaultdict(list)
    for name, label in labels.items():
        by_label[label].append(name)
    shares, known = parts_of(config), known or {}
    dealt = dict(known)
    for label in sorted(by_label):
        new = sorted((n for n in by_label[label] if n not in known), key=lambda n: (place_of(n, config.salt), n))
        have = Counter(known[name] for name in by_label[label] if name in known)
        at = 0
        for where, count in _fill_up(shares, have, len(new)).items():
            dealt.update(dict.fromkeys(new[at : at + count], where))
            at += count
    return dealt


def parts_of(config: SplitConfig) -> dict[str, float]:
    """What is dealt to, with shares: the splits, or test and the folds. Whichever fold validates, they are dealt alike.

    >>> parts_of(SplitConfig(test=0.1, folds=2))
    {'test': 0.1, 'fold 0': 0.45, 'fold 1': 0.45}
    """
    if config.folds:
        return {"test": config.test} | {f"fold {n}": (1 - config.test) / config.folds for n in range(config.folds)}
    return {"test": config.test, "train": 1 - config.test - config.validation, "validation": config.validation}


def split_of_part(part: str, config: SplitConfig) -> str:
    """
    >>> [split_of_part(part, SplitConfig(folds=3, fold=1)) for part in ("test", "fold 0", "fold 1")]
    ['test', 'train', 'validation']
    """
    if part in SPLITS:
        return part
    return "validation" if part == f"fold {config.fold}" else "train"


def _fill_up(shares: Mapping[str, float], have: Counter[str], new: int) -> dict[str, int]:
    """Returns how many of `new` clusters go to each part, so that the parts come as near to their shares as can be."""
    total = new + sum(have[where] for where in shares)
    lacking = {where: max(int(share * total - have[where]), 0) for where, share in shares.items()}

    def still(where: str) -> tuple[float, float]:  # of parts that lack as much, the larger one
        return round(shares[where] * total - have[where] - lacking[where], 9), shares[where]

    while (missing := new - sum(lacking.values())) != 0:
        where = max(shares, key=still) if missing > 0 else min((w for w in shares if lacking[w]), key=still)
        lacking[where] += 1 if missing > 0 else -1
    return lacking
