"""The commands as a user runs them: whole runs, kills, resumes, and wrong input."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.batch import open_data
from lm.config import Config, from_mapping

ROOT = Path(__file__).resolve().parent.parent
LINES = """
c.data.split.test = 0.1
c.data.augment.token_dropout = 0.05
c.model.layers = 4
c.optim.schedule = "plateau"
c.train.log_every = 7
c.train.sample_prompts = ("The ",)
c.train.sample_tokens = 8
"""
TIMES = ("tokens_per_sec", "mfu", "time/")  # how these keys begin


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_run_config):
    """A folder with a corpus, a config, and a finished run of it in `base`."""
    folder = tmp_path_factory.mktemp("launch")
    words = random.Random(0)
    english = ["the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "tree", "and", "then", "left", "home"]
    chinese = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"
    texts = [
        f"{i}: {' '.join(words.choices(english, k=20)) if i % 3 else ''.join(words.choices(chinese, k=20))}"
        for i in range(300)
    ]
    write_run_config(folder, LINES, texts)
    done = launch(folder, "base")
    assert done.returncode == 0, done.stderr
    return folder


def environment(folder):
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return env | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "PYTHONPATH": str(ROOT),
    }


def command(folder, workdir, *extra, config="config.py"):
    words = [f"--config={folder / config}", f"--workdir={folder / workdir}", *extra]
    return [sys.executable, str(ROOT / "launch.py"), *words]


def launch(folder, workdir, *extra, **kwargs):
    return subprocess.run(
        command(folder, workdir, *extra, **kwargs), capture_output=True, text=True, env=environment(folder), cwd=folder
    )


def python_m(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, env=environment(folder), cwd=folder
    )


def read(path):
    return json.loads(path.read_text())


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows]


def assert_same_run(one, other):
    """Bit-equal parameters, metrics and samples."""
    assert read(one / "summary.json")["params_sha256"] == read(other / "summary.json")["params_sha256"]
    assert metrics(one) == metrics(other)
    assert (one / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()


def test_a_run_leaves_what_it_promises(place):
    workdir = place / "base"
    summary = read(workdir / "summary.json")
    for key in ("steps", "best_step", "eval/loss", "best/eval/loss", "params_sha256", "tokens_per_sec", "data_sha256"):
        assert summary[key] is not None, key
    assert summary["steps"] == 60
    assert summary["status"] == "finished"
    receipt = read(workdir / "receipt.json")
    assert receipt["frozen_params"] == 0
    assert receipt["optimizer_numbers"] == 2 * receipt["trained_params"]
    rows = metrics(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert [row["step"] for row in rows if "eval/loss" in row] == [10, 20, 30, 40, 50, 60]
    losses = [row["eval/loss"] for row in rows if "eval/loss" in row]
    assert losses[-1] < losses[0] - 0.5
    assert summary["best/eval/loss"] == min(losses)
    for name in ("config.json", "README.md", "loss.png", "samples.jsonl", "tokenizer", "tensorboard"):
        assert (workdir / name).exists(), name
    kept = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert kept == sorted({55, 60, summary["best_step"]})


def events(workdir):
    return [json.loads(line) for line in (workdir / "events.jsonl").read_text().splitlines()]


def test_the_times_of_a_window_add_up_and_its_rate_is_theirs(place):
    """Milliseconds a step x steps = tokens / (tokens a second) = the wall time of the steps of the window."""
    rows = [json.loads(line) for line in (place / "base/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    for before, row in itertools.pairwise(rows):
        times = {key: value for key, value in row.items() if key.startswith("time/")}
        assert set(times) == {f"time/{part}_ms" for part in ("input", "put", "step", "log", "other")}
        seconds = sum(times.values()) * (row["step"] - before["step"]) / 1e3
        assert row["tokens_per_sec"] == pytest.approx((row["tokens"] - before["tokens"]) / seconds, rel=1e-9)
    summary = read(place / "base/summary.json")
    found = summary["time"]
    assert found["starts"] == 1
    assert found["seconds"] == pytest.approx(sum(found["parts"].values()), abs=0.02)
    steps = sum(found["parts"][part] for part in ("input", "put", "step"))
    assert summary["goodput"] == pytest.approx(steps / found["seconds"], abs=1e-3)
    assert found["parts"]["lost"] == 0
    assert min(found["parts"][part] for part in ("startup", "step", "eval", "save")) > 0
    first, *_, last = events(place / "base")
    clock = sum(last["seconds"].values()) - sum(first["seconds"].values())
    assert clock == pytest.approx(last["time"] - first["time"], abs=0.1)  # nothing is counted twice, nothing forgotten
    assert "(goodput)" in (place / "base/README.md").read_text()


@pytest.mark.slow
def test_throughput_leaves_padding_out(place):
    extra = [
        "--config.data.packing=none",
        "--config.train.steps=6",
        "--config.train.log_every=2",
    ]
    done = launch(place, "padded", *extra)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (place / "padded/metrics.jsonl").read_text().splitlines()]
    data = open_data(from_mapping(Config, read(place / "padded/config.json")).data, log=lambda text: None)
    batches = data.train_batches(0, (0, 8))
    real = [int((next(batches)["segments"] > 0).sum()) for _ in range(6)]
    batches.close()
    assert sum(real) < 0.9 * 6 * 8 * 32  # there is padding
    assert [row["tokens"] for row in rows if "tokens" in row] == [sum(real[:n]) for n in (2, 4, 6)]
    assert read(place / "padded/summary.json")["tokens_processed"] == sum(real)
    last = [row for row in rows if "tokens" in row][-1]
    seconds = 2 * sum(value for key, value in last.items() if key.startswith("time/")) / 1e3
    assert last["tokens_per_sec"] == pytest.approx((real[4] + real[5]) / seconds, rel=1e-9)


def test_a_finished_run_says_so(place):
    again = launch(place, "base")
    assert again.returncode == 0
    assert "finished at step 60" in again.stdout
    assert "nothing to do" in again.stdout


def test_finetune_evaluate_and_generate(place):
    text = (place / "config.py").read_text()
    extra = (
        "    from lm.config import last_layers\n"
        f"    c.init.source = {str(place / 'base')!r}\n"
        "    c.data.tokenizer.kind = 'auto'\n"
        "    c.data.tokenizer.path = c.init.get_oneway_ref('source') + '/tokenizer'\n"
        "    c.optim.schedule = 'cosine'\n"
        "    c.optim.train = last_layers(1, layers=4)\n    c.optim.peak_lr = 'auto'\n    return c\n"
    )
    (place / "tune.py").write_text(text.replace("    return c\n", extra))
    done = launch(place, "tuned", "--config.train.steps=20", "--config.train.eval_at_start=true", config="tune.py")
    assert done.returncode == 0, done.stderr
    base, tuned = (read(place / name / "summary.json") for name in ("base", "tuned"))
    assert tuned["start/eval/loss"] == pytest.approx(base["best/eval/loss"], abs=1e-5)
    assert tuned["best_step"] > 0
    assert "before training" in done.stdout
    assert "before training |" in (place / "tuned/README.md").read_text()
    assert "started" not in done.stderr
    assert "starting from" in done.stdout
    assert "0.0003, a tenth of the 0.003" in done.stdout
    receipt = read(place / "tuned/receipt.json")
    assert receipt["frozen_sha256_before"] == receipt["frozen_sha256_after"]
    assert receipt["optimizer_numbers"] == 2 * receipt["trained_params"]
    assert receipt["flops_per_step"] <= 0.65 * receipt["flops_per_step_if_all_trained"]
    assert {path.split("/")[0] for path in receipt["frozen_sha256_after"]} == {
        "embed",
        "block_00",
        "block_01",
        "block_02",
    }
    result = python_m(place, "lm.evaluate", f"--workdir={place / 'tuned'}", "--split=validation", "--batch_size=7")
    assert result.returncode == 0, result.stderr
    best = read(place / "tuned/summary.json")["best/eval/loss"]
    assert json.loads(result.stdout)["loss"] == pytest.approx(best, abs=1e-5)
    words = ("lm.generate", f"--workdir={place / 'tuned'}", "--prompt=the cat", "--max_new_tokens=12", "--seed=3")
    one, two = python_m(place, *words), python_m(place, *words)
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout
    assert one.stdout.startswith("the cat")


@pytest.mark.slow
def test_adapters_on_a_base_resume_merge_and_generate(place):
    """On a base held in four bits: only adapters move; stopped and gone on with, merged and unmerged, it is the same."""
    text = (place / "config.py").read_text()
    extra = (
        "    from lm.config import adapters_only\n"
        f"    c.init.source = {str(place / 'base')!r}\n"
        "    c.lora.rank, c.lora.dropout, c.lora.dora = 2, 0.1, True\n"
        "    c.optim.train = adapters_only()\n"
        "    c.optim.frozen_dtype = 'nf4'\n    c.model.scan = True\n    return c\n"
    )
    (place / "lora.py").write_text(text.replace("    return c\n", extra))
    done = launch(place, "lora", "--config.train.steps=20", config="lora.py")
    assert done.returncode == 0, done.stderr
    assert "new adapters at 28 matrices" in done.stdout
    receipt = read(place / "lora/receipt.json")
    assert receipt["frozen_sha256_before"] == receipt["frozen_sha256_after"]
    assert "block_03/attn/q_absmax" in receipt["frozen_sha256_after"]
    assert receipt["optimizer_numbers"] == 2 * receipt["trained_params"]
    first = launch(place, "lora2", "--config.train.steps=10", config="lora.py")
    then = launch(place, "lora2", "--config.train.steps=20", config="lora.py")
    assert (first.returncode, then.returncode) == (0, 0), then.stderr
    assert read(place / "lora2/summary.json")["params_sha256"] == read(place / "lora/summary.json")["params_sha256"]
    refused = launch(place, "lora2", "--config.lora.alpha=4", config="lora.py")
    assert refused.returncode == 2
    assert "lora.alpha 16.0 -> 4.0 (refused)" in refused.stderr
    merged = python_m(place, "lm.lora", "merge", "lora", "merged")
    assert merged.returncode == 0, merged.stderr
    again = python_m(place, "lm.lora", "merge", "lora", "merged")
    assert again.returncode == 1
    assert "not empty" in again.stderr
    losses = []
    for workdir in ("lora", "merged"):
        result = python_m(place, "lm.evaluate", f"--workdir={workdir}", "--split=validation")
        assert result.returncode == 0, result.stderr
        losses.append(json.loads(result.stdout)["loss"])
        said = python_m(place, "lm.generate", f"--workdir={workdir}", "--prompt=the cat", "--max_new_tokens=4")
        assert said.returncode == 0, said.stderr
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(read(place / "lora/summary.json")["best/eval/loss"], abs=1e-5)
    flags = ("--config.lora.rank=0", "--config.lora.dropout=0", "--config.lora.dora=false", "--config.train.steps=2")
    whole = ("--config.optim.train=(('.*',True),)", "--config.optim.frozen_dtype=float32")
    on = launch(place, "on", f"--config.init.source={place / 'merged'}", *flags, *whole, config="lora.py")
    assert on.returncode == 0, on.stderr
    lost = launch(place, "lost", f"--config.init.source={place / 'lora'}", *flags, *whole, config="lora.py")
    assert lost.returncode == 1
    assert "python -m lm.lora merge" in lost.stderr


def test_kill_9_at_any_moment_changes_nothing(place):
    """Killed again and again at random moments, then run to the end: bit-equal to the run that nobody disturbed."""
    moments = random.Random(1)
    for _ in range(3):
        process = subprocess.Popen(
            command(place, "killed"),
            env=environment(place),
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        metrics_file = place / "killed/metrics.jsonl"
        began = time.monotonic()
        lines = len(metrics_file.read_text().splitlines()) if metrics_file.exists() else 0
        # wait until it has got somewhere (start-up takes seconds), then kill within the next moments
        while process.poll() is None and time.monotonic() - began < 60:
            now = len(metrics_file.read_text().splitlines()) if metrics_file.exists() else 0
            if now > lines:
                break
            time.sleep(0.02)
        time.sleep(moments.random() * 0.4)
        process.kill()
        if process.wait() == 0:
            break
    else:
        done = launch(place, "killed")
        assert done.returncode == 0, done.stderr
    assert_same_run(place / "base", place / "killed")
    starts = [event for event in events(place / "killed") if event["event"] == "start"]
    found = read(place / "killed/summary.json")["time"]
    assert found["starts"] == len(starts) > 1
    assert found["seconds"] == pytest.approx(sum(found["parts"].values()), abs=0.02)
    ended = events(place / "killed")[-1]["time"]
    began = starts[0]["time"] - starts[0]["seconds"]["startup"]
    assert found["seconds"] + found["down"] == pytest.approx(ended - began, abs=0.2)


def until(process, start):
    """Reads what a run prints up to the line that begins with `start`."""
    assert any(line.startswith(start) for line in process.stdout), process.stderr.read()


@pytest.mark.slow  # a minute; tests/lm/test_profile.py and test_clock.py have the parts
def test_a_profile_and_the_goodput_of_a_run_that_is_killed_and_stopped_within_it(place):
    """kill -9 at step 20 with a checkpoint at 10, SIGTERM at step 15, then to the end; steps 12 to 22 are to be traced."""
    workdir, traces = place / "slow", lambda: sorted((place / "slow/profile").glob("plugins/profile/*/*.xplane.pb"))
    extra = ["--config.train.steps=30", "--config.train.log_every=1", "--config.train.save_every=10"]
    extra += ["--config.train.eval_every=0", "--config.optim.schedule=constant"]
    words = command(place, "slow", *extra, "--config.debug.profile_steps=12,22", config="slow.py")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": place}
    first = subprocess.Popen(words, env=environment(place), **pipes)
    until(first, "step 20/")
    first.kill()
    first.communicate()
    assert traces() == []  # nothing can be left of it
    second = subprocess.Popen(words, env=environment(place), **pipes)
    until(second, "step 15/")
    second.terminate()
    out, err = second.communicate()
    assert (second.returncode, err) == (75, ""), err
    stopped = events(workdir)[-1]["step"]
    assert f"profile of steps 12 to {stopped}" in out
    assert len(traces()) == 1
    third = launch(place, "slow", *extra, "--config.debug.profile_steps=12,22", config="slow.py")
    assert third.returncode == 0, third.stderr
    assert f"steps 12 to {stopped} are past; the profile starts with step {stopped + 1}" in third.stdout
    assert f"profile of steps {stopped + 1} to 22" in third.stdout
    assert len(traces()) == 2
    assert (workdir / "profile/summary.txt").read_text().count("ms a step in operations") == 2
    summary = read(workdir / "summary.json")
    parts = summary["time"]["parts"]
    assert summary["time"]["starts"] == 3
    lines = events(workdir)
    killed = lines[: [i for i, event in enumerate(lines) if event["event"] == "start"][1]]
    kept = next(event["seconds"] for event in killed if event["event"] == "saved" and event["step"] == 10)
    want = sum(killed[-1]["seconds"].values()) - sum(kept.values())
    assert parts["lost"] == pytest.approx(want, abs=0.02)
    busy = killed[-1]["seconds"]["startup"] > 60  # then a hundredth of its time is more than the ten steps took
    assert want >= 0.8 or busy  # ten steps of 0.1 s, of which at most the last second left no word
    assert parts["input"] >= 0.1 * 27  # each step that counts, but the first of each start
    assert "time: " in third.stdout
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert min(row["time/input_ms"] for row in rows if row.get("time/input_ms")) >= 100


# SIGTERM stops one process of several in tests/test_multihost.py too.
@pytest.mark.parametrize("sent", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_stop_saves_and_the_same_command_goes_on(place, sent):
    workdir = f"stopped{sent.value}"
    process = subprocess.Popen(
        command(place, workdir),
        env=environment(place),
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 7/"):
            process.send_signal(sent)
            break
    out, err = process.communicate()
    assert process.returncode == 75, err
    assert "run the same command again" in out
    assert err == ""
    other = launch(place, workdir)
    assert other.returncode == 0, other.stderr
    assert "resumed" in other.stdout
    assert_same_run(place / "base", place / workdir)


def test_two_runs_cannot_share_a_workdir(place):
    process = subprocess.Popen(
        command(place, "shared"), env=environment(place), cwd=place, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("first step"):
            break
    second = launch(place, "shared")
    process.kill()
    process.wait()
    assert second.returncode == 3
    assert f"is in use by process {process.pid}" in second.stderr


def one_line(done, code, *words):
    assert done.returncode == code, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)


def test_damaged_checkpoints_never_restart_a_run(place):
    workdir = place / "damaged"
    done = launch(place, "damaged", "--config.train.steps=20")
    assert done.returncode == 0, done.stderr
    damage(workdir / "checkpoints/20")
    again = launch(place, "damaged", "--config.train.steps=20")  # finished, but its result is no longer there
    assert again.returncode == 0, again.stderr
    assert "Using step 15 instead" in again.stdout
    assert "finished at step 20" in again.stdout
    for step in (workdir / "checkpoints").iterdir():
        if step.name.isdigit():
            damage(step)
    one_line(launch(place, "damaged", "--config.train.steps=20"), 1, "no usable checkpoint", "has changed since")
    (workdir / "summary.json").unlink()
    one_line(launch(place, "damaged", "--config.train.steps=20"), 1, "no usable checkpoint", "has changed since")


def damage(step):
    victim = max((p for p in (step / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)


def test_a_start_that_fails_on_its_data_leaves_no_workdir(place):
    one_line(launch(place, "no_data", "--config.data.path=nowhere.txt"), 1, "nowhere.txt")
    assert not (place / "no_data").exists()


def test_a_non_finite_loss_ends_the_run_and_keeps_the_checkpoint(place):
    done = launch(place, "nan", "--config.optim.peak_lr=1e30", "--config.optim.clip_norm=0", "--config.optim.name=sgd")
    one_line(done, 1, "8 steps in a row", "bad_batches.jsonl", "peak_lr")
    assert (place / "nan/bad_batches.jsonl").read_text().count("\n") >= 8


@pytest.mark.parametrize(
    ("extra", "code", "words"),
    [
        (["--config.optim.peak_l=1"], 2, ["peak_lr"]),
        (["--config.optim.peak_lr=nan", "--config.train.steps=0", "--config.model.heads=3"], 2, ["3 problems", "finite", "steps", "heads"]),
        (["--config.data.path=nowhere.txt"], 1, ["config.data.path", "nowhere.txt"]),
        (["--config.init.source=nowhere"], 1, ["no checkpoint at nowhere"]),
        (["--config.model.vocab_size=100"], 2, ["tokenizer has", "model.vocab_size=100"]),
        (["--config.data.batch_size=7", "--config.train.micro_batches=2"], 2, ["7 is not divisible", "micro_batches=2"]),
        (["--config.optim.train=(('block_09/.*',True),('.*',False))"], 1, ["block_09", "block_00 .. block_03"]),
        (["--config.mesh.fsdp=3"], 2, ["mesh", "devices"]),
        (["--config.debug.profile_steps=50,70"], 2, ["profile_steps", "train.steps=60", "50,70"]),
        (["--config.debug.profile_steps=10:15"], 2, ["profile_steps", "10:15"]),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(place, extra, code, words):
    one_line(launch(place, f"wrong{abs(hash(extra[0]))}", *extra), code, *words)


def test_resume_with_another_config_is_refused(place):
    one_line(launch(place, "base", "--config.model.layers=2"), 2, "model.layers 4 -> 2 (refused)")


def test_a_workdir_that_is_a_file(place):
    (place / "file").write_text("")
    one_line(launch(place, "file"), 2, "is a file")


def test_a_plan_trains_nothing(place):
    done = launch(place, "planned", "--plan")
    assert done.returncode == 0, done.stderr
    page = read(place / "planned" / "plan.json")
    keys = {
        "devices",
        "trained_params",
        "frozen_params",
        "flops_per_step",
        "hbm_bytes_per_device",
        "fits",
        "compile_seconds",
    }
    assert keys <= set(page)
    assert set(page["hbm_bytes_per_device"]) == {"arguments", "temporaries", "output", "total"}
    assert page["trained_params"] == read(place / "base" / "receipt.json")["trained_params"]
    assert (page["fits"], page["steps"]) == (True, 60)
    assert page["host_bytes"] > 0
    assert not (place / "planned" / "checkpoints").exists()
    assert done.stdout.rstrip().endswith("# train it")
    wrong = launch(place, "planned", "--topology=v5e:4x4")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "only --plan reads it" in wrong.stderr
