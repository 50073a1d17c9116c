"""At which rate does a run learn fastest? The range test of arXiv:1506.01186, section 3.3.

    python -m lm.range_test --config=configs/pretrain.py --workdir=runs/range

The run's own start, data and step, with a rate that rises exponentially. The weights it ends with are thrown away. The
suggestion is the highest rate at which the loss still falls at a quarter of its steepest slope, over the logarithm of the rate:
of the rules that were tried it came nearest to the best of a grid (docs/learning-rate.md has the table).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.batch import Data, check_batch
from lm.config import Config, ConfigError, OptimConfig, UserError
from lm.hosts import gather_bytes, is_main
from lm.logger import write_json
from lm.metrics import finite_or_none
from lm.params import to_host
from lm.parts import make_parts
from lm.sharding import local_rows, put_batch
from lm.start import load_params, start_state

Log = Callable[[str], None]
LOW, HIGH, STEPS = 1e-6, 1.0, 100
WINDOW = 0.5  # decades on either side, over which a slope is fitted
MEMORY = 0.9  # of the running mean that says whether the loss broke
SHARE = 0.25  # of the steepest slope, where the suggestion is
BROKEN = (1.25, 0.1)  # it is above this many times its lowest, and this many nats more


@dataclass(frozen=True)
class RangeTest:
    """`losses[i]`, in nats a target, is that of the weights before the step at `rates[i]`; None: not finite."""

    rates: list[float]
    losses: list[float | None]
    smoothed: list[float]  # means over the window
    diverged: float | None  # the rate at which the test stopped; None: it went to the end
    steepest: float  # the rate at which the loss falls most steeply ...
    slope: float  # ... in nats a tenfold rate
    suggestion: float
    rule: str


def rising(config: Config, low: float, high: float, steps: int) -> Config:
    """The config with a rate that rises from `low` in the first to `high` in the last of `steps` steps."""
    own = {f.name: f.default for f in fields(OptimConfig) if f.name.startswith(("restart_", "warmup_", "decay_"))}
    optim = replace(config.optim, peak_lr=low, schedule="exponential", end_lr_ratio=high / low, **own)  # pyright: ignore[reportArgumentType]
    return replace(config, optim=optim, train=replace(config.train, steps=steps - 1))


def measure(
    config: Config, data: Data, tokenizer: Any, log: Log, low: float, high: float, steps: int, beat: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Trains until the loss breaks; returns the rates, and the loss before the step at each."""
    parts = make_parts(rising(config, low, high, steps), tokenizer.vocab_size, low)
    state = start_state(parts, load_params(parts, tokenizer.sha256, log) if config.init.source else None)
    batches = data.train_batches(0, local_rows(parts.mesh, config.data.batch_size), None)
    rates, losses = [], []
    try:
        for step in range(steps):
            batch = next(batches)
            check_batch(batch, parts.model.config, f"batch of step {step}")
            arrays = put_batch(batch, parts.mesh, config.data.batch_size)
            state, metrics = parts.train_step(state, arrays, jax.random.key(config.train.seed))
            rates.append(float(to_host(metrics["lr"])))
            losses.append(float(to_host(metrics["train/loss"])))
            beat()
            if has_diverged(losses):
                break
    finally:
        batches.close()
    return rates, losses


