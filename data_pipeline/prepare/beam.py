"""How do the stages of preparation run on Apache Beam, on this machine or on many that see the same folders?

Each call of the seam that the stages have (`Context.spread`) is a pipeline: Create(numbers) | Reshuffle | Map. What a job makes, its answer
and what is wrong with it lie in files of the work folder, so that nothing but numbers goes through Beam, every runner gives the
same bytes, and what one did is not done again by another.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shlex
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline import sealed
from data_pipeline.prepare.build import Spread
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.whole_file import written_aside

DIRECT = "DirectRunner"
Job = tuple[Any, ...]


def open_beam(options: str, workers: int, key_env: str = "") -> Spread:
    """Returns what runs jobs on Beam; ConfigError where it is not installed or does not take the flags `options`.

    `key_env`: the environment variable with the key of encrypted folders, which every worker must have.

    Without `--runner` among them `workers` processes of this machine do the work.
    """
    with _quiet():
        try:
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise ConfigError(f'--runner=beam needs Apache Beam: pip install "lm[beam]" ({error})') from None
    try:
        flags = _flags(shlex.split(options), workers)
        taken = PipelineOptions(flags)
        unknown = sorted(taken.get_all_options(retain_unknown_options=True).keys() - taken.get_all_options().keys())
        if unknown and _runner(flags) == DIRECT:  # others hand flags on to a cluster, which may know more
            raise ConfigError(f"--beam_options: Apache Beam has no flag --{unknown[0]}")
        beam.Pipeline(options=PipelineOptions(flags))  # finds the runner, which checks its flags
    except ConfigError:
        raise
    except SystemExit:  # argparse, which has said what
        raise ConfigError("--beam_options: Apache Beam refuses the flags") from None
    except Exception as error:  # each runner has kinds of its own
        raise ConfigError(f"--beam_options: Apache Beam refuses the flags: {_one_line(error)}") from None
    return lambda work: functools.partial(run_jobs, flags, work / "errors", key_env)


def _flags(given: list[str], workers: int) -> list[str]:
    runner = _runner(given)
    if runner == DIRECT:
        mode = "multi_processing" if workers > 1 else "in_memory"
        given = [f"--direct_num_workers={workers}", f"--direct_running_mode={mode}", f"--runner={DIRECT}", *given]
        given.append(
            "--allow_unsafe_triggers"
        )  # there are none; without it Beam looks on the network for a runner in Go
    elif workers > 1:
        raise ConfigError(f"--workers is for this machine; tell {runner} by --beam_options how many it may take")
    # threads of one process would wait for each other, and each hold a part
    return ["--number_of_worker_harness_threads=1", "--default_sdk_harness_log_level=WARNING", *given]


def _runner(flags: list[str]) -> str:
    return next((flag.partition("=")[2] for flag in flags if flag.startswith("--runner=")), DIRECT)


def run_jobs(
    flags: Sequence[str], errors: Path, key_env: str, function: Callable[..., Any], jobs: Sequence[Job]
) -> None:
    """Calls `function` with each of `jobs` on Beam; raises the error of the first job, in their order, that failed."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    if not jobs:
        return
    shutil.rmtree(errors, ignore_errors=True)
    errors.mkdir()
    pipeline = beam.Pipeline(options=PipelineOptions(list(flags)))
    numbers = pipeline | beam.Create(range(len(jobs))) | beam.Reshuffle()
    _ = numbers | beam.Map(run_job, errors=errors, key_env=key_env, function=function, jobs=jobs)
    failed, state = None, "DONE"
    try:
        with _quiet(), _noticed_death():
            state = pipeline.run().wait_until_finish() or state
    except Exception as error:  # a worker that died, or what no stage expects
        failed = error
    for path in sorted(errors.iterdir()):
        raise _read_error(path)
    if failed or state != "DONE":
        why = _one_line(failed) if failed else f"the pipeline ended as {state}"
        raise UserError(f"Apache Beam gave up, run again to go on: {why}") from failed
    errors.rmdir()


def run_job(number: int, errors: Path, key_env: str, function: Callable[..., Any], jobs: Sequence[Job]) -> None:
    """Does one job in a worker, unless one before it has failed; leaves what is wrong with it in a file."""
    if not errors.is_dir():
        raise RuntimeError(f"{errors} is not there on {socket.gethostname()}: all workers must see the same folders")
    sealed.seal(errors.parent, sealed.open_vault(key_env))
    if any(int(path.stem) < number for path in errors.glob("*.json")):
        return
    try:
        function(*jobs[number])
    except (UserError, OSError) as error:
        system = [error.errno, error.strerror, error.filename] if isinstance(error, OSError) else None
        found = {"code": getattr(error, "exit_code", 0), "message": str(error), "system": system}
        with written_aside(errors / f"{number:08d}.json") as file:
            file.write(json.dumps(found).encode())


def _read_error(path: Path) -> Exception:
    found = json.loads(sealed.read_bytes(path))
    if found["system"]:
        return OSError(*found["system"])
    return (ConfigError if found["code"] == ConfigError.exit_code else UserError)(found["message"])


@contextlib.contextmanager
def _noticed_death() -> Iterator[None]:
    """Ends this process where a worker process on this machine dies: Beam 2.77 waits for it for ever, also when interrupted.

    Nothing is lost by that: what is done lies in files, and the other workers end with this process.
    """
    before = threading.excepthook

    def note(args: threading.ExceptHookArgs) -> None:
        if args.thread and args.thread.name == "run_worker":  # Beam's thread that waits for the process
            sys.stdout.flush()
            os.write(2, b"error: a worker process died, perhaps for want of memory: use fewer --workers\n")
            os._exit(UserError.exit_code)

    threading.excepthook = note
    try:
        yield
    finally:
        threading.excepthook = before


def _one_line(error: BaseException) -> str:
    """The last line of a message: before it stands what a worker printed."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)  # of libraries for clouds that are not there
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
