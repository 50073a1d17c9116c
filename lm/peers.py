"""Are all processes of a run there, are they alike, and do they still live?

Before jax.distributed starts, every process checks in with process 0 by TCP at the coordinator's address and says what it
runs; process 0 compares and answers all. The connections stay open, so a process that dies, fails or falls silent is
known to the others at once, and they end with one line. JAX would abort with a C++ stack instead, or wait for minutes.
Nothing here needs JAX, and it holds for every kind of device.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from lm.config import ConfigError, diff

FLAGS = {"coordinator": "", "num_processes": "", "process_id": ""}  # of launch.py; they go before the environment
MAX_BYTES = 1 << 22  # of one message: a hello is some kilobytes
GRACE_SECONDS = 5.0  # once something is wrong, how long the rest may take to arrive and hear of it
REPORT_SECONDS = 15.0  # how often process 0 says whom it waits for
Facts = Mapping[str, Any]  # what must be the same on all processes; nested JSON


class _Link:
    """One connection, carrying JSON objects, one a line."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        connection.settimeout(10.0)
        self.buffer = b""
        self.seen = time.monotonic()
        self.name = ""  # "process 3 (host b)" once it has said so
        self.done = False

    def send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the end of the connection is noticed where it is read
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """Returns the messages that have arrived, waiting for some; None when the connection ended or talks nonsense."""
        try:
            data = self.socket.recv(65536)
            self.buffer += data
            *lines, self.buffer = self.buffer.split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return None
        if not data or len(self.buffer) > MAX_BYTES or not all(isinstance(message, dict) for message in messages):
            return None
        self.seen = time.monotonic()
        return messages


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"the coordinator's address must be HOST:PORT, got {address!r}")
    return host.strip("[]"), int(port)


def _listen(port: int, patience: float = 5.0) -> socket.socket:
    """Listens on every address of this host, as JAX does; waits a little for an earlier run that is still ending."""
    until = time.monotonic() + patience
    while True:
        try:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            return socket.create_server(("", port), family=family, backlog=4096, dualstack_ipv6=both)
        except OSError as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"process 0 cannot listen on port {port} of {socket.gethostname()}: {error.strerror}. "
                    "Name another port in the coordinator's address, the same for all processes"
                ) from None
            time.sleep(0.2)


def compare(facts: Mapping[int, Facts]) -> str:
    """Returns one line that says which processes differ from process 0 and in what; "" when all are alike."""
    lines = []
    for process in sorted(facts):
        differences = diff(facts[0], facts[process])
        if differences:
            key, ours, theirs = differences[0]
            more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
            lines.append(f"process {process} differs from process 0 in {key}: {theirs!r}, there {ours!r}{more}")
    rest = f"; and {len(lines) - 3} more processes" if len(lines) > 3 else ""
    advice = "Start the same command, with the same code and packages, on all"
    return f"{'; '.join(lines[:3])}{rest}. {advice}" if lines else ""


class Peers:
    """The other processes of this run. Ends this process with one line on stderr when one of them is lost."""

    def __init__(self, process: int, processes: int, links: dict[int, _Link], silence: float, advice: str):
        self.process, self.processes, self.links = process, processes, links
        self.silence, self.advice = silence, advice
        self.on_loss: Callable[[], None] = lambda: None  # the last thing done before a lost process ends this one
        self._done = False
        self._over = threading.Event()
        self._ending = threading.Lock()
        self._selector = selectors.DefaultSelector()
        for link in links.values():
            link.seen = time.monotonic()
            self._selector.register(link.socket, selectors.EVENT_READ, link)
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def _watch(self) -> None:
        interval = min(self.silence / 4, 5.0)
        beaten = 0.0
        while not self._over.is_set():
            before = time.monotonic()
            for key, _ in self._selector.select(min(interval, 0.5)):
                self._take(key.data)
            now = time.monotonic()
            if now - before > self.silence / 2:  # this process was stopped itself and could hear nobody
                for link in self.links.values():
                    link.seen = now
            if now - beaten > interval:
                beaten = now
                for link in self.links.values():
                    link.send({"beat": 1})
            for link in self.links.values():
                if now - link.seen > self.silence:
                    self._lost(f"{link.name} has not been heard of for {self.silence:g} s", 1)
            if self.process == 0 and self._done and all(link.done for link in self.links.values()):
                for link in self.links.values():
                    link.send({"over": 1})
                self._over.set()

    def _take(self, link: _Link) -> None:
        messages = link.receive()
        for message in messages or ():
            if "ended" in message:
                self._lost(str(message["ended"]), int(message.get("code", 1)))
            link.done |= "done" in message
            if "over" in message:
                self._over.set()
                return
        if messages is None:
            self._lost(f"{link.name} died (killed, or its host or network failed)", 1)

    def _lost(self, text: str, code: int) -> NoReturn:
        self._ending.acquire()  # and keep: the first to end this process has the last word
        advice = f". {self.advice}" if code == 1 else ""
        print(f"error: process {self.process} stops: {text}{advice}", file=sys.stderr, flush=True)
        self._tell(text, code)
        with contextlib.suppress(Exception):  # the main thread may be doing the same, its collective having failed
            self.on_loss()
        os._exit(code)

    def _tell(self, text: str, code: int) -> None:
        for link in self.links.values():
            link.send({"ended": text, "code": code})
        if self.process == 0:
            time.sleep(0.5)  # JAX aborts the others when process 0 is gone: let them end by themselves first

    def fail(self, text: str, code: int, show: str) -> NoReturn:
        """Ends all processes for a reason of this one: `text` for the others, `show` for its own stderr."""
        self._ending.acquire()
        print(show, file=sys.stderr, flush=True)
        self._tell(f"process {self.process} on host {socket.gethostname()} failed: {text}", code)
        os._exit(code)

    def wait_for_news(self, seconds: float = 3.0) -> None:
        """Gives the news of a lost process time to arrive, which ends this process: its own error only followed."""
        self._over.wait(seconds)

    def leave(self) -> None:
        """Returns when every process has come here: from then on one that ends is no loss."""
        self._done = True
        if self.process:
            self.links[0].send({"done": 1})
        self._over.wait()