def has_diverged(losses: Sequence[float]) -> bool:
    """Says whether the last loss is not finite, or the running mean far above its lowest."""
    mean, lowest = 0.0, float("inf")
    for i, loss in enumerate(losses, 1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        lowest = min(lowest, mean / (1 - MEMORY**i))
    return not np.isfinite(mean) or mean / (1 - MEMORY ** len(losses)) > BROKEN[0] * lowest + BROKEN[1]


def suggest(rates: Sequence[float], losses: Sequence[float], diverged: bool) -> RangeTest:
    """Fits a line to the losses around each rate and compares the slopes; raises UserError where nothing falls."""
    finite = np.isfinite(losses)
    x, y = np.log10(rates)[finite], np.asarray(losses)[finite]
    smoothed, slopes, errors = np.zeros(len(x)), np.full(len(x), np.inf), np.full(len(x), np.inf)
    for i in range(len(x)):
        near = np.abs(x - x[i]) <= WINDOW
        smoothed[i] = y[near].mean()
        whole = x[i] - WINDOW >= x[0] and x[i] + WINDOW <= x[-1]
        if near.sum() >= 5 and whole:  # a line through the edges would be of half a window
            spread = ((x[near] - x[near].mean()) ** 2).sum()
            slopes[i] = ((x[near] - x[near].mean()) * (y[near] - smoothed[i])).sum() / spread
            rest = y[near] - smoothed[i] - slopes[i] * (x[near] - x[near].mean())
            errors[i] = np.sqrt((rest**2).sum() / (near.sum() - 2) / spread)
    best = int(np.argmin(slopes)) if len(x) else 0
    if not len(x) or not slopes[best] < -3 * errors[best]:
        raise UserError(
            f"range test: the loss did not fall clearly anywhere between rates {rates[0]:.1e} and {rates[-1]:.1e} "
            f"({len(x)} steps). Take more steps or a wider range (python -m lm.range_test --help), or set optim.peak_lr"
        )
    last = best
    while last + 1 < len(x) and slopes[last + 1] <= SHARE * slopes[best]:
        last += 1
    rule = (
        f"the highest rate at which the loss still falls at {SHARE:g} of its steepest slope ({-slopes[best]:.2f} nats a tenfold "
        f"rate, at {10 ** x[best]:.1e}; lines fitted over {WINDOW:g} decades on either side)"
    )
    if last + 1 == len(x) or np.isinf(slopes[last + 1]):
        rule += "; the test ended before the fall did: a higher --high may find a higher one"
    return RangeTest(
        rates=list(rates), losses=[finite_or_none(loss) for loss in losses], smoothed=smoothed.tolist(),
        diverged=rates[-1] if diverged else None, steepest=float(10 ** x[best]), slope=float(slopes[best]),
        suggestion=float(10 ** x[last]), rule=rule,
    )  # fmt: skip


def run_range_test(
    config: Config, data: Data, tokenizer: Any, workdir: Path, log: Log, low: float = LOW, high: float = HIGH,
    steps: int = STEPS, beat: Callable[[], None] = lambda: None,
) -> RangeTest:  # fmt: skip
    """Measures and suggests, the same on all processes; leaves range_test.json and range_test.png in `workdir`."""
    rates, losses = measure(config, data, tokenizer, log, low, high, steps, beat)
    found = suggest(rates, losses, has_diverged(losses))
    found = replace(found, suggestion=float(gather_bytes(repr(float(f"{found.suggestion:.2g}")).encode())[0]))
    end = f"the loss broke at {found.diverged:.1e}" if found.diverged else "the loss did not break"
    log(f"range test: {len(rates)} steps at {rates[0]:.1e} to {rates[-1]:.1e} ({end})")
    log(f"range test: suggested peak {found.suggestion:g}: {found.rule}")
    if is_main():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "range_test.json", asdict(found))
        plot(workdir / "range_test.png", found)
    return found


def plot(path: Path, found: RangeTest) -> None:
    """Draws the loss over the rate, with the suggestion and where it broke."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=110)
    points = [(rate, loss) for rate, loss in zip(found.rates, found.losses) if loss is not None]
    axes.semilogx(*zip(*points), lw=1, alpha=0.5, label="train/loss")
    axes.plot([rate for rate, _ in points], found.smoothed, label="mean over a decade")
    axes.axvline(found.suggestion, color="green", ls="--", label=f"suggested: {found.suggestion:g}")
    if found.diverged:
        axes.axvline(found.diverged, color="red", ls=":", label=f"broke: {found.diverged:.1e}")
    axes.set_xlabel("rate")
    axes.set_ylabel("nats a target")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    temporary = path.with_name(path.stem + ".tmp.png")
    figure.savefig(temporary)
    temporary.replace(path)
    plt.close(figure)


USAGE = """
usage: python -m lm.range_test --config=FILE [--workdir=DIR] [--low=1e-6] [--high=1] [--steps=100] [--config.KEY=VALUE ...]

Trains a few steps at rates that rise from --low to --high, from where the config starts (init.source too, frozen layers
stay frozen), and suggests optim.peak_lr: the highest at which the loss still falls at a quarter of its steepest slope. Keeps range_test.json and range_test.png in
--workdir (default runs/range), and no weights. optim.peak_lr="auto" does the same before a run.

example: python -m lm.range_test --config=configs/pretrain.py --workdir=runs/range
"""


def main(argv: list[str]) -> None:
    from data_pipeline.schema import split_flags
    from lm.memory import keep_memory

    keep_memory()
    flags = {"config": "", "workdir": "runs/range", "low": str(LOW), "high": str(HIGH), "steps": str(STEPS)}
    flags, overrides = split_flags(argv, flags, USAGE)
    if not flags["config"]:
        raise ConfigError("name a config file: python -m lm.range_test --config=configs/pretrain.py; see --help")
    from data_pipeline.batch import open_data
    from lm.build import parse_number
    from lm.check import read_config

    low, high, steps = (parse_number(name, flags[name]) for name in ("low", "high", "steps"))
    if not 0 < low < high:
        raise ConfigError(f"--low={low:g} --high={high:g}: rates must be above 0 and rise")
    if steps < 10 or steps != int(steps):
        raise ConfigError(f"--steps={flags['steps']}: must be a whole number >= 10")
    config = read_config(flags["config"], overrides, jax.device_count(), workdir=Path(flags["workdir"]))
    data = open_data(config.data, log=print)
    found = run_range_test(config, data, data.tokenizer, Path(flags["workdir"]), print, low, high, int(steps))
    print(f"saved in {flags['workdir']}/range_test.json and range_test.png. Nothing else was kept. Next:")
    print(f"  python launch.py --config={flags['config']} --config.optim.peak_lr={found.suggestion:g}")


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
