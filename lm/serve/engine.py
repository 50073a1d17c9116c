"""Who has a slot, who waits, and whose turn is it? One thread that owns the device (continuous batching, Orca, OSDI 2022).

A request joins as soon as a row of the cache is free and leaves when it is done. In each turn one chunk of one prompt is read,
the prompts taking turns, and every answer grows by a token: a long prompt or a long answer holds nobody up for long.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lm.sampling import Sampling
from lm.serve.answer import Answer
from lm.serve.errors import ApiError, shutting_down
from lm.serve.slots import Slots, as_arrays

IDLE = as_arrays(Sampling(temperature=0.0))


@dataclass(frozen=True)
class Piece:
    """A part of an answer; the last one has a reason why it ends (stop, length) or an error."""

    text: str = ""
    finish: str = ""
    error: ApiError | None = None


@dataclass(eq=False)
class Job:
    """A text to go on with. `emit` is called in the engine's thread; `cancelled` may be set in any."""

    ids: list[int]
    most: int  # ids to draw
    sampling: Sampling
    seed: int
    answer: Answer
    deadline: float  # of time.monotonic()
    emit: Callable[[Piece], None]
    cancelled: bool = False
    read: int = 0  # ids that are in the cache
    last: int = 0  # the id drawn last
    drawn: int = 0  # ids drawn

    def __post_init__(self) -> None:
        self.sampling = as_arrays(self.sampling)


class Engine:
    """Answers jobs with `slots`. After `close` no more are taken, and those that run have `grace` seconds."""

    def __init__(self, slots: Slots):
        self.slots = slots
        self.rows: list[Job | None] = [None] * slots.count
        self.reading: deque[int] = deque()  # rows whose prompt is not read to its end, the next first
        self.waiting: deque[Job] = deque()
        self.wake = threading.Condition()
        self.closes_at = float("inf")
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def closing(self) -> bool:
        return self.closes_at < float("inf")

    def submit(self, job: Job) -> None:
        with self.wake:
            if self.closing or not self.thread.is_alive():
                raise shutting_down()
            self.waiting.append(job)
            self.wake.notify()

    def close(self, grace: float) -> None:
        self.closes_at = min(self.closes_at, time.monotonic() + grace)  # no lock: a signal handler calls this

    def busy(self) -> int:
        return sum(job is not None for job in self.rows)

    def _run(self) -> None:
        try:
            self._turns()
        finally:  # also where the device does not come back
            self.close(0)
            with self.wake:
                left = [*(job for job in self.rows if job), *self.waiting]
            for job in left:
                job.emit(Piece(error=shutting_down()))

    def _turns(self) -> None:
        while True:
            with self.wake:
                while not (self.waiting or self.busy() or self.closing):
                    self.wake.wait(0.2)  # `close` does not notify
                if self.closing and not (self.waiting or self.busy()):
                    return
            try:
                self._turn()
            except Exception:  # the device failed; what is in the cache is lost
                traceback.print_exc(file=sys.stderr)
                for row, job in enumerate(self.rows):
                    if job:
                        self._end(
                            row, Piece(error=ApiError(500, "the model could not be run; the server's log says why"))
                        )
                self.slots.clear()

    def _turn(self) -> None:
        self._sweep(time.monotonic())
        for row, job in enumerate(self.rows):
            if job is None and self.waiting:
                self.rows[row] = self.waiting.popleft()
                self.reading.append(row)
        if not self.busy():
            return
        self.slots.fit(max(self.slots.room(job.read, len(job.ids)) for job in self.rows if job))
        if self.reading:
            row = self.reading.popleft()
            job = self.rows[row]
            assert job is not None
            job.read, token = self.slots.read(row, job.ids, job.read, job.sampling, job.seed)
            if token is None:
                self.reading.append(row)
            else:
                self._take(row, job, token)
        running = [(row, job) for row, job in enumerate(self.rows) if job and row not in self.reading]
        if not running:
            return
        if len(running) == 1:
            [(row, job)] = running
            tokens = {row: self.slots.step_one(row, job.last, job.read, job.sampling, job.seed, job.drawn)}
        else:
            jobs = dict(running)
            given = [jobs.get(row) for row in range(len(self.rows))]
            tokens = self.slots.step(
                [job.last if job else 0 for job in given],
                [job.read if job else 0 for job in self.rows],
                [job.sampling if job else IDLE for job in given],
                [job.seed if job else 0 for job in given],
                [job.drawn if job else 0 for job in given],
            )
        for row, job in running:
            job.read += 1
            self._take(row, job, tokens[row])

    def _sweep(self, now: float) -> None:
        """Lets go of jobs that nobody waits for any more, whose time is up, and of all when the server stops."""
        late = ApiError(504, "the time limit passed before the answer began", code="timeout")
        with self.wake:
            over = [job for job in self.waiting if job.cancelled or self.closing or now > job.deadline]
            for job in over:
                self.waiting.remove(job)
        for job in over:
            job.emit(Piece(error=shutting_down() if self.closing else late))
        for row, job in enumerate(self.rows):
            if job is None:
                continue
            if job.cancelled:
                self._end(row, Piece())
            elif now > self.closes_at:
                self._end(row, Piece(error=shutting_down()))
            elif now > job.deadline:
                self._end(row, Piece(job.answer.close(), "length") if job.drawn else Piece(error=late))

    def _take(self, row: int, job: Job, token: int) -> None:
        """Adds a drawn id to an answer."""
        job.last, job.drawn = token, job.drawn + 1
        text, ended = job.answer.push(token)
        if ended:
            self._end(row, Piece(text, "stop"))
        elif job.drawn == job.most:
            self._end(row, Piece(text + job.answer.close(), "length"))
        elif text:
            job.emit(Piece(text))

    def _end(self, row: int, piece: Piece) -> None:
        job = self.rows[row]
        self.rows[row] = None
        if row in self.reading:
            self.reading.remove(row)
        if job:
            job.emit(piece)
