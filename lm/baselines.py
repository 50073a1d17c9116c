"""What does a classifier that knows no language reach on the same rows: the majority class, and TF-IDF with logistic regression?

A model that does not beat these has learned nothing that counting words does not know.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.config import UserError
from lm.scores import Report, classification_report

HAN_SHARE = 0.2  # of the letters of the training texts; from there on they are cut into characters alone
EPOCHS, STRENGTH = 10, 10.0  # of the solver SAGA, and C of the regression: docs/metrics.md has what others reach
UNSEEN = -20.0  # logit of a class without training rows, below the least of those with


def check_rows(texts: Sequence[str], labels: np.ndarray, classes: int, split: str) -> np.ndarray:
    """Returns labels [N] as an array; raises UserError for none, another number of them than texts, and unknown classes."""
    labels = np.asarray(labels)
    if not len(texts) or len(texts) != len(labels):
        raise UserError(
            f"the {split} rows of a baseline: {len(texts)} texts and {len(labels)} labels; at least one row"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise UserError(f"{split} row {wrong[0]}: label {labels[wrong[0]]} is none of the classes 0 .. {classes - 1}")
    return labels


def majority_logits(train_labels: np.ndarray, rows: int, classes: int) -> np.ndarray:
    """Returns [rows, C]: log((n_c + 1) / (N + C)), how frequent each class is in training, the same for every row."""
    counts = np.bincount(train_labels, minlength=classes) + 1
    return np.tile(np.log(counts / counts.sum()), (rows, 1))


def tfidf_logits(
    train_texts: Sequence[str], train_labels: np.ndarray, texts: Sequence[str], classes: int
) -> np.ndarray:
    """Returns [rows, C] of a logistic regression on TF-IDF features. Deterministic.

    Features: in Han text, where words have no spaces between, 1- to 3-grams of characters; else 1- and 2-grams of words and, within
    words, 2- to 4-grams of characters. Sublinear counts; features of a single text are left out. A class without training rows
    is never predicted. Raises UserError where scikit-learn is missing.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("the TF-IDF baseline needs the package scikit-learn: pip install 'lm[adapt]'") from None
    known = np.unique(train_labels)
    if len(known) == 1:
        return majority_logits(train_labels, len(texts), classes)
    seen, asked = _features(train_texts, texts)
    model = LogisticRegression(C=STRENGTH, solver="saga", tol=1e-3, max_iter=EPOCHS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is meant
        model.fit(seen, train_labels)
    found = model.decision_function(asked).astype(np.float64)
    if len(known) == 2:
        found = np.stack([np.zeros(len(found)), found], axis=1)
    logits = np.full((len(texts), classes), found.min() + UNSEEN)
    logits[:, known] = found
    return logits


def is_han(texts: Sequence[str]) -> bool:
    """Says whether a fifth or more of the letters are Han (a word of other scripts has some five letters)."""
    letters = han = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        han += sum("\u3400" <= char <= "\u9fff" or "\U00020000" <= char <= "\U0003134f" for char in text)
    return han >= HAN_SHARE * max(letters, 1)


def _features(train_texts: Sequence[str], texts: Sequence[str]) -> tuple[Any, Any]:
    """Returns sparse features of the training texts and of the others, float32."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    least = 2 if len(train_texts) > 50 else 1
    shared: dict[str, Any] = {"sublinear_tf": True, "min_df": least, "dtype": np.float32}
    if is_han(train_texts):
        cutters = [TfidfVectorizer(analyzer="char", ngram_range=(1, 3), **shared)]
    else:
        cutters = [
            TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2), **shared),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), **shared),
        ]
    parts: list[tuple[Any, Any]] = []
    for cutter in cutters:
        try:
            parts.append((cutter.fit_transform(train_texts), cutter.transform(texts)))
        except ValueError:  # scikit-learn's for texts without a single word, or none that stands in two
            continue
    if not parts:
        return csr_matrix((len(train_texts), 1), dtype=np.float32), csr_matrix((len(texts), 1), dtype=np.float32)
    seen, asked = zip(*parts)
    return hstack(seen).tocsr(), hstack(asked).tocsr()


def baselines(
    train_texts: Sequence[str],
    train_labels: np.ndarray,
    texts: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
) -> dict[str, Report]:
    """Returns the reports (lm/scores.py) of "majority" and "tfidf", fitted on the training rows, on the other rows."""
    train_labels = check_rows(train_texts, train_labels, len(classes), "training")
    labels = check_rows(texts, labels, len(classes), "evaluation")
    logits = {
        "majority": majority_logits(train_labels, len(texts), len(classes)),
        "tfidf": tfidf_logits(train_texts, train_labels, texts, len(classes)),
    }
    return {name: classification_report(found, labels, classes) for name, found in logits.items()}
