"""Do processes meet, find who differs or is missing, and keep strangers out? Real sockets, threads in place of hosts."""

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lm.config import ConfigError
from lm.peers import check_in, compare

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def meet(address, members, wait=10.0, before=lambda: None):
    """Checks in `members`, a list of (process, processes, facts), at once; returns a Peers or an error text for each."""
    results = [None] * len(members)

    def one(i, process, processes, facts):
        try:
            results[i] = check_in(address, processes, process, facts, wait=wait, silence=30, advice="")
        except ConfigError as error:
            results[i] = str(error)

    threads = [threading.Thread(target=one, args=(i, *member)) for i, member in enumerate(members)]
    for thread in threads:
        thread.start()
    before()
    for thread in threads:
        thread.join()
    return results


def leave(peers):
    threads = [threading.Thread(target=one.leave) for one in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_alike_processes_meet_and_leave_together(address):
    peers = meet(address, [(i, 5, {"config": {"lr": 1}}) for i in range(5)])
    assert [peer.process for peer in peers] == list(range(5))
    early = threading.Thread(target=peers[3].leave)
    early.start()
    early.join(1.0)
    assert early.is_alive()  # the others have not come
    leave([peer for peer in peers if peer.process != 3])
    early.join(10)
    assert not early.is_alive()


def test_strangers_at_the_port_disturb_nobody(address):
    host, port = address.split(":")

    def scan():
        for message in (b"GET / HTTP/1.1\r\n\r\n", b"\xff\x00\n", b"[1]\n", b'{"process": "0"}\n', b""):
            for _ in range(50):
                try:
                    with socket.create_connection((host, int(port)), timeout=1) as stranger:
                        stranger.sendall(message)
                    break
                except OSError:
                    time.sleep(0.05)

    peers = [None, None]

    def first():
        peers[0] = check_in(address, 2, 0, {}, wait=20, silence=30, advice="")

    thread = threading.Thread(target=first)
    thread.start()
    scan()
    peers[1] = check_in(address, 2, 1, {}, wait=20, silence=30, advice="")
    thread.join()
    leave(peers)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([(0, 2, {"a": 1}), (1, 2, {"a": 2})], ["process 1 differs from process 0 in a: 2, there 1"]),
        ([(0, 3, {"a": 1}), (1, 3, {"a": 2, "b": 1}), (2, 3, {"a": 3})], ["process 1", "a: 2", "1 more", "process 2"]),
        ([(0, 2, {}), (1, 3, {})], ["process 1 differs from process 0 in number of processes: 3, there 2"]),
        ([(0, 2, {}), (2, 3, {})], ["process 2", "there are 2 processes"]),
        ([(0, 3, {}), (1, 3, {}), (1, 3, {})], ["process 1", "checked in after process 1", "its own id"]),
        ([(0, 3, {}), (2, 3, {})], ["waited 3 s for 3 processes, 2 came; missing: process 1"]),
    ],
)
def test_all_hear_the_same_reason(address, members, words):
    results = meet(address, members, wait=3.0)
    assert len(set(results)) == 1, results
    for word in words:
        assert word in results[0], results[0]
    assert "\n" not in results[0]


@pytest.mark.parametrize("address", ["h0", "h0:x", ":80", "h0:0", "h0:70000"])
def test_an_address_that_is_none(address):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        check_in(address, 2, 1, {}, wait=1, silence=1, advice="")


def test_a_host_that_is_not_there(address):
    began = time.monotonic()
    with pytest.raises(
        ConfigError, match=r"process 1 on host .* could not reach process 0 at .* within 1 s: .*refused"
    ):
        check_in(address, 2, 1, {}, wait=1, silence=1, advice="")
    assert time.monotonic() - began < 5


def test_a_port_that_another_program_holds(address):
    port = int(address.split(":")[1])
    with socket.create_server(("", port)), pytest.raises(ConfigError, match=f"cannot listen on port {port}"):
        check_in(address, 2, 0, {}, wait=30, silence=1, advice="")


def test_many_differences_are_one_line():
    facts = {i: {"code": {"a": min(i, 5), "b": 0}} for i in range(40)}
    line = compare(facts)
    assert "process 3 differs" in line
    assert "36 more processes" in line
    assert len(line) < 400
    assert compare({0: {"a": 1}, 1: {"a": 1}}) == ""


MEMBER = """
import sys, time
from lm.peers import check_in
process = int(sys.argv[2])
peers = check_in(sys.argv[1], 3, process, {}, wait=20, silence=float(sys.argv[3]), advice="Go on.")
print("met", flush=True)
if sys.stdin.readline() == "fail\\n":
    peers.fail("disk on fire", 7, "error: mine")
peers.leave()
"""


@pytest.fixture
def members(address):
    """Three processes that have met; each ends its run when it is sent a line."""
    command = [sys.executable, "-c", MEMBER, address]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    made = [subprocess.Popen([*command, str(i), "2"], cwd=ROOT, **pipes) for i in range(3)]
    assert [process.stdout.readline() for process in made] == ["met\n"] * 3
    yield made
    for process in made:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_process_ends_the_others_at_once(members, victim):
    began = time.monotonic()
    members[victim].kill()
    for i, process in enumerate(members):
        if i != victim:
            error = process.stderr.read()
            assert process.wait(10) == 1
            assert error.startswith(f"error: process {i} stops: process {victim} "), error
            assert error.endswith("Go on.\n")
            assert error.count("\n") == 1
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("victim", [0, 2])
def test_a_failing_process_gives_its_reason_and_code(members, victim):
    members[victim].stdin.write("fail\n")
    members[victim].stdin.flush()
    for i, process in enumerate(members):
        error = process.stderr.read()
        assert process.wait(10) == 7
        assert ("mine" if i == victim else f"process {victim} on host") in error
        assert error.count("\n") == 1


def test_silence_below_the_limit_is_no_death(members):
    time.sleep(5)  # more than twice the limit: heartbeats keep them together
    for process in members:
        process.stdin.write("leave\n")
        process.stdin.flush()
    assert [process.wait(10) for process in members] == [0, 0, 0]
    assert [process.stderr.read() for process in members] == [""] * 3
