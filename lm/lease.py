"""Is another run using this workdir?

An advisory lock that the system drops when its holder dies, even by kill -9, and beside it a file saying who holds it.
Where the lock does not reach (another host on a shared disk without locks), the file's heartbeat decides.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from lm.config import ConfigError, UserError

STALE_SECONDS = 120.0  # a heartbeat of another host older than this is a dead run's


class WorkdirInUse(UserError):
    """Another run holds the workdir."""

    exit_code = 3


class Lease:
    """Holds a workdir from construction until `close()`; raises WorkdirInUse, or ConfigError if it cannot be written."""

    def __init__(self, workdir: Path):
        self.path = workdir / "lease.json"
        self._beat = 0.0
        try:
            if workdir.exists() and not workdir.is_dir():
                raise ConfigError(f"--workdir={workdir} is a file; name a folder")
            self._made = not workdir.exists()
            workdir.mkdir(parents=True, exist_ok=True)
            lock = self._take(workdir / "lease.lock")
        except OSError as error:
            raise ConfigError(f"{workdir} is not writable: {error.strerror}. Choose another --workdir") from None
        if lock is None:
            raise WorkdirInUse(self._who(workdir))
        self._lock = lock
        other = self._read()
        if other and other["host"] != socket.gethostname() and time.time() - other["time"] < STALE_SECONDS:
            os.close(self._lock)
            raise WorkdirInUse(self._who(workdir))
        self.beat()

    @staticmethod
    def _take(path: Path) -> int | None:
        """Returns the locked file, or None when another holds it."""
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                return None
            try:
                if os.path.samestat(os.fstat(lock), path.stat()):
                    return lock
            except FileNotFoundError:
                pass
            os.close(lock)  # its holder let go, and took it away, between our two calls: this is no longer the lock

    def _read(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self.path.read_text())
            return {"pid": record["pid"], "host": record["host"], "time": float(record["time"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _who(self, workdir: Path) -> str:
        other = self._read()
        if not other:
            return f"{workdir} is in use by another run. Wait for it, or use another --workdir"
        ago = f"last heartbeat {time.time() - other['time']:.0f} s ago"
        who = f"process {other['pid']} on host {other['host']} ({ago})"
        return f"{workdir} is in use by {who}. Wait for it, or use another --workdir"

    def beat(self) -> None:
        """Writes the heartbeat, at most once in ten seconds."""
        if time.time() - self._beat < 10:
            return
        self._beat = time.time()
        record = {"pid": os.getpid(), "host": socket.gethostname(), "time": self._beat}
        try:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(record))
            temporary.replace(self.path)
        except OSError as error:
            if error.errno != 28:  # a full disk must not end the run: the lock itself still holds
                raise ConfigError(
                    f"{self.path.parent} is not writable: {error.strerror}. Choose another --workdir"
                ) from None

    def close(self) -> None:
        """Gives the workdir back; one that it made, and where nothing came to lie, goes too."""
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".lock").unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()
        os.close(self._lock)
