"""Is this process one of several, do they agree, and has someone asked them to stop?"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import jax
import numpy as np

from lm.config import ConfigError

# What tells that a cluster started us, in which case jax.distributed finds the addresses itself.
AUTO = ("SLURM_JOB_ID+SLURM_PROCID+SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES+TPU_WORKER_ID")


@dataclass(frozen=True)
class Launch:
    """How to join the other processes; `kind` is single, explicit or auto."""

    kind: str
    address: str = ""
    processes: int = 1
    process: int = 0


def read_launch(env: Mapping[str, str]) -> Launch:
    """Decides from environment variables alone; raises ConfigError naming what is missing or out of range."""
    if "JAX_COORDINATOR_ADDRESS" in env:
        address = env["JAX_COORDINATOR_ADDRESS"]
        if ":" not in address:
            address += ":" + env.get("JAX_COORDINATOR_PORT", "6002")
        names = (
            ("JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT", "NNODES"),
            ("JAX_PROCESS_ID", "JAX_PROCESS_INDEX", "NODE_RANK"),
        )
        return _explicit(env, address, *names)
    if "MASTER_ADDR" in env and "WORLD_SIZE" in env:
        address = f"{env['MASTER_ADDR']}:{env.get('MASTER_PORT', '6002')}"
        return _explicit(env, address, ("WORLD_SIZE",), ("RANK",))
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_PROCESS_COUNT", "JAX_PROCESS_INDEX")
    stray = [name for name in names if name in env]
    if stray:
        raise ConfigError(f"{' and '.join(stray)} is set without JAX_COORDINATOR_ADDRESS; set all three or none")
    for names in AUTO:
        if all(env.get(name) for name in names.split("+")):
            hosts = env.get("TPU_WORKER_HOSTNAMES", "a,b")
            return Launch("auto" if "," in hosts else "single")
    return Launch("single")


def _explicit(env: Mapping[str, str], address: str, counts: tuple[str, ...], ids: tuple[str, ...]) -> Launch:
    def number(names: tuple[str, ...]) -> int:
        for name in names:
            if name in env:
                if not env[name].isdigit():
                    raise ConfigError(f"{name}={env[name]!r} is not a whole number")
                return int(env[name])
        raise ConfigError(f"the coordinator is {address} but none of {', '.join(names)} is set")

    processes, process = number(counts), number(ids)
    if process >= processes:
        raise ConfigError(f"process id {process} must be below the number of processes, {processes}")
    return Launch("explicit" if processes > 1 else "single", address, processes, process)


def join(launch: Launch) -> None:
    """Calls jax.distributed.initialize if there are several processes. Must come before any use of a device."""
    if launch.kind == "single":
        return
    jax.config.update("jax_enable_preemption_service", False)  # JAX's SIGTERM handler would replace ours
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    kwargs: dict[str, Any] = {"initialization_timeout": int(os.environ.get("LM_INIT_TIMEOUT", "600"))}
    kwargs |= {"heartbeat_timeout_seconds": 60, "shutdown_timeout_seconds": 60}
    try:
        if launch.kind == "auto":
            jax.distributed.initialize(**kwargs)
        else:
            jax.distributed.initialize(launch.address, launch.processes, launch.process, **kwargs)
    except RuntimeError as error:
        raise ConfigError(f"could not join the other processes: {' '.join(str(error).split())[:300]}") from None


def is_main() -> bool:
    """True on the one process that writes logs and files."""
    return jax.process_index() == 0


def from_main(value: int) -> int:
    """Returns process 0's value on every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int64(value)))


def gather_bytes(data: bytes) -> list[bytes]:
    """Returns every process's bytes, in process order."""
    if jax.process_count() == 1:
        return [data]
    from jax.experimental import multihost_utils

    sizes = np.asarray(multihost_utils.process_allgather(np.int64(len(data)))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(rows, sizes)]


def check_same(what: str, text: str) -> None:
    """Raises ConfigError unless `text` is the same on all processes; without it they would train apart silently."""
    parts = gather_bytes(text.encode())
    differing = [str(i) for i, part in enumerate(parts) if part != parts[0]]
    if differing:
        raise ConfigError(
            f"{what} on process {', '.join(differing)} differs from process 0; start all with one command"
        )


class StopFlag:
    """Remembers SIGTERM and Ctrl-C; `agreed()` gives the same answer on every process at the same step.

    A second Ctrl-C interrupts at once. JAX's own notice loses a signal that arrives before its first poll of a resumed
    run, so the flag and its all-reduce are ours.
    """

    def __init__(self) -> None:
        self.requested = False
        self._old = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def agreed(self) -> bool:
        if jax.process_count() == 1:
            return self.requested
        return any(part == b"1" for part in gather_bytes(b"1" if self.requested else b"0"))

    def close(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
