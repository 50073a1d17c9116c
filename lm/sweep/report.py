"""What does a person see of a sweep? One table, three pictures, and what to do next."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.score_report import format_baselines
from lm.sweep.journal import Journal, Trial
from lm.sweep.space import Range, Space, Sweep
from lm.sweep.winner import Row


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_table(rows: Sequence[Row], sweep: Sweep, folds: int, winner: Row, best: Row) -> str:
    """The trials as a Markdown table, the best first and those without a result last."""
    keys = list(sweep.space)
    head = ["trial", *keys, f"{sweep.metric}, mean ± standard error", "folds", "status"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def place(row: Row) -> tuple[Any, ...]:
        order = ("finished", "pruned", "diverged").index(row["status"])
        return order, sweep.sign * row["mean"] if row["mean"] is not None else 0.0, row["number"]

    for row in sorted(rows, key=place):
        mean = "-" if row["mean"] is None else f"{row['mean']:.4f}"
        error = "" if row["stderr"] is None else f" ± {row['stderr']:.4f}"
        mark = " **winner**" * (row is winner) + " (best mean)" * (row is best and row is not winner)
        cells = [str(row["number"]), *(short(row["params"][key]).replace("|", "\\|") for key in keys), mean + error]
        lines.append("| " + " | ".join([*cells, f"{len(row['values'])}/{folds}", row["status"] + mark]) + " |")
    return "\n".join(lines)


def page(summary: Mapping[str, Any], table: str, sweep: Sweep, pictures: Sequence[str]) -> str:
    """The README.md of a sweep's workdir."""
    winner, best, test = summary["winner"], summary["best"], summary["test"]
    values = "\n".join(f"    config.{key} = {value!r}" for key, value in winner["params"].items())
    rule = {
        "one_standard_error": "the simplest of the trials within one standard error of the best mean: fewest trained "
        "numbers, then fewest steps, then the lowest peak_lr",
        "best": "the best mean",
    }[sweep.rule]
    again = "" if test["count"] == 1 else f" It was opened {test['count']} times, for a process died while it was open."
    drawn = "\n".join(f"![{name}]({name})" for name in pictures)
    return f"""# Sweep in {summary["workdir"]}

{len(summary["trials"])} trials ({sweep.sampler}, seed {sweep.seed}) of {summary["folds"]} folds; {sweep.metric}, {sweep.direction}d.

{table}

The winner is trial {winner["number"]} (best mean: trial {best["number"]}), by the rule: {rule}.

{values}

Trained anew on everything that is not test (`winner/`), it has {sweep.metric} {test["value"]:.4f} on the test split, which was \
opened once, after the choice, at {test["opened_at"]}.{again} Of many trials the best mean flatters: compare {short(winner["mean"])} \
over the folds.
{_beside_baselines(test)}
{drawn}
"""


def _beside_baselines(test: Mapping[str, Any]) -> str:
    """The table of a classifier and what other rules reach on the same rows; "" of a language model."""
    names = [key.split("/")[1] for key in test if re.fullmatch("baseline/.*/accuracy", key)]
    rows = {
        name: {key: test.get(name + key) for key in ("accuracy", "macro_f1", "auroc", "nll")}
        for name in ("eval/", *(f"baseline/{name}/" for name in names))
    }
    model = rows.pop("eval/")
    return f"\nOn the test split:\n\n{format_baselines(model, dict(zip(names, rows.values())))}" if names else ""


def importances(journal: Journal, trials: Sequence[Trial], sweep: Sweep) -> dict[str, float]:
    """Each key's share in how much the metric varies over finished trials (fANOVA, Hutter et al. 2014); {} of too few."""
    done = [t for t in trials if t.state == "complete" and np.isfinite(list(t.values.values())).all()]
    if len(done) < 4 or len(sweep.space) < 2:
        return {}
    study = journal.optuna.create_study(direction=sweep.direction)
    study.add_trials([journal.make_trial(t.params, t.state, t.values) for t in done])
    try:
        evaluator = journal.optuna.importance.FanovaImportanceEvaluator(seed=0)
        return journal.optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # all values alike
        return {}


