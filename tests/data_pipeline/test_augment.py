"""Is augmentation a function of (seed, epoch, document, place), at the rate asked for, on training inputs only?"""

from collections import Counter, defaultdict

import numpy as np
import pytest

from data_pipeline.augment.mask import augment_batch
from data_pipeline.config import AugmentConfig, SplitConfig
from data_pipeline.mix import hash64
from data_pipeline.quiet_tf import import_tf

BOTH = AugmentConfig(token_dropout=0.2, span_mask=0.2)


def take(data, start, rows, count):
    batches = data.train_batches(start, rows)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def run(config, n_documents=64, length=16384):
    tf = import_tf()
    keys = hash64(np.arange(n_documents, dtype=np.uint64))[:, None] * np.ones((1, length), np.uint64)
    batch = {
        "tokens": np.full((n_documents, length), 9, np.int32), "targets": np.full((n_documents, length), 9, np.int32),
        "segments": np.ones((n_documents, length), np.int32), "positions": np.zeros((n_documents, length), np.int32),
        "weights": np.ones((n_documents, length), np.float32), "keys": keys,
        "places": np.broadcast_to(np.arange(length), (n_documents, length)),
    }  # fmt: skip
    out = augment_batch({k: tf.constant(v) for k, v in batch.items()}, config, bos_id=1, mask_id=4)
    assert (out["targets"].numpy() == 9).all()
    return out["tokens"].numpy() == 4


@pytest.mark.parametrize(
    ("config", "share"),
    [
        (AugmentConfig(token_dropout=0.1), 0.1),
        (AugmentConfig(span_mask=0.15), 0.15),
        (AugmentConfig(span_mask=0.3, span_length=7), 0.3),
        (BOTH, 0.36),
    ],
)
def test_the_share_is_what_was_asked_for_at_every_place(config, share):
    masked = run(config)
    assert abs(masked.mean() - share) < 0.003
    head = run(config, n_documents=20_000, length=8)  # a document's first tokens too
    assert np.abs(head.mean(0) - share).max() < 0.02


def test_spans_have_their_length():
    masked = run(AugmentConfig(span_mask=0.02, span_length=5))
    edges = np.diff(np.pad(masked, ((0, 0), (1, 1))).astype(int), axis=1)
    lengths = np.flatnonzero((edges == -1).reshape(-1)) - np.flatnonzero((edges == 1).reshape(-1))
    inner = lengths[(lengths > 0)]
    assert np.median(inner) == 5
    assert (inner < 5).mean() < 0.01  # only at the edges of a document


@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("length", [1, 2, 5, 70])
def test_spans_are_what_the_draws_say_one_place_at_a_time(opened, corpus, packing, length):
    """A token is masked if a span starts at it or at one of the length - 1 places of its document before it."""
    tf = import_tf()
    reader = opened(corpus, packing=packing).readers["train"][0][1]
    batch = reader.read(np.arange(len(reader)), hash64(np.arange(len(reader), dtype=np.uint64)))
    out = augment_batch({k: tf.constant(v) for k, v in batch.items()}, AugmentConfig(0.0, 0.2, length), -1, 4)
    limit = np.uint64((1.0 - 0.8 ** (1.0 / length)) * 2**64)
    expected = np.zeros(batch["tokens"].shape, bool)
    for back in range(length):
        place = batch["places"].astype(np.uint64) - np.uint64(back)
        expected |= hash64(batch["keys"] ^ hash64(place ^ hash64(np.full(1, 2, np.uint64)))) < limit
    expected &= batch["segments"] > 0
    assert expected.any()
    assert np.array_equal(out["tokens"].numpy(), np.where(expected, 4, batch["tokens"]))


def masked_places(batches, data):
    """Counts (targets, which inputs are masked) of every segment."""
    seen = Counter()
    for batch in batches:
        for row in range(len(batch["tokens"])):
            for number in range(1, batch["segments"][row].max() + 1):
                inside = np.flatnonzero(batch["segments"][row] == number)
                masked = batch["tokens"][row, inside] == data.tokenizer.special.mask
                seen[batch["targets"][row, inside].tobytes(), masked.tobytes()] += 1
    return seen


def test_the_same_tokens_are_masked_in_any_packing_on_any_hosts(opened, corpus):
    datas = [opened(corpus, augment=BOTH, packing=p, batch_size=1) for p in ("best_fit", "none")]
    maps = [masked_places(take(d, 0, (0, 1), d.summary()["rows"]["train"]), d) for d in datas]
    assert maps[0] == maps[1]
    data = opened(corpus, augment=BOTH)
    whole, part = take(data, 3, (0, 8), 1)[0], take(data, 3, (6, 8), 1)[0]
    assert all(np.array_equal(whole[key][6:], part[key]) for key in whole)


def test_threads_do_not_matter():
    tf = import_tf()
    n, length = 32, 256
    zeros = np.zeros((n, 4, length), np.int32)
    arrays = {
        "tokens": zeros,
        "targets": zeros,
        "segments": zeros + 1,
        "positions": zeros,
        "weights": zeros.astype(np.float32),
    }
    arrays["keys"] = hash64(np.arange(n * 4, dtype=np.uint64)).reshape(n, 4, 1) * np.ones((1, 1, length), np.uint64)
    arrays["places"] = np.broadcast_to(np.arange(length), (n, 4, length))
    dataset = tf.data.Dataset.from_tensor_slices(arrays)
    results = [
        np.stack(
            [
                b["tokens"]
                for b in dataset.map(lambda b: augment_batch(b, BOTH, 1, 4), num_parallel_calls=k).as_numpy_iterator()
            ]
        )
        for k in (1, 8)
    ]
    assert np.array_equal(*results)
    assert (results[0] == 4).any()


def test_epochs_differ_and_targets_bos_and_padding_are_never_touched(opened, corpus):
    data, plain = (opened(corpus, augment=a, add_bos=True, batch_size=4) for a in (BOTH, AugmentConfig()))
    rows = data.summary()["rows"]["train"]
    epochs = defaultdict(set)
    for step, (a, b) in enumerate(zip(take(data, 0, (0, 4), rows), take(plain, 0, (0, 4), rows))):
        for key in ("targets", "segments", "positions", "weights"):
            assert np.array_equal(a[key], b[key])
        changed = a["tokens"] != b["tokens"]
        special = data.tokenizer.special
        assert (a["tokens"][changed] == special.mask).all()
        assert (b["segments"][changed] > 0).all()
        assert (b["tokens"][changed] != special.bos).all()
        for row in range(4):
            epochs[step * 4 // rows].add((b["targets"][row].tobytes(), changed[row].tobytes()))
    assert len(epochs[0] & epochs[1]) < rows / 4


def test_evaluation_is_never_augmented(opened, corpus):
    split = SplitConfig(validation=0.3)
    a, b = (opened(corpus, augment=augment, split=split) for augment in (BOTH, AugmentConfig()))
    for one, two in zip(a.eval_batches("validation", 8, (0, 8)), b.eval_batches("validation", 8, (0, 8))):
        assert np.array_equal(one["tokens"], two["tokens"])
    assert not any((batch["tokens"] == a.tokenizer.special.mask).any() for batch in take(b, 0, (0, 8), 5))
