"""Is a row what the chunks say, token by token, are batches what they always were, and does memory stay as it is?"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import AugmentConfig, SourceConfig
from data_pipeline.mix import hash64
from data_pipeline.rows import BATCH_DTYPES, ORIGIN_DTYPES, RowReader, read_rows
from data_pipeline.store import Shard
from data_pipeline.tasks import cut_chunks

BOS, PAD = 1, 7


def make_reader(documents, seq_len, packing, dtype, seed=0):
    rng = np.random.default_rng(seed)
    sizes = np.array([max(size, start + 1) for size, start in documents])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    starts = np.array([start for _, start in documents], np.int32)
    ids = rng.integers(10, np.iinfo(dtype).max // 3, offsets[-1]).astype(dtype)
    keys = rng.integers(0, 2**63, len(sizes)).astype(np.uint64)
    chunks = cut_chunks(offsets, starts, seq_len, add_bos=True, learn_prompt=False)
    return RowReader(Shard(ids, offsets, starts, keys), chunks, seq_len, packing, BOS, PAD)


def read_by_hand(reader, rows, epoch_keys):
    """The same one token at a time."""
    dtypes = BATCH_DTYPES | ORIGIN_DTYPES
    batch = {name: np.zeros((len(rows), reader.seq_len), dtype) for name, dtype in dtypes.items()}
    batch["tokens"][:] = batch["targets"][:] = PAD
    shard, chunks, packed = reader.shard, reader.chunks, reader.rows
    for i, row in enumerate(rows):
        at = 0
        here = packed.order[packed.first[row] : packed.first[row + 1]] if row >= 0 else ()
        for segment, c in enumerate(here, 1):
            for position in range(chunks.length[c]):
                place = chunks.start[c] + position
                cut = position == 0 and chunks.put_bos[c]
                batch["tokens"][i, at] = BOS if cut else shard.ids[place]
                batch["targets"][i, at] = shard.ids[place + 1]
                batch["segments"][i, at] = segment
                batch["positions"][i, at] = position
                batch["weights"][i, at] = position >= chunks.learn_from[c]
                batch["keys"][i, at] = hash64(shard.keys[chunks.document[c], None] ^ epoch_keys[i])[0]
                batch["places"][i, at] = place - shard.offsets[chunks.document[c]]
                at += 1
    return batch


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(-1, 20)), min_size=1, max_size=20),
    st.integers(2, 24), st.sampled_from(["best_fit", "none"]), st.sampled_from(["<u2", "<u4", "<i4"]), st.data(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_rows_are_what_the_chunks_say(documents, seq_len, packing, dtype, data):
    reader = make_reader([(2, -1), *documents], seq_len, packing, dtype)
    rows = np.array(data.draw(st.lists(st.integers(-1, len(reader) - 1), min_size=1, max_size=9)))
    epoch_keys = hash64(np.arange(len(rows), dtype=np.uint64))
    expected = read_by_hand(reader, rows, epoch_keys)
    assert same(reader.read(rows, epoch_keys), expected)
    assert same(reader.read(rows), {name: expected[name] for name in BATCH_DTYPES})


def test_rows_of_several_sources_keep_their_places():
    readers = [make_reader([(30, -1)] * (3 + n), 8, "best_fit", "<u2", seed=n) for n in range(3)]
    rng = np.random.default_rng(0)
    source = rng.integers(0, 3, 40)
    row = np.array([rng.integers(len(readers[n])) for n in source])
    keys = hash64(np.arange(40, dtype=np.uint64))
    batch = read_rows(readers, source, row, keys)
    single = [readers[n].read(row[i : i + 1], keys[i : i + 1]) for i, n in enumerate(source)]
    assert same(batch, {name: np.concatenate([one[name] for one in single]) for name in batch})


def take(data, start, rows, count):
    batches = data.train_batches(start, rows)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


# Golden: another value here changes the batches of every run.
GOLDEN = {
    "packed": ({}, "175ec33491dba2c0"),
    "one a row": ({"packing": "none"}, "10de8b8bb7a834b4"),
    "mixture": ({"weights": (3.0, 1.0)}, "c75ede697f2861b7"),
    "augmented": ({"augment": AugmentConfig(token_dropout=0.1, span_mask=0.2, span_length=4)}, "b87a933ac07199cf"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_batches_are_what_they_always_were(opened, corpus, pairs, name):
    changes, expected = GOLDEN[name]
    weights = changes.get("weights", (0.0, 0.0))
    sources = {n: SourceConfig(path=str(p), weight=w) for n, p, w in zip("ab", (corpus, pairs), weights)}
    changes = {key: value for key, value in changes.items() if key != "weights"}
    data = opened(sources=sources, min_completion_kept=0.0, add_bos=True, **changes)
    digest = hashlib.sha256()
    for batch in [*take(data, 700, (0, 8), 4), *take(data, 3, (2, 6), 2), *data.eval_batches("validation", 8, (0, 8))]:
        for key in BATCH_DTYPES:
            assert batch[key].dtype == BATCH_DTYPES[key]
            digest.update(batch[key].tobytes())
    assert digest.hexdigest()[:16] == expected


@pytest.mark.parametrize("weights", [(0.0, 0.0), (3.0, 1.0)])
def test_blocks_of_located_rows_leave_no_seam(monkeypatch, opened, corpus, pairs, weights):
    sources = {n: SourceConfig(path=str(p), weight=w) for n, p, w in zip("ab", (corpus, pairs), weights)}
    data = opened(sources=sources, min_completion_kept=0.0)
    monkeypatch.setattr("data_pipeline.prepared_batches.LOCATED", 1)  # each step by itself
    expected = take(data, 0, (0, 8), 12)
    for located, start, rows in ((24, 0, (0, 8)), (40, 4, (0, 8)), (7, 2, (6, 8)), (4096, 1, (3, 4))):
        monkeypatch.setattr("data_pipeline.prepared_batches.LOCATED", located)
        for step, batch in enumerate(take(data, start, rows, 12 - start), start):
            assert same(batch, {name: array[rows[0] : rows[1]] for name, array in expected[step].items()})


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which Linux has")
@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(token_dropout=0.1, span_mask=0.1)])
def test_memory_does_not_grow_while_batches_are_read(opened, corpus, augment):
    def own_megabytes():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

    batches = opened(corpus, seq_len=1024, batch_size=10, augment=augment).train_batches(0, (0, 10))
    for _ in range(100):
        next(batches)
    before = own_megabytes()
    for _ in range(400):
        next(batches)
    grown = own_megabytes() - before
    batches.close()
    assert grown < 20  # one batch kept in ten would be 8, each one 80
