"""Trains what a config file describes: `python launch.py --config=configs/finetune.py --workdir=runs/finetune`."""

from __future__ import annotations

import os
import shlex
import sys
import time
import traceback
from pathlib import Path

from data_pipeline.schema import run_main, split_flags
from lm.check import follow_data, read_config
from lm.config import Config, ConfigError, UserError, changed_keys, to_json
from lm.peers import FLAGS, Peers

USAGE = """
usage: python launch.py --config=FILE [--workdir=DIR] [--plan [--topology=v5e:4x4]] [--config.KEY=VALUE ...]
                        [--coordinator=HOST:PORT --num_processes=N --process_id=I]

Trains what the config file describes and leaves everything in the workdir (default: runs/<name of the config file>).
The same command resumes a run that was stopped. Several processes join up: on TPU pods, under Slurm and Open MPI by
themselves, elsewhere by the flags above (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID).
--plan trains nothing: it compiles the step, times three, and says what the run needs in memory, time and disk (plan.json).
--topology compiles it for a TPU slice that is not here. FILE:WORD picks one of the configs that a file holds.
A config file is Python and runs with your rights: use only files that you have read.
Exit codes: 0 done, 1 error, 2 configuration or launch, 3 workdir in use, 75 saved but unfinished.

example: python launch.py --config=configs/finetune.py --workdir=runs/ft2 --config.optim.peak_lr=1e-4
"""


def main(argv: list[str]) -> None:
    began = time.perf_counter()
    flags, overrides = split_flags(argv, {"config": "", "workdir": "", "plan": "false", "topology": "", **FLAGS}, USAGE)
    if not flags["config"]:
        raise ConfigError("name a config file: python launch.py --config=configs/pretrain.py; see --help")
    file, _, word = flags["config"].partition(".py:")
    workdir = Path(flags["workdir"] or f"runs/{word or Path(file).stem}")
    planning, topology = flags["plan"] == "true", flags["topology"]
    if topology:
        from lm import aot

        if not planning:
            raise ConfigError("--topology: only --plan reads it; training needs the devices themselves")
        aot.check_topology(topology)

    config = read_config(flags["config"], overrides, needs_data=not planning, workdir=workdir)

    import jax

    from lm import hosts
    from lm.memory import keep_memory
    from lm.summary import versions

    keep_memory()
    facts = {"config": to_json(config), "code": hosts.code_sums(), "versions": versions()}
    again = f"Run the same command on all processes to go on: python {shlex.join(sys.argv)}"
    peers = hosts.join(hosts.read_launch(os.environ, flags), facts, again)
    try:
        devices = len(aot.topology_devices(topology)) if topology else jax.device_count()
        config = read_config(flags["config"], overrides, devices, not planning, workdir)  # the mesh fits the devices
        code = plan(config, workdir, topology, flags["config"]) if planning else run(config, workdir, peers, began)
        if peers:
            peers.leave()
    except BaseException as error:
        if peers is None:
            raise
        known = isinstance(error, UserError)
        if not known:
            peers.wait_for_news()  # a lost process makes the collectives of the others fail: that is said instead
        plain = known and not os.environ.get("LM_TRACEBACK")
        show = f"error: process {peers.process}: {error}" if plain else traceback.format_exc().rstrip()
        peers.fail(f"{type(error).__name__}: {error}", error.exit_code if known else 1, show)
    raise SystemExit(code)


