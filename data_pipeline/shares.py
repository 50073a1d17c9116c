"""Which share of the rows does each source, and each class in it, have from which step on, and how often is it read in a run?

A share of a class is one of documents: rows hold documents of one class only, and a class whose documents are longer gets
more rows for the same share.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.mix import FOREVER, Mixture
from data_pipeline.schema import ConfigError, nearest

MANY_EPOCHS = (
    4.0  # to here repeated text teaches nearly as much as new text would (Muennighoff et al. 2023, arXiv:2305.16264)
)
CLASS_POWERS = {"natural": 1.0, "sqrt": 0.5, "uniform": 0.0}  # share of a class ~ documents ** power
SHOWN = 20  # lines of a table


@dataclass(frozen=True)
class Part:
    """What a mixture mixes: the training documents of a source, or those of one class in it."""

    source: int  # its number
    name: str  # of the source
    config: SourceConfig
    rows: int  # where text is streamed, an estimate
    documents: int
    label: str = ""  # "": classes are not told apart

    def __str__(self) -> str:
        return f"{self.name}, class {self.label}" if self.label else self.name


def read_table(entries: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Reads entries as "web=0.8"; returns ({name: weight}, problems).

    >>> read_table(("web=0.8", "code=x"))
    ({'web': 0.8}, ["expected NAME=WEIGHT with a weight >= 0, got 'code=x'"])
    """
    table: dict[str, float] = {}
    problems = []
    for entry in entries:
        name, _, number = (word.strip() for word in entry.rpartition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not name or not 0 <= weight < math.inf:
            problems.append(f"expected NAME=WEIGHT with a weight >= 0, got {entry!r}")
        elif name in table:
            problems.append(f"names {name!r} twice")
        else:
            table[name] = weight
    if not problems and not any(table.values()):
        problems.append("needs an entry with a weight > 0")
    return table, problems


def read_phases(mixture: tuple[tuple[int, str], ...]) -> tuple[list[tuple[int, dict[str, float]]], list[str]]:
    """Reads the value of config.data.mixture; returns ([(first step, {source: weight})], problems)."""
    phases, problems = [], []
    for step, text in mixture:
        table, wrong = read_table(text.split(","))
        phases.append((step, table))
        problems += [f"config.data.mixture, step {step}: {problem}" for problem in wrong]
    steps = [step for step, _ in phases]
    if steps and (steps[0] != 0 or any(a >= b for a, b in itertools.pairwise(steps))):
        problems.append(f"config.data.mixture: steps must begin with 0 and rise, got {', '.join(map(str, steps))}")
    return phases, problems


def check_shares(data: DataConfig) -> list[str]:
    """Returns one line for each impossible value or combination of what decides shares."""
    problems = []

    def must(ok: bool, message: str) -> None:
        if not ok:
            problems.append(f"config.data.{message}")

    training = {name: source for name, source in data.named_sources().items() if source.split in ("", "train")}
    for name, source in data.sources.items():
        for key in ("weight", "epochs", "max_epochs"):
            value = getattr(source, key)
            must(value >= 0, f"sources.{name}.{key}: must be >= 0, got {value:g}")
    for key in ("weight", "epochs"):
        given = sum(getattr(source, key) > 0 for source in training.values())
        must(given in (0, len(training)), f"sources: give every training source a {key} > 0, or none")
    must(
        data.temperature == 0 or data.temperature >= 1, f"temperature: must be >= 1 (0: off), got {data.temperature:g}"
    )
    ways = [key for key, on in (
        ("mixture", bool(data.mixture)), ("temperature", data.temperature > 0), ("replay", data.replay > 0),
        *((f"sources.*.{key}", any(getattr(s, key) for s in training.values())) for key in ("weight", "epochs")),
    ) if on]  # fmt: skip
    must(len(ways) < 2, f"{' and '.join(ways)}: each decides the shares of the sources; set one of them")
    kinds = {source.replay for source in training.values()}
    must(0 <= data.replay < 1, f"replay: must be in [0, 1), got {data.replay:g}")
    must(not data.replay or len(kinds) == 2 or bool(data.prepared), f"replay={data.replay:g}: needs training sources with "
         "replay=True, the text of the pretraining, and some without")  # fmt: skip
    phases, wrong = read_phases(data.mixture)
    problems += wrong
    for step, table in phases if training else ():
        unknown = [name for name in table if name not in training]
        must(
            not unknown,
            f"mixture, step {step}: no training source {', '.join(unknown)}; there are {', '.join(training)}",
        )
    unused = [name for name in training if phases and not wrong and not any(table.get(name) for _, table in phases)]
    must(not unused, f"mixture: {', '.join(unused)} has no weight in any phase; name it, or take it out of sources")
    ends = [name for name, source in training.items() if source.max_epochs]
    must(not (data.streaming and ends and len(phases) > 1), f"sources.{ends[0] if ends else ''}.max_epochs: while streaming, "
         "when a source ends is not known, nor then which step a row is in; mixture must have one phase, or prepare the data")  # fmt: skip
    shares = data.label_shares
    if shares and shares[0] not in CLASS_POWERS:
        problems += [f"config.data.label_shares: {problem}" for problem in read_table(shares)[1]]
    must(len(shares) < 2 or not any(word in CLASS_POWERS for word in shares),
         f"label_shares: one of {', '.join(CLASS_POWERS)} stands alone, got {', '.join(shares)}")  # fmt: skip
    labelled = any(source.label_field for source in training.values())
    must(not shares or labelled or bool(data.prepared), "label_shares: no source has a label_field to tell classes by")
    must(
        not data.augment.labels or labelled or bool(data.prepared),
        "augment.labels: no source has a label_field to tell classes by",
    )
    return problems


def make_mixture(config: DataConfig, parts: Sequence[Part], known: bool = True) -> Mixture:
    """Returns the order of the rows of `parts`; rows are `known` where the data are prepared.

    Where they are not, a part never ends for the mixture: its stream does.
    """
    phases = []
    for step, weights in _source_weights(config, parts):
        shares = [weights[part.source] * within for part, within in zip(parts, _class_shares(config, parts))]
        phases.append((step * config.batch_size, shares))
    for (_, weights), (step, _) in zip(phases, config.mixture):
        if not any(weights):
            raise ConfigError(f"config.data.mixture, step {step}: no source with a weight has a training document")
    limits = [
        max(round(part.config.max_epochs * part.rows), 1) if part.config.max_epochs else FOREVER for part in parts
    ]
    rows = [part.rows for part in parts]
    names = [f"config.data.sources.{part}" for part in parts]
    limited = any(part.config.epochs or part.config.max_epochs for part in parts)
    ordered = bool(
        config.mixture or config.temperature or config.replay or config.label_shares or limited
    )  # plain weights came first
    return Mixture(names, rows, phases[0][1], config.seed, phases[1:], limits if known else (), ordered)


def _source_weights(config: DataConfig, parts: Sequence[Part]) -> list[tuple[int, dict[int, float]]]:
    """Returns [(first step, {source: weight})]; weights are 0 where there are no shares."""
    rows: dict[int, int] = {}
    for part in parts:
        rows[part.source] = rows.get(part.source, 0) + part.rows
    sources = {part.source: part for part in parts}.items()
    if config.mixture:
        phases, problems = read_phases(config.mixture)
        names = {part.name for _, part in sources}
        unknown = sorted({name for _, table in phases for name in table} - names)
        problems += [
            f"config.data.mixture: no {n!r} among the training sources{nearest(n, sorted(names))}" for n in unknown
        ]
        if problems:
            raise ConfigError(problems)
        return [(step, {number: table.get(part.name, 0.0) for number, part in sources}) for step, table in phases]
    if config.temperature:
        return [(0, {number: rows[number] ** (1 / config.temperature) for number, _ in sources})]
    if config.replay:
        totals = {kind: sum(rows[n] for n, part in sources if part.config.replay == kind) for kind in (True, False)}
        if not all(totals.values()):
            raise ConfigError(
                f"config.data.replay={config.replay:g}: no training document to replay, or none but those"
            )
        shares = {True: config.replay / totals[True], False: (1 - config.replay) / totals[False]}
        return [(0, {number: shares[part.config.replay] * rows[number] for number, part in sources})]
    if any(part.config.epochs for _, part in sources):
        return [(0, {number: part.config.epochs * rows[number] for number, part in sources})]
    weights = {number: part.config.weight for number, part in sources}
    mixed = config.label_shares or any(part.config.max_epochs for _, part in sources)
    return [(0, weights if any(weights.values()) or not mixed else {n: float(count) for n, count in rows.items()})]


def _class_shares(config: DataConfig, parts: Sequence[Part]) -> list[float]:
    """Returns of each part its share of the rows of its source."""
    shares = []
    power = CLASS_POWERS.get(config.label_shares[0]) if config.label_shares else None
    table = read_table(config.label_shares)[0] if config.label_shares and power is None else {}
    for part in parts:
        share = part.documents**power if power is not None else table.get(part.label, 0.0)
        shares.append(share * part.rows / part.documents if part.label else 1.0)
    totals: dict[int, float] = {}
    for part, share in zip(parts, shares):
        totals[part.source] = totals.get(part.source, 0.0) + share
    _check_classes(parts, table)
    return [share / totals[part.source] if part.label else share for part, share in zip(parts, shares)]


def _check_classes(parts: Sequence[Part], table: dict[str, float]) -> None:
    if not table:
        return
    labels = sorted({part.label for part in parts if part.label})
    problems = [f"config.data.label_shares: no training document of class {name!r}{nearest(name, labels)}"
                for name in table if name not in labels]  # fmt: skip
    missing = [label for label in labels if label not in table]
    if missing:
        problems.append(f"config.data.label_shares: give every class a share; missing: {', '.join(missing)}")
    problems += [
        f"config.data.label_shares: source {name} has no class with a share > 0"
        for name in sorted({part.name for part in parts if part.label})
        if not any(table.get(part.label) for part in parts if part.name == name)
    ]
    if problems:
        raise ConfigError(problems)


def describe_epochs(mixture: Mixture, parts: Sequence[Part], config: DataConfig, steps: int) -> list[dict[str, Any]]:
    """Returns of each part: rows drawn in `steps` steps, their share of all, and the epochs they come to."""
    total = min(steps * config.batch_size, mixture.end)
    drawn = mixture.drawn(total).tolist()
    return [
        {"source": part.name, "label": part.label or None, "documents": part.documents, "rows": part.rows,
         "rows_drawn": int(count), "share": round(count / max(total, 1), 6), "epochs": round(count / part.rows, 4)}
        for part, count in zip(parts, drawn)
    ]  # fmt: skip


def format_epochs(table: list[dict[str, Any]], steps: int, estimated: bool) -> Iterator[str]:
    """Yields the lines of a table from `describe_epochs`: the most repeated first."""
    yield f"epochs in {steps:,} steps{', about' if estimated else ''}:"
    table = sorted(table, key=lambda entry: -entry["epochs"])
    for entry in table[:SHOWN]:
        name = entry["source"] + (f", class {entry['label']}" if entry["label"] else "")
        yield (
            f"  {name}: {entry['epochs']:.2f} epochs of {entry['rows']:,} rows ({entry['documents']:,} documents), "
            f"{entry['share']:.1%} of what is read"
        )
    if len(table) > SHOWN:
        yield f"  and {len(table) - SHOWN} others, each fewer"
    often = sum(entry["epochs"] > MANY_EPOCHS for entry in table)
    if often:
        yield (
            f"  warning: {often} of {len(table)} are read more than {MANY_EPOCHS:g} times; in pretraining, text teaches ever less "
            "when it is repeated more often (Muennighoff et al. 2023). Add text, train shorter, or set max_epochs"
        )
