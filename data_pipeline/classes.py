"""Which classes are there, which number has each, and how much does a document of each count in training?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.config import SPLITS, DataConfig
from data_pipeline.schema import ConfigError, UserError, nearest
from data_pipeline.shares import read_table
from data_pipeline.store import Prepared
from data_pipeline.tasks import PLAIN

BETA = 0.999  # of the effective number of n documents, (1 - BETA ** n) / (1 - BETA) (arXiv:1901.05555)
SHOWN = 20  # classes of a table


@dataclass(frozen=True)
class Classes:
    """The classes in the order of their numbers."""

    names: tuple[str, ...]
    counts: tuple[int, ...]  # documents of the train split
    weights: (
        np.ndarray
    )  # float32: of a document in training; their mean over the documents is 1 where they were computed

    def numbers(self, prepared: Prepared, source: int, split: str) -> np.ndarray:
        """Returns the number of the class of each document of a shard, int32."""
        number = {name: i for i, name in enumerate(self.names)}
        return np.array([number[name] for name in prepared.label_names(source, split)], np.int32)[
            _labels(prepared, source, split)
        ]

    def check_refusal(self, prepared: Prepared, name: str) -> None:
        """Raises ConfigError unless `name` is a class that has validation rows."""
        if name not in self.names:
            raise ConfigError(f"refusal: no class {name!r}{nearest(name, list(self.names))}")
        shards = [n for n in range(len(prepared.sources)) if prepared.has_shard(n, "validation")]
        if not any((self.numbers(prepared, n, "validation") == self.names.index(name)).any() for n in shards):
            raise ConfigError(f"refusal: no validation row has the class {name!r}, so nothing would say when to refuse")

    def describe(self) -> list[str]:
        """Returns the lines of a table, rarest first."""
        least, most = min(self.counts), max(self.counts)
        spread = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        lines = [f"{len(self.names)} classes of {spread} training documents"]
        if least * 1.5 < most or len(set(self.weights.tolist())) > 1:
            order = sorted(range(len(self.names)), key=lambda i: (self.counts[i], self.names[i]))
            lines += [
                f"  {self.names[i]}: {self.counts[i]:,} documents, weight {self.weights[i]:.3g}" for i in order[:SHOWN]
            ]
            if len(order) > SHOWN:
                lines.append(f"  and {len(order) - SHOWN} more, with no fewer documents")
        return lines


def _labels(prepared: Prepared, source: int, split: str) -> np.ndarray:
    labels = prepared.shard(source, split).labels
    return np.zeros(0, np.int32) if labels is None else labels


def find_classes(config: DataConfig, prepared: Prepared) -> Classes:
    """Returns the classes of a labelled corpus.

    Raises UserError for rows without a label or with a label that training never shows, ConfigError for keys that do not fit.
    """
    counts: Counter[str] = Counter()
    seen: dict[str, tuple[str, str]] = {}  # label -> split and source that has it
    for number, source in enumerate(prepared.sources):
        for split in SPLITS:
            if not prepared.has_shard(number, split):
                continue
            names, shard = prepared.label_names(number, split), prepared.shard(number, split)
            if not names or "" in names:
                raise UserError(
                    f"source {source}: it was prepared without labels; set its label_field, and prepare it again"
                )
            if (shard.loss_start != PLAIN).any():
                raise UserError(
                    f"source {source}: prompt/completion rows and conversations have no class; give texts (config.data.sources."
                    f"{source}.form='text')"
                )
            found = dict(zip(names, np.bincount(_labels(prepared, number, split), minlength=len(names)).tolist()))
            if split == "train":
                counts.update(found)
            for name, n in found.items():
                if n:
                    seen.setdefault(name, (split, source))
    counts = Counter({name: n for name, n in counts.items() if n})
    unseen = {name: where for name, where in seen.items() if name not in counts}
    if unseen:
        shown = "; ".join(f"{name!r} in {split} of {source}" for name, (split, source) in list(unseen.items())[:5])
        more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
        raise UserError(
            f"{len(unseen)} labels have no training document: {shown}{more}. Add some, take those rows out, or set "
            "config.data.split.stratify=True, which gives every class its share of every split"
        )
    names = config.labels or tuple(sorted(counts, key=_in_order))
    _check_names(config, counts, names)
    if len(names) < 2:
        found = f"all training documents have the label {next(iter(names))!r}" if names else "the train split is empty"
        raise UserError(f"{found}: there is nothing to tell apart")
    found = tuple(counts[name] for name in names)
    return Classes(names, found, _weights(config, names, np.array(found, np.float64)).astype(np.float32))


def _in_order(name: str) -> tuple[int, int, str]:
    """Whole numbers by size, then names.

    >>> sorted(["10", "9", "b", "a"], key=_in_order)
    ['9', '10', 'a', 'b']
    """
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)


def _check_names(config: DataConfig, counts: Counter[str], names: Sequence[str]) -> None:
    known = sorted(counts)
    problems = [
        f"config.data.labels: class {name!r} has no training document{nearest(name, known)}"
        for name in names
        if name not in counts
    ]
    missing = [name for name in known if name not in names]
    if missing:
        problems.append(f"config.data.labels lacks {', '.join(map(repr, missing[:8]))}, which the train split has")
    table = read_table(config.class_weights)[0] if "=" in "".join(config.class_weights) else {}
    problems += [
        f"config.data.class_weights: no class {name!r}{nearest(name, known)}" for name in table if name not in counts
    ]
    missing = [name for name in known if table and name not in table]
    if missing:
        problems.append(f"config.data.class_weights: give every class a weight; missing: {', '.join(missing[:8])}")
    if problems:
        raise ConfigError(problems)


def _weights(config: DataConfig, names: Sequence[str], counts: np.ndarray) -> np.ndarray:
    if not config.class_weights:
        return np.ones(len(names))
    if config.class_weights == ("inverse",):
        weights = 1 / counts
    elif config.class_weights == ("effective",):
        weights = (1 - BETA) / (1 - BETA**counts)
    else:
        table = read_table(config.class_weights)[0]
        return np.array([table[name] for name in names])
    return weights * counts.sum() / (weights * counts).sum()
