"""How is work on many parts spread over processes, so that its result does not depend on them and a killed run goes on?

A stage is a function of (context, number, task) that writes files named by the part's number and returns JSON. Its answer lies
in `folder/STAGE/NUMBER.done`, written last and at once, after the files are on the disk: a part that has one is not done again.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from data_pipeline import sealed
from data_pipeline.dedup.stages import Each
from data_pipeline.machine import collect_rarely, reuse_memory
from data_pipeline.schema import UserError
from data_pipeline.whole_file import written_aside

Log = Callable[[str], None]
Work = Callable[["Context", int, Any], Any]
PROGRESS_SECONDS = 2.0  # between progress lines; shorter work prints none


class Context:
    """What every part of a stage may use: the folder, and anything that can be pickled."""

    def __init__(self, folder: Path, **held: Any):
        self.folder, self.held = folder, held
        self.loaded: dict[Any, Any] = {}  # what this process has read for itself
        self.tick: Callable[[int], None] = lambda done: None  # bytes of the part done so far; only in the first process
        self.spread: Each | None = None  # what does the work in place of processes here; only in the first process

    def path(self, stage: str, number: int, kind: str) -> Path:
        return self.folder / stage / f"{number:05d}.{kind}"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "held": self.held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], **state["held"])
        sealed.seal(self.folder, sealed.open_vault(self.held["config"].encrypt_key_env))


def run_stage(
    context: Context, stage: str, work: Work, tasks: Sequence[Any], sizes: Sequence[int], workers: int, log: Log, what: str
) -> list[Any]:  # fmt: skip
    """Does what is not done yet of `tasks` and returns all answers, in the order of the tasks.

    `sizes` are bytes, for progress ("reading: 3 of 7 MB, 4 s left"). Raises the error of the first task, in that order, that
    failed; UserError where a process died.
    """
    (context.folder / stage).mkdir(exist_ok=True)
    answers: dict[int, Any] = {}
    for number in range(len(tasks)):
        if context.path(stage, number, "done").exists():
            answers[number] = _read_answer(context, stage, number)
    left = [number for number in range(len(tasks)) if number not in answers]
    progress = Progress(log, what, sum(sizes[number] for number in left))
    if context.spread:
        with progress.watched(lambda: sum(sizes[n] for n in left if context.path(stage, n, "done").exists())):
            context.spread(do, [(context, stage, work, number, tasks[number]) for number in left])
        answers |= {number: _read_answer(context, stage, number) for number in left}
    elif min(workers, len(left)) <= 1:
        for number in left:
            context.tick = progress.within
            answers[number] = do(context, stage, work, number, tasks[number])
            progress.add(sizes[number])
    else:
        _spread(context, stage, work, tasks, left, min(workers, len(left)), answers, progress, sizes)
    return [answers[number] for number in range(len(tasks))]


def do(context: Context, stage: str, work: Work, number: int, task: Any) -> Any:
    answer = work(context, number, task)
    with written_aside(context.path(stage, number, "done")) as file:
        file.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogateescape"))
    return answer


def _read_answer(context: Context, stage: str, number: int) -> Any:
    return json.loads(sealed.read_bytes(context.path(stage, number, "done")))


_context: Context


def _start(context: Context) -> None:
    global _context
    _context = context
    collect_rarely()
    reuse_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends the others


def _do(stage: str, work: Work, number: int, task: Any) -> Any:
    return do(_context, stage, work, number, task)


@contextlib.contextmanager
def processes(context: Context, workers: int, what: str) -> Iterator[ProcessPoolExecutor]:
    """A pool that ends with the block, whatever it is at; UserError where one of its processes died."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (context,))
    try:
        yield pool
    except BrokenProcessPool:
        message = f"{what}: a worker process died, perhaps for want of memory: use fewer --workers"
        raise UserError(message) from None
    finally:
        running = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        pool.shutdown(wait=True)


def _spread(
    context: Context, stage: str, work: Work, tasks: Sequence[Any], left: list[int], workers: int, answers: dict[int, Any],
    progress: Progress, sizes: Sequence[int],
) -> None:  # fmt: skip
    errors: dict[int, BaseException] = {}
    with processes(context, workers, progress.what) as pool:
        futures = {pool.submit(_do, stage, work, number, tasks[number]): number for number in left}
        waiting = set(futures)
        while waiting and not errors:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                number = futures[future]
                if error := future.exception():
                    errors[number] = error
                else:
                    answers[number] = future.result()
                    progress.add(sizes[number])
        if errors:  # those before the first bad one may be bad too: the message is to be that of the first
            first = min(errors)
            for future in [f for f in waiting if futures[f] < first]:
                if error := future.exception():
                    errors[futures[future]] = error
            raise errors[min(errors)]


class Progress:
    """Says now and then how far a stage is."""

    def __init__(self, log: Log, what: str, total: int):
        self.log, self.what, self.total, self.done = log, what, total, 0
        self.began = self.said = time.monotonic()

    def add(self, size: int) -> None:
        self.done += size
        self.within(0)

    def within(self, size: int) -> None:
        now, done = time.monotonic(), self.done + size
        if now - self.said >= PROGRESS_SECONDS and done:
            self.said = now
            left = (now - self.began) * max(self.total - done, 0) / done
            self.log(f"{self.what}: {done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB, {left:.0f} s left")

    @contextlib.contextmanager
    def watched(self, done: Callable[[], int]) -> Iterator[None]:
        """Asks `done` how far others are while the block runs."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(PROGRESS_SECONDS):
                self.within(done())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
