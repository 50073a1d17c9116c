"""Which data does a fold have, and can the folds be what they are meant to be?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.config import DataConfig
from lm.config import Config, ConfigError

Opener = Callable[[DataConfig], Any]


def of_fold(config: Config, folds: int, fold: int) -> Config:
    """A config that validates on one of the folds; -1: that trains on all of them, and validates on nothing.

    Test is the same in all. Nothing may stop a run early, for the refit has nothing to watch.
    """
    split = dataclasses.replace(config.data.split, folds=folds, fold=fold)
    train = dataclasses.replace(config.train, early_stop_patience=0)
    if fold < 0:
        train = dataclasses.replace(train, eval_every=0, eval_at_start=False)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, split=split), train=train)


def check_sweepable(config: Config, folds: int) -> None:
    """Raises ConfigError for a config of which no folds can be made, or no refit."""
    problems = []
    if folds < 2:
        problems.append(f"--folds={folds}: cross-validation needs 2 folds or more")
    if config.data.prepared:
        problems.append("config.data.prepared: what lies there is dealt already; name its sources instead")
    if config.data.split.by != "hash":
        problems.append("config.data.split.by='position' cuts each text; folds deal whole ones: set it to 'hash'")
    if config.optim.schedule == "plateau":
        problems.append(
            "config.optim.schedule='plateau' watches a validation split, which the refit has not: choose another"
        )
    if config.train.remember:
        problems.append("config.train.remember: a sweep watches its folds alone; clear it")
    if config.train.refusal:
        problems.append(
            "config.train.refusal: when to refuse is fitted on a validation split, which the refit has not; clear it"
        )
    if any(not isinstance(value, bool) for _, value in config.optim.train):
        problems.append(
            "config.optim.train: the trials of a sweep train the same parameters from step 0 on; say True or False"
        )
    for name, source in config.data.named_sources().items():
        if source.split == "validation":
            problems.append(
                f"config.data.sources.{name}.split='validation': the folds are the validation; clear it, or pin it to train or test"
            )
    if problems:
        raise ConfigError(problems)


class Folds:
    """Opens the data of trials; what is open stays open."""

    KEPT = 16

    def __init__(self, opener: Opener):
        self.opener, self.open = opener, {}

    def data(self, config: DataConfig) -> Any:
        key = repr(config)
        if key not in self.open:
            if len(self.open) >= self.KEPT:
                self.open.pop(next(iter(self.open)))
            self.open[key] = self.opener(config)
        return self.open[key]

    def check(self, config: Config, folds: int, batch_sizes: Sequence[int], wants_test: bool = True) -> list[str]:
        """Opens every fold and the refit's data; returns their fingerprints. Raises ConfigError with all that is wrong."""
        problems, seen = [], []
        whole = self.data(of_fold(config, folds, -1).data)
        documents = _documents(whole, "train")
        if documents < folds:
            raise ConfigError(f"--folds={folds}: there are only {documents} documents outside the test split")
        if wants_test and not whole.has_split("test"):
            problems.append(
                "the test split is empty, and the winner is measured on it: raise config.data.split.test, or pin a source to it"
            )
        for fold in range(folds):
            data = self.data(of_fold(config, folds, fold).data)
            seen.append(data.fingerprint)
            problems += _find_faults(data, fold, folds, max(batch_sizes))
        if problems:
            raise ConfigError(problems)
        return [*seen, whole.fingerprint]


def _find_faults(data: Any, fold: int, folds: int, batch_size: int) -> list[str]:
    name, way = f"fold {fold} of {folds}", "use fewer --folds, another config.data.split.salt, or more documents"
    if not data.has_split("validation"):
        return [f"{name} has no validation rows: {way}"]
    problems = []
    rows = data.summary()["rows"]["train"]
    if not data.config.streaming and rows < batch_size:
        problems.append(f"{name} has {rows} training rows, fewer than config.data.batch_size={batch_size}")
    train, held = _labels(data, "train"), _labels(data, "validation")
    if len(train | held) > 1:
        for split, found in (("training", train), ("validation", held)):
            if len(found) < 2:
                problems.append(
                    f"{name} has one class only among its {split} documents ({', '.join(map(repr, found))}): set "
                    "config.data.split.stratify=True, or use fewer --folds"
                )
    return problems


def _documents(data: Any, split: str) -> int:
    return sum(entry["splits"].get(split, {}).get("documents", 0) for entry in data.prepared.manifest["sources"])


def _labels(data: Any, split: str) -> set[str]:
    """The classes of the documents of a split; none where rows have no label."""
    found: set[str] = set()
    for number in range(len(data.sources)):
        names = data.prepared.label_names(number, split)
        if names:
            streamed = not data.prepared.has_shard(number, split)
            labels = data.prepared.places(number, split)[3] if streamed else data.prepared.shard(number, split).labels
            found |= {names[i] for i in np.unique(labels).tolist()}
    return found
