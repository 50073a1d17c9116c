"""Does the environment decide rightly how processes join, and do they agree on stopping?"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lm.config import ConfigError
from lm.hosts import (
    Launch,
    StopFlag,
    check_same,
    code_sums,
    detect,
    from_main,
    gather_bytes,
    is_main,
    join,
    read_launch,
)

ROOT = Path(__file__).resolve().parents[2]
JAX = {"JAX_COORDINATOR_ADDRESS": "h0:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
TORCH = {"MASTER_ADDR": "h0", "MASTER_PORT": "1234", "WORLD_SIZE": "2", "RANK": "1"}
OMPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n[0-1]", "SLURM_NTASKS": "2"}


def without(env, *names):
    return {name: value for name, value in env.items() if name not in names}


@pytest.mark.parametrize(
    ("env", "launch"),
    [
        ({}, Launch("single")),
        ({"HOME": "/root", "PATH": "/bin"}, Launch("single")),
        (JAX, Launch("explicit", "h0:8476", 4, 2)),
        ({**JAX, "JAX_COORDINATOR_ADDRESS": "h0"}, Launch("explicit", "h0:6002", 4, 2)),
        ({**JAX, "JAX_COORDINATOR_ADDRESS": "h0", "JAX_COORDINATOR_PORT": "77"}, Launch("explicit", "h0:77", 4, 2)),
        (
            {"JAX_COORDINATOR_ADDRESS": "h0:1", "JAX_PROCESS_COUNT": "3", "JAX_PROCESS_INDEX": "0"},
            Launch("explicit", "h0:1", 3, 0),
        ),
        ({"JAX_COORDINATOR_ADDRESS": "h0", "NNODES": "2", "NODE_RANK": "1"}, Launch("explicit", "h0:6002", 2, 1)),
        (TORCH, Launch("explicit", "h0:1234", 2, 1)),
        (without(TORCH, "MASTER_PORT"), Launch("explicit", "h0:6002", 2, 1)),
        ({**TORCH, **JAX}, Launch("explicit", "h0:8476", 4, 2)),  # ours before torchrun's
        ({**SLURM, **JAX}, Launch("explicit", "h0:8476", 4, 2)),  # said in words before detected
        (SLURM, Launch("slurm")),
        (without(SLURM, "SLURM_STEP_NODELIST"), Launch("single")),  # salloc without srun
        (
            {**SLURM, "JAX_COORDINATOR_ADDRESS": "h0"},
            Launch("explicit", "h0:6002", 2, 0),
        ),  # the address said, ids detected
        (OMPI, Launch("ompi")),
        ({**OMPI, "JAX_COORDINATOR_ADDRESS": "h0:5"}, Launch("explicit", "h0:5", 2, 1)),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, Launch("gketpu")),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, Launch("single")),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "2"}, Launch("gketpu")),
    ],
)
def test_the_launch_follows_from_the_environment(env, launch):
    assert read_launch(env) == launch


FLAGS = {"coordinator": "c:9", "num_processes": "3", "process_id": "1", "config": "x.py", "workdir": ""}


@pytest.mark.parametrize(
    ("env", "flags", "launch"),
    [
        ({}, FLAGS, Launch("explicit", "c:9", 3, 1)),
        (JAX, FLAGS, Launch("explicit", "c:9", 3, 1)),  # flags go before the environment
        (JAX, {"process_id": "3"}, Launch("explicit", "h0:8476", 4, 3)),
        (SLURM, {"coordinator": "c:9"}, Launch("explicit", "c:9", 2, 0)),
    ],
)
def test_flags_go_before_the_environment(env, flags, launch):
    assert read_launch(env, flags) == launch


def test_flags_without_a_coordinator_are_refused():
    with pytest.raises(ConfigError, match="--num_processes and --process_id needs --coordinator"):
        read_launch({}, {**FLAGS, "coordinator": ""})


SLURM_TASK = {**SLURM, "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[07-09],x", "SLURM_NTASKS": "16"}
SLURM_TASK |= {"SLURM_PROCID": "9", "SLURM_LOCALID": "1"}
ORTE = "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"


@pytest.mark.parametrize(
    ("env", "launch"),
    [
        ({**SLURM_TASK, "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, Launch("explicit", "node07:61441", 16, 9, (1,))),
        # one task a node has all its devices; JAX alone would give it the first
        ({**SLURM_TASK, "SLURM_STEP_TASKS_PER_NODE": "1(x16)"}, Launch("explicit", "node07:61441", 16, 9)),
        ({**SLURM, "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}, Launch("single")),
        ({**OMPI, "OMPI_MCA_orte_hnp_uri": ORTE}, Launch("explicit", "10.96.0.1:62624", 2, 1, (1,))),
        ({**OMPI, "OMPI_MCA_orte_hnp_uri": ORTE, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, Launch("explicit", "10.96.0.1:62624", 2, 1)),
        ({}, Launch("single")),
    ],
)  # fmt: skip
def test_slurm_and_open_mpi_are_detected(monkeypatch, env, launch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert detect(read_launch(env), env, 5) == launch


@pytest.mark.parametrize("env", [OMPI, {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}])
def test_an_environment_that_says_too_little_is_refused(monkeypatch, env):
    """Open MPI 5 has dropped the variable with the address; a pod's variables need TPU chips."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="--coordinator=HOST:PORT"):
        detect(read_launch(env), env, 1)


