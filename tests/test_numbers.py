"""The numbers that the README and the configs promise, measured by whole runs; minutes each (make test-slow).

LM_ASSETS names a folder that holds tiny-shakespeare/input.txt. The last result of each stands in docs/test-slow.json.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def launch(config, workdir, *extra):
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")} | {
        "JAX_PLATFORMS": "cpu"
    }
    words = [f"--config={ROOT / config}", f"--workdir={workdir}", f"--config.data.cache_dir={workdir.parent / 'cache'}"]
    subprocess.run([sys.executable, ROOT / "launch.py", *words, *extra], check=True, env=env, cwd=workdir.parent)
    return json.loads((workdir / "summary.json").read_text())


def note(name, **numbers):
    """Keeps the last result of a test, pass or fail."""
    path = ROOT / "docs" / "test-slow.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    today = datetime.date.today().isoformat()
    results[name] = {"date": today, "python": platform.python_version(), "cores": os.cpu_count(), **numbers}
    path.write_text(json.dumps(dict(sorted(results.items())), indent=1) + "\n")


@pytest.fixture
def shakespeare():
    assets = os.environ.get("LM_ASSETS")
    if not assets:
        pytest.skip("LM_ASSETS is not set: it names a folder with tiny-shakespeare/input.txt")
    path = Path(assets) / "tiny-shakespeare" / "input.txt"
    assert path.stat().st_size == 1_115_394
    return f"--config.data.path={path}"


def test_shakespeare(tmp_path, shakespeare):
    summary = launch("configs/shakespeare_char.py", tmp_path / "run", shakespeare)
    note("shakespeare", loss=summary["eval/loss"], bound=1.60, seconds=summary["wall_seconds"])
    assert summary["eval/tokens"] == 111_539  # the whole validation part, each character but the first
    assert summary["eval/loss"] <= 1.60


def test_shakespeare_with_nanogpts_recipe(tmp_path, shakespeare):
    summary = launch("configs/shakespeare_char_nanogpt.py", tmp_path / "run", shakespeare)
    note("shakespeare_nanogpt", loss=summary["eval/loss"], bounds=[1.85, 1.91], seconds=summary["wall_seconds"])
    assert 1.85 <= summary["eval/loss"] <= 1.91


def test_pretraining_pays(tmp_path):
    """Fine-tuning the top layers reaches, in half the steps, the loss that training from scratch ends with."""
    launch("configs/pretrain.py", tmp_path / "pretrain")
    tuned = launch(
        "configs/finetune.py",
        tmp_path / "tuned",
        f"--config.init.source={tmp_path / 'pretrain'}",
        "--config.train.steps=100",
    )
    scratch = launch(
        "configs/finetune.py", tmp_path / "scratch", "--config.init.source=", "--config.train.steps=200",
        f"--config.data.tokenizer.path={tmp_path / 'pretrain' / 'tokenizer'}", "--config.optim.peak_lr=0.02",
        "--config.optim.train=(('.*', True),)", "--config.optim.warmup_steps=20",
    )  # fmt: skip
    note("pretraining_pays", tuned_after_100=tuned["best/eval/loss"], scratch_after_200=scratch["best/eval/loss"])
    assert scratch["steps"] == 200
    assert tuned["best/eval/loss"] <= scratch["best/eval/loss"]
