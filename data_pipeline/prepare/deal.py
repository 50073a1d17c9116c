"""Into which split does each document go, where more than its own text decides: near-duplicates, labels, an earlier corpus?

What lies in a prepared folder for the next one (`split.known`):

names.bin   with near-duplicates: of each text or group the name of its cluster (dedup/names.py)
dealt.bin   with labels: of each name the split or fold that it was dealt to
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline import sealed
from data_pipeline.config import SPLITS, DataConfig
from data_pipeline.dedup.deal import deal_parts, label_clusters, parts_of, split_of_cluster, split_of_part
from data_pipeline.dedup.signatures import node_of, whole
from data_pipeline.prepare.read import CUT, read_arrays, read_groups, read_labels
from data_pipeline.prepare.stages import Context, Log
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.store import open_prepared
from data_pipeline.whole_file import written_aside

NAMES, DEALT = "names.bin", "dealt.bin"
DEALT_ROW = np.dtype([("name", "S16"), ("part", "S16")])
Fates = list[np.ndarray]  # of each part, of each document the bits of its splits
Members = Callable[
    [int], tuple[np.ndarray, list[bytes]]
]  # of a part the documents that are left, and the names they are dealt by


def known_file(config: DataConfig, name: str) -> Path | None:
    """A file of the earlier corpus; ConfigError where it has none."""
    if not config.split.known:
        return None
    path = _open_known(config.split.known) / name
    if not path.is_file():
        how = "clean.near_dedup" if name == NAMES else "split.stratify"
        raise ConfigError(
            f"config.data.split.known={config.split.known!r}: no {name} there; it was prepared without {how}"
        )
    return path


@functools.lru_cache(maxsize=1)
def _open_known(known: str) -> Path:
    """Checks the earlier corpus, all of its hashes, once."""
    opened = open_prepared(Path(known).expanduser())
    if isinstance(opened, str):
        raise UserError(f"config.data.split.known={known!r}: {opened}")
    return opened.folder


def known_sha256(config: DataConfig) -> list[str]:
    """What of the earlier corpus the result depends on."""
    wanted = [NAMES] * bool(config.clean.near_dedup) + [DEALT] * config.split.stratify
    found = [known_file(config, name) for name in wanted]
    return [hashlib.sha256(sealed.read_bytes(path)).hexdigest() for path in found if path]


def read_dealt(path: Path, config: DataConfig) -> dict[bytes, str]:
    content = sealed.read_bytes(path)
    if len(content) % DEALT_ROW.itemsize:
        raise UserError(f"{path}: not a file of dealt splits ({len(content)} bytes)")
    rows = np.frombuffer(content, DEALT_ROW)
    dealt = {whole(name): part.decode() for name, part in zip(rows["name"].tolist(), rows["part"].tolist())}
    strange = sorted(set(dealt.values()) - set(parts_of(config.split)))
    if strange:
        raise ConfigError(
            f"config.data.split.known={config.split.known!r} was dealt to {', '.join(sorted(set(dealt.values())))}; "
            f"with config.data.split.folds={config.split.folds} it would be {', '.join(parts_of(config.split))}: set folds as it was"
        )
    return dealt


class Dealer:
    """Deals what is left after exact comparison."""

    def __init__(self, context: Context, tasks: list, log: Log):
        self.context, self.tasks, self.log = context, tasks, log
        self.config: DataConfig = context.held["config"]
        path = known_file(self.config, DEALT) if self.config.split.stratify else None
        self.known = read_dealt(path, self.config) if path else {}

    def rank(self, name: bytes) -> int:
        """The order in which a cluster prefers the names that parts of it had: those in train first."""
        split = self.config.split
        part = self.known.get(name)
        return SPLITS.index(split_of_part(part, split) if part else split_of_cluster(name, split))

    def by_itself(self, fates: Fates) -> Members:
        """Every document by itself, or by its group."""

        def members(number: int) -> tuple[np.ndarray, list[bytes]]:
            left = np.flatnonzero(fates[number])
            keys, groups = read_arrays(self.context, number, "key")["key"], read_groups(self.context, number)
            return left, [node_of(keys[i].tobytes(), groups[i]) for i in left.tolist()]

        return members

    def deal(self, fates: Fates, members: Members) -> Fates:
        """Returns new fates; pinned sources, and texts cut by position, keep theirs."""
        split = self.config.split
        if split.stratify:
            dealt = self._stratify(fates, members)
            split_of: Callable[[bytes], str] = lambda name: split_of_part(dealt[name], split)  # noqa: E731
        else:
            split_of = lambda name: split_of_cluster(name, split)  # noqa: E731
        out = []
        for number, fate in enumerate(fates):
            new = fate.copy()
            if self._is_dealt(number):
                left, names = members(number)
                for i, name in zip(left.tolist(), names):
                    if not fate[i] & CUT:
                        new[i] = 1 << SPLITS.index(split_of(name))
            out.append(new)
        return out

    def _is_dealt(self, number: int) -> bool:
        return not self.context.held["sources"][self.tasks[number][0]].config.split

    def _stratify(self, fates: Fates, members: Members) -> dict[bytes, str]:
        """Deals the names by label, and notes where each went."""

        def rows():
            for number in filter(self._is_dealt, range(len(fates))):
                left, names = members(number)
                labels = read_labels(self.context, number)
                yield from ((name, labels[i]) for i, name in zip(left.tolist(), names))

        labels, mixed = label_clusters(rows())
        if mixed:
            self.log(
                f"{mixed:,} clusters of near-duplicates or groups hold several labels; each counts as its most frequent one"
            )
        dealt = deal_parts(labels, self.config.split, self.known)
        self._say_what_lacks(labels, dealt)
        table = np.array(sorted((name, part.encode()) for name, part in dealt.items()), DEALT_ROW)
        with written_aside(self.context.folder / DEALT) as file:
            file.write(table.tobytes())
        return dealt

    def _say_what_lacks(self, labels: dict[bytes, str], dealt: dict[bytes, str]) -> None:
        split = self.config.split
        there: dict[str, Counter[str]] = {}
        for name, label in labels.items():
            there.setdefault(split_of_part(dealt[name], split), Counter())[label] += 1
        for which, wanted in (
            ("train", True),
            ("validation", split.fold >= 0 if split.folds else split.validation),
            ("test", split.test),
        ):
            lacking = sorted(set(labels.values()) - set(there.get(which, ())))
            if wanted and lacking:
                some = ", ".join(map(repr, lacking[:5])) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
                self.log(f"warning: labels without any document in the {which} split: {some}")
