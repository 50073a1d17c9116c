"""What does a sweep search, and what is wrong with it? A sweep file's `get_sweep()` becomes a checked `Sweep`.

This module needs neither jax nor optuna, so that sweep files can import it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.schema import flat_items, nearest, run_file
from lm.check import find_problems
from lm.config import Config, ConfigError, UserError, from_mapping, to_json

SAMPLERS = ("tpe", "grid", "random")
RULES = ("one_standard_error", "best")
DEALT = (
    "data.split.",
    "data.path",
    "data.sources.",
    "data.prepared",
    "data.cache_dir",
    "data.encrypt_key_env",
    "debug.",
)
TOKEN_METRICS = ("eval/loss", "eval/perplexity", "eval/accuracy")  # which mean something else with other tokens
LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "error", "ece")
CORNERS = 512  # combinations of ends and choices that are checked before the sweep


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`; whole ones where the key holds whole ones."""

    low: float
    high: float
    log: bool = False

    def corners(self) -> tuple[Any, ...]:
        return (self.low, self.high)


@dataclass(frozen=True)
class Choices:
    """A few values of any kind that the key takes."""

    values: tuple[Any, ...]

    def corners(self) -> tuple[Any, ...]:
        return self.values

    def labels(self) -> list[Any]:
        """What stands for each value in the journal and the table: itself, or its text where it is a table."""
        plain = (bool, int, float, str)
        return [value if isinstance(value, plain) else str(value) for value in self.values]


def log_range(low: float, high: float) -> Range:
    """Numbers even on a logarithmic scale, for rates and sizes."""
    return Range(low, high, log=True)


def uniform(low: float, high: float) -> Range:
    return Range(low, high)


def choices(*values: Any) -> Choices:
    return Choices(values)


Space = Mapping[str, Range | Choices]


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says."""

    space: Space
    sampler: str = "tpe"
    trials: int = 0  # 0: as many as the grid has, else 20
    seed: int = 0  # of the sampler; that of training is train.seed
    metric: str = "eval/loss"
    direction: str = ""  # minimize | maximize; "": by the metric
    prune: bool = True  # gives a trial up after the fold that shows it to be worse (race.py)
    round: int = 0  # trials asked for at once, that know nothing of each other; 0: 4 of tpe, all of the others
    rule: str = "one_standard_error"  # one_standard_error | best: which trial wins (winner.py)

    @property
    def sign(self) -> float:
        """What values are multiplied with, so that less is better."""
        return 1.0 if self.direction == "minimize" else -1.0


def read_sweep(path: str, trials: str, config: Config, devices: int | None = None) -> Sweep:
    """Reads a sweep file; raises ConfigError with all that is wrong with it and with the configs that it would make."""
    raw = run_file(path, "get_sweep")
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path} must define get_sweep() that returns a dict (start from configs/sweeps/rates.py)")
    names = [field.name for field in dataclasses.fields(Sweep)]
    problems = [f"{path}: a sweep has no {key!r}{nearest(str(key), names)}" for key in raw if key not in names]
    known = {key: value for key, value in raw.items() if key in names}
    if trials:
        known["trials"] = int(trials) if trials.isdigit() else -1
    sweep = Sweep(**{"space": {}, **known})
    problems += _find_faults(sweep)
    if problems:
        raise ConfigError(problems)
    size = math.prod(len(entry.corners()) for entry in sweep.space.values())
    count = sweep.trials or (size if sweep.sampler == "grid" else 20)
    if sweep.sampler == "grid" and count != size:
        raise ConfigError(f"sweep.trials={count}, but the grid has {size} combinations: leave trials out")
    lower = sweep.metric.rsplit("/", 1)[-1] in LOWER_IS_BETTER
    sweep = dataclasses.replace(
        sweep,
        trials=count,
        direction=sweep.direction or ("minimize" if lower else "maximize"),
        round=min(sweep.round or (4 if sweep.sampler == "tpe" else count), count),
    )
    _check_configs(sweep, config, devices)
    return sweep


def _find_faults(sweep: Sweep) -> list[str]:
    """What is wrong with a sweep whatever the config."""
    kinds = {"trials": int, "seed": int, "round": int, "prune": bool, "metric": str}
    problems = []
    for key, kind in kinds.items():
        value = getattr(sweep, key)
        if type(value) is not kind or (kind is int and value < 0):
            problems.append(f"sweep.{key}: expected {kind.__name__}{' >= 0' if kind is int else ''}, got {value!r}")
    for key, valid in (
        ("sampler", SAMPLERS),
        ("rule", RULES),
        ("direction", ("", "minimize", "maximize")),
    ):
        if getattr(sweep, key) not in valid:
            problems.append(f"sweep.{key}: {getattr(sweep, key)!r} is not one of {', '.join(filter(None, valid))}")
    if not str(sweep.metric).startswith("eval/"):
        problems.append(f"sweep.metric: {sweep.metric!r}: name one of an evaluation, such as 'eval/loss'")
    if not isinstance(sweep.space, Mapping) or not sweep.space:
        return [*problems, "sweep.space: names no key; such as {'optim.peak_lr': log_range(1e-4, 1e-1)}"]
    for key, entry in sweep.space.items():
        problems += _find_entry_faults(f"sweep.space[{key!r}]", key, entry, sweep)
    return problems


def _find_entry_faults(where: str, key: str, entry: Any, sweep: Sweep) -> list[str]:
    if key.startswith(DEALT):
        return [f"{where}: trials are compared on the same data, dealt by --folds; take it out"]
    if key.startswith("data.tokenizer.") and sweep.metric in TOKEN_METRICS:
        return [f"{where}: {sweep.metric} is by token, and these differ; set metric to 'eval/bits_per_byte'"]
    if isinstance(entry, Choices):
        if not entry.values:
            return [f"{where}: choices() of nothing"]
        return [f"{where}: a value stands twice"] if len({str(v) for v in entry.values}) < len(entry.values) else []
    if not isinstance(entry, Range):
        return [f"{where}: must be log_range(low, high), uniform(low, high) or choices(...), got {entry!r}"]
    ends = (entry.low, entry.high)
    if not all(isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end) for end in ends):
        return [f"{where}: the ends must be finite numbers, got {entry.low!r} and {entry.high!r}"]
    problems = []
    if entry.low >= entry.high:
        problems.append(f"{where}: from {entry.low:g} to {entry.high:g} is an empty range")
    if entry.log and entry.low <= 0:
        problems.append(f"{where}: log_range needs ends above 0, got {entry.low:g}")
    if sweep.sampler == "grid":
        problems.append(f"{where}: a grid has no ranges; name its points, choices({entry.low:g}, ..., {entry.high:g})")
    return problems


def is_whole(key: str) -> bool:
    """Says whether a config's key holds whole numbers."""
    hint: Any = Config
    for part in key.split("."):
        hint = typing.get_type_hints(hint)[part]
    return hint is int


