"""Does streaming give the documents that preparation gives, and go on exactly from its saved position?"""

import gzip
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import AugmentConfig, SourceConfig, SplitConfig, TokenizerConfig
from data_pipeline.document_reader import DocumentReader, Texts
from data_pipeline.schema import ConfigError, UserError, to_json

NEXT_BATCHES = """
import json, sys
import numpy as np
from data_pipeline.batch import open_data
from data_pipeline.config import DataConfig
from data_pipeline.schema import from_mapping
config = from_mapping(DataConfig, json.load(open(sys.argv[1])))
start, rows, state, out = int(sys.argv[2]), (int(sys.argv[3]), int(sys.argv[4])), open(sys.argv[5], "rb").read(), sys.argv[6]
batches = open_data(config, log=print).train_batches(start, rows, state)
np.savez(out, **{f"{i}.{key}": value for i in range(4) for key, value in next(batches).items()})
batches.close()
"""


@pytest.fixture
def sources(tmp_path, corpus, pairs):
    """Each kind of source that can be streamed: plain, packed, CSV, package files and docstrings."""
    (tmp_path / "packed.jsonl.gz").write_bytes(
        gzip.compress(corpus.read_bytes().replace(b'"text": "', b'"text": "gz '))
    )
    (tmp_path / "rows.csv").write_text("text\n" + "".join(f'"行 {i},\n第二行"\n' for i in range(40)), "utf-8")
    return {
        "plain": SourceConfig(path=str(corpus)), "packed": SourceConfig(path=str(tmp_path / "packed.jsonl.gz")),
        "pairs": SourceConfig(path=str(pairs)), "csv": SourceConfig(path=str(tmp_path / "rows.csv")),
        "code": SourceConfig(kind="package", path="json"),
        "docs": SourceConfig(kind="package", path="json", records="docstrings"),
    }  # fmt: skip


@pytest.mark.parametrize("by", ["hash", "position"])
def test_streaming_reads_the_documents_that_preparation_keeps(opened, sources, by):
    if by == "position":
        sources = {name: sources[name] for name in ("plain", "code")}
    changes = {"sources": sources, "split": SplitConfig(by=by, validation=0.2, test=0.1), "min_completion_kept": 0.0}
    prepared, streamed = opened(**changes), opened(**changes, streaming=True)
    expected = Counter()
    for number in range(len(sources)):
        shard = prepared.prepared.shard(number, "train")
        expected.update(
            (number, prepared.tokenizer.decode(shard.ids[a:b].tolist()))
            for a, b in zip(shard.offsets, shard.offsets[1:])
        )
    got = Counter()
    for number, source in enumerate(streamed.sources):
        places, keys, sizes, _ = streamed.prepared.places(number, "train")
        reader = DocumentReader(streamed.config, [Texts(source, places, keys, sizes)], streamed.tokenizer)
        records, epochs, _ = reader.read(np.arange(len(reader.order)))
        assert not epochs.any()
        got.update((number, "".join(record.parts())) for record in records)
    assert got == expected
    for split in ("validation", "test"):
        for a, b in zip(prepared.eval_batches(split, 8, (0, 8)), streamed.eval_batches(split, 8, (0, 8))):
            assert all(np.array_equal(a[key], b[key]) for key in a)


def take(batches, count):
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("weighted", [False, True])
def test_a_new_process_goes_on_exactly(config, sources, tmp_path, quiet, weighted):
    if weighted:
        sources = {n: replace(s, weight=i + 1.0) for i, (n, s) in enumerate(sources.items())}
    augment = AugmentConfig(0.1, 0.1, window_shift=weighted, char_typo=0.05 * weighted)
    cfg = config(sources=sources, streaming=True, shuffle_documents=20, augment=augment, min_completion_kept=0.0)
    data = open_data(cfg, log=quiet)
    batches = data.train_batches(0, (2, 6))
    take(batches, 7)
    state = batches.state()
    expected = take(batches, 4)
    assert take(data.train_batches(0, (2, 6)), 11)[7]["tokens"].tolist() == expected[0]["tokens"].tolist()
    batches.close()
    (tmp_path / "config.json").write_text(json.dumps(to_json(cfg)))
    (tmp_path / "state").write_bytes(state)
    words = [tmp_path / "config.json", "7", "2", "6", tmp_path / "state", tmp_path / "out.npz"]
    done = subprocess.run(
        [sys.executable, "-c", NEXT_BATCHES, *map(str, words)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    got = np.load(tmp_path / "out.npz")
    for i in range(4):
        for key, value in expected[i].items():
            assert np.array_equal(got[f"{i}.{key}"], value), (i, key)


def test_a_position_of_other_hosts_data_or_step_is_refused(config, sources, quiet):
    base = {"sources": {"plain": sources["plain"]}, "streaming": True}
    data = open_data(config(**base), log=quiet)
    batches = data.train_batches(0, (0, 4))
    next(batches)
    state = batches.state()
    batches.close()
    for start, rows, words in ((1, (0, 8), "the hosts that it was saved on"), (2, (0, 4), "of step 1 and not 2")):
        with pytest.raises(UserError, match=words):
            data.train_batches(start, rows, state)
    with pytest.raises(UserError, match="other data or rules"):
        open_data(config(**base, seed=1), log=quiet).train_batches(1, (0, 4), state)
    with pytest.raises(UserError, match="is damaged"):
        data.train_batches(1, (0, 4), state[: len(state) // 2])
    with pytest.raises(UserError, match="holds no position"):
        data.train_batches(1, (0, 4))


def test_hosts_share_the_documents_between_them(opened, corpus):
    data = opened(corpus, streaming=True, seq_len=512, packing="none", batch_size=4, shuffle_documents=1)
    n = data.summary()["sources"]["data"]["kept"]["train"]
    seen = []
    for host in range(2):
        batches = data.train_batches(0, (2 * host, 2 * host + 2))
        rows = [tuple(row) for batch in take(batches, n // 4) for row in batch["targets"].tolist()]
        batches.close()
        assert len(set(rows)) == len(rows)
        seen.append(set(rows))
    assert not seen[0] & seen[1]


def test_streaming_needs_a_tokenizer_and_says_when_a_file_has_changed(opened, corpus):
    with pytest.raises(ConfigError, match="streaming=True needs a tokenizer that exists"):
        opened(corpus, streaming=True, tokenizer=TokenizerConfig(vocab_size=300))
    data = opened(corpus, streaming=True)
    corpus.write_bytes(corpus.read_bytes()[:200])
    with pytest.raises(UserError, match=r"changed|shorter"):
        take(data.train_batches(0, (0, 8)), 50)
