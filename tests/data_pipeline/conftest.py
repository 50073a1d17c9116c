"""Small texts in English and Chinese, and configurations that read them."""

import dataclasses
import itertools
import json
import random

import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.prepare.build import select
from data_pipeline.prepare.encode import read_documents
from data_pipeline.prepare.read import read_arrays
from data_pipeline.prepare.stages import Context
from data_pipeline.records import Place
from data_pipeline.sources import open_sources

ENGLISH = ["the", "a", "model", "reads", "text", "and", "learns", "to", "write", "naïve"]
WORDS = [*ENGLISH, "语言", "模型", "读", "文本", "然后", "学习", "写作", "，。", "春", "夏", "秋", "冬", "😀"]


def make_text(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error:::data_pipeline")


@pytest.fixture
def quiet():
    return lambda text: None


@pytest.fixture
def scan(tmp_path):
    """Returns a function that reads a configuration's sources as preparation does: (kept documents, dropped ones); scan.places: of the kept."""
    turns = itertools.count()

    def scan(config):
        folder = tmp_path / f"scan{next(turns)}"
        folder.mkdir()
        context = Context(folder, config=config, sources=open_sources(config, print), tokenizer=None)
        tasks, _, _ = select(context, 1, print)
        kept, scan.places = [], []
        for number, task in enumerate(tasks):
            places = read_arrays(context, number, "place")["place"].tolist()
            for document in read_documents(context, number, task):
                kept.append(document)
                scan.places.append(Place(*places[document.number]))
        ledger = [path.read_text("utf-8").splitlines() for path in sorted(folder.rglob("*.ledger"))]
        lines = [json.loads(line) for lines in ledger for line in lines]
        return kept, [line for line in lines if "reason" in line]

    return scan


@pytest.fixture
def corpus(tmp_path):
    """A JSONL file of 120 documents of 1 to 60 words."""
    rng = random.Random(0)
    path = tmp_path / "corpus.jsonl"
    rows = [
        json.dumps({"text": f"{i} {make_text(rng, rng.randint(1, 60))}"}, ensure_ascii=i % 2 == 0) for i in range(120)
    ]
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


@pytest.fixture
def pairs(tmp_path):
    """A JSONL file of 80 prompts and completions."""
    rng = random.Random(1)
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"{i}：{make_text(rng, rng.randint(1, 30))}\n", "completion": make_text(rng, rng.randint(1, 12))}
        for i in range(80)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


@pytest.fixture
def config(tmp_path):
    """Returns a function that makes a small configuration with bytes as tokens."""

    def make(path="", **changes):
        base = DataConfig(
            path=str(path),
            tokenizer=TokenizerConfig(kind="bytes"),
            seq_len=64,
            batch_size=8,
            cache_dir=str(tmp_path / "cache"),
        )
        return dataclasses.replace(base, **changes)

    return make


@pytest.fixture
def opened(config, quiet):
    """Returns a function that opens the data of a small configuration."""
    return lambda path="", **changes: open_data(config(path, **changes), log=quiet)
