"""Do the benchmark programs run, without TensorFlow too, and do their sides do the same work?"""

import doctest
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import cases, scaling
from benchmarks.turns import Side, SideFailed, alternate, median_row
from data_pipeline.schema import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = (
    "step_time", "freeze", "finetune", "compile_time", "scaling", "input", "clean", "shards", "sweep", "imbalance", "mup",
    "forgetting", "adapting", "kernels", "planted",
)  # fmt: skip
needs_torch = pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")), reason="needs the peers"
)


def run(program, *flags, blocked=None):
    """Runs a benchmark in a fresh process; `blocked` is a folder whose packages cannot be imported."""
    path = os.pathsep.join(filter(None, (str(blocked or ""), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": ""}
    command = [sys.executable, f"benchmarks/{program}.py", *flags]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture
def no_tensorflow(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow/__init__.py").write_text("raise ImportError('no TensorFlow here')")
    return tmp_path


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_shows_usage_and_an_example(program):
    done = run(program, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{program}.py [--out=FILE.jsonl] [--quick]" in done.stdout
    assert f"example: python benchmarks/{program}.py" in done.stdout


def test_step_time_runs_without_tensorflow_and_adds_rows_to_a_file(no_tensorflow, tmp_path):
    out = tmp_path / "rows.jsonl"
    out.write_text('{"earlier": 1}\n')
    done = run("step_time", "--quick", "--sides=ours", f"--out={out}", blocked=no_tensorflow)
    assert done.returncode == 0, done.stderr
    earlier, row = map(json.loads, out.read_text().splitlines())
    assert earlier == {"earlier": 1}
    assert row["case"] == "2x64/32x4"
    assert row["seconds"] > 0
    assert row["start_seconds"] > row["seconds"]
    assert row["tokens_per_sec"] == pytest.approx(32 * 4 / row["seconds"])
    assert f"| 2x64/32x4 | ours | {row['seconds'] * 1e3:,.1f} |" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "flags", "rows"),
    [
        ("freeze", ("--sides=ours",), 4),
        ("compile_time", (), 3),
        ("scaling", ("--devices=1,2",), 8),
        ("finetune", ("--sides=ours",), 2),
        ("sweep", (), 3),
        ("imbalance", (), 2),
        ("mup", (), 3),
        ("forgetting", ("--runs={}",), 5),
        ("adapting", (), 2),
        ("kernels", (), 8),
    ],
)
def test_the_others_run_without_tensorflow(program, flags, rows, no_tensorflow, tmp_path):
    out = tmp_path / "rows.jsonl"
    flags = [flag.format(tmp_path / "runs") for flag in flags]
    done = run(program, "--quick", *flags, f"--out={out}", blocked=no_tensorflow)
    assert done.returncode == 0, done.stderr
    assert len(out.read_text().splitlines()) == rows


@pytest.mark.slow
def test_clean_runs_on_texts_of_its_own_and_on_a_folder(tmp_path):
    out = tmp_path / "rows.jsonl"
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("It is the text of a file, and it is fine.\n", "utf-8")
    (tmp_path / "texts/b.jsonl").write_text('{"text": "好。"}\n', "utf-8")
    for flags, names in (((), {"english", "chinese"}), ((f"--texts={tmp_path}/texts",), {"texts"})):
        done = run("clean", "--quick", *flags, f"--out={out}")
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        out.unlink()
        ours = [row for row in rows if row["side"] == "ours"]
        assert {row["texts"] for row in ours} == names
        assert {"quality", "pages", "default", "boilerplate"} <= {row["rule"] for row in ours}
        assert all(row["mb_per_core_second"] > 0 for row in rows)
    assert [row["hit"] for row in ours if row["rule"] == "quality"] == [0.5]


@pytest.mark.slow
def test_planted_dirt_is_counted_for_each_rule(tmp_path):
    out = tmp_path / "rows.jsonl"
    (tmp_path / "one.jsonl").write_text(
        '{"text": "He said it\'s fine, and\\nthey went to the caf\u00e9 by the sea."}\n' * 9, "utf-8"
    )
    done = run("planted", "--quick", f"--texts={tmp_path}/one.jsonl", f"--out={out}")
    assert done.returncode == 0, done.stderr
    found = {(row["rule"], row["dirt"]): row["texts"]["one"] for row in map(json.loads, out.read_text().splitlines())}
    assert found["line_ends", "CR LF, CR"] == {"planted": 9, "found": 9, "wrong": 0}
    assert found["repair_encoding", "utf-8 read as cp1252"] == {"planted": 9, "found": 9, "wrong": 0}
    assert found["repair_encoding", "gbk read as cp1252"]["planted"] == 0  # no Chinese in it
    assert all(counts["wrong"] == 0 for counts in found.values())
    assert "| boilerplate | a line | 1.000 |" in done.stdout


@pytest.mark.slow
def test_input_runs(tmp_path):
    out = tmp_path / "rows.jsonl"
    done = run("input", "--quick", "--batches=50", "--tokens=500000", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert all(json.loads(line)["tokens_per_sec"] > 0 for line in out.read_text().splitlines())


@pytest.mark.slow
def test_shards_hold_the_same_documents_in_every_layout(tmp_path):
    out = tmp_path / "rows.jsonl"
    done = run("shards", "--quick", "--tokens=100000", f"--out={out}")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 6
    assert len({row["check"] for row in rows}) == 1
    assert all(row["warm_per_sec"] > 0 and row["bytes"] > 100_000 for row in rows)


@pytest.mark.slow
@needs_torch
def test_peers_do_the_same_work_and_are_measured():
    done = run("step_time", "--quick", "--sides=ours,plain,huggingface")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the losses of three steps differ from ours by") == 2
    assert "PyTorch, eager" in done.stdout
    assert "transformers" in done.stdout


def test_wrong_arguments_give_one_line():
    for program, flag, words in (
        ("step_time", "--cases=4x128", "no case '4x128'"),
        ("step_time", "--sides=mine", "no mine; there are ours"),
        ("step_time", "--cases=gpt2/2048x1", "has 1024 positions"),
        ("freeze", "--case=llama-3.2-1b/64x2", "a GPT-2"),
        ("scaling", "--devices=0", "numbers above 0"),
    ):
        done = run(program, flag)
        assert done.returncode == 2, (program, flag, done.stderr)
        assert words in done.stderr.splitlines()[-1]


def test_a_side_that_fails_says_why_in_one_line():
    with pytest.raises(SideFailed, match=r"^mine: .*no case 'nonsense'"):
        Side("mine", "ours:Steps", {"case": "nonsense"})


def test_sides_take_turns_and_rows_hold_medians():
    sides = [Side(name, "ours:Steps", {"case": "1x64/16x2"}, {"XLA_FLAGS": ""}) for name in ("a", "b")]
    try:
        alternate(sides, rounds=3, seconds=0.01)
    finally:
        for side in sides:
            side.close()
    rows = [median_row(side) for side in sides]
    assert [row["rounds"] for row in rows] == [3, 3]
    for side, row in zip(sides, rows):
        assert row["seconds"] == sorted(turn["seconds"] for turn in side.turns)[1]
        assert side.process.returncode == 0


def test_cases_stand_for_models_and_batches():
    assert doctest.testmod(cases).failed == 0
    small = cases.make_config("4x128/64x12")
    assert (small.model.heads, small.model.position, small.model.tie_embeddings) == (4, "learned", True)
    llama = cases.make_config("llama-3.2-1b/2048x4", "bfloat16", mesh={"fsdp": 2})
    assert (llama.model.layers, llama.model.scan, llama.model.dtype, llama.mesh.fsdp) == (16, True, "bfloat16", 2)
    with pytest.raises(ConfigError, match="write LAYERSxWIDTH"):
        cases.make_config("gpt5/64x4")


def test_weak_scaling_grows_rows_or_places():
    assert scaling.grow("8x512/128x4", "data", 8) == "8x512/128x32"
    assert scaling.grow("8x512/128x4", "context", 8) == "8x512/1024x4"
    assert scaling.grow("llama-3-8b/4096x2", "fsdp", 2) == "llama-3-8b/4096x4"
    assert scaling.theory("8x512/128x8", "data", 2, 100) == 4 * 2 * 100 / 2
    assert scaling.theory("8x512/128x8", "data", 1, 100) == 0
