"""How does a report of scores read, as Markdown for a person?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MOST_CLASSES = 30  # rows of the table of classes
MATRIX = 10  # classes that are shown as a whole confusion matrix
PAIRS = 15  # of classes that are mistaken most often, where there are more
LINES = (
    ("accuracy", "accuracy"), ("macro_f1", "macro F1"), ("weighted_f1", "weighted F1"), ("auroc", "AUROC"), ("nll", "NLL, nats"),
    ("ece", "ECE"), ("mce", "MCE"), ("temperature", "temperature (from validation)"),
    ("nll_after_temperature", "NLL after temperature"), ("ece_after_temperature", "ECE after temperature"),
)  # fmt: skip


def cell(text: str) -> str:
    """A name as the cell of a Markdown table.

    >>> cell("a|b"), cell("two\\nlines")
    ('a\\\\|b', 'two lines')
    """
    return re.sub(r"\s+", " ", re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)).replace("\\", "\\\\").replace("|", "\\|")


def format_report(report: Mapping[str, Any], title: str = "Scores") -> str:
    """Returns the scores with their 95 % intervals, the classes worst first, and the confusion, as Markdown."""
    lines = [
        f"## {title}",
        "",
        f"{report['rows']:,} rows, {report['classes']:,} classes.",
        "",
        "| score | value | 95 % |",
    ]
    lines += ["|---|---|---|"]
    for key, words in LINES:
        if key in ("accuracy", "macro_f1"):
            span = f"{report[key + '_low']:.4f} .. {report[key + '_high']:.4f}"
        else:
            span = ""
        if report[key] is not None or key == "auroc":
            lines.append(f"| {words} | {_number(report[key])} | {span} |")
    if report["auroc"] is None:
        lines += ["", "AUROC is not defined: all rows are of one class."]
    elif left_out := report["auroc_left_out"]:
        lines += ["", f"AUROC leaves out {len(left_out)} classes that have no rows: {_some(left_out)}."]
    return "\n".join([*lines, "", *_class_table(report["per_class"]), "", *_confusion(report)]) + "\n"


def format_baselines(report: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a model's scores beside those of baselines on the same rows, and says where it does not beat them."""
    rows = {"this model": report, **baselines}
    lines = ["| | accuracy | macro F1 | AUROC | NLL |", "|---|---|---|---|---|"]
    for name, found in rows.items():
        cells = [_number(found[key]) for key in ("accuracy", "macro_f1", "auroc", "nll")]
        lines.append(f"| {cell(name)} | {' | '.join(cells)} |")
    for name, found in baselines.items():
        lost = [words for key, words in LINES[:2] if report[key] <= found[key]]
        if lost:
            lines += ["", f"**The model does not beat the baseline {name}** in {' and '.join(lost)}."]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(map(cell, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _class_table(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    there = [c for c in classes if c["support"] or c["predicted"]]
    worst = sorted(there, key=lambda c: (c["f1"], -c["support"]))
    shown = worst if len(worst) <= MOST_CLASSES else worst[: MOST_CLASSES - 1]
    lines = ["| class (worst first) | precision | recall | F1 | rows | predicted |", "|---|---|---|---|---|---|"]
    rows = [(cell(c["class"]), [c[key] for key in ("precision", "recall", "f1")], c) for c in shown]
    if rest := worst[len(shown) :]:
        means = [sum(c[key] for c in rest) / len(rest) for key in ("precision", "recall", "f1")]
        sums = {key: sum(c[key] for c in rest) for key in ("support", "predicted")}
        rows.append((f"the other {len(rest)}: means, sums", means, sums))
    for name, shares, counts in rows:
        numbers = " | ".join(map(_number, shares))
        lines.append(f"| {name} | {numbers} | {counts['support']:,} | {counts['predicted']:,} |")
    if absent := len(classes) - len(there):
        lines += ["", f"{absent} classes have no rows and were never predicted; they count in no mean."]
    return lines


def _confusion(report: Mapping[str, Any]) -> list[str]:
    names = [cell(c["class"]) for c in report["per_class"]]
    if len(names) <= MATRIX:
        lines = [f"| class, taken for | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for name, row in zip(names, report["confusion"]):
            lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in row)} |")
        return lines
    pairs = [
        (count, true, taken)
        for true, row in enumerate(report["confusion"])
        for taken, count in enumerate(row)
        if count and taken != true
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    if not pairs:
        return ["No class was taken for another."]
    lines = ["| class | taken for | rows | of the class |", "|---|---|---|---|"]
    for count, true, taken in pairs[:PAIRS]:
        share = count / report["per_class"][true]["support"]
        lines.append(f"| {names[true]} | {names[taken]} | {count:,} | {share:.1%} |")
    if rest := pairs[PAIRS:]:
        lines.append(f"| {len(rest):,} other pairs | | {sum(pair[0] for pair in rest):,} | |")
    return lines
