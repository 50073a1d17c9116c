"""The command.

python -m data_pipeline.prepare --config=configs/pretrain.py
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.check import check_data_config
from data_pipeline.machine import collect_rarely, reuse_memory
from data_pipeline.prepare.beam import open_beam
from data_pipeline.prepare.build import prepare, prepare_to
from data_pipeline.prepare.plan import format_plan, make_plan
from data_pipeline.schema import ConfigError, run_main, split_flags
from data_pipeline.sealed import read_bytes

USAGE = """
usage: python -m data_pipeline.prepare --config=FILE [--out=DIR [--workers=N] [--runner=beam [--beam_options=FLAGS]]]
                                       [--plan] [--config.data.KEY=VALUE ...]

Reads, cleans, splits and tokenises the sources of a configuration ahead of training, and prints the report. Training
with the same configuration then starts at once.

--out: writes to this folder instead of the cache, for --config.data.prepared=DIR. A run that was killed goes on where it was.
--workers: processes that share the work; the result does not depend on them.
--runner: local | beam. Apache Beam does the same stages, on other machines too where those see the same folders.
--beam_options: flags for Beam, as "--runner=FlinkRunner --flink_master=HOST:8081"; without --runner in them it runs here.
--plan: only says how long it will take, how much memory and disk, and what each rule will drop, from a sample of 5 MB.

example: python -m data_pipeline.prepare --config=configs/pretrain.py
"""

FLAGS = {"config": "", "out": "", "workers": "1", "runner": "local", "beam_options": "", "plan": "false"}


def main(argv: list[str]) -> None:
    from lm.check import read_config

    flags, overrides = split_flags(argv, FLAGS, USAGE)
    if not flags["config"]:
        raise ConfigError(
            "name a config file: python -m data_pipeline.prepare --config=configs/pretrain.py; see --help"
        )
    if not (flags["workers"].isdecimal() and flags["workers"].isascii() and int(flags["workers"])):
        raise ConfigError(f"--workers must be a whole number >= 1, got {flags['workers']!r}")
    plan = flags["plan"] == "true"
    if flags["workers"] != "1" and not (flags["out"] or plan):
        raise ConfigError("--workers goes with --out=DIR")
    if flags["runner"] not in ("local", "beam"):
        raise ConfigError(
            f"--runner must be local or beam, got {flags['runner']!r}; Beam's own goes into --beam_options"
        )
    if flags["runner"] == "beam" and not flags["out"]:
        raise ConfigError("--runner=beam goes with --out=DIR")
    if flags["beam_options"] and flags["runner"] != "beam":
        raise ConfigError("--beam_options goes with --runner=beam")
    config = read_config(flags["config"], overrides).data
    problems = check_data_config(config)
    if problems:
        raise ConfigError(problems)
    if config.prepared:
        raise ConfigError("config.data.prepared is set: there is nothing to prepare")
    if plan:
        print(format_plan(make_plan(config, int(flags["workers"]), print)))
        return
    collect_rarely()
    reuse_memory()
    if flags["out"]:
        spread = None
        if flags["runner"] == "beam":
            spread = open_beam(flags["beam_options"], int(flags["workers"]), config.encrypt_key_env)
        prepared = prepare_to(Path(flags["out"]).expanduser(), config, int(flags["workers"]), print, spread)
    else:
        prepared, _ = prepare(config, print)
    print(read_bytes(prepared.folder / "report.md").decode())
    where = f" --config.data.prepared={flags['out']}" if flags["out"] else ""
    print(f"prepared data: {prepared.folder}. Next: python -m data_pipeline.show --config={flags['config']}{where}")


if __name__ == "__main__":
    run_main(main)
