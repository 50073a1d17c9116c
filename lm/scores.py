"""How good is a classifier on a split, class by class, and how sure are these numbers?

Everything is computed from logits [N, C] and labels [N], in numpy. docs/metrics.md has the formulas in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.calibration import BINS, calibration_errors, log_softmax, mean_nll
from lm.config import UserError

RESAMPLES = 1000
CELLS = 1 << 22  # numbers that a block of resamples may hold
Report = dict[str, Any]


def check_scores(logits: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Raises UserError for no rows, shapes that do not fit, labels outside the classes, and logits that are no numbers."""
    if logits.ndim != 2 or logits.shape[1] != classes or labels.shape != logits.shape[:1]:
        raise UserError(
            f"expected logits [N, {classes}] and labels [N], got {list(logits.shape)} and {list(labels.shape)}"
        )
    if classes < 2:
        raise UserError(f"a classifier has at least 2 classes, got {classes}")
    if not len(labels):
        raise UserError("there are no rows to score: the split is empty")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"labels must be class numbers (integers), got {labels.dtype}")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = wrong[0]
        raise UserError(
            f"row {row}: label {labels[row]} is none of the classes 0 .. {classes - 1} ({len(wrong)} such rows)"
        )
    wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(wrong):
        raise UserError(f"row {wrong[0]}: its logits hold NaN or infinity ({len(wrong)} such rows): the model diverged")


def count_confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Returns how many rows of each class (first axis) were taken for each class (second), int64 [C, C]."""
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def f1_of(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (F1 of each class, macro F1, weighted F1) from counts [..., C] of rows: right, of the class, taken for it.

    F1 = 2 hits / (support + predicted); 0 / 0 counts as 0. Macro F1 is the mean over classes that have support or were
    predicted: a class that has neither is left out, and one that was predicted without having support counts 0
    (scikit-learn's f1_score with labels=None, zero_division=0). Weighted F1 weighs by support.
    """
    total = support + predicted
    f1 = 2 * hits / np.maximum(total, 1)
    macro = f1.sum(axis=-1) / np.maximum((total > 0).sum(axis=-1), 1)
    return f1, macro, (f1 * support).sum(axis=-1) / np.maximum(support.sum(axis=-1), 1)


def score_confusion(confusion: np.ndarray) -> Report:
    """Returns accuracy, macro_f1, weighted_f1, and arrays [C]: precision, recall, f1, support, predicted (0 / 0 is 0)."""
    hits, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    f1, macro, weighted = f1_of(hits, support, predicted)
    return {
        "accuracy": float(hits.sum() / max(confusion.sum(), 1)),
        "macro_f1": float(macro),
        "weighted_f1": float(weighted),
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": f1,
        "support": support,
        "predicted": predicted,
    }