def with_keys(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns the config with these keys (`section.key`) set; raises ConfigError for one that it lacks, or a wrong type."""
    mapping = to_json(config)
    for key, value in values.items():
        *sections, last = key.split(".")
        node = mapping
        for section in sections:
            node = node.get(section)
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last not in node:
            raise ConfigError(f"the config has no {key!r}{nearest(key, [name for name, _ in flat_items(mapping)])}")
        node[last] = value
    return from_mapping(Config, mapping)


def _check_configs(sweep: Sweep, config: Config, devices: int | None) -> None:
    """Raises ConfigError for keys, values and combinations of ends and choices that no run may have."""
    problems = []
    for key, entry in sweep.space.items():
        for value in entry.corners():
            try:
                with_keys(config, {key: value})
            except UserError as error:
                problems.append(f"sweep.space[{key!r}]: {error}")
                break
    if problems:
        raise ConfigError(problems)
    if any(key == "optim.schedule" and "plateau" in entry.corners() for key, entry in sweep.space.items()):
        problems.append("sweep.space['optim.schedule']: 'plateau' watches a validation split, which the refit has not")
    for values in some_corners(sweep.space):
        shown = ", ".join(f"{key}={value}" for key, value in values.items())
        problems += [f"{problem} (with {shown})" for problem in find_problems(with_keys(config, values), devices)]
        if len(problems) >= 10:
            break
    if problems:
        raise ConfigError(problems)


def some_corners(space: Space) -> Iterable[dict[str, Any]]:
    """Yields combinations of ends and choices: all, or CORNERS of them where there are more."""
    lists = [entry.corners() for entry in space.values()]
    if math.prod(map(len, lists)) <= CORNERS:
        drawn: Iterable[tuple[Any, ...]] = itertools.product(*lists)
    else:
        rng = random.Random(0)
        drawn = (tuple(rng.choice(values) for values in lists) for _ in range(CORNERS))
    for values in drawn:
        yield dict(zip(space, values))