@pytest.mark.parametrize("text", ["0", "x", "-1", "nan", ""])
def test_a_time_limit_that_is_none(monkeypatch, text):
    monkeypatch.setenv("LM_INIT_TIMEOUT", text)
    with pytest.raises(ConfigError, match="LM_INIT_TIMEOUT"):
        join(Launch("single"), {})


@pytest.mark.parametrize("env", [{**JAX, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}])
def test_one_process_joins_nobody(env):
    assert read_launch(env).kind == "single"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (without(JAX, "JAX_PROCESS_ID"), ["JAX_PROCESS_ID", "h0:8476"]),
        (without(JAX, "JAX_NUM_PROCESSES"), ["JAX_NUM_PROCESSES"]),
        ({**JAX, "JAX_PROCESS_ID": "4"}, ["process id 4", "below", "4"]),
        ({**JAX, "JAX_PROCESS_ID": "9"}, ["process id 9"]),
        ({**JAX, "JAX_NUM_PROCESSES": "0", "JAX_PROCESS_ID": "0"}, ["process id 0"]),
        ({**JAX, "JAX_PROCESS_ID": "two"}, ["JAX_PROCESS_ID='two' is not a whole number"]),
        ({**JAX, "JAX_NUM_PROCESSES": "-1"}, ["JAX_NUM_PROCESSES='-1'"]),
        ({**JAX, "JAX_NUM_PROCESSES": "1.5"}, ["JAX_NUM_PROCESSES='1.5'"]),
        ({**JAX, "JAX_NUM_PROCESSES": ""}, ["JAX_NUM_PROCESSES=''"]),
        (without(TORCH, "RANK"), ["RANK"]),
        ({**TORCH, "RANK": "2"}, ["process id 2"]),
        ({"JAX_NUM_PROCESSES": "4"}, ["JAX_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS"]),
        ({"JAX_PROCESS_ID": "1"}, ["JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"]),
        (without(JAX, "JAX_COORDINATOR_ADDRESS"), ["JAX_NUM_PROCESSES and JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"]),
        ({"JAX_PROCESS_COUNT": "4", "JAX_PROCESS_INDEX": "1"}, ["JAX_PROCESS_COUNT", "JAX_COORDINATOR_ADDRESS"]),
    ],
)
def test_half_a_launch_is_refused_with_the_names(env, words):
    with pytest.raises(ConfigError) as caught:
        read_launch(env)
    assert caught.value.exit_code == 2
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_one_process_is_main_and_agrees_with_itself():
    assert is_main()
    assert from_main(7) == 7
    assert gather_bytes(b"\x00abc") == [b"\x00abc"]
    check_same("the config", "x")


@pytest.fixture
def flag():
    flag = StopFlag()
    yield flag
    flag.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_interrupts_nothing(flag, number):
    assert not flag.agreed()
    os.kill(os.getpid(), number)
    assert flag.agreed()


def test_a_second_sigterm_is_harmless_a_second_ctrl_c_interrupts(flag):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert flag.agreed()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_closing_gives_the_signals_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    flag = StopFlag()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    flag.close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


TWO = """
import os, signal, sys
import jax
from lm import hosts
from lm.config import ConfigError, MeshConfig
from lm.sharding import local_rows, make_mesh
peers = hosts.join(hosts.read_launch(os.environ), {})
me = int(sys.argv[2])
out = open(sys.argv[1], "w")
print(hosts.is_main() == (me == 0), file=out)
print(hosts.from_main(40 + me) == 40, file=out)
print(hosts.gather_bytes(b"ab" * (me + 1)) == [b"ab", b"abab"], file=out)
hosts.check_same("the config", "same")
try:
    hosts.check_same("the config", f"lr={me}")
    print("no error", file=out)
except ConfigError as error:
    print("the config on process 1 differs from process 0" in str(error), file=out)
flag = hosts.StopFlag()
print(not flag.agreed(), file=out)
if me == 1:
    os.kill(os.getpid(), signal.SIGTERM)
print(not flag.agreed(), file=out)  # asked
print(flag.agreed(), file=out)  # and answered
print(len(jax.local_devices()) == 1, file=out)
print(local_rows(make_mesh(MeshConfig(data=1, fsdp=2)), 8) == (4 * me, 4 * me + 4), file=out)  # not the global batch
out.close()
peers.leave()
"""


def as_slurm(process, port):
    # Slurm's port follows from the job's number, which is the port less 61440, modulo 4096
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    values = (port - 61440, "localhost", 2, process, process)
    return {**dict(zip(names, map(str, values))), "SLURM_STEP_TASKS_PER_NODE": "2"}


def as_flags(process, port):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    return dict(zip(names, (f"127.0.0.1:{port}", "2", str(process))))


@pytest.mark.parametrize("environment", [as_flags, as_slurm])
def test_two_processes_join_agree_and_stop_together(tmp_path, environment):
    for port in range(61440 + os.getpid() % 2048, 65535):
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            break
    processes = []
    for process in range(2):
        env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "LM_INIT_TIMEOUT": "60"}
        command = [sys.executable, "-c", TWO, str(tmp_path / str(process)), str(process)]
        processes.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=env | environment(process, port),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    errors = []
    try:
        errors = [process.communicate(timeout=120)[1].decode()[-2000:] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    for process in range(2):
        assert (tmp_path / str(process)).read_text().split() == ["True"] * 9


def test_the_code_of_a_run_is_summed_file_by_file():
    sums = code_sums()
    assert {"launch.py", "lm/step.py", "lm/model/layers.py", "data_pipeline/batch.py"} <= set(sums)
    assert len(set(sums.values())) > 30
