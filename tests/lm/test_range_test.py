"""Does the range test find where a loss falls, through the run's own step, and does `auto` test once and never again?"""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lm.config import ConfigError, UserError
from lm.optim import make_schedule
from lm.range_test import has_diverged, main, rising, run_range_test, suggest

ROOT = Path(__file__).resolve().parents[2]
RATES = np.geomspace(1e-6, 1.0, 100)


def falling(at, noise=0.05, height=2.0, seed=0):
    """Losses that fall by `height` around the rate `at`, then stay."""
    drop = height / (1 + (at / RATES) ** 2)
    return 5 - drop + noise * np.random.default_rng(seed).normal(size=len(RATES))


@pytest.mark.parametrize("at", [1e-4, 3e-3, 3e-2])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_suggestion_is_where_the_fall_ends(at, seed):
    found = suggest(RATES, falling(at, seed=seed), False)
    assert 0.5 < found.steepest / at < 2
    assert 2 < found.suggestion / at < 8  # of this curve without noise and window: the square root of 14
    assert found.slope < -1
    assert found.diverged is None
    assert len(found.smoothed) == len(found.rates) == 100


def test_a_loss_that_breaks_ends_the_test_and_does_not_draw_the_suggestion():
    losses = falling(1e-3)
    losses[80:] += np.arange(20.0)
    stop = next(i for i in range(1, 101) if has_diverged(losses[:i]))
    assert 80 < stop < 90
    found = suggest(RATES[:stop], losses[:stop], True)
    assert found.diverged == RATES[stop - 1]
    assert 2 < found.suggestion / 1e-3 < 8
    assert has_diverged([3.0, math.nan])
    assert has_diverged([3.0] * 30 + [math.inf])
    assert not has_diverged([3.0] * 30)
    assert not has_diverged([0.01] * 30 + [0.06])  # noise of a loss near zero is no break
    ends = suggest(RATES[:81], [*losses[:80], math.nan], True)
    assert ends.losses[-1] is None
    assert ends.suggestion == pytest.approx(found.suggestion, rel=0.2)


@pytest.mark.parametrize("height", [0.0, -2.0])
def test_no_suggestion_where_nothing_falls(height):
    with pytest.raises(UserError, match="did not fall clearly anywhere between rates"):
        suggest(RATES, falling(1e-3, height=height), False)
    with pytest.raises(UserError, match="did not fall"):
        suggest(RATES[:2], [math.nan, math.nan], True)


def test_the_rates_rise_from_low_to_high(make_config):
    config = make_config(
        optim={"schedule": "cosine_restarts", "warmup_steps": 5, "restart_steps": 7, "restart_peak_factor": 0.5}
    )
    risen = rising(config, 1e-5, 0.1, 41)
    schedule = make_schedule(risen.optim, risen.optim.peak_lr, risen.train.steps)
    found = [float(schedule(step)) for step in range(41)]
    np.testing.assert_allclose(found, np.geomspace(1e-5, 0.1, 41), rtol=1e-4)
    assert risen.optim.weight_decay == config.optim.weight_decay


class OneBatch:
    """Data that is always the same batch, so that its loss can only fall; counts what was opened and closed."""

    def __init__(self, batch):
        self.batch, self.open, self.steps, self.sha256, self.vocab_size = batch, 0, 0, "x", 32

    def train_batches(self, start, rows, state=None):
        assert (start, rows, state) == (0, (0, len(self.batch["tokens"])), None)
        self.open += 1
        return self

    def __next__(self):
        self.steps += 1
        return self.batch

    def close(self):
        self.open -= 1


def test_a_whole_test_leaves_its_files_and_nothing_else(make_config, make_batch, tmp_path):
    config = make_config(model={"layers": 1}, optim={"name": "sgd", "momentum": 0.0, "weight_decay": 0.0})
    config = replace(config, train=replace(config.train, epochs=2.0))
    data, said, beats = OneBatch(make_batch()), [], []
    found = run_range_test(
        config, data, data, tmp_path / "new", said.append, 1e-4, 1e4, 48, lambda: beats.append(1)
    )  # fmt: skip
    assert (data.open, data.steps) == (0, len(found.rates))
    assert len(beats) == data.steps
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["range_test.json", "range_test.png"]
    kept = json.loads((tmp_path / "new/range_test.json").read_text())
    assert kept["suggestion"] == found.suggestion == float(f"{found.suggestion:.2g}")
    assert 1e-2 < found.suggestion < 100
    assert f"suggested peak {found.suggestion:g}: the highest rate at which the loss still falls" in said[-1]
    assert found.rates[0] == pytest.approx(1e-4)
    assert found.losses[0] == pytest.approx(found.losses[1], abs=1e-2)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "name a config file"),
        (["--config=x.py", "--low=1", "--high=0.1"], "rates must be above 0 and rise"),
        (["--config=x.py", "--low=0"], "above 0"),
        (["--config=x.py", "--steps=3"], "--steps=3"),
        (["--config=x.py", "--steps=many"], "--steps must be a number"),
    ],
)
def test_bad_flags_are_named(words, match):
    with pytest.raises(ConfigError, match=match):
        main(words)


LINES = """
c.model.dim = 32
c.model.dropout = 0.0
c.optim.peak_lr = "auto"
c.train.steps = 4
c.train.eval_every = 0
"""


@pytest.mark.slow
def test_auto_tests_once_and_a_resumed_run_does_not(tmp_path, write_run_config):
    texts = [f"{i}: the cat sat on the mat and the dog ran under tree {i % 7}." for i in range(400)]
    write_run_config(tmp_path, LINES, texts)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}

    def run(*words):
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    launch = ["launch.py", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]
    first = run(*launch)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert "a range test finds it before the first step" in first
    assert f"suggested peak {summary['peak_lr']:g}" in first
    assert json.loads((tmp_path / "run/range_test.json").read_text())["suggestion"] == summary["peak_lr"]
    second = run(*launch, "--config.train.steps=6")
    assert "range test" not in second
    assert json.loads((tmp_path / "run/summary.json").read_text())["peak_lr"] == summary["peak_lr"]
    source = [f"--config.init.source={tmp_path}/run", f"--config.data.tokenizer.path={tmp_path}/run/tokenizer"]
    source += ["--config.data.tokenizer.kind=auto"]
    tested = run("-m", "lm.range_test", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/range", *source)
    assert "starting from" in tested
    assert (tmp_path / "range/range_test.png").stat().st_size > 5000
    shown = run("-m", "lm.show", f"--config={tmp_path}/config.py")
    assert "as multiples of it" in shown
