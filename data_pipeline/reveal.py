"""What does a file of an encrypted folder say?

python -m data_pipeline.reveal --data=DIR --file=report.md
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from data_pipeline.schema import ConfigError, UserError, run_main, split_flags
from data_pipeline.sealed import open_to_read
from data_pipeline.store import open_prepared

USAGE = """
usage: python -m data_pipeline.reveal --data=DIR --file=NAME > FILE

Writes a file of a folder of prepared data in clear to the standard output. The key is in the environment variable that the
folder was prepared with.

example: LM_DATA_KEY=... python -m data_pipeline.reveal --data=corpus --file=report.md
"""


def main(argv: list[str]) -> None:
    flags, _ = split_flags(argv, {"data": "", "file": ""}, USAGE)
    if not (flags["data"] and flags["file"]):
        raise ConfigError("name a folder and a file in it: --data=DIR --file=report.md; see --help")
    prepared = open_prepared(Path(flags["data"]).expanduser())
    if isinstance(prepared, str):
        raise UserError(f"--data={flags['data']}: {prepared}")
    if flags["file"] not in prepared.manifest["files"]:
        raise ConfigError(f"--file={flags['file']}: {flags['data']} has {', '.join(prepared.manifest['files'])}")
    with open_to_read(prepared.folder / flags["file"]) as file:
        shutil.copyfileobj(file, sys.stdout.buffer)


if __name__ == "__main__":
    run_main(main)
