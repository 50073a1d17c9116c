"""Which of several answers does the model find likeliest after a prompt, and how often is it the right one?

Each answer is scored by the sum of the log-probabilities of its tokens, as lm-evaluation-harness does.

    python -m lm.choices --workdir=runs/quiz --split=test
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import ConfigError, UserError
from lm.likelihood import score
from lm.score_report import format_report
from lm.scores import Report, classification_report, count_confusion, score_confusion

WAYS = ("none", "length", "bytes", "unconditional")


def normalise(
    way: str, sums: np.ndarray, tokens: np.ndarray, sizes: np.ndarray, priors: np.ndarray
) -> np.ndarray:  # fmt: skip
    """Returns the scores of a row's answers: log p, by token, by byte, or against log p after the blank prompt (PMI)."""
    return {"none": sums, "length": sums / tokens, "bytes": sums / sizes, "unconditional": sums - priors}[way]


def summarise(scores: Sequence[np.ndarray], right: Sequence[int]) -> dict[str, float]:
    """Returns accuracy, its standard error (rows as independent), and how many rows have two best answers; the first counts."""
    n = len(scores)
    accuracy = float(np.mean([row.argmax() == one for row, one in zip(scores, right)]))
    return {
        "accuracy": accuracy,
        "stderr": math.sqrt(accuracy * (1 - accuracy) / (n - 1)) if n > 1 else math.nan,
        "ties": sum(int((row == row.max()).sum() > 1) for row in scores),
    }


@dataclass(frozen=True)
class Classes:
    """What the answers of all rows are, where they are the same ones."""

    names: tuple[str, ...]
    columns: np.ndarray  # [N, C]: which of its answers is each class, of each row

    def of(self, answers: Sequence[int]) -> np.ndarray:
        """Returns the classes [N] of one answer of each row."""
        return (self.columns == np.asarray(answers)[:, None]).argmax(axis=1)

    def f1(self, scores: Sequence[np.ndarray], right: Sequence[int]) -> dict[str, float]:
        said = self.of([int(row.argmax()) for row in scores])
        found = score_confusion(count_confusion(self.of(right), said, len(self.names)))
        return {key: found[key] for key in ("macro_f1", "weighted_f1")}

    def report(self, scores: Sequence[np.ndarray], right: Sequence[int]) -> Report:
        """What lm/scores.py says of the rows, with the scores as logits."""
        logits, said = np.take_along_axis(np.stack(scores), self.columns, 1), [int(row.argmax()) for row in scores]
        return classification_report(logits, self.of(right), self.names, predictions=self.of(said))


def find_classes(rows: Sequence[Any], names: Sequence[str]) -> Classes | None:
    """Returns the classes: `names`, which the answers of each row are words for, or else answers that all rows have, in any order."""
    if names:
        return Classes(tuple(names), np.tile(np.arange(len(names)), (len(rows), 1)))
    answers = [[answer.strip() for answer in row.answers] for row in rows]
    same = sorted(answers[0])
    if any(sorted(one) != same for one in answers):
        return None
    return Classes(tuple(same), np.array([[one.index(name) for name in same] for one in answers]))


