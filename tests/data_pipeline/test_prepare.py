"""Is prepared data made once, found again, safe against a kill at any moment, and made anew when damaged?"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import CleanConfig, SplitConfig, TokenizerConfig
from data_pipeline.schema import to_json
from data_pipeline.store import MANIFEST, Prepared, make_temporary, open_prepared

ROOT = Path(__file__).resolve().parents[2]
OPEN = """
import json, sys
from data_pipeline.batch import open_data
from data_pipeline.config import DataConfig
from data_pipeline.schema import from_mapping
print("ready", flush=True)
data = open_data(from_mapping(DataConfig, json.load(open(sys.argv[1]))), log=lambda text: None)
print(data.fingerprint, flush=True)
"""
CONFIG = """
from configs import base
from data_pipeline.config import SourceConfig
from data_pipeline.schema import to_config_dict

def get_config():
    c = base.get_config()
    c.data.sources.json = to_config_dict(SourceConfig(kind="package", path="json"))
    c.data.tokenizer.kind = "bytes"
    return c
"""


def start(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, str(tmp_path / "config.json")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_the_second_time_reads_what_the_first_wrote(config, corpus, quiet):
    first = open_data(config(corpus), log=quiet)
    stamp = (first.prepared.folder / MANIFEST).stat().st_mtime_ns
    second = open_data(config(corpus, seq_len=32, seed=5), log=quiet)
    assert second.prepared.folder == first.prepared.folder
    assert (first.prepared.folder / MANIFEST).stat().st_mtime_ns == stamp
    for change in (
        {"clean": CleanConfig(min_chars=9)},
        {"tokenizer": TokenizerConfig(kind="char")},
        {"on_bad": "skip"},
    ):
        assert open_data(config(corpus, **change), log=quiet).prepared.folder != first.prepared.folder


def test_every_kind_of_damage_is_noticed_and_repaired(config, corpus):
    first = open_data(config(corpus), log=print)
    folder, rng = first.prepared.folder, random.Random(0)
    for name in [*first.prepared.manifest["files"], MANIFEST]:
        for how in ("truncate", "flip", "delete"):
            path, said = folder / name, []
            content = bytearray(path.read_bytes())
            if how == "delete" or not content:
                path.unlink()
            elif how == "truncate":
                path.write_bytes(content[: len(content) // 2])
            else:
                place = rng.randrange(len(content)) if name != MANIFEST else content.index(b'"sha256": "') + 15
                content[place] ^= 1
                path.write_bytes(content)
            again = open_data(config(corpus), log=said.append)
            assert any("is damaged" in line for line in said), (name, how)
            assert again.fingerprint == first.fingerprint


def test_a_manifest_vouches_for_itself(config, corpus, quiet):
    path = open_data(config(corpus), log=quiet).prepared.folder / MANIFEST
    whole, rng = path.read_bytes(), random.Random(0)
    for place in rng.sample(range(len(whole)), 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        same = path.read_bytes().split() == whole.split()  # white space between values says nothing
        assert same or isinstance(open_prepared(path.parent), str), place
    path.write_bytes(whole)
    assert isinstance(open_prepared(path.parent), Prepared)


def test_a_preparation_of_days_is_no_leftover(tmp_path):
    working, left = tmp_path / ".tmp-working", tmp_path / ".tmp-left"
    for folder in (working, left):
        (folder / "spool").mkdir(parents=True)
        (folder / "spool" / "00.train").write_text("text")
        for path in (folder, folder / "spool"):
            os.utime(path, (0, 0))
    os.utime(left / "spool" / "00.train", (0, 0))
    make_temporary(tmp_path, "key")
    assert (working.exists(), left.exists()) == (True, False)


def test_a_full_disk_is_named(config, corpus, tmp_path):
    pytest.importorskip("resource")
    path = tmp_path / "big.txt"
    path.write_text("some text 文本 " * 5000)
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, resource.RLIM_INFINITY))\n"
    (tmp_path / "config.json").write_text(json.dumps(to_json(config(path, split=SplitConfig(by="position")))))
    done = subprocess.run(
        [sys.executable, "-c", limit + OPEN, str(tmp_path / "config.json")], capture_output=True, text=True, cwd=ROOT
    )
    assert "cannot write prepared data: File too large; name another folder" in done.stderr
    assert list(Path(config(path).cache_dir).iterdir()) == []


def test_a_kill_at_any_moment_leaves_nothing_half_made(config, corpus, tmp_path, quiet):
    rng = random.Random(0)
    path = tmp_path / "big.jsonl"
    path.write_text("".join(f'{{"text": "{i} {rng.random()} 文本"}}\n' for i in range(20_000)), "utf-8")
    cfg = config(path)
    for delay in (0.02, 0.15, 0.3, 0.45):
        process = start(cfg, tmp_path)
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    said = []
    data = open_data(cfg, log=said.append)
    assert not any("damaged" in line for line in said)
    assert data.fingerprint == open_data(config(path, cache_dir=str(tmp_path / "other")), log=quiet).fingerprint
    leftovers = list(Path(cfg.cache_dir).glob(".tmp-*"))
    for folder in leftovers:
        for file in [*folder.rglob("*"), folder]:
            os.utime(file, (0, 0))
    open_data(config(corpus), log=quiet)  # the next preparation removes old leftovers
    assert not list(Path(cfg.cache_dir).glob(".tmp-*"))


def test_two_processes_at_once_both_end_well(config, corpus, tmp_path):
    processes = [start(config(corpus), tmp_path) for _ in range(2)]
    prints = [process.communicate(timeout=100)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert prints[0] == prints[1]
    assert [p.name for p in Path(config(corpus).cache_dir).iterdir() if p.name.startswith(".")] == []


def test_the_report_and_the_ledger_account_for_every_row(config, tmp_path, quiet):
    path = tmp_path / "a.jsonl"
    texts = ["一 good row", "一 good row!", "bad \ufffd", "trailing  \nspace", *(f"row {i} 行" for i in range(30))]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + '\n{"text": 1}\n')
    data = open_data(config(path, on_bad="skip", max_bad_fraction=0.1), log=quiet)
    summary = data.summary()["sources"]["data"]
    assert summary["read"] == len(texts) + 1 == sum(summary["kept"].values()) + sum(summary["dropped"].values())
    assert summary["dropped"] == {"duplicate": 1, "mojibake": 1, "wrong type": 1}
    assert summary["changed"] == {"trailing_space": 1}
    ledger = [json.loads(line) for line in (data.prepared.folder / "ledger.jsonl").read_text("utf-8").splitlines()]
    assert [(line["line"], line.get("reason", line.get("rules"))) for line in ledger] == [
        (3, "mojibake"), (4, ["trailing_space"]), (35, "wrong type"), (2, "duplicate"),
    ]  # fmt: skip
    report = (data.prepared.folder / "report.md").read_text("utf-8")
    assert "1 mojibake" in report
    assert json.loads(json.dumps(data.summary())) == data.summary()


@pytest.mark.parametrize("module", ["show", "prepare"])
def test_the_commands_run_and_name_faults(tmp_path, module):
    (tmp_path / "mine.py").write_text(CONFIG)

    def run(*words):
        command = [sys.executable, "-m", f"data_pipeline.{module}", *words, f"--config.data.cache_dir={tmp_path / 'c'}"]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)

    done = run(f"--config={tmp_path / 'mine.py'}")
    assert done.returncode == 0, done.stderr
    assert "| json | train |" in done.stdout
    if module == "show":
        assert "segment 1" in done.stdout
        assert "[[" in done.stdout
    bad = run(f"--config={tmp_path / 'mine.py'}", "--config.data.sources.json.path=no_such_package")
    assert bad.returncode == 1
    assert bad.stderr.count("\n") == 1
    assert bad.stderr.startswith("error: config.data.sources.json.path: ")
    assert run().returncode == 2
    if module == "show":
        bad = run(f"--config={tmp_path / 'mine.py'}", "--rows=²")
        assert (bad.returncode, bad.stderr) == (2, "error: --rows: expected a whole number from 0, got '²'\n")
