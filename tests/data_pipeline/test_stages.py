"""Does preparation give the same bytes for any number of processes, after any kill, and refuse what it must not touch?"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import SourceConfig, SplitConfig, TokenizerConfig
from data_pipeline.prepare import build, read
from data_pipeline.prepare.build import prepare_to
from data_pipeline.prepare.stages import Context
from data_pipeline.records import Bad, Record, pack_record
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.sources import open_sources
from data_pipeline.store import open_prepared
from data_pipeline.train_tokenizer import train_tokenizer
from tests.data_pipeline.conftest import make_text
from tests.data_pipeline.work_folder import count_done

PART = 6000  # bytes: about ten parts


@pytest.fixture
def rows(tmp_path):
    """JSON lines with repeats, dirt and bad rows, in two files."""
    rng = random.Random(5)
    texts = [f"{i} {make_text(rng, rng.randint(1, 60))}" for i in range(220)]
    texts[7], texts[150], texts[199] = texts[3], texts[20] + "!", texts[100] + "  \n"
    texts[60] = "bad \ufffd"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    lines[90] = '{"text": 1}'
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "a.jsonl").write_text("\n".join(lines[:140]), "utf-8")
    (folder / "b.jsonl").write_text("\n\n".join(lines[140:]) + "\n", "utf-8")
    return folder


@pytest.fixture
def make(config, rows, monkeypatch):
    """Returns a function that prepares `rows` into a folder: {file: sha256} of all but the times in it."""
    monkeypatch.setattr(build, "PART_BYTES", PART)

    def make(out, workers=1, log=lambda text: None, **changes):
        made = config(rows, on_bad="skip", max_bad_fraction=0.1, **changes)
        return hashes(prepare_to(out, made, workers, log).folder)

    return make


def hashes(folder):
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    for name in ("manifest.json", "report.json"):
        values = json.loads(found[name])
        values = {key: value for key, value in values.items() if key not in ("seconds", "sha256", "files")}
        found[name] = json.dumps(values).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


@pytest.mark.parametrize("block", [1, 7, 8, 9, 100, 1 << 18])
def test_packed_documents_come_back_in_blocks_of_any_size(config, rows, tmp_path, monkeypatch, block):
    monkeypatch.setattr(read, "BLOCK", block)
    context = Context(tmp_path, config=config(rows))
    records = [Record(text) for text in ("", "a", "一二", "x" * 5000, "", "end " * 9)] + [Record("ask", "answer")]
    (tmp_path / "read").mkdir()
    path = context.path("read", 3, "docs")
    packed = [pack_record(record) for record in records]
    path.write_bytes(b"".join(read.HEAD.pack(len(one)) + one for one in packed))
    wanted = np.array([1, 0, 1, 1, 1, 0, 1], np.uint8)
    found = list(read.kept_records(context, 3, (0, None), wanted))
    assert found == [(i, record) for i, record in enumerate(records) if wanted[i]]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"00003.docs: holds 6 documents, not 7; delete its folder"):
        list(read.kept_records(context, 3, (0, None), wanted))


def test_the_bytes_do_not_depend_on_the_processes(make, tmp_path):
    one = make(tmp_path / "one")
    assert make(tmp_path / "three", 3) == one
    assert not list(tmp_path.glob(".*"))  # nothing of the work is left
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text("utf-8"))
    assert manifest["documents_in"] == 220
    assert manifest["dropped"] == {"duplicate": 3, "mojibake": 1, "wrong type": 1}
    assert manifest["documents_out"] == 215 == sum(split["documents"] for split in manifest["splits"].values())
    assert manifest["edited"] == {"trailing_space": 1}
    assert manifest["bytes_in"] == sum(p.stat().st_size for p in (tmp_path / "rows").iterdir())
    ledger = [json.loads(line) for line in (tmp_path / "one" / "ledger.jsonl").read_text("utf-8").splitlines()]
    assert [(line["file"][-7:], line["line"]) for line in ledger if line.get("reason") == "duplicate"] == [
        ("a.jsonl", 8), ("b.jsonl", 21), ("b.jsonl", 119),
    ]  # fmt: skip
    assert all(len(line["id"]) == 32 for line in ledger if line.get("reason") != "wrong type")


def test_parts_hold_what_the_whole_holds(config, tmp_path):
    rng = random.Random(1)
    lines = [json.dumps({"text": make_text(rng, rng.randint(1, 40))}).encode() for _ in range(60)]
    lines[10], lines[20], lines[30] = b"", b'{"text": "' + b"x" * 9000 + b'"}', b'{"prompt": "a", "completion": "b"}'
    lines[40] += b"\r"
    path = tmp_path / "a.jsonl"
    for content in (b"\n".join(lines), b"\n".join(lines) + b"\n\n\n", b'{"text": "one"}'):
        path.write_bytes(content)
        (source,) = open_sources(config(path, max_line_bytes=4000), print)
        whole = list(source.read())
        assert any(isinstance(found.record, Bad) for found in whole) == (len(whole) > 1)
        for goal in (1, 700, 5000, 10**6):
            parts = source.parts(goal)
            assert [found for part in parts for found in source.read(part)] == whole
            assert sum(part.size for part in parts) == len(content)
            assert len(parts) > 5 or goal > 700 or len(whole) == 1


def test_many_small_files_share_a_part(config, tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02d}.txt").write_text(f"document {i} 好\n" * 3)
    (source,) = open_sources(config(tmp_path), print)
    parts = source.parts(200)
    assert 5 < len(parts) < 30
    assert [found for part in parts for found in source.read(part)] == list(source.read())
    first = SourceConfig(path=str(tmp_path), max_documents=3)
    (source,) = open_sources(config("", sources={"s": first}), print)
    assert len(source.parts(200)) == 1  # who reads only so many documents begins at the beginning


def test_the_first_bad_row_is_named_whoever_meets_one_first(config, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PART_BYTES", PART)
    with open(rows / "b.jsonl", "a") as file:
        file.write("not JSON\n")
    for workers in (1, 3):
        with pytest.raises(UserError, match=r"a\.jsonl:91: ") as caught:
            prepare_to(tmp_path / "out", config(rows), workers, print)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_else_is_in_the_folder_is_not_touched(make, tmp_path):
    out, said = tmp_path / "out", []
    one = make(out)
    assert make(out, log=said.append) == one
    assert said[-1].endswith("is prepared already")
    with pytest.raises(UserError, match="made of other sources"):
        make(out, split=SplitConfig(salt="x"))
    with open(out / "ledger.jsonl", "a") as file:
        file.write(" ")
    with pytest.raises(UserError, match=r"ledger\.jsonl has"):
        make(out)
    other = tmp_path / "notes"
    other.mkdir()
    (other / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        make(other)
    with pytest.raises(UserError, match="something else"):
        make(other / "a.txt")
    assert (other / "a.txt").read_text() == "mine"


def test_a_run_reads_the_folder_as_what_it_would_prepare_itself(make, config, rows, tmp_path, quiet):
    out = tmp_path / "out"
    make(out)
    itself = open_data(config(rows, on_bad="skip", max_bad_fraction=0.1), log=quiet)
    given = open_data(config("", prepared=str(out)), log=quiet)
    assert given.fingerprint == itself.fingerprint
    one, two = (data.train_batches(3, (0, data.config.batch_size)) for data in (itself, given))
    first, second = next(one), next(two)
    assert all((first[name] == second[name]).all() for name in first)
    one.close()
    two.close()
    assert given.summary()["sources"]["data"] == itself.summary()["sources"]["data"]
    for changes, words in [
        ({"add_bos": True}, "add_bos=True, but .*out was prepared with False"),
        ({"split": SplitConfig(by="position")}, "split.by='position', but"),
        ({"tokenizer": TokenizerConfig(kind="auto", path=str(tmp_path / "other"))}, "is another tokenizer"),
        ({"path": str(rows)}, "stands in place of path"),
    ]:
        if "tokenizer" in changes:
            train_tokenizer(TokenizerConfig(vocab_size=304), ["a text 好 " * 50, "other words"]).save(
                tmp_path / "other"
            )
        with pytest.raises(ConfigError, match=words):
            open_data(config(**{"path": "", "prepared": str(out), **changes}), log=quiet)
    (out / "report.md").unlink()
    with pytest.raises(UserError, match=r"prepared=.*report\.md is missing"):
        open_data(config("", prepared=str(out)), log=quiet)


SCRIPT = """
import sys, pickle
from pathlib import Path
from data_pipeline.prepare import build
build.PART_BYTES = {part}
if __name__ == "__main__":
    config = pickle.loads(Path(sys.argv[1]).read_bytes())
    build.prepare_to(Path(sys.argv[2]), config, int(sys.argv[3]), print)