def plan(config: Config, workdir: Path, topology: str, name: str) -> int:
    """Says what a run would need, on the page and in plan.json; trains nothing."""
    from data_pipeline.batch import open_data
    from lm import hosts
    from lm.logger import write_json
    from lm.memory import resident_bytes
    from lm.plan import format_plan, make_plan
    from lm.start import find_peak_lr

    def say(text: str) -> None:
        if hosts.is_main():
            print(text, flush=True)

    before, data, batch, host_bytes = resident_bytes(), None, None, None
    if config.data.is_named():
        data = open_data(config.data, log=say)
        batches = data.train_batches(0, (0, config.data.batch_size))
        batch = next(batches)
        batches.close()
        host_bytes = resident_bytes() - before
        config = follow_data(config, data)
        say("\n".join(data.describe_steps(config.train.steps)))
    elif not config.model.vocab_size:
        raise ConfigError("config.model.vocab_size: without data a plan needs the size of the vocabulary")
    elif config.data.task == "classify" and not config.model.classes:
        raise ConfigError("config.model.classes: without data a plan of a classifier needs the number of classes")
    vocab_size = data.tokenizer.vocab_size if data else config.model.vocab_size
    page, receipt = make_plan(
        config,
        vocab_size,
        find_peak_lr(config, say) or 1.0,  # which changes nothing that a plan says
        say,
        topology=topology,
        data=data,
        host_bytes=host_bytes,
        batch=batch,
    )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "plan.json", page)
    text = format_plan(page, receipt)
    (workdir / "plan.txt").write_text(text + "\n")
    say(f"\n{text}\n\nsaved in {workdir}/plan.json and plan.txt. Nothing was trained. Next:")
    say(f"  python launch.py --config={name} --workdir={workdir}    # train it")
    return 0


def run(config: Config, workdir: Path, peers: Peers | None, began: float) -> int:
    """Prepares, trains and reports; returns the exit code. `began`: time.perf_counter() when the process did."""
    import jax

    from data_pipeline.batch import open_data
    from lm import hosts
    from lm.build import make_run
    from lm.classify import judge_run
    from lm.clock import Clock
    from lm.forgetting import open_remembered
    from lm.lease import Lease
    from lm.logger import describe_time
    from lm.plan import describe_shortage, is_out_of_memory
    from lm.receipt import format_receipt
    from lm.run import UNFINISHED
    from lm.summary import EVENTS, begin, check_workdir_config, finish, finished, next_commands
    from lm.train import train

    def say(text: str) -> None:
        if hosts.is_main():
            print(text, flush=True)

    check_workdir_config(workdir, config)
    lease = Lease(workdir) if hosts.is_main() else None
    if peers and lease:
        peers.on_loss = lease.close
    hosts.from_main(0)
    hosts.check_shared(workdir / "lease.json")
    clock = Clock(began)
    try:
        done = finished(workdir, config, say)
        if done:
            say(done)
            return 0
        for key, old, new in changed_keys(config):
            say(f"config.{key} = {new!r} (default {old!r})")
        if not hosts.is_main():
            hosts.from_main(0)  # process 0 prepares first; the others find it done
        data = open_data(config.data, log=say)
        remembered = open_remembered(config, data.tokenizer.sha256, open_data, say)
        if hosts.is_main():
            hosts.from_main(0)
        hosts.check_same("the data", data.fingerprint)
        config = follow_data(config, data)
        if remembered:
            hosts.check_same("the remembered text", remembered.data.fingerprint)
        say("\n".join(data.describe_steps(config.train.steps)))
        if hosts.is_main():
            clock.open(workdir / EVENTS)
        job, receipt, parts = make_run(config, data, workdir, lease, say, clock, remembered)
        if hosts.is_main():
            begin(job, receipt)
        say(format_receipt(receipt))
        try:
            outcome = train(job)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(f"out of memory: {describe_shortage(error, parts)}") from None
        numbers, page = judge_run(job, parts, outcome, "validation", say) if config.model.classes else ({}, "")
        numbers = {f"best/{key}" if key.startswith("eval/") else key: value for key, value in numbers.items()}
        summary = finish(job, outcome, receipt, parts.treatment, numbers, page)
        job.logger.close()
    except BaseException as error:
        clock.note("exit", status=f"failed: {type(error).__name__}")
        raise
    finally:
        if lease:
            lease.close()
    if hosts.is_main():
        say(f"time: {describe_time(summary)}")
    if outcome.status == "interrupted":
        say(f"stopped at step {summary['steps']}, saved in {workdir}; run the same command again to go on")
        return UNFINISHED
    say(
        f"{outcome.status} at step {summary['steps']}; {summary['tokens_per_sec']:,.0f} tokens/s; see {workdir}/README.md. Next:"
    )
    for command, what in next_commands(job).items():
        say(f"  {command}    # {what}")
    return 0


if __name__ == "__main__":
    run_main(main)
