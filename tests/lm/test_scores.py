"""Are the scores those of scikit-learn and of a definition written out, also where classes are missing and rows are few?"""

import json
import math

import numpy as np
import pytest

from lm.calibration import calibration_errors, fit_temperature, log_softmax, mean_nll
from lm.config import UserError
from lm.decisions import (
    Decision,
    confidence,
    macro_f1,
    refusal_auroc,
    tune_offsets,
    tune_refusal,
    tune_threshold,
)
from lm.score_report import format_baselines, format_report
from lm.scores import auroc, bootstrap, classification_report, count_confusion, numbers_of, rank_auroc

metrics = pytest.importorskip("sklearn.metrics")


def draw(seed, rows=40, classes=4, signal=1.0, digits=8):
    """Logits (rounded, so that they tie, where `digits` says so) and labels of a classifier that knows something."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) * 2
    logits[np.arange(rows), labels] += signal
    return np.round(logits, digits), labels


def named(classes):
    return [f"class {c}" for c in range(classes)]


@pytest.mark.parametrize("seed", range(12))
def test_as_scikit_learn_counts(seed):
    classes = 2 + seed % 4
    logits, labels = draw(seed, rows=7 + 11 * seed, classes=classes, digits=1)
    if seed % 3 == 0:
        labels = np.minimum(labels, max(classes - 2, 1))  # a class that is only predicted
    if seed % 3 == 1:
        logits[:, -1], labels = -9, np.minimum(labels, classes - 2)  # one that is neither
    report, said = classification_report(logits, labels, named(classes)), logits.argmax(1)
    columns = metrics.precision_recall_fscore_support(labels, said, labels=range(classes), zero_division=0)
    for key, column in zip(("precision", "recall", "f1", "support"), columns):
        np.testing.assert_allclose([row[key] for row in report["per_class"]], column)
    for average in ("macro", "weighted"):
        wanted = metrics.f1_score(labels, said, average=average, zero_division=0)
        assert report[f"{average}_f1"] == pytest.approx(wanted)
    assert report["accuracy"] == pytest.approx(metrics.accuracy_score(labels, said))
    np.testing.assert_array_equal(report["confusion"], metrics.confusion_matrix(labels, said, labels=range(classes)))
    assert report["nll"] == pytest.approx(metrics.log_loss(labels, np.exp(log_softmax(logits)), labels=range(classes)))


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_auroc_with_ties_is_that_of_scikit_learn(classes):
    logits, labels = draw(5, rows=60, classes=classes, digits=0)
    probs = np.exp(log_softmax(logits))
    wanted = metrics.roc_auc_score(labels, probs[:, 1] if classes == 2 else probs, multi_class="ovr")
    assert auroc(logits, labels) == (pytest.approx(wanted), [])


def test_auroc_tells_apart_what_probabilities_round_to_one():
    logits = np.array([[0.0, 40.0], [0.0, 41.0], [0.0, 42.0], [0.0, 43.0]])
    assert auroc(logits, np.array([0, 0, 1, 1]))[0] == 1
    assert rank_auroc(np.zeros(4), np.array([True, False, True, False])) == 0.5


def test_auroc_leaves_out_absent_classes_and_is_null_for_one_class():
    logits, labels = draw(1, classes=4)
    labels = labels % 3
    report = classification_report(logits, labels, named(4))
    log_probs = log_softmax(logits)
    one_by_one = [metrics.roc_auc_score(labels == c, log_probs[:, c]) for c in range(3)]
    assert report["auroc"] == pytest.approx(np.mean(one_by_one))
    assert report["auroc_left_out"] == ["class 3"]
    alone = classification_report(logits, np.zeros(len(labels), int), named(4))
    assert alone["auroc"] is None
    assert "not defined" in format_report(alone)
    assert "auroc" not in numbers_of(alone)
    assert classification_report(logits[:, :2], np.ones(len(labels), int), named(2))["auroc"] is None
    json.dumps(alone, allow_nan=False)


def test_calibration_errors_are_those_of_the_formula():
    probs = np.array([0.95, 0.95, 0.65, 0.65, 0.55])
    logits = np.stack([np.zeros(5), np.log(probs / (1 - probs))], axis=1)
    labels = np.array([1, 0, 1, 1, 0])
    gaps = {0.95: abs(0.5 - 0.95) * 2, 0.65: abs(1 - 0.65) * 2, 0.55: abs(0 - 0.55)}
    ece, mce = calibration_errors(logits, labels)
    assert ece == pytest.approx(sum(gaps.values()) / 5)
    assert mce == pytest.approx(0.55)
    # an edge belongs to the bin below; in one bin only the means count
    assert calibration_errors(logits, labels, bins=1)[0] == pytest.approx(abs(3 / 5 - 0.75))
    assert calibration_errors(np.zeros((2, 2)), np.array([0, 0]), bins=2) == (0.5, 0.5)
    assert calibration_errors(logits[:1], labels[:1])[0] == pytest.approx(0.05)  # fewer rows than bins


@pytest.mark.parametrize("scale", [0.1, 1.0, 7.0])
def test_temperature_undoes_a_scale_and_is_the_best(scale):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 2
    labels = (log_softmax(logits) + rng.gumbel(size=logits.shape)).argmax(1)  # drawn from the probabilities
    found = fit_temperature(logits * scale, labels)
    assert found == pytest.approx(scale, rel=0.08)
    best = mean_nll(logits * scale / found, labels)
    assert all(best <= mean_nll(logits * scale / (found * by), labels) for by in (0.99, 1.01, 0.5, 2, 1 / found))
    report = classification_report(logits * scale, labels, named(3), temperature=found)
    assert report["ece_after_temperature"] < 0.03
    assert report["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == labels))


@pytest.mark.parametrize("seed", range(6))
def test_temperature_is_never_worse_than_none(seed):
    logits, labels = draw(seed, rows=3 + seed, signal=-2.0 if seed % 2 else 30.0)
    found = fit_temperature(logits, labels)
    assert 0.05 - 1e-9 <= found <= 20 + 1e-9
    assert mean_nll(logits / found, labels) <= mean_nll(logits, labels)


def test_the_threshold_is_the_best_of_all():
    for seed in range(8):
        logits, labels = draw(seed, rows=5 + seed, classes=2, digits=seed % 3)
        labels[0] = 1
        p = np.exp(log_softmax(logits))[:, 1]
        for target, average in (("f1", "binary"), ("macro_f1", "macro")):
            scores = {
                t: metrics.f1_score(labels, (p > t).astype(int), average=average, zero_division=0)
                for t in (-1.0, 0.5, 1.1, *(p - 1e-9))
            }
            rule = tune_threshold(logits, labels, target)
            found, said = rule.threshold(), rule.decide(logits)
            np.testing.assert_array_equal(said, (p > found).astype(int))
            reached = metrics.f1_score(labels, said, average=average, zero_division=0)
            assert reached == pytest.approx(max(scores.values()))
            if scores[0.5] == max(scores.values()):
                assert found == 0.5


def test_a_threshold_tells_apart_what_probabilities_round_to_one():
    logits = np.array([[0.0, 50.0], [0.0, 60.0], [0.0, 61.0]])
    rule = tune_threshold(logits, np.array([0, 1, 1]))
    np.testing.assert_array_equal(rule.decide(logits), [0, 1, 1])
    assert Decision().threshold() == 0.5


def test_refusal_is_the_best_of_all_and_found_on_rare_classes_too():
    for seed in range(12):
        logits, labels = draw(seed, rows=30, classes=4, digits=1)
        labels[:3] = 3
        sure, said = confidence(logits), logits.argmax(1)
        rule = tune_refusal(logits, labels, refusal=3)
        best = max(macro_f1(labels, np.where(sure < t, 3, said), 4) for t in (0, 2, *(sure + 1e-9)))
        assert macro_f1(labels, rule.decide(logits), 4) == pytest.approx(best)
    others = np.exp(log_softmax(logits))[:, :3].max(1)
    assert refusal_auroc(logits, labels, 3) == pytest.approx(metrics.roc_auc_score(labels == 3, -others))
    assert refusal_auroc(logits, labels % 3, 3) is None
    with pytest.raises(UserError, match="no validation row is of the refusal class"):
        tune_refusal(logits, labels % 3, refusal=3)


def test_offsets_find_a_planted_shift_and_never_lose():
    logits, labels = draw(3, rows=3000, classes=5, signal=3.0)
    shifted = logits + np.array([0, -4.0, 0, 2.0, 0])
    rule = tune_offsets(shifted, labels)
    plain = macro_f1(labels, logits.argmax(1), 5)
    assert macro_f1(labels, shifted.argmax(1), 5) < plain - 0.1
    assert macro_f1(labels, rule.decide(shifted), 5) > plain - 0.005
    other, truth = draw(4, rows=3000, classes=5, signal=3.0)  # rows that it was not tuned on
    assert macro_f1(truth, rule.decide(other + np.array([0, -4.0, 0, 2.0, 0])), 5) > plain - 0.03
    for seed in range(8):
        logits, labels = draw(seed, rows=12, digits=0)
        assert macro_f1(labels, tune_offsets(logits, labels).decide(logits), 4) >= macro_f1(labels, logits.argmax(1), 4)
    assert Decision(**tune_offsets(logits, labels).to_json()) == tune_offsets(logits, labels)


def test_the_interval_is_that_of_resampled_rows():
    logits, labels = draw(2, rows=200, classes=3)
    said, rng = logits.argmax(1), np.random.default_rng(1)
    found = bootstrap(count_confusion(labels, said, 3), seed=0, resamples=1000)
    assert found == bootstrap(count_confusion(labels, said, 3), seed=0, resamples=1000)
    picks = [rng.integers(0, 200, 200) for _ in range(1000)]
    for name, score in (("accuracy", lambda a, b: np.mean(a == b)), ("macro_f1", lambda a, b: macro_f1(a, b, 3))):
        wanted = np.percentile([score(labels[rows], said[rows]) for rows in picks], [2.5, 97.5])
        np.testing.assert_allclose(found[name], wanted, atol=0.02)
    report = classification_report(logits, labels, named(3))
    assert report["accuracy_low"] < report["accuracy"] < report["accuracy_high"]


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "the split is empty"),
        (np.zeros((2, 3)), np.array([0, 3]), "row 1: label 3 is none of the classes 0 .. 2"),
        (np.zeros((2, 3)), np.array([-1, 0]), "row 0: label -1"),
        (np.array([[0, 1.0, 2], [0, math.nan, 1]]), np.array([0, 1]), "row 1: its logits hold NaN or infinity"),
        (np.array([[0, 1.0, -math.inf]]), np.array([0]), "NaN or infinity"),
        (np.zeros((2, 2)), np.array([0, 1]), r"expected logits \[N, 3\]"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "integers"),
    ],
)
def test_bad_rows_are_named(logits, labels, words):
    with pytest.raises(UserError, match=words):
        classification_report(logits, labels, named(3))


def test_decisions_change_the_counts_and_nothing_else():
    logits, labels = draw(6, classes=3)
    plain = classification_report(logits, labels, named(3))
    perfect = classification_report(logits, labels, named(3), predictions=labels)
    assert perfect["accuracy"] == perfect["macro_f1"] == 1
    assert (perfect["auroc"], perfect["ece"], perfect["nll"]) == (plain["auroc"], plain["ece"], plain["nll"])
    with pytest.raises(UserError, match="expected predictions"):
        classification_report(logits, labels, named(3), predictions=labels + 1)


def test_the_report_shows_the_worst_and_sums_the_rest():
    logits, labels = draw(7, rows=900, classes=60, signal=5.0)
    logits[:, 59], labels = -9, np.minimum(labels, 58)
    names = [f"a|{c}\n" for c in range(60)]
    report = classification_report(logits, labels, names)
    text = format_report(report)
    table = [line for line in text.splitlines() if line.startswith("| a\\|") and line.count("|") == 8]
    shown = [float(line.split("|")[5]) for line in table]
    assert len(shown) == 29
    assert shown == sorted(shown)
    rest = next(line for line in text.splitlines() if "the other 30: means, sums" in line)
    seen = sum(int(line.split("|")[6].replace(",", "")) for line in table)
    assert seen + int(rest.split("|")[5].replace(",", "")) == 900
    assert "1 classes have no rows and were never predicted" in text
    worst = max((count, -t, -p) for t, row in enumerate(report["confusion"]) for p, count in enumerate(row) if t != p)
    assert f"| a\\|{-worst[1]}  | a\\|{-worst[2]}  | {worst[0]} |" in text
    json.dumps(report, allow_nan=False)


def test_a_model_that_loses_to_a_baseline_is_told_so():
    logits, labels = draw(8, classes=3)
    weak = classification_report(logits, labels, named(3))
    best = classification_report(logits, labels, named(3), predictions=labels)
    assert "does not beat the baseline tfidf** in accuracy and macro F1" in format_baselines(weak, {"tfidf": best})
    assert "does not beat" not in format_baselines(best, {"tfidf": weak})