def rank_auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Returns the share of (positive, negative) pairs in which the positive scores higher, ties as half; None without pairs.

    By ranks (Mann and Whitney): (sum of the positives' ranks - P (P + 1) / 2) / (P Q), tied scores sharing their mean rank.
    """
    P = int(positive.sum())
    Q = len(positive) - P
    if not P or not Q:
        return None
    _, place, times = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]
    return float((ranks[positive].sum() - P * (P + 1) / 2) / (P * Q))


def auroc(logits: np.ndarray, labels: np.ndarray) -> tuple[float | None, list[int]]:
    """Returns (AUROC, classes that were left out); None where no class has both rows of it and of others.

    Two classes: of class 1 by its log-odds. More: the mean of one-versus-rest over the classes that have rows, by
    log-probability. Logarithms, since probabilities near 1 round to ties.
    """
    if logits.shape[1] == 2:
        value = rank_auroc(logits[:, 1].astype(np.float64) - logits[:, 0], labels == 1)
        return value, [] if value is not None else [int(1 - labels[0])]
    log_probs = log_softmax(logits)
    values = [rank_auroc(log_probs[:, c], labels == c) for c in range(logits.shape[1])]
    found = [value for value in values if value is not None]
    missing = np.flatnonzero(np.bincount(labels, minlength=logits.shape[1]) == 0).tolist()
    return (float(np.mean(found)) if found else None), missing


def bootstrap(confusion: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, list[float]]:
    """Returns the 95 % percentile intervals [low, high] of accuracy and macro_f1 over resampled rows.

    Both depend on rows through the confusion matrix alone, so drawing N rows with replacement is drawing its cells from a
    multinomial: exact, and a thousand resamples take milliseconds for few classes. Rows are taken as independent.
    """
    rng = np.random.default_rng(seed)
    true, taken = np.nonzero(confusion)
    counts, rows = confusion[true, taken], int(confusion.sum())
    is_true, is_taken = (np.eye(len(confusion))[side] for side in (true, taken))
    found: list[np.ndarray] = []
    block = max(1, CELLS // max(len(counts), 1))
    for start in range(0, resamples, block):
        drawn = rng.multinomial(rows, counts / rows, size=min(block, resamples - start)).astype(np.float64)
        right = drawn * (true == taken)
        found.append(np.stack([right.sum(1) / rows, f1_of(right @ is_true, drawn @ is_true, drawn @ is_taken)[1]]))
    low, high = np.percentile(np.concatenate(found, axis=1), [2.5, 97.5], axis=1)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(("accuracy", "macro_f1"))}


def classification_report(
    logits: np.ndarray, labels: np.ndarray, classes: Sequence[str], temperature: float | None = None,
    predictions: np.ndarray | None = None, seed: int = 0,
) -> Report:  # fmt: skip
    """Returns every score of a split as a JSON object: single numbers (None where undefined), then `per_class`, `confusion`.

    `logits` [N, C], `labels` [N]. `temperature`: the one that was fitted on validation rows. `predictions` [N]: what was
    decided (lm/decisions.py), in place of the likeliest class; AUROC, NLL and calibration are of the logits either way.
    Raises UserError for what `check_scores` refuses.
    """
    logits, labels, C = np.asarray(logits), np.asarray(labels), len(classes)
    check_scores(logits, labels, C)
    said = logits.argmax(axis=1) if predictions is None else np.asarray(predictions)
    if said.shape != labels.shape or said.min() < 0 or said.max() >= C:
        raise UserError(f"expected predictions [{len(labels)}] among the classes 0 .. {C - 1}")
    confusion = count_confusion(labels, said, C)
    scores, interval = score_confusion(confusion), bootstrap(confusion, seed)
    area, left_out = auroc(logits, labels)
    ece, mce = calibration_errors(logits, labels)
    cooled = logits / temperature if temperature else None
    columns = ("precision", "recall", "f1", "support", "predicted")
    return {
        "rows": len(labels),
        "classes": C,
        "accuracy": scores["accuracy"],
        "accuracy_low": interval["accuracy"][0],
        "accuracy_high": interval["accuracy"][1],
        "macro_f1": scores["macro_f1"],
        "macro_f1_low": interval["macro_f1"][0],
        "macro_f1_high": interval["macro_f1"][1],
        "weighted_f1": scores["weighted_f1"],
        "auroc": area,
        "nll": mean_nll(logits, labels),
        "ece": ece,
        "mce": mce,
        "temperature": temperature,
        "nll_after_temperature": None if cooled is None else mean_nll(cooled, labels),
        "ece_after_temperature": None if cooled is None else calibration_errors(cooled, labels)[0],
        "ece_bins": BINS,
        "auroc_left_out": [classes[c] for c in left_out],
        "per_class": [
            {"class": name, **{key: scores[key][c].item() for key in columns}} for c, name in enumerate(classes)
        ],
        "confusion": confusion.tolist(),
    }


def numbers_of(report: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the single numbers of a report that are defined, for logs: {"eval/accuracy": 0.9, ...} with prefix "eval/"."""
    found = {key: value for key, value in report.items() if isinstance(value, int | float)}
    return {prefix + key: value for key, value in found.items() if math.isfinite(value)}
