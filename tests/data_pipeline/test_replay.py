"""Is the pretraining's text replayed at exactly its share, beside prompts with completions, and never evaluated?"""

import json
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.batch import open_data
from data_pipeline.check import check_data_config
from data_pipeline.config import DataConfig, SourceConfig, SplitConfig, TokenizerConfig
from data_pipeline.tokenizer import ByteTokenizer


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    with open(folder / "task.jsonl", "w") as file:
        for i in range(200):
            file.write(json.dumps({"prompt": f"ask {i} ", "completion": f"AAAA {i}"}) + "\n")
    with open(folder / "old.jsonl", "w") as file:
        for i in range(100):
            file.write(json.dumps({"text": f"{i} " + "z" * 40}) + "\n")
    sources = {
        "task": SourceConfig(path=str(folder / "task.jsonl")),
        "old": SourceConfig(path=str(folder / "old.jsonl"), replay=True),
    }
    split = SplitConfig(validation=0.2, test=0.1)
    return DataConfig(
        sources=sources, split=split, tokenizer=TokenizerConfig(kind="bytes"), seq_len=64, batch_size=10, replay=0.3,
        cache_dir=str(folder / "cache"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(config):
    return open_data(config, log=lambda text: None)


def is_old(batch):
    return (batch["tokens"] == ByteTokenizer().encode("z")[0]).any(1)


def test_the_share_is_exact_and_old_text_is_learned_whole(data):
    batches = data.train_batches(0, (0, 10))
    taken = [next(batches) for _ in range(100)]
    batches.close()
    old = np.concatenate([is_old(batch) for batch in taken])
    assert old.sum() == 300
    weights = np.concatenate([batch["weights"] for batch in taken])
    inside = np.concatenate([batch["segments"] > 0 for batch in taken])
    assert weights[old].sum() / inside[old].sum() > 0.9  # plain text: every place
    assert weights[~old].sum() / inside[~old].sum() < 0.7  # completions alone


def test_validation_and_test_hold_the_task_alone_and_old_documents_stay_held_out(data, config):
    for split in ("validation", "test"):
        rows = [row for batch in data.eval_batches(split, 4, (0, 4)) for row in is_old(batch)]
        assert rows
        assert not any(rows)
    parts = data.summary()["sources"]["old"]["splits"]
    assert parts["train"]["documents"] < 90
    assert parts["validation"]["documents"] > 5


def test_what_is_prepared_does_not_depend_on_it(data, config):
    """And a run without the key has the fingerprint that it always had."""
    plain = {name: replace(source, replay=False) for name, source in config.sources.items()}
    other = open_data(replace(config, sources=plain, replay=0.0), log=lambda text: None)
    assert other.prepared.folder == data.prepared.folder
    assert other.fingerprint != data.fingerprint
    assert len(other.readers["validation"]) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"replay": 1.0}, "replay: must be in [0, 1), got 1"),
        ({"replay": 0.2, "sources": {"a": SourceConfig(path="a")}}, "needs training sources with replay=True"),
        ({"replay": 0.2, "sources": {"a": SourceConfig(path="a", replay=True)}}, "and some without"),
        ({"replay": 0.2, "temperature": 2.0}, "each decides the shares"),
    ],
)
def test_impossible_keys_are_named(config, changes, words):
    problems = check_data_config(replace(config, **changes))
    assert any(words in problem for problem in problems), problems
