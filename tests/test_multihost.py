"""Several processes on this machine as on several hosts: do they train as one, and end as one when one of them fails?"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.build import load_run
from lm.checkpoint import read_meta
from lm.params import split_stacks
from lm.run_folder import write_run

ROOT = Path(__file__).resolve().parent.parent
LINES = """
c.data.augment.token_dropout = 0.05
c.mesh.fsdp = 2
c.optim.schedule = "constant"  # so that the length of a run changes no step
c.train.log_every = 1
c.train.sample_prompts = ()
"""
# A config is Python: this one makes the step fail on process 1, as a bug or a broken host would.
BROKEN = """
import sys
from lm import train
step = train._Loop._step

def broken(self, batches):
    if self.run.progress.step == 8 and "--process_id=1" in sys.argv:
        raise {error}
    step(self, batches)

train._Loop._step = broken
"""
ENDLESS = "--config.train.steps=1000000"
TIMES = ("tokens_per_sec", "mfu", "time/")  # how these keys begin


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_run_config):
    """A folder with a corpus and a config."""
    folder = tmp_path_factory.mktemp("multihost")
    write_run_config(folder, LINES)
    return folder


@pytest.fixture(scope="module")
def base(place):
    """A finished run of two processes, the first of which looked into two of its steps."""
    run = Group(place, "base", "--config.debug.profile_steps=12,13")
    assert run.wait() == [0, 0], run.errors()
    return place / "base"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Group:
    """Processes of one run. `each` and `roots` give single ones other arguments or other code; `only` leaves some out."""

    def __init__(self, place, workdir, *extra, n=2, config="config.py", each=None, roots=None, only=None, **env):
        self.place, self.name, port = place, workdir, free_port()
        self.processes = {}
        for i in range(n) if only is None else only:
            root = (roots or {}).get(i, ROOT)
            words = [f"--config={place / config}", f"--workdir={place / workdir}", f"--coordinator=127.0.0.1:{port}"]
            words += [f"--num_processes={n}", f"--process_id={i}", *extra, *(each or {}).get(i, [])]
            with open(self.path(i, "out"), "w") as out, open(self.path(i, "err"), "w") as err:
                self.processes[i] = subprocess.Popen(
                    [sys.executable, str(root / "launch.py"), *words],
                    env=environment(place, root=root, **env), cwd=place, stdout=out, stderr=err,
                )  # fmt: skip

    def path(self, i, what):
        return self.place / f"{self.name}.{i}.{what}"

    def wait(self, timeout=180):
        """Exit codes; none of the processes outlives this."""
        until = time.monotonic() + timeout
        try:
            return [process.wait(until - time.monotonic()) for process in self.processes.values()]
        finally:
            for process in self.processes.values():
                process.kill()

    def until(self, text, i=0, timeout=120):
        """Waits until process i has printed `text`."""
        end = time.monotonic() + timeout
        while text not in self.path(i, "out").read_text():
            alive = self.processes[i].poll() is None
            if time.monotonic() > end or not alive:
                self.wait(0.1 if alive else 5)
                raise AssertionError((text, self.errors()))
            time.sleep(0.02)

    def out(self, i):
        return self.path(i, "out").read_text()

    def errors(self):
        return {i: self.path(i, "err").read_text()[-3000:] for i in self.processes}


def environment(place, devices=1, root=ROOT, **more):
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return env | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONPATH": str(root),
        **more,
    }


def alone(place, workdir, *extra, devices=1):
    """One process with as many virtual devices."""
    words = [f"--config={place / 'config.py'}", f"--workdir={place / workdir}", *extra]
    command = [sys.executable, str(ROOT / "launch.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(place, devices), cwd=place)
    assert done.returncode == 0, done.stderr
    return done


def read(path):
    return json.loads(path.read_text())


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows]


def assert_bit_equal(one, other):
    assert metrics(one) == metrics(other)
    assert read(one / "summary.json")["params_sha256"] == read(other / "summary.json")["params_sha256"]


def one_line(text, *words):
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    for word in words:
        assert word in text, (word, text)


def test_two_processes_are_bit_equal_to_two_devices(place, base):
    """Dropout and token dropout on, fsdp=2; process 0 alone speaks and writes."""
    alone(place, "two_devices", devices=2)
    assert_bit_equal(base, place / "two_devices")
    assert read(base / "summary.json")["processes"] == 2
    assert "step 60/60" in (place / "base.0.out").read_text()
    assert "step" not in (place / "base.1.out").read_text()
    assert "profile of steps 12 to 13" in (place / "base.0.out").read_text()
    assert len(list((base / "profile").glob("plugins/profile/*/*.xplane.pb"))) == 1
    assert read(base / "summary.json")["time"]["starts"] == 1
    assert (place / "base.1.err").read_text() == ""


@pytest.mark.slow  # it compiles the range test and the meter as well, twice
def test_two_processes_find_a_rate_and_measure_what_is_forgotten_as_two_devices_do(place, base):
    """The start does not say at what rate it was trained, so the range test runs on both processes, and the meter too."""
    known = load_run(str(base), "last", print)
    meta = {**read_meta(str(base), known.step), "peak_lr": None}
    write_run(place / "silent", base, known.config, split_stacks(known.params), meta, known.step)
    keys = [
        f"--config.init.source={place / 'silent'}",
        "--config.optim.peak_lr=auto",
        "--config.train.remember=pretraining",
    ]
    keys += ["--config.train.stop_on=loss+kl", "--config.train.eval_at_start=True", "--config.train.steps=20"]
    run = Group(place, "tuned", *keys)
    assert run.wait(400) == [0, 0], run.errors()
    alone(place, "tuned_alone", *keys, devices=2)
    assert_bit_equal(place / "tuned", place / "tuned_alone")
    ours, theirs = (read(place / name / "summary.json") for name in ("tuned", "tuned_alone"))
    assert ours["peak_lr"] == theirs["peak_lr"]
    assert (ours["start/forget/change"], ours["start/forget/kl"]) == (0, 0)
    assert ours["forget/kl"] > 0
    assert "a range test finds it before the first step" in run.out(0)
    assert (place / "tuned/range_test.json").is_file()
    assert "step" not in run.out(1)


@pytest.mark.slow  # a minute and a half; two processes are compared above
def test_four_processes_are_as_four_devices_and_go_on_as_two(place, base):
    """data=2 x fsdp=2. Four gloo ranks may add up in another order than four devices of one process: 1e-6, not bits."""
    short = "--config.train.steps=20"
    run = Group(place, "four", short, n=4)
    assert run.wait() == [0] * 4, run.errors()
    alone(place, "four_devices", short, devices=4)
    ours, theirs = metrics(place / "four"), metrics(place / "four_devices")
    assert len(ours) == len(theirs) == 22
    for one, other in zip(ours, theirs):
        assert one == pytest.approx(other, abs=1e-6, rel=1e-7)
    two = Group(place, "four")
    assert two.wait() == [0, 0], two.errors()
    assert "at step 20" in two.out(0)
    assert len(metrics(place / "four")) == len(metrics(base))
    for one, other in zip(metrics(place / "four"), metrics(base)):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_9_of_one_process_ends_the_other_and_the_same_command_goes_on(place, base, victim):
    name = f"killed{victim}"
    run = Group(place, name, ENDLESS)
    run.until("step 7/")
    while not (place / name / "checkpoints/5/manifest.json").exists():
        assert run.processes[0].poll() is None, run.errors()
        time.sleep(0.01)
    run.processes[victim].kill()
    began = time.monotonic()
    codes = run.wait(60)
    assert time.monotonic() - began < 15
    other = 1 - victim
    assert codes[other] == 1, run.errors()
    lines = run.errors()[other].splitlines()
    said = [line for line in lines if line.startswith(f"error: process {other} stops: process {victim} ")]
    assert len(said) == 1, lines
    assert "died" in said[0]
    assert "Run the same command on all processes to go on: python" in said[0]
    if victim == 1:  # when the coordinator dies, JAX may add lines of its own
        assert lines == said
    again = Group(place, name)
    assert again.wait() == [0, 0], again.errors()
    assert "resumed" in again.out(0)
    assert_bit_equal(base, place / name)


@pytest.mark.slow
@pytest.mark.parametrize("error", ["OSError('the disk of this host is gone')", "SystemExit(0)"])
def test_an_error_on_one_process_ends_all_with_its_reason(place, error):
    config = (place / "config.py").read_text() + BROKEN.format(error=error)
    (place / "broken.py").write_text(config)
    run = Group(place, f"broken{len(error)}", config="broken.py")
    run.until("step 7/")
    began = time.monotonic()
    assert run.wait(60) == [1, 1], run.errors()
    assert time.monotonic() - began < 15
    errors = run.errors()
    assert "Traceback" in errors[1]
    assert error.split("(")[0] in errors[1].splitlines()[-1]
    one_line(errors[0], "process 0 stops: process 1 on host", "failed", error.split("(")[0], "Run the same command")


@pytest.mark.slow  # half a minute of waiting
def test_a_frozen_process_ends_the_other_and_itself_when_it_wakes(place):
    run = Group(place, "frozen", ENDLESS, LM_PEER_TIMEOUT="3")
    run.until("step 7/")
    run.processes[1].send_signal(signal.SIGSTOP)
    try:
        assert run.processes[0].wait(20) == 1
    finally:
        run.processes[1].send_signal(signal.SIGCONT)
    assert run.wait(20) == [1, 1]
    one_line(run.errors()[0], "process 1", "has not been heard of for 3 s", "Run the same command")
    assert "process 1 stops: process 1" in run.errors()[1]


def test_sigterm_to_one_process_saves_and_one_process_goes_on(place, base):
    """The checkpoint of two processes, gone on with by one that has two devices: bit-equal."""
    run = Group(place, "stopped", ENDLESS)
    run.until("step 7/")
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.wait(60) == [75, 75], run.errors()
    assert "resumed" in alone(place, "stopped", devices=2).stdout
    assert_bit_equal(base, place / "stopped")


def refused(run, *words):
    assert run.wait(60) == [2] * len(run.processes), run.errors()
    for error in run.errors().values():
        one_line(error, *words)


def test_another_config_on_one_process_is_refused(place):
    run = Group(place, "config", each={1: ["--config.optim.peak_lr=0.01"]})
    refused(run, "process 1 differs from process 0 in config.optim.peak_lr: 0.01, there 0.003")


def test_other_code_on_one_process_is_refused(place):
    copy = place / "copy"
    for name in ("lm", "data_pipeline", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", copy)
    with open(copy / "lm" / "step.py", "a") as file:
        file.write("# a later version\n")
    refused(Group(place, "code", roots={1: copy}), "process 1 differs from process 0 in code.lm/step.py")


def test_another_workdir_on_one_process_is_refused(place):
    """As with a disk of its own on each host."""
    refused(
        Group(place, "disk", each={1: [f"--workdir={place / 'elsewhere'}"]}), "on process 1 is not the folder", "share"
    )


def test_a_coordinator_that_cannot_be_reached(place):
    refused(Group(place, "lonely", only=[1], LM_INIT_TIMEOUT="3"), "process 1", "127.0.0.1", "within 3 s", "refused")


def test_missing_processes_are_counted_and_named(place):
    run = Group(place, "missing", n=4, only=[0, 2], LM_INIT_TIMEOUT="6")
    refused(run, "waited 6 s for 4 processes, 2 came", "missing: process 1, 3")
