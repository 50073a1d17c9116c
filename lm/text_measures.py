"""Are generated texts varied and without loops, did they end, and how near are they to what was expected?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.config import UserError
from lm.score_report import cell

SIZES = (1, 2, 3)  # of n-grams in distinct-n
REPEATED = 4  # units of the n-grams in repetition, as in arXiv:1908.04319
COPIES, LOOP = 3, 24  # a loop is a block that stands so many times in a row, over so many characters in all, to the end
PERIOD = 1000  # characters of the longest block that is looked for
Cut = Callable[[str], Sequence[str]]


def ngrams(units: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return list(zip(*(units[i:] for i in range(size))))


def distinct(texts: Sequence[Sequence[str]], size: int) -> float | None:
    """Returns distinct n-grams / all n-grams of all texts together (arXiv:1510.03055); it falls as texts become more."""
    grams = [gram for units in texts for gram in ngrams(units, size)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(texts: Sequence[Sequence[str]], size: int = REPEATED) -> float | None:
    """Returns the share of a text's n-grams that stood in it before, mean over texts that have any (arXiv:1908.04319)."""
    found = [ngrams(units, size) for units in texts]
    shares = [1 - len(set(grams)) / len(grams) for grams in found if grams]
    return float(np.mean(shares)) if shares else None


def repeated_runs(text: str) -> tuple[int, int]:
    """Returns (longest, last): characters of the longest stretch that is a block said 3 times or more in a row, and of the one
    that reaches to the end of the text.

    >>> repeated_runs("so it goes on and on and on and on"), repeated_runs("春眠不觉晓")
    ((24, 24), (0, 0))
    """
    codes = np.frombuffer(text.rstrip("\ufffd \n").encode("utf-32-le", "replace"), np.uint32)
    longest = last = 0
    for period in range(1, min(PERIOD, len(codes) // COPIES) + 1):
        same = codes[period:] == codes[:-period]
        if np.count_nonzero(same) < (COPIES - 1) * period:  # the usual case, soon done with
            continue
        differs = np.flatnonzero(~same)
        edges = np.concatenate([[-1], differs, [len(codes) - period]])
        runs = np.diff(edges) - 1 + period  # characters that go on with this period
        if runs.max() >= COPIES * period:
            longest = max(longest, int(runs.max()))
        if runs[-1] >= COPIES * period:
            last = max(last, int(runs[-1]))
    return longest, last


def score_texts(texts: Sequence[str], cut: Cut) -> dict[str, float | None]:
    """Returns distinct_1 .. distinct_3, repetition_4, loops, longest_run, mean_units, empty; None where nothing defines it.

    `cut` gives the units of a text: words, and characters of Han (data_pipeline.dedup.words.spell). `loops`: share of texts whose
    end is a block said at least 3 times in a row over at least 24 characters; `longest_run`: the longest such stretch of all.
    """
    units = [list(cut(text)) for text in texts]
    runs = [repeated_runs(text) for text in texts]
    return {
        **{f"distinct_{size}": distinct(units, size) for size in SIZES},
        f"repetition_{REPEATED}": repetition(units),
        "loops": float(np.mean([last >= LOOP for _, last in runs])) if runs else None,
        "longest_run": float(max(longest for longest, _ in runs)) if runs else None,
        "mean_units": float(np.mean([len(u) for u in units])) if units else None,
        "empty": float(np.mean([not text.strip() for text in texts])) if texts else None,
    }


def score_against(texts: Sequence[str], references: Sequence[str], script: str) -> dict[str, Any]:
    """Returns corpus BLEU and chrF (0 .. 100) of sacrebleu, with their signatures. `script` as of most references: zh and ja are
    cut into characters for BLEU (sacrebleu's `zh`, `char`), others as `13a` does.

    Raises UserError where sacrebleu is missing.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise UserError("BLEU and chrF need the package sacrebleu: pip install 'lm[adapt]'") from None
    found: dict[str, Any] = {"references": len(texts), "bleu": None, "chrf": None}
    if texts:
        bleu, chrf = BLEU(tokenize={"zh": "zh", "ja": "char"}.get(script, "13a")), CHRF()
        found["bleu"] = bleu.corpus_score(list(texts), [list(references)]).score
        found["chrf"] = chrf.corpus_score(list(texts), [list(references)]).score
        found |= {"bleu_signature": str(bleu.get_signature()), "chrf_signature": str(chrf.get_signature())}
    return found


def summarise(rows: Sequence[Mapping[str, Any]], cut: Cut, script_of: Callable[[str], str]) -> dict[str, Any]:
    """Returns all scores of rows with `generated`, and `completion`, `stopped`, `tokens` where they have them."""
    texts = [row["generated"] for row in rows]
    stops = [row["stopped"] for row in rows if row.get("stopped") is not None]
    tokens = [row["tokens"] for row in rows if isinstance(row.get("tokens"), int)]
    found = {"texts": len(rows), "script": _most([script_of(text) for text in texts]), **score_texts(texts, cut)}
    found["stop_rate"] = float(np.mean(stops)) if stops else None
    found["mean_tokens"] = float(np.mean(tokens)) if tokens else None
    pairs = [(row["generated"], row["completion"]) for row in rows if row.get("completion") is not None]
    if pairs:
        script = _most([script_of(completion) for _, completion in pairs])
        found |= score_against([pair[0] for pair in pairs], [pair[1] for pair in pairs], script)
    return found


def _most(scripts: Sequence[str]) -> str:
    counts = Counter(name for name in scripts if name != "und")
    return counts.most_common(1)[0][0] if counts else "und"


def format_scores(scores: Mapping[str, Any]) -> str:
    """Returns the scores as a Markdown table."""
    cells = {key: f"{value:.4f}" if isinstance(value, float) else str(value) for key, value in scores.items()}
    rows = [f"| {key} | {cell('-' if scores[key] is None else text)} |" for key, text in cells.items()]
    return "\n".join(["| score | value |", "|---|---|", *rows])