def draw(workdir: Path, journal: Journal, trials: Sequence[Trial], rows: Sequence[Row], sweep: Sweep, winner: int) -> list[str]:  # fmt: skip
    """Draws the pictures; returns their names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def save(figure: Any, name: str) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glyphs that the font lacks
            figure.tight_layout()
        temporary = workdir / f"{name}.tmp.png"
        figure.savefig(temporary)
        temporary.replace(workdir / f"{name}.png")
        plt.close(figure)
        return f"{name}.png"

    size = {"figsize": (9, 4.5), "dpi": 110}
    names = []
    known = [row for row in rows if row["mean"] is not None]
    figure, axes = plt.subplots(**size)
    _draw_parallel(axes, known, sweep, winner)
    names.append(save(figure, "parallel"))
    figure, axes = plt.subplots(**size)
    for trial in trials:
        curves = [more["eval_curve"] for key, more in trial.attrs.items() if key.startswith("fold ")]
        longest = max(curves, key=len, default=[])
        mean = [
            (longest[i][0], np.mean([c[i][1] for c in curves if len(c) == len(longest)])) for i in range(len(longest))
        ]
        if mean:
            style: Any = (
                {"color": "C3", "lw": 2, "zorder": 3} if trial.number == winner else {"color": "C0", "alpha": 0.4}
            )
            axes.plot(*zip(*mean), marker="o", ms=3, label="winner" if trial.number == winner else None, **style)
    axes.set(xlabel="step", ylabel=f"{sweep.metric}, mean over folds")
    axes.grid(alpha=0.3)
    axes.legend()
    names.append(save(figure, "curves"))
    shares = importances(journal, trials, sweep)
    if shares:
        figure, axes = plt.subplots(**size)
        axes.barh(list(shares)[::-1], list(shares.values())[::-1])
        axes.set_xlabel(f"share in the variance of {sweep.metric} (fANOVA)")
        names.append(save(figure, "importance"))
    return names


def _places(space: Space, key: str, values: Sequence[Any]) -> np.ndarray:
    """Where on an axis from 0 to 1 the values of a key lie."""
    entry = space[key]
    if isinstance(entry, Range):
        change = np.log if entry.log else np.asarray
        low, high = float(change(entry.low)), float(change(entry.high))
        return (change(np.asarray(values, float)) - low) / (high - low)
    labels = entry.labels()
    return np.array([labels.index(value) for value in values]) / max(len(labels) - 1, 1)


def _draw_parallel(axes: Any, rows: Sequence[Row], sweep: Sweep, winner: int) -> None:
    """One line a trial over an axis a key; the last axis is the metric, and the colour too."""
    import matplotlib.pyplot as plt

    keys, means = list(sweep.space), np.array([row["mean"] for row in rows])
    span = float(np.ptp(means)) if len(means) else 0.0
    last = (means - means.min()) / (span or 1.0) if len(means) else means
    places = [_places(sweep.space, key, [row["params"][key] for row in rows]) for key in keys]
    lines = np.stack([*places, last], axis=1) if len(rows) else np.zeros((0, len(keys) + 1))
    for row, line, shade in zip(rows, lines, last):
        axes.plot(line, color=plt.get_cmap("viridis")(shade), lw=3 if row["number"] == winner else 1, alpha=0.8)
    ends = [entry.corners() for entry in sweep.space.values()]
    ends.append((means.min(), means.max()) if len(means) else (0.0, 1.0))
    for at, values in enumerate(ends):
        axes.axvline(at, color="grey", lw=0.5)
        axes.text(at, -0.06, short(float(values[0]) if isinstance(values[0], int) else values[0])[:18], ha="center", va="top", fontsize=7)  # fmt: skip
        axes.text(at, 1.03, short(values[-1])[:18], ha="center", fontsize=7)
    axes.set_xticks(range(len(keys) + 1), [*keys, sweep.metric], fontsize=7)
    axes.tick_params(axis="x", pad=18)
    axes.set_yticks([])
