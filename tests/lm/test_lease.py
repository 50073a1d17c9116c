"""Does exactly one run hold a workdir, and does the next one get it when that run is dead?"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lm.config import ConfigError
from lm.lease import STALE_SECONDS, Lease, WorkdirInUse

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from pathlib import Path
from lm.lease import Lease, WorkdirInUse
if len(sys.argv) > 2:
    print("ready", flush=True)
    sys.stdin.readline()
try:
    lease = Lease(Path(sys.argv[1]))
    print("held", flush=True)
except WorkdirInUse as error:
    print(error, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holders(workdir, count=1, *waits):
    """Processes that try for the workdir, say how it went, and stay until their input ends."""
    command = [sys.executable, "-c", HOLDER, str(workdir), *waits]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_second_run_in_the_same_process_is_refused_by_name(tmp_path):
    first = Lease(tmp_path)
    with pytest.raises(WorkdirInUse) as caught:
        Lease(tmp_path)
    text = str(caught.value)
    assert caught.value.exit_code == 3
    assert str(tmp_path) in text
    assert f"process {os.getpid()} on host {socket.gethostname()}" in text
    assert "heartbeat" in text
    first.close()
    Lease(tmp_path).close()


def test_being_refused_does_not_loosen_the_first_hold(tmp_path):
    first = Lease(tmp_path)
    for _ in range(3):
        with pytest.raises(WorkdirInUse):
            Lease(tmp_path)
    first.close()


def test_a_new_workdir_is_made(tmp_path):
    lease = Lease(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    lease.close()


def test_another_process_is_refused_and_after_kill_9_the_next_one_succeeds(tmp_path):
    with holders(tmp_path) as (holder,):
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(WorkdirInUse, match=f"process {holder.pid} on host {socket.gethostname()}"):
            Lease(tmp_path)
        with holders(tmp_path) as (other,):
            assert f"in use by process {holder.pid}" in other.stdout.readline()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        lease = Lease(tmp_path)
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()
        lease.close()


def test_of_eight_contenders_exactly_one_wins(tmp_path):
    with holders(tmp_path, 8, "wait") as processes:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 8
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in processes]
    assert sorted(answer == "held\n" for answer in answers) == [False] * 7 + [True]
    assert all("is in use by" in answer for answer in answers if answer != "held\n")


def heartbeat(folder, host, age):
    (folder / "lease.json").write_text(json.dumps({"pid": 4242, "host": host, "time": time.time() - age}))


def test_a_fresh_heartbeat_of_another_host_refuses(tmp_path):
    heartbeat(tmp_path, "elsewhere", 3)
    with pytest.raises(WorkdirInUse, match=r"process 4242 on host elsewhere \(last heartbeat 3 s ago\)"):
        Lease(tmp_path)
    assert json.loads((tmp_path / "lease.json").read_text())["pid"] == 4242


def test_a_stale_heartbeat_of_another_host_is_taken_over(tmp_path):
    heartbeat(tmp_path, "elsewhere", STALE_SECONDS + 1)
    lease = Lease(tmp_path)
    assert json.loads((tmp_path / "lease.json").read_text())["host"] == socket.gethostname()
    lease.close()


def test_a_fresh_heartbeat_of_a_dead_run_on_this_host_does_not_block(tmp_path):
    heartbeat(tmp_path, socket.gethostname(), 1)
    Lease(tmp_path).close()


@pytest.mark.parametrize("content", ["", "{", "null", "\x00" * 50, "[1, 2]", '{"pid": 3}', '"text"'])
def test_a_damaged_lease_file_does_not_block_and_is_replaced(tmp_path, content):
    (tmp_path / "lease.json").write_text(content)
    lease = Lease(tmp_path)
    assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()
    with pytest.raises(WorkdirInUse):
        Lease(tmp_path)
    lease.close()


def test_the_heartbeat_is_renewed_but_not_at_every_step(tmp_path):
    lease = Lease(tmp_path)
    before = (tmp_path / "lease.json").stat().st_mtime_ns
    for _ in range(100):
        lease.beat()
    assert (tmp_path / "lease.json").stat().st_mtime_ns == before
    lease._beat -= 60
    lease.beat()
    assert (tmp_path / "lease.json").stat().st_mtime_ns > before
    lease.close()


def test_closing_leaves_no_claim_behind(tmp_path):
    Lease(tmp_path).close()
    assert list(tmp_path.iterdir()) == []
    Lease(tmp_path / "made").close()
    assert not (tmp_path / "made").exists()
    lease = Lease(tmp_path / "used")
    (tmp_path / "used" / "summary.json").write_text("{}")
    lease.close()
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["summary.json"]


def test_a_lock_whose_file_was_taken_away_meanwhile_is_none(tmp_path, monkeypatch):
    """The holder closes, and so removes the file, between another's open and lock: that one must lock the file anew."""
    first = Lease(tmp_path)
    lock, flocks = fcntl.flock, []

    def close_first(handle, how):
        flocks.append(handle)
        if len(flocks) == 1:
            first.close()
        return lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", close_first)
    second = Lease(tmp_path)
    assert len(flocks) == 2
    with pytest.raises(WorkdirInUse):
        Lease(tmp_path)
    second.close()


@pytest.mark.parametrize("below", ["", "inside"])
def test_a_workdir_that_is_a_file_is_a_config_error(tmp_path, below):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ConfigError) as caught:
        Lease(path / below)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2
    assert path.read_text() == "mine"
