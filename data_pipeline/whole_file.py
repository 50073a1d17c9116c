"""How does a file take its name only when it is complete and on the disk, so that a kill leaves no half file?"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_pipeline.machine import sync
from data_pipeline.sealed import open_to_write


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """Gives a file that takes the name `path` at the end; what a kill -9 leaves is called `*.tmp-*`."""
    # processes of two machines may have one number, and Beam may do one piece of work twice at a time
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open_to_write(aside, path) as file:
            yield file
        sync(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
