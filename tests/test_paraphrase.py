"""Does a run of ours give paraphrases of training lines, there and back, that training then uses?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.augment.lexicon import read_lexicon

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("red", "blue", "cat", "dog", "sun", "sea")
CONFIG = """
from configs import smoke
def get_config():
    c = smoke.get_config()
    c.data.path, c.data.cache_dir = {path!r}, {cache!r}
    c.data.batch_size, c.train.steps, c.train.eval_every, c.optim.peak_lr = 32, 150, 150, 1e-2
    return c
"""


def python(*words):
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_lines_go_there_and_back_and_into_training(tmp_path):
    """The task is to say two words in the other order, which a tiny model learns in a moment; twice is the line itself."""
    pairs = [(f"{a} {b} {c}", f"{c} {b} {a}") for a in WORDS for b in WORDS for c in WORDS]
    rows = [json.dumps({"prompt": f"{a}\n", "completion": b}) for a, b in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    (tmp_path / "text.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{i}\n{a}\nend {i}"}) for i, (a, _) in enumerate(pairs))
    )
    for name in ("pairs", "text"):
        values = {"path": str(tmp_path / f"{name}.jsonl"), "cache": str(tmp_path / "cache")}
        (tmp_path / f"{name}.py").write_text(CONFIG.format(**values))
    run, out = tmp_path / "run", tmp_path / "p.tsv"
    done = python("launch.py", f"--config={tmp_path}/pairs.py", f"--workdir={run}")
    assert done.returncode == 0, done.stderr
    base = (
        "examples/paraphrase.py",
        f"--config={tmp_path}/text.py",
        f"--workdir={run}",
        "--prompt={text}\n",
        "--lines=40",
    )
    done = python(*base, f"--out={out}", "--temperature=0", "--max_new_tokens=30")
    assert done.returncode == 0, done.stderr
    table = read_lexicon((str(out),), "paraphrases")
    lines = {a for a, _ in pairs}
    assert {line for line, others in table.items() if others} <= lines
    right = sum(others == (dict(pairs)[line],) for line, others in table.items())
    assert right > len(table) / 2 > 5
    back = (f"--back={run}", "--back_prompt={text}\n", f"--out={tmp_path / 'q.tsv'}", "--temperature=0")
    done = python(*base, *back, "--max_new_tokens=30")
    assert done.returncode == 0, done.stderr
    assert len(read_lines(tmp_path / "q.tsv")) < len(read_lines(out))  # there and back is mostly the line itself
    augment = (f"--config.data.augment.paraphrases={out}", "--config.data.augment.line_paraphrase=1.0")
    shown = python("-m", "data_pipeline.show", f"--config={tmp_path}/text.py", "--augmented=400", *augment)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("{+") > 10
    done = python(
        "launch.py",
        f"--config={tmp_path}/text.py",
        f"--workdir={tmp_path / 'second'}",
        "--config.train.steps=2",
        *augment,
    )
    assert done.returncode == 0, done.stderr


def read_lines(path):
    return [line for line in path.read_text("utf-8").splitlines() if "\t" in line]


@pytest.mark.parametrize(
    ("words", "message"),
    [((), "--config is needed"), (("--lines=x",), "--lines: expected a whole number"), (("--back=x",), "--back and --back_prompt go together")],
)  # fmt: skip
def test_a_wrong_flag_is_one_line(words, message):
    from data_pipeline.schema import ConfigError
    from examples.paraphrase import main

    with pytest.raises(ConfigError, match=message):
        main(list(words))
