"""A run whose trained set grows, as a user runs it: what it says, and kills and resumes across the steps at which it grows."""

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
LINES = """
from lm.config import unfreeze_gradually

c.model.layers = 3
c.model.scan = True
c.optim.train = unfreeze_gradually(layers=3, every=10, blocks=3)
c.optim.layer_decay = 0.8
c.optim.schedule = "plateau"
c.train.steps = 30
c.train.log_every = 5
c.train.keep_last = 9
"""
TIMES = ("tokens_per_sec", "mfu", "time/")


@pytest.fixture(scope="module", params=["c.model.dropout = 0.1"])
def place(request, tmp_path_factory, write_run_config):
    folder = tmp_path_factory.mktemp("unfreezing")
    write_run_config(folder, LINES + request.param)
    done = launch(folder, "base")
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def start(folder, workdir, *extra, config="config.py", devices=1, **keys):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    words = [
        sys.executable,
        str(ROOT / "launch.py"),
        f"--config={folder / config}",
        f"--workdir={folder / workdir}",
        *extra,
    ]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=folder, **keys
    )


def launch(folder, workdir, *extra, **keys):
    process = start(folder, workdir, *extra, **keys)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def read(path):
    return json.loads(path.read_text())


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows]


def test_the_run_says_what_each_phase_trains_and_costs(place):
    said = (place / "said.txt").read_text()
    for words in (
        "block_01/.* ",
        "at 10",
        "phase 3: after 20 steps, for 10",
        "step 10: phase 2 of 3 begins",
        "FLOPs of the run",
    ):
        assert words in said, words
    receipt = read(place / "base/receipt.json")
    costs = [phase["flops_per_step"] for phase in receipt["phases"]]
    assert costs == sorted(set(costs))
    assert costs[0] < 0.7 * receipt["flops_per_step_if_all_trained"]
    assert receipt["flops_of_run"] == 10 * sum(costs)
    assert set(receipt["frozen_sha256_after"]) == {"embed"}
    assert any(p.startswith("block_00/") for p in receipt["frozen_sha256_before"])
    summary = read(place / "base/summary.json")
    assert summary["eval/loss"] == summary["best/eval/loss"]  # it learns
    events = [json.loads(line) for line in (place / "base/events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "phase"] == [10, 20]
    for before, event in itertools.pairwise(events):
        if event["event"] == "phase":  # to compile is no step
            assert event["seconds"]["startup"] > before["seconds"]["startup"] + 0.1


def test_kill_9_around_the_boundaries_changes_nothing(place):
    """Killed after saves in the middle of a phase and right at its end, and once in the second phase's first steps."""
    for checkpoint in ("5", "10", "15"):
        process = start(place, "killed", config="slow.py")
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < 200:
            if (place / "killed/checkpoints" / checkpoint / "manifest.json").exists():
                break
            time.sleep(0.02)
        process.kill()
        assert process.wait() != 0
    done = launch(place, "killed")
    assert done.returncode == 0, done.stderr
    assert_same(place / "base", place / "killed")


def assert_same(one, other):
    assert read(one / "summary.json")["params_sha256"] == read(other / "summary.json")["params_sha256"]
    assert metrics(one) == metrics(other)


@pytest.mark.parametrize(
    "place", ["c.model.dropout = 0.0"], indirect=True
)  # which draws other masks under other stacks
@pytest.mark.parametrize("step", [10, 15])
def test_a_checkpoint_resumes_under_other_stacks_and_devices(place, step):
    """At a boundary it is of the phase that ends; the numbers differ by what summing in another order does."""
    workdir = place / f"other{step}"
    subprocess.run(["cp", "-r", place / "base", workdir], check=True)
    (workdir / "summary.json").unlink()
    for path in (workdir / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            subprocess.run(["rm", "-r", path], check=True)
    flags = ("--config.model.scan=false", "--config.mesh.fsdp=2")
    done = launch(place, workdir.name, *flags, devices=8)
    assert done.returncode == 0, done.stderr
    assert f"at step {step}" in done.stdout
    ours, base = (read(place / name / "summary.json") for name in (workdir.name, "base"))
    assert ours["eval/loss"] == pytest.approx(base["eval/loss"], abs=1e-3)


def test_another_table_is_refused_on_resume(place):
    subprocess.run(["cp", "-r", place / "base", place / "changed"], check=True)
    (place / "changed/summary.json").unlink()
    table = "(('norm_out/.*|head',True),('block_02/.*',True),('block_01/.*',11),('block_00/.*',20),('.*',False))"
    done = launch(place, "changed", f"--config.optim.train={table}")
    assert done.returncode == 2
    assert "optim.train" in done.stderr
    assert "refused" in done.stderr
    late = launch(place, "late", "--config.train.steps=20")
    assert late.returncode == 2
    assert "'block_00/.*' from 20 would never train" in late.stderr


def test_a_plan_is_of_the_largest_phase_and_the_sum_of_all(place):
    done = launch(place, "plan", "--plan")
    assert done.returncode == 0, done.stderr
    plan, receipt = read(place / "plan/plan.json"), read(place / "base/receipt.json")
    assert plan["trained_params"] == receipt["trained_params"]
    assert plan["seconds_of_run"] > 0
    assert plan["least_seconds_of_run"] < 30 * plan["least_seconds_per_step"]
    assert "phase 2" in (place / "plan/plan.txt").read_text()
