"""Do the baselines learn from words and from Chinese characters, the same each time, and survive poor data?"""

import sys

import numpy as np
import pytest

from lm.baselines import baselines, is_han, tfidf_logits
from lm.config import UserError

pytest.importorskip("sklearn")
ENGLISH = (
    ["where is my parcel {}", "my parcel {} has not come", "track order {}"],
    ["what is my balance {}", "how much money {} have i", "balance of account {}"],
)
CHINESE = (["我的包裹{}在哪里", "包裹{}还没有到", "查询{}快递"], ["我的余额{}是多少", "账户里{}还有多少钱", "查{}余额"])
FILLERS = ["please", "now", "today", "again", "thanks", "hello", "quick", "ok"]
HAN_FILLERS = list("请今再快好您吧啊")


def make(forms, fillers, times):
    rows = [(form.format(filler), c) for c, group in enumerate(forms) for form in group for filler in fillers] * times
    texts, labels = zip(*rows)
    return list(texts), np.array(labels)


@pytest.mark.parametrize(("forms", "fillers"), [(ENGLISH, FILLERS), (CHINESE, HAN_FILLERS)], ids=["english", "chinese"])
def test_tfidf_learns_what_the_majority_does_not_know(forms, fillers):
    texts, labels = make(forms, fillers[:4], 2)
    unseen, truth = make(forms, fillers[4:], 1)
    texts, labels = [*texts, *texts[: len(texts) // 4]], np.append(labels, labels[: len(texts) // 4])
    found = baselines(texts, labels, unseen, truth, ["parcel", "balance"])
    assert found["tfidf"]["accuracy"] == 1
    assert found["majority"]["accuracy"] == 0.5
    assert found["majority"]["auroc"] == 0.5
    assert found["majority"]["per_class"][0]["predicted"] == len(unseen)
    again = baselines(texts, labels, unseen, truth, ["parcel", "balance"])
    assert again == found


def test_han_is_told_from_words():
    assert is_han(["我的包裹 order 在哪里"])
    assert not is_han(["Where is 包裹?", "a long text in another script"])
    assert not is_han(["123 !"])


def test_a_class_without_training_rows_keeps_its_place_and_is_never_said():
    texts, labels = make(ENGLISH, FILLERS, 1)
    labels = np.where(labels == 1, 3, 1)
    logits = tfidf_logits(texts, labels, texts, 4)
    assert logits.shape == (len(texts), 4)
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits.argmax(1), labels)
    report = baselines(texts, labels, texts, labels, list("abcd"))["tfidf"]
    assert (report["accuracy"], report["auroc"], report["auroc_left_out"]) == (1, 1, ["a", "c"])


def test_poor_data_give_numbers():
    alone = baselines(["a b", "b c"], np.zeros(2, int), ["a", "d"], np.array([0, 1]), ["x", "y"])
    assert alone["tfidf"]["accuracy"] == 0.5
    signs = baselines(["!!", "??", " "], np.array([0, 1, 1]), ["!", ""], np.array([1, 0]), ["x", "y"])
    assert signs["tfidf"]["rows"] == 2
    blank = baselines(["", " "], np.array([0, 1]), [""], np.array([1]), ["x", "y"])
    assert blank["majority"]["auroc"] is None


@pytest.mark.parametrize(
    ("train", "labels", "words"),
    [
        ([], [], "training rows of a baseline: 0 texts"),
        (["a"], [0, 1], "1 texts and 2 labels"),
        (["a", "b"], [0, 2], "training row 1: label 2 is none of the classes 0 .. 1"),
    ],
)
def test_bad_rows_are_refused(train, labels, words):
    with pytest.raises(UserError, match=words):
        baselines(train, np.array(labels, int), ["a"], np.array([0]), ["x", "y"])


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UserError, match=r"pip install 'lm\[adapt\]'"):
        tfidf_logits(["a", "b"], np.array([0, 1]), ["a"], 2)