"""


@pytest.mark.parametrize(("workers", "stops"), [(1, [1, 12]), (2, [4, 16])])  # parts done when it is killed
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(make, config, rows, tmp_path, workers, stops):
    import pickle

    expected = make(tmp_path / "expected")
    made = config(rows, on_bad="skip", max_bad_fraction=0.1)
    (tmp_path / "config").write_bytes(pickle.dumps(made))
    (tmp_path / "run.py").write_text(SCRIPT.format(part=PART))
    command = [sys.executable, "run.py", "config", "out", str(workers)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    killed = 0
    for stop in stops:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
        while process.poll() is None and count_done(tmp_path) < stop:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        assert killed == 0 or not (tmp_path / "out").exists() or process.returncode == 0
    assert killed
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".out.*/work/*/*.done")}
    assert done
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert hashes(tmp_path / "out") == expected
    assert not isinstance(open_prepared(tmp_path / "out"), str)


def test_two_at_once_do_not_write_the_same_folder(make, tmp_path, monkeypatch):
    def inside(*arguments):
        with pytest.raises(UserError, match="another process prepares"):
            make(tmp_path / "out")
        raise UserError("enough")

    monkeypatch.setattr(build, "run_stages", inside)
    with pytest.raises(UserError, match="enough"):
        make(tmp_path / "out")


def test_a_process_that_dies_is_named(make, config, rows, tmp_path, monkeypatch):
    (tmp_path / "config").write_bytes(
        __import__("pickle").dumps(replace(config(rows), on_bad="skip", max_bad_fraction=0.1))
    )
    script = SCRIPT.format(part=PART).replace("from data_pipeline.prepare import build", KILLER)
    (tmp_path / "run.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    run = subprocess.run(
        [sys.executable, "run.py", "config", "out", "2"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode
    assert "a worker process died" in run.stderr
    assert not (tmp_path / "out").exists()


KILLER = """
import os
from data_pipeline.prepare import build
import data_pipeline.prepare.read as read
if __name__ != "__main__":
    read.text_key = lambda record: os.kill(os.getpid(), 9)
"""
