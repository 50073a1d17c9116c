"""Are folds what they say, is the test split the same in all, and are impossible folds refused before any training?"""

import numpy as np
import pytest

from data_pipeline.batch import open_data
from lm.config import ConfigError
from lm.sweep.folds import Folds, of_fold


def quiet(config):
    return open_data(config, log=lambda text: None)


def documents_of(data, split):
    if not data.prepared.has_shard(0, split):
        return []
    shard = data.prepared.shard(0, split)
    return sorted(tuple(shard.ids[a:b].tolist()) for a, b in zip(shard.offsets, shard.offsets[1:]))


def test_the_refit_trains_on_all_folds_and_its_test_split_is_theirs(config):
    opened = Folds(quiet)
    assert len(set(opened.check(config, 3, [8]))) == 4
    folds = [opened.data(of_fold(config, 3, fold).data) for fold in range(3)]
    whole = opened.data(of_fold(config, 3, -1).data)
    assert not whole.has_split("validation")
    held = [text for data in folds for text in documents_of(data, "validation")]
    assert sorted(held) == documents_of(whole, "train")
    assert len(set(held)) == len(held)
    for data in folds:
        assert sorted(documents_of(data, "train") + documents_of(data, "validation")) == documents_of(whole, "train")
        ours, theirs = (d.prepared.folder / "00.test.ids.npy" for d in (data, whole))
        assert ours.read_bytes() == theirs.read_bytes()
        for mine, other in zip(data.eval_batches("test", 8, (0, 8)), whole.eval_batches("test", 8, (0, 8))):
            assert all(np.array_equal(mine[key], other[key]) for key in mine)


def test_a_refit_has_nothing_to_watch(config):
    assert of_fold(config, 3, -1).train.eval_every == 0
    assert of_fold(config, 3, 1).train.eval_every == config.train.eval_every


@pytest.mark.parametrize(
    ("labels", "split", "folds", "words"),
    [
        (["a", "b"] * 2, {}, 9, "documents outside the test split"),
        (["a", "b"] * 12, {"test": 0.0}, 3, "the test split is empty"),
        (["a"] * 30 + ["b"], {"stratify": True}, 3, "one class only among its validation documents .'a'.: set"),
        (["a", "b"] * 4, {"test": 0.4}, 4, "has no validation rows"),
    ],
)
def test_folds_that_cannot_be_are_refused(make_rows_config, labels, split, folds, words):
    with pytest.raises(ConfigError, match=words):
        Folds(quiet).check(make_rows_config(labels, **split), folds, [2])


def test_a_batch_larger_than_a_fold_is_refused(make_rows_config):
    with pytest.raises(ConfigError, match=r"fold 0 of 2 has \d+ training rows, fewer than config.data.batch_size=999"):
        Folds(quiet).check(make_rows_config(["a", "b"] * 10), 2, [8, 999])
