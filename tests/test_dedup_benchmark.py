"""Does benchmarks/dedup.py say how to call it, and what it should find?"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*flags):
    command = [sys.executable, "benchmarks/dedup.py", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


def test_help_and_wrong_flags():
    done = run("--help")
    assert "python benchmarks/dedup.py [--out=FILE.jsonl] [--quick]" in done.stdout
    done = run("--documents=many")
    assert done.returncode
    assert "--documents" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_quick_finds_all_near_duplicates_and_no_other(tmp_path):
    done = run("--quick", f"--out={tmp_path / 'rows.jsonl'}")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    [accuracy] = [row for row in rows if row["kind"] == "accuracy"]
    assert accuracy["recall_080"] >= 0.95
    assert accuracy["recall_070"] >= 0.99
    assert accuracy["precision"] >= 0.98
    assert accuracy["left_080"] == 0
    assert accuracy["leaks_by_cluster"] == 0 < accuracy["leaks_by_row"]
    assert accuracy["dropped_080_to_kept"] == 1
    small, large = [row for row in rows if row["kind"] == "whole"]
    assert large["rss_mb"] < 1.1 * small["rss_mb"]
    for row in (small, large):
        assert row["dropped_exact"] == row["documents"] // 10
        assert row["dropped_near"] == row["documents"] // 10
