"""Which class is said, given the logits? Thresholds, class offsets and refusal, tuned on validation rows.

All of them are one search: rows in the order of a score, of which the first k go over to one class; the best k is found among
all of them, as the counts that F1 is made of change by one row at a time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lm.calibration import log_softmax
from lm.config import UserError
from lm.scores import check_scores, count_confusion, rank_auroc, score_confusion

ROUNDS, ROUND_GAIN = 10, 1e-4  # over all classes: at most, and what a round must bring for another
LEAST_GAIN = 1e-9


@dataclass(frozen=True)
class Decision:
    """A rule: `offsets` [C] are added to the logits, the largest wins; below `least_probability` it is `refusal`."""

    offsets: tuple[float, ...] = ()  # none: the logits as they are
    refusal: int = -1  # the class that stands for no answer; -1: none
    least_probability: float = 0.0  # that the likeliest class, by the logits as they are, must have

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Returns the class of each row, int64 [N]."""
        predictions = (logits + np.asarray(self.offsets or 0.0)).argmax(axis=1)
        if self.refusal >= 0:
            predictions[confidence(logits) < self.least_probability] = self.refusal
        return predictions

    def threshold(self) -> float:
        """Of two classes: the probability above which class 1 is said."""
        zero, one = self.offsets or (0.0, 0.0)
        return float(1 / (1 + np.exp(np.clip(one - zero, -700, 700))))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def confidence(logits: np.ndarray) -> np.ndarray:
    """Returns the largest probability of each row."""
    return np.exp(log_softmax(logits).max(axis=1))


def refusal_auroc(logits: np.ndarray, labels: np.ndarray, refusal: int) -> float | None:
    """Returns the AUROC of telling rows of the class `refusal` from others by how sure the model is of any other class.

    None where there are only rows of one kind.
    """
    log_probs = np.delete(log_softmax(logits), refusal, axis=1)
    return rank_auroc(-log_probs.max(axis=1), labels == refusal)


def macro_f1(labels: np.ndarray, predictions: np.ndarray, classes: int) -> float:
    return score_confusion(count_confusion(labels, predictions, classes))["macro_f1"]


def tune_threshold(logits: np.ndarray, labels: np.ndarray, target: str = "f1") -> Decision:
    """Returns the rule, for logits [N, 2], with the best F1 of class 1, or with target "macro_f1" of both; see `threshold`.

    Of thresholds that are as good, the one nearest 1/2; 1/2 where none is better.
    """
    check_scores(logits, labels, 2)
    if target not in ("f1", "macro_f1"):
        raise UserError(f"a threshold is tuned for f1 or macro_f1, got {target!r}")
    odds = logits[:, 1].astype(np.float64) - logits[:, 0]
    cut, _ = _best_cut(-odds, np.zeros(len(labels), int), 1, labels, 2, 0.0, only=target == "f1")
    return Decision(offsets=(0.0, cut))  # class 1 where -odds < cut


def tune_offsets(logits: np.ndarray, labels: np.ndarray) -> Decision:
    """Returns class offsets with a macro F1 not below that of none on these rows, by coordinate ascent from zeros.

    A class at a time, the best offset among all is found; until a round over the classes brings next to nothing. As many numbers are
    fitted as there are classes: with few rows a class it learns the rows by heart, so compare on rows it has not seen.
    """
    classes = logits.shape[1]
    check_scores(logits, labels, classes)
    offsets, z = np.zeros(classes), logits.astype(np.float64)
    best = start = macro_f1(labels, z.argmax(axis=1), classes)
    for _ in range(ROUNDS):
        before = best
        for c in range(classes):
            z[:, c] = -np.inf
            runner_up = z.argmax(axis=1)
            needs = z[np.arange(len(z)), runner_up] - logits[:, c]
            cut, score = _best_cut(needs, runner_up, c, labels, classes, offsets[c])
            if score > best + LEAST_GAIN:
                best, offsets[c] = score, cut
            z[:, c] = logits[:, c] + offsets[c]
        if best < before + ROUND_GAIN:
            break
    found = Decision(offsets=tuple(offsets.tolist()))
    return found if macro_f1(labels, found.decide(logits), classes) > start else Decision()