def accuracies(
    rows: Sequence[Any], found: np.ndarray, priors: np.ndarray, classes: Classes | None = None
) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Returns what `summarise` says of each way to normalise, and the scores; `found`, `priors`: of all answers of all rows.

    With `classes` also macro and weighted F1.
    """
    ends = np.cumsum([len(row.pairs) for row in rows])[:-1]
    scores: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    for row, sums, before in zip(rows, np.split(found, ends), np.split(priors, ends)):
        tokens = np.array([len(ids) for _, ids in row.pairs])
        sizes = np.array([len(answer.lstrip().encode()) for answer in row.answers])
        for way in WAYS:
            scores[way].append(normalise(way, sums, tokens, sizes, before))
    right = [row.right for row in rows]
    counts = np.bincount(classes.of(right) if classes else right)
    result: dict[str, Any] = {"rows": len(rows), "chance": float(np.mean([1 / len(row.answers) for row in rows]))}
    result["most_common"] = float(counts.max() / len(rows))  # always the same answer, the commonest
    for way in WAYS:
        result[way] = summarise(scores[way], right) | (classes.f1(scores[way], right) if classes else {})
    return result, scores


def write_rows(path: str, rows: Sequence[Any], names: Sequence[str], scores: Sequence[np.ndarray]) -> None:
    """Writes a JSON line for each row; raises UserError where the file cannot be written."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            for row, one in zip(rows, scores):
                best, values = int(one.argmax()), [round(value, 6) for value in one.tolist()]
                if names:
                    what = {"text": row.prompt, "label": names[row.right], "predicted": names[best],
                            "scores": dict(zip(names, values))}  # fmt: skip
                else:
                    what = {"prompt": row.prompt, "choices": [answer.strip() for answer in row.answers],
                            "answer": row.right, "predicted": best, "scores": values}  # fmt: skip
                file.write(json.dumps({"where": row.where, **what}, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"--out={path}: {error.strerror or error}") from None


USAGE = """
usage: python -m lm.choices --workdir=DIR [--file=FILE | --split=validation] [--labels] [--config=FILE] [--out=FILE]
         [--normalise=none|length|bytes|unconditional] [--given=TEXT] [--end=auto|yes|no] [--seq_len=N] [--step=best|last|N]

Scores every answer of multiple-choice rows, or with --labels the words of all classes, by its log-probability after the
prompt, and prints the accuracy of each way to normalise with its standard error; where all rows have the same answers also macro
and weighted F1, and by the scores of --normalise the classes, worst first. Rows are those of the run's validation or test split, or of a
file, read as the run's own are. With --config, another config says what the data are; they must use the run's tokenizer.

--out: a JSON line a row, with the scores that --normalise gives. --given: what the prompt says for "unconditional", in place of all
its fields (""; the begin token alone). --end: whether the end token is part of an answer; auto: of words for classes it is.

example: python -m lm.choices --workdir=runs/intents --labels --split=test --out=intents.jsonl
example: python -m lm.choices --workdir=runs/pretrain --file=quiz.jsonl
"""
FLAGS = {
    "workdir": "", "file": "", "split": "validation", "labels": "false", "config": "", "out": "", "normalise": "none",
    "given": "", "end": "auto", "seq_len": "0", "step": "best",
}  # fmt: skip


def main(argv: list[str]) -> None:
    from data_pipeline.batch import open_data
    from data_pipeline.questions import encode_questions, read_questions
    from data_pipeline.schema import split_flags
    from data_pipeline.tokenizer import load_tokenizer
    from lm import build
    from lm.check import read_config
    from lm.logger import Ticker

    def log(text: str) -> None:
        print(text, file=sys.stderr)

    flags, overrides = split_flags(argv, FLAGS, USAGE)
    labels, seq_len = flags["labels"] == "true", int(build.parse_number("seq_len", flags["seq_len"]))
    for key, valid in (("normalise", WAYS), ("end", ("auto", "yes", "no"))):
        if flags[key] not in valid:
            raise ConfigError(f"--{key} is one of {', '.join(valid)}, got {flags[key]!r}")
    if not flags["workdir"] or (overrides and not flags["config"]) or seq_len < 0:
        raise ConfigError("name a run: python -m lm.choices --workdir=DIR [--file=FILE] [--labels]; see --help")
    theirs = read_config(flags["config"], overrides) if flags["config"] else None
    loaded = build.load_run(flags["workdir"], flags["step"], log, seq_len or (theirs.data.seq_len if theirs else 0))
    config = theirs or loaded.config
    data = open_data(config.data, log=log) if labels or not flags["file"] else None
    tokenizer = data.tokenizer if data else load_tokenizer(Path(flags["workdir"]) / "tokenizer")
    build.check_tokenizer(loaded, tokenizer, flags["workdir"])
    if data and not flags["file"] and not data.has_split(flags["split"]):
        raise UserError(f"this run's data has no {flags['split']!r} split; see config.data.split")
    asked = read_questions(config.data, data, tokenizer, flags["file"], flags["split"], labels, flags["given"], log)
    end, most = flags["end"] == "yes" or (flags["end"] == "auto" and labels), seq_len or config.data.seq_len
    asked, blank = encode_questions(asked, tokenizer, config.data.add_bos, end, most, log)
    pairs = [pair for row in asked.rows for pair in row.pairs]
    pairs += [(blank, answer) for _, answer in pairs]
    ticker = Ticker("scoring answers", len(set(pairs)))
    found = score(loaded.model, loaded.params, pairs, loaded.mesh, progress=ticker.update)
    ticker.close()
    classes = find_classes(asked.rows, asked.names)
    result, scores = accuracies(asked.rows, *np.split(found, 2), classes=classes)
    if flags["out"]:
        write_rows(flags["out"], asked.rows, asked.names, scores[flags["normalise"]])
    if classes:
        report = classes.report(scores[flags["normalise"]], [row.right for row in asked.rows])
        log(format_report(report, f"Answers, {flags['file'] or flags['split']}, normalised by {flags['normalise']}"))
        worst = sorted((c for c in report["per_class"] if c["support"]), key=lambda c: (c["recall"], -c["support"]))
        result["recall"] = {c["class"]: c["recall"] for c in worst}
    about = {"workdir": flags["workdir"], "step": loaded.step, "of": flags["file"] or flags["split"]}
    more = {"left_out": asked.lost, "cut_prompts": asked.cut, "end": end}
    print(json.dumps({**about, **result, **more}))


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
