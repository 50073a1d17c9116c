"""Does the command leave what it promises, again after kill -9 at any moment, and does it find a planted optimum?"""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SWEEP = '''
from lm.sweep.space import choices, log_range, uniform

def get_sweep():
    return {"trials": 6, "round": 3, "space": {
        "optim.peak_lr": log_range(1e-3, 1e-1), "optim.weight_decay": uniform(0.01, 0.3), "train.seed": choices(0, 1),
    }}
'''  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """What one process compiled, the next one finds; one device, as most have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("XLA_FLAGS", "")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


def command(config_file, workdir, *flags, sweep=SWEEP):
    path = config_file.parent / "sweep.py"
    path.write_text(sweep)
    first = [sys.executable, "-m", "lm.sweep", f"--config={config_file}", f"--sweep={path}", "--folds=3"]
    return [*first, f"--workdir={workdir}", *flags]


def run(*args, timeout=900, **more):
    return subprocess.run(
        command(*args, **more), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def table_of(workdir):
    found = json.loads((workdir / "sweep.json").read_text())
    test = {key: value for key, value in found["test"].items() if key not in ("opened_at", "count")}
    return found["trials"], found["winner"], found["best"], found["importance"], test


def test_flags_are_checked_before_anything_is_loaded(config_file, tmp_path):
    from lm.config import ConfigError
    from lm.sweep.__main__ import main

    with pytest.raises(ConfigError, match="--sweep, --workdir: name it"):
        main([f"--config={config_file}"])
    with pytest.raises(ConfigError, match="--folds must be a whole number above 0, got 'x'"):
        main([f"--config={config_file}", "--sweep=s", "--workdir=w", "--folds=x"])


@pytest.fixture(scope="module")
def finished(config_file, tmp_path_factory):
    """The workdir of a sweep that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "w"
    done = run(config_file, workdir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("opening the test split;") == 1
    return workdir


@pytest.mark.slow
def test_a_sweep_leaves_its_table_its_pictures_and_the_winner(config_file, finished):
    found = json.loads((finished / "sweep.json").read_text())
    assert [trial["number"] for trial in found["trials"]] == list(range(6))
    assert (found["folds"], found["rule"], found["test"]["count"]) == (3, "one_standard_error", 1)
    assert found["test"]["value"] == found["test"]["eval/loss"] > 0
    winner = found["winner"]
    assert len(winner["values"]) == 3
    config = json.loads((finished / "winner/config.json").read_text())
    assert config["optim"]["peak_lr"] == winner["params"]["optim.peak_lr"]
    assert config["data"]["split"]["fold"] == -1
    for name in ("parallel.png", "curves.png", "winner/README.md", "winner/summary.json"):
        assert (finished / name).stat().st_size > 100
    assert len(re.findall(r"^\| \d+ \|", (finished / "README.md").read_text(), re.M)) == 6


@pytest.mark.slow
def test_a_finished_sweep_opens_the_test_split_no_more(config_file, finished):
    before = (finished / "sweep.json").read_bytes()
    done = run(config_file, finished)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert "opening" not in done.stdout
    assert (finished / "sweep.json").read_bytes() == before
    more = run(config_file, finished, "--trials=9")
    assert more.returncode == 2
    assert "its test split has been opened" in more.stderr


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["--config.train.steps=7", "--folds=4", "--config.data.seed=3"])
def test_another_sweep_in_the_same_workdir_is_refused(config_file, finished, changed):
    done = run(config_file, finished, changed)
    assert done.returncode == 2
    assert "holds another sweep" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_the_same_table(config_file, finished, tmp_path):
    workdir = tmp_path / "w"
    kills = 0
    while not (workdir / "sweep.json").exists():
        process = subprocess.Popen(command(config_file, workdir), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        lines = 0
        for line in process.stdout:  # dies after its third sign of life, in the middle of what comes next
            lines += line.startswith("trial") or "step 3" in line or "opening" in line
            if lines == 3:
                time.sleep(0.3)
                process.send_signal(signal.SIGKILL)
                break
        kills += process.wait() != 0
        process.stdout.close()
        assert kills < 30
    assert kills >= 2
    assert table_of(workdir) == table_of(finished)


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_find_the_same(config_file, finished, tmp_path):
    both = [
        subprocess.Popen(command(config_file, tmp_path / "w"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(text.count("opening the test split;") for text in said) == 1
    assert table_of(tmp_path / "w") == table_of(finished)


PLANTED = '''
from lm.sweep.space import choices, log_range

RATES = [1e-3 * 2 ** (n / 2) for n in range(20)]  # to 0.72

def get_sweep():
    return {"trials": 20, "rule": "best", "space": {"optim.peak_lr": log_range(1e-3, 0.7)}}
'''  # fmt: skip


@pytest.mark.slow
def test_a_planted_optimum_is_found_within_a_factor_of_two(config_file, tmp_path):
    """A fine grid of rates finds the optimum first; then TPE, of 20 trials, must come near it."""
    grid = PLANTED.split("def get_sweep")[0] + (
        "def get_sweep():\n    return {'sampler': 'grid', 'rule': 'best', 'space': {'optim.peak_lr': choices(*RATES)}}\n"
    )
    flags = ["--config.train.steps=20", "--config.optim.schedule=constant", "--config.train.eval_every=0"]
    found = {}
    for name, text in (("grid", grid), ("tpe", PLANTED)):
        done = run(config_file, tmp_path / name, "--folds=5", *flags, sweep=text)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((tmp_path / name / "sweep.json").read_text())["winner"]["params"]["optim.peak_lr"]
    print(f"grid {found['grid']:.4g}, tpe {found['tpe']:.4g}")
    assert 0.5 <= found["tpe"] / found["grid"] <= 2


@pytest.mark.slow
def test_a_classifiers_winner_stands_beside_baselines_on_the_test_split(config_file, tmp_path):
    pytest.importorskip("sklearn")
    workdir, sweep = tmp_path / "w", SWEEP.replace('"trials": 6, "round": 3', '"trials": 1, "metric": "eval/macro_f1"')
    file = tmp_path / "classes.py"
    file.write_text(config_file.read_text().replace("    return c", "    c.data.task = 'classify'\n    return c"))
    refused = run(file, workdir, "--config.train.refusal=good", sweep=sweep)
    assert refused.returncode == 2
    assert "fitted on a validation split, which the refit has not" in refused.stderr
    done = run(file, workdir, sweep=sweep)
    assert done.returncode == 0, done.stderr
    summary, test = (json.loads((workdir / name).read_text()) for name in ("winner/summary.json", "sweep.json"))
    test = test["test"]
    keys = [f"baseline/{name}/{score}" for name in ("majority", "tfidf") for score in ("accuracy", "macro_f1")]
    assert {summary[key] for key in keys} == {test[key] for key in keys}
    assert test["baseline/majority/accuracy"] == pytest.approx(1 / 3, abs=0.1)
    assert test["baseline/tfidf/accuracy"] == 1
    assert summary["test/macro_f1"] == test["value"] == test["eval/macro_f1"]
    page = json.loads((workdir / "winner/classification-test.json").read_text())
    assert page["model"]["macro_f1"] == pytest.approx(test["value"])
    card = (workdir / "winner/README.md").read_text()
    assert "Classes, test split" in card
    assert "| tfidf | 1.0000 |" in card
    assert "| tfidf | 1.0000 |" in (workdir / "README.md").read_text()
    (workdir / "sweep.json").unlink()  # as if killed while it wrote what it had found
    (workdir / "winner/summary.json").unlink()
    again = run(file, workdir, sweep=sweep)
    assert again.returncode == 0, again.stderr
    assert "opening the test split" not in again.stdout
    assert json.loads((workdir / "sweep.json").read_text())["test"] == test
    summary = json.loads((workdir / "winner/summary.json").read_text())
    assert summary["baseline/tfidf/accuracy"] == 1