def check_in(
    address: str, processes: int, process: int, facts: Facts, *, wait: float, silence: float, advice: str
) -> Peers:
    """Meets the other processes at HOST:PORT and compares `facts`; raises ConfigError (the same one on all) or returns.

    `wait`: seconds until the last process must have come. `silence`: seconds without a sign of life that count as death.
    `advice`: what to do after an error, for the message.
    """
    host, port = _split(address)
    hello = {
        "process": process, "host": socket.gethostname(), "pid": os.getpid(),
        "facts": {**facts, "number of processes": processes},
    }  # fmt: skip
    if process == 0:
        links = _gather(_listen(port), hello, processes, wait)
    else:
        links = {0: _report(host, port, hello, wait)}
    return Peers(process, processes, links, silence, advice)


def _gather(listener: socket.socket, hello: Mapping[str, Any], processes: int, wait: float) -> dict[int, _Link]:
    """Process 0's part of `check_in`."""
    began = time.monotonic()
    deadline, report = began + wait, began + REPORT_SECONDS
    links: dict[int, _Link] = {}
    facts: dict[int, Facts] = {0: hello["facts"]}
    refused: list[_Link] = []
    problem = ""
    with listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while len(links) < processes - 1 and time.monotonic() < deadline:
            for key, _ in selector.select(0.2):
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    selector.register(connection, selectors.EVENT_READ, _Link(connection))
                    continue
                link: _Link = key.data
                messages = link.receive()
                if messages is None:  # it ended, or was never one of us
                    selector.unregister(link.socket)
                    link.socket.close()
                    for number in [n for n, other in links.items() if other is link]:
                        del links[number], facts[number]
                for message in messages or ():
                    number = message.get("process")
                    if not isinstance(number, int) or not isinstance(message.get("facts"), dict):
                        continue
                    link.name = f"process {number} (host {message.get('host')}, pid {message.get('pid')})"
                    if number in links or not 0 < number < processes:
                        refused.append(link)
                        first = (
                            f"after {links[number].name}" if number in links else f"but there are {processes} processes"
                        )
                        problem = (
                            problem or f"{link.name} checked in {first}. Give each process its own id below the count"
                        )
                        deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
                    else:
                        links[number], facts[number] = link, message["facts"]
                        if diff(facts[0], facts[number]):
                            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() > report and len(links) < processes - 1:
                report += REPORT_SECONDS
                print(f"waiting for {_missing(processes, links)} since {time.monotonic() - began:.0f} s", flush=True)
    problem = compare(facts) or problem
    if not problem and len(links) < processes - 1:
        problem = (
            f"waited {wait:g} s for {processes} processes, {len(links) + 1} came; missing: {_missing(processes, links)}. "
            "Start them all, and let LM_INIT_TIMEOUT (seconds) cover the slowest"
        )
    for link in [*links.values(), *refused]:
        link.send({"refused": problem} if problem else {"go": 1})
    if problem:
        time.sleep(0.2)
        raise ConfigError(problem)
    return links


def _missing(processes: int, links: Mapping[int, _Link]) -> str:
    missing = [str(number) for number in range(1, processes) if number not in links]
    more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
    return f"process {', '.join(missing[:20])}{more}"


def _report(host: str, port: int, hello: Mapping[str, Any], wait: float) -> _Link:
    """The other processes' part of `check_in`."""
    deadline = time.monotonic() + wait
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            link = _Link(socket.create_connection((host, port), timeout=min(5.0, wait)))
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
            continue
        link.name = f"process 0 (host {host})"
        link.send(hello)
        link.socket.settimeout(wait + GRACE_SECONDS)  # process 0 may have begun to wait later
        messages: list[dict[str, Any]] | None = []
        while messages == []:
            messages = link.receive()
        answer = messages[0] if messages else {}
        if "refused" in answer:
            raise ConfigError(str(answer["refused"]))
        if "go" in answer:
            link.socket.settimeout(10.0)
            return link
        reason = "what listens there is not process 0 of this run, or it gave up"
        link.socket.close()
        time.sleep(0.5)
    loopback = (
        " This address means each host itself: name process 0's." if host in ("localhost", "127.0.0.1", "::1") else ""
    )
    raise ConfigError(
        f"process {hello['process']} on host {socket.gethostname()} could not reach process 0 at {host}:{port} within "
        f"{wait:g} s: {reason}.{loopback} Check that process 0 runs, the address, and the firewall"
    )
