"""Do a classifier's probabilities mean what they say, and which temperature makes them?"""

from __future__ import annotations

import numpy as np

from lm.config import UserError

BINS = 15  # of equal width in (0, 1], as in arXiv:1706.04599
COLDEST, HOTTEST = 0.05, 20.0  # where all answers are right no temperature is the best one: the colder, the better


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns log-probabilities [N, C] in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def mean_nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of -log p(label), in nats."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def calibration_errors(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> tuple[float, float]:
    """Returns (ECE, MCE), both in [0, 1], of the likeliest class's probability.

    Rows are put in bins (i/B, (i+1)/B] by confidence, the largest probability. With n_b rows in a bin, of mean accuracy
    acc_b and mean confidence conf_b: ECE = sum_b n_b / N |acc_b - conf_b|, MCE = max_b |acc_b - conf_b| over the bins that
    are not empty (arXiv:1706.04599). MCE is that of the noisiest bin where rows are few.
    """
    log_probs = log_softmax(logits)
    confidence = np.exp(log_probs.max(axis=1))
    right = log_probs.argmax(axis=1) == labels
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows = np.bincount(number, minlength=bins)
    gap = np.abs(np.bincount(number, right - confidence, bins)) / np.maximum(rows, 1)
    return float((gap * rows).sum() / len(labels)), float(gap.max())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the T in [0.05, 20] for which softmax(logits / T) has the least NLL on these rows (arXiv:1706.04599).

    NLL is convex in b = 1 / T, with slope E_p[z] - z_label and curvature Var_p[z]: Newton's steps, halved into the interval
    that holds the root. Never worse than T = 1 on the rows it is fitted on; which should be those of validation.
    """
    if not len(labels):
        raise UserError("a temperature is fitted on validation rows, and there are none")
    z = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    true = z[np.arange(len(labels)), labels].mean()

    def slopes(b: float) -> tuple[float, float]:
        p = np.exp(log_softmax(b * z))
        mean = (p * z).sum(axis=1)
        return float(mean.mean() - true), float(((p * z * z).sum(axis=1) - mean**2).mean())

    low, high, b = 1 / HOTTEST, 1 / COLDEST, 1.0
    if slopes(low)[0] >= 0:
        b = low
    elif slopes(high)[0] <= 0:
        b = high
    else:
        for _ in range(60):
            slope, curvature = slopes(b)
            low, high = (b, high) if slope < 0 else (low, b)
            step = b - slope / curvature if curvature > 0 else low
            step = step if low < step < high else (low + high) / 2
            if abs(step - b) <= 1e-10 * b:
                break
            b = step
    return 1 / b if mean_nll(b * z, labels) < mean_nll(z, labels) else 1.0
