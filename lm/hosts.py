"""Is this process one of several, do they agree, and has someone asked them to stop?"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from lm.config import ConfigError
from lm.peers import FLAGS, Peers, check_in

# Environments that jax.distributed knows: its name for them, and what must be set for it to be one.
AUTO = {
    "slurm": "SLURM_JOB_ID+SLURM_PROCID+SLURM_STEP_NODELIST",  # srun; salloc alone lacks the node list
    "ompi": "OMPI_COMM_WORLD_SIZE",
    "gketpu": "TPU_WORKER_HOSTNAMES+TPU_WORKER_ID",
}
COUNTS = ("JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT", "NNODES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
IDS = ("JAX_PROCESS_ID", "JAX_PROCESS_INDEX", "NODE_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


@dataclass(frozen=True)
class Launch:
    """How to join the other processes; `kind` is single, explicit, or what JAX calls the environment (AUTO, gcetpu)."""

    kind: str
    address: str = ""
    processes: int = 1
    process: int = 0
    local_ids: tuple[int, ...] | None = None  # the devices of this host that are ours; None: all


def read_launch(env: Mapping[str, str], flags: Mapping[str, str] = FLAGS) -> Launch:
    """Decides from flags and environment variables alone; raises ConfigError naming what is missing or out of range."""
    named = {f"--{name}": value for name, value in flags.items() if name in FLAGS and value}
    if named and "--coordinator" not in named and "JAX_COORDINATOR_ADDRESS" not in env:
        raise ConfigError(f"{' and '.join(named)} needs --coordinator=HOST:PORT, the address of process 0")
    address = named.get("--coordinator") or env.get("JAX_COORDINATOR_ADDRESS")
    if address is not None:
        if ":" not in address:
            address += ":" + env.get("JAX_COORDINATOR_PORT", "6002")
        return _explicit({**env, **named}, address, ("--num_processes", *COUNTS), ("--process_id", *IDS))
    if "MASTER_ADDR" in env and "WORLD_SIZE" in env:
        address = f"{env['MASTER_ADDR']}:{env.get('MASTER_PORT', '6002')}"
        return _explicit(env, address, ("WORLD_SIZE",), ("RANK",))
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_PROCESS_COUNT", "JAX_PROCESS_INDEX")
    stray = [name for name in names if name in env]
    if stray:
        raise ConfigError(f"{' and '.join(stray)} is set without JAX_COORDINATOR_ADDRESS; set all three or none")
    for kind, names in AUTO.items():
        if all(env.get(name) for name in names.split("+")):
            alone = kind == "gketpu" and "," not in env["TPU_WORKER_HOSTNAMES"] and "MEGASCALE_NUM_SLICES" not in env
            return Launch("single" if alone else kind)
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


def detect(launch: Launch, env: Mapping[str, str], wait: float) -> Launch:
    """Fills in the address and the ids where Slurm, Open MPI or a TPU knows them, by JAX's own detection.

    A TPU VM made with gcloud sets no variable: there the metadata server is asked, and only if the host has TPU chips.
    """
    if launch.kind == "explicit":
        return launch
    from jax._src.clusters import ClusterEnv, GceTpuCluster

    kind = launch.kind
    if kind == "single":
        if launch.address or any(env.get(name) for name in AUTO["gketpu"].split("+")):
            return launch
        try:
            if not GceTpuCluster.is_env_present():
                return launch
        except OSError:  # chips, but no metadata server: not a VM of Google's
            return launch
        kind = "gcetpu"
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, kind, int(wait))
        address, processes, process, local = found
        if not address or processes is None or process is None:
            raise ValueError(f"it found {found}")
    except Exception as error:  # a missing variable, a name that does not resolve, another version of JAX
        raise ConfigError(
            f"this looks like {kind}, but JAX cannot tell the processes from it ({type(error).__name__}: {error}). Start with "
            "--coordinator=HOST:PORT (process 0's), --num_processes=N and --process_id=I"
        ) from None
    alone = re.fullmatch(r"1(\(x\d+\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")) or (
        env.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    )
    ids = None if alone or local is None else tuple(local)  # JAX gives one device a process, even to a node's only one
    if processes == 1:
        return Launch("single")
    return Launch("explicit", address, processes, process, ids)


def join(launch: Launch, facts: Mapping[str, Any], advice: str = "") -> Peers | None:
    """Meets the other processes, compares `facts` with theirs and starts jax.distributed; None when this one is alone.

    Must come before any use of a device. Raises ConfigError when a process is missing or differs (see `peers.check_in`).
    """
    wait, silence = (_seconds(name, default) for name, default in (("LM_INIT_TIMEOUT", 600), ("LM_PEER_TIMEOUT", 60)))
    launch = detect(launch, os.environ, wait)
    if launch.kind == "single":
        return None
    peers = check_in(launch.address, launch.processes, launch.process, facts, wait=wait, silence=silence, advice=advice)
    jax.config.update("jax_enable_preemption_service", False)  # JAX's SIGTERM handler would replace ours
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            launch.address, launch.processes, launch.process, launch.local_ids, "deactivate",
            initialization_timeout=int(wait),
            heartbeat_timeout_seconds=int(silence) + 60,  # `peers` sees a death first, and says it in one line
            shutdown_timeout_seconds=60,
        )  # fmt: skip
    except RuntimeError as error:
        text = f"could not join the other processes: {' '.join(str(error).split())[:300]}"
        peers.fail(text, 2, f"error: process {launch.process}: {text}")
    return peers


def _seconds(name: str, default: int) -> float:
    text = os.environ.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 1e6:
        raise ConfigError(f"{name}={text!r} must be a number of seconds >= 1")
    return value


def code_sums() -> dict[str, str]:
    """Returns {file: sha256} of this repository's own Python files: what must be the same on every host."""
    root = Path(__file__).parent.parent
    files = [*root.glob("lm/**/*.py"), *root.glob("data_pipeline/**/*.py"), *root.glob("launch.py")]
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest()[:12] for f in sorted(files)}


def check_shared(path: Path) -> None:
    """Raises ConfigError unless every process reads in `path` what process 0 reads: the folder lies on a shared disk."""
    differing: list[str] = []
    for _ in range(5):  # a network disk may show a new file some seconds late
        parts = gather_bytes(path.read_bytes() if path.is_file() else b"")
        differing = [str(i) for i, part in enumerate(parts) if part != parts[0]]
        if not differing:
            return
        time.sleep(1)
    raise ConfigError(
        f"{path.parent} on process {', '.join(differing)} is not the folder that process 0 uses; all processes need one "
        "--workdir on a disk that they share"
    )


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
        self._asked: jax.Array | None = None  # the all-reduce of the last call, of several processes
        self._old = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._note)
        mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
        self._rows, whole = (jax.NamedSharding(mesh, spec) for spec in (jax.P("all"), jax.P()))
        self._any = jax.jit(lambda flags: flags.max(), out_shardings=whole)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def agreed(self) -> bool:
        """Says whether any process was asked to stop; of several processes, before the last call of this.

        Waiting for the answer to this call's question would stall the devices at every step.
        """
        if jax.process_count() == 1:
            return self.requested
        before = self._asked
        local = np.full(jax.local_device_count(), self.requested, np.int32)
        self._asked = self._any(jax.make_array_from_process_local_data(self._rows, local, (jax.device_count(),)))
        return before is not None and bool(before.addressable_data(0))

    def close(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