def tune_refusal(logits: np.ndarray, labels: np.ndarray, refusal: int, offsets: tuple[float, ...] = ()) -> Decision:
    """Returns the rule with the best macro F1 (the class `refusal` included): rows less sure than its threshold are refused.

    Threshold 0, which refuses nothing, where none is better; just above 1, which refuses everything, where that is best.
    Raises UserError where no row is of the class `refusal`.
    """
    classes = logits.shape[1]
    check_scores(logits, labels, classes)
    if not 0 <= refusal < classes:
        raise UserError(f"the refusal class must be one of 0 .. {classes - 1}, got {refusal}")
    if not (labels == refusal).any():
        raise UserError("no validation row is of the refusal class, so nothing says when to refuse; add such rows")
    said = Decision(offsets).decide(logits)
    cut, _ = _best_cut(confidence(logits), said, refusal, labels, classes, 0.0)
    return Decision(offsets, refusal, min(max(cut, 0.0), float(np.nextafter(1, 2))))


def _best_cut(
    order: np.ndarray, now: np.ndarray, to: int, labels: np.ndarray, classes: int, at: float, only: bool = False
) -> tuple[float, float]:
    """Returns (cut, score): macro F1 (or F1 of `to` alone) is best once all rows with order < cut are given to class `to`.

    Rows that tie change together. Of cuts that are equally good, the one nearest `at`, halfway between two rows.
    """
    place = np.argsort(order, kind="stable")
    order, now, labels = order[place], now[place], labels[place]
    support = np.bincount(labels, minlength=classes)
    moves = now != to
    # F1 and presence of the class that each row leaves, before and after it does
    hits, taken = np.bincount(now[now == labels], minlength=classes), np.bincount(now, minlength=classes)
    gone, gone_right = _count_before(now, moves), _count_before(now, moves & (now == labels))
    left, left_right = taken[now] - gone, hits[now] - gone_right
    change, presence = _left_behind(left, left_right, support[now], now == labels)
    change, presence = change * moves, presence * moves
    # F1 of the class that they go to
    to_hits = hits[to] + np.append(0, np.cumsum(moves & (labels == to)))
    to_taken = taken[to] + np.append(0, np.cumsum(moves))
    to_f1 = 2 * to_hits / np.maximum(support[to] + to_taken, 1)
    others = np.arange(classes) != to
    rest = (2 * hits / np.maximum(support + taken, 1))[others].sum() + np.append(0, np.cumsum(change))
    present = ((support + taken) > 0)[others].sum() + np.append(0, np.cumsum(presence))
    score = to_f1 if only else (to_f1 + rest) / np.maximum(present + (support[to] + to_taken > 0), 1)
    cuts = np.concatenate([[order[0] - 1], (order[1:] + order[:-1]) / 2, [order[-1] + 1]])
    apart = np.concatenate([[True], order[1:] > order[:-1], [True]])
    low, high = np.append(-np.inf, order), np.append(order, np.inf)  # a cut may lie anywhere in (low, high]
    cuts = np.where((low < at) & (at <= high), at, cuts)
    good = apart & (score >= score[apart].max() - LEAST_GAIN)
    chosen = np.abs(cuts[good] - at).argmin()
    return float(cuts[good][chosen]), float(score[good][chosen])


def _count_before(groups: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Returns for each row how many rows before it are of its group and counted."""
    place = np.argsort(groups, kind="stable")
    running = np.cumsum(counted[place]) - counted[place]
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    found = np.empty(len(groups), np.int64)
    found[place] = running - running[starts[groups[place]]]
    return found


def _left_behind(
    taken: np.ndarray, hits: np.ndarray, support: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how F1 and presence (0 or 1) of a class change as one of its `taken` rows leaves it."""
    before = 2 * hits / np.maximum(support + taken, 1)
    after = 2 * (hits - right) / np.maximum(support + taken - 1, 1)
    return after - before, (support + taken - 1 > 0).astype(int) - 1
