"""Which class has each text, and how good is a classifier on a split, beside what counting words reaches?

    python -m lm.classify --workdir=runs/classify --split=test
    python -m lm.classify --workdir=runs/classify --file=texts.jsonl --out=told.jsonl

What is decided beyond the likeliest class (a temperature, a threshold, when to refuse) is fitted on the validation split.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lm.anchor import averaged_weights
from lm.baselines import baselines, majority_logits
from lm.batch import check_batch
from lm.build import Loaded, load_run
from lm.calibration import fit_temperature, log_softmax
from lm.config import UserError
from lm.confusion_plot import plot_confusion
from lm.decisions import Decision, tune_refusal, tune_threshold
from lm.evaluate import read_classes
from lm.hosts import is_main
from lm.logger import Ticker, write_json
from lm.model.transformer import Model
from lm.params import Params, to_host
from lm.parts import Parts
from lm.run import Outcome, Run
from lm.run_folder import load_weights
from lm.score_report import format_baselines, format_report
from lm.scores import Report, classification_report
from lm.sharding import local_rows, put_batch, whole_rows

DECISION = "decision.json"  # in a workdir
CHIEF = ("accuracy", "macro_f1", "weighted_f1", "auroc", "nll", "ece", "temperature", "ece_after_temperature")
MOST_TEXTS = 100_000  # of the train split that the baselines learn from


class Scored(NamedTuple):
    """What a model says of the texts of a split."""

    logits: np.ndarray  # [N, C]
    labels: np.ndarray  # [N], numbers of classes


class Texts(NamedTuple):
    """Texts of a split, in any order."""

    texts: list[str]
    labels: np.ndarray


@dataclass(frozen=True)
class Rule:
    """How a class is told from logits, as decision.json holds it."""

    names: tuple[str, ...]
    temperature: float
    decision: Decision

    def save(self, workdir: Path) -> None:
        write_json(
            workdir / DECISION,
            {"names": self.names, "temperature": self.temperature, "decision": self.decision.to_json()},
        )

    @staticmethod
    def load(workdir: Path, names: Sequence[str]) -> Rule:
        """The rule of a run; the likeliest class where it has none."""
        try:
            found = json.loads((workdir / DECISION).read_text("utf-8"))
            decision = Decision(**{**found["decision"], "offsets": tuple(found["decision"]["offsets"])})
            return Rule(tuple(found["names"]), float(found["temperature"]), decision)
        except FileNotFoundError:
            return Rule(tuple(names), 1.0, Decision())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{workdir / DECISION} is damaged ({error}): delete it, or run lm.classify --split"
            ) from None


def score(
    model: Model, params: Params, batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh, batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Scored:  # fmt: skip
    """Returns what the model says of every text in `batches`, row by row and place by place."""
    predictor, found = jax.jit(partial(read_classes, model)), []
    for number, batch in enumerate(batches):
        check_batch(batch, model.config, f"batch {number}")
        logits, labels = map(to_host, predictor(params, put_batch(batch, mesh, batch_size)))
        found.append((logits[labels >= 0], labels[labels >= 0]))
        progress((number + 1) * batch_size)
    if not found:
        return Scored(np.zeros((0, model.config.classes), np.float32), np.zeros(0, np.int64))
    logits, labels = (np.concatenate(arrays) for arrays in zip(*found))
    return Scored(logits, labels.astype(np.int64))


def fit_rule(validation: Scored, names: Sequence[str], refusal: str = "") -> Rule:
    """Returns the temperature, and for two classes the threshold, or with `refusal` when to say that class."""
    if not len(validation.labels):  # nothing to fit on
        return Rule(tuple(names), 1.0, Decision())
    temperature = fit_temperature(*validation)
    decision = Decision()
    if refusal:
        if refusal not in names:
            raise UserError(f"the refusal class {refusal!r} is none of {', '.join(names[:8])}")
        decision = tune_refusal(*validation, list(names).index(refusal))
    elif len(names) == 2:
        decision = tune_threshold(*validation, target="macro_f1")
    return Rule(tuple(names), temperature, decision)


def report(
    workdir: Path, split: str, scored: Scored, rule: Rule, train: Texts, texts: Texts, log: Callable[[str], None]
) -> tuple[dict[str, float], str]:
    """Writes classification-SPLIT.json, .md and confusion-SPLIT.png; returns the chief numbers and the page.

    Numbers: those of CHIEF, as lm/scores.py names them, and `baseline/NAME/...`; classification-SPLIT.json has all.
    """
    found = classification_report(*scored, rule.names, temperature=rule.temperature)
    others: dict[str, Report] = {}
    try:
        others = baselines(*train, *texts, rule.names)
    except UserError as error:  # scikit-learn is missing
        log(f"no baseline tfidf: {error}")
        majority = majority_logits(train.labels, len(texts.labels), len(rule.names))
        others = {"majority": classification_report(majority, texts.labels, rule.names)}
    parts = [format_report(found, f"Classes, {split} split")]
    tuned = None
    if rule.decision != Decision():
        tuned = classification_report(*scored, rule.names, predictions=rule.decision.decide(scored.logits))
        where = ", to which it was fitted" if split == "validation" else ""
        parts.append(
            f"Decided by the rule of {DECISION} (fitted on the validation split) in place of the likeliest class: accuracy "
            f"{tuned['accuracy']:.4f}, macro F1 {tuned['macro_f1']:.4f} on the {split} split{where}.\n"
        )
    if others:
        parts.append(format_baselines(found, others))
    legend = plot_confusion(workdir / f"confusion-{split}.png", found["confusion"], rule.names)
    parts.append(f"![confusion](confusion-{split}.png)\n" + (f"\n{legend}\n" if legend else ""))
    page = "\n".join(parts)
    write_json(
        workdir / f"classification-{split}.json",
        {"split": split, "model": found, "decided": tuned, "baselines": others},
    )
    (workdir / f"classification-{split}.md").write_text(page, encoding="utf-8")
    reports = {"": found, **{f"baseline/{name}/": other for name, other in others.items()}}
    numbers = {prefix + key: one[key] for prefix, one in reports.items() for key in CHIEF if one[key] is not None}
    return numbers, page


def judge(
    model: Loaded, data: Any, workdir: Path, split: str, batch_size: int, log: Callable[[str], None]
) -> tuple[dict[str, float], str]:
    """Scores a classifier on a split of its data beside baselines, by a rule fitted on the validation split, and keeps both.

    Returns what `report` does, with `eval/` before the model's numbers; on other processes than the first nothing.
    """
    from data_pipeline.labelled_texts import read_texts

    size, scored = whole_rows(batch_size, model.mesh), {}
    for name in dict.fromkeys([split, "validation"]):
        ticker = Ticker(f"reading {name}", data.summary()["rows"].get(name, 0), not is_main())
        batches = data.eval_batches(name, size, local_rows(model.mesh, size))
        scored[name] = score(model.model, model.params, batches, model.mesh, size, ticker.update)
        ticker.close()
    if not is_main():
        return {}, ""
    rule = fit_rule(scored["validation"], model.config.data.labels, model.config.train.refusal)
    rule.save(workdir)
    train, texts = (Texts(*read_texts(data, name, MOST_TEXTS)) for name in ("train", split))
    numbers, page = report(workdir, split, scored[split], rule, train, texts, log)
    return {key if key.startswith("baseline/") else f"eval/{key}": value for key, value in numbers.items()}, page


def judge_run(
    run: Run, parts: Parts, outcome: Outcome, split: str, log: Callable[[str], None]
) -> tuple[dict[str, float], str]:
    """Judges what has been trained, by its best weights; says nothing of a split that there is not, or while a run goes on."""
    if outcome.status == "interrupted" or not run.data.has_split(split):
        return {}, ""
    state, best = outcome.state, run.progress.best_step
    params = averaged_weights(state.params, state.opt_state)
    if best not in (None, run.progress.step):
        params = load_weights(str(run.workdir), best, "best", parts.state.params)
    step, tokenizer_sha256 = best or run.progress.step, run.meta["tokenizer_sha256"]
    model = Loaded(run.config, parts.model, params, run.mesh, step, tokenizer_sha256)
    numbers, page = judge(model, run.data, run.workdir, split, run.config.train.eval_batch_size, log)
    log(f"\n{page}")
    return numbers, page


USAGE = """
usage: python -m lm.classify --workdir=DIR [--step=best|last|N] [--batch_size=32] [--refusal=CLASS]
                             (--split=test | --text="..." | --file=FILE.jsonl [--out=FILE.jsonl])

With --split, scores a split of the run's data beside two baselines and writes the report into the workdir. --text and
--file (rows {"text"}, JSONL or CSV) tell the class of texts. --refusal names the class that stands for no answer, such as
out-of-scope: what the model is less sure of than a threshold, found on the validation split, is given to it.

example: python -m lm.classify --workdir=runs/classify --text="where is my parcel"
"""


def tell(rule: Rule, logits: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yields for each row of logits [N, C] the class that is said, its probability, and those of the likeliest three."""
    probabilities = np.exp(log_softmax(logits / rule.temperature))
    for said, row in zip(rule.decision.decide(logits).tolist(), probabilities):
        best = np.argsort(-row, kind="stable")[:3]
        likeliest = {rule.names[i]: round(float(row[i]), 6) for i in best.tolist()}
        yield {"label": rule.names[said], "probability": round(float(row[said]), 6), "likeliest": likeliest}


def main(argv: list[str]) -> None:
    from data_pipeline.schema import split_flags
    from lm.config import ConfigError

    names = {
        "workdir": "", "step": "best", "batch_size": "32", "refusal": "", "split": "", "text": "", "file": "", "out": "",
    }  # fmt: skip
    flags, overrides = split_flags(argv, names, USAGE)
    asked = [key for key in ("split", "text", "file") if flags[key]]
    size = int(flags["batch_size"]) if flags["batch_size"].isdigit() else 0
    if not flags["workdir"] or len(asked) != 1 or size < 1 or overrides:
        raise ConfigError("python -m lm.classify --workdir=DIR and one of --split=, --text=, --file=; see --help")
    if asked == ["split"]:
        _score_split(flags, size)
    else:
        _tell_texts(flags, size)


def _score_split(flags: Mapping[str, str], size: int) -> None:
    from data_pipeline.batch import open_data

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    run = _load(flags, say)
    data: Any = open_data(run.config.data, log=say)
    if data.tokenizer.sha256 != run.tokenizer_sha256:
        raise UserError(
            f"the tokenizer of the run's data is no longer the one that {flags['workdir']} was trained with"
        )
    split = flags["split"]
    if not data.has_split(split):
        raise UserError(f"this run's data has no {split!r} split; see config.data.split")
    refusal = flags["refusal"] or run.config.train.refusal
    if refusal:
        data.classes.check_refusal(data.prepared, refusal)
    run = replace(run, config=replace(run.config, train=replace(run.config.train, refusal=refusal)))
    numbers, page = judge(run, data, Path(flags["workdir"]), split, size, say)
    numbers = {key.removeprefix("eval/"): value for key, value in numbers.items()}
    print(page, file=sys.stderr)
    print(json.dumps({"workdir": flags["workdir"], "step": run.step, "split": split, **numbers}))


def _load(flags: Mapping[str, str], say: Callable[[str], None]) -> Loaded:
    run = load_run(flags["workdir"], flags["step"], say, any_task=True)
    if not run.config.model.classes:
        raise UserError(f"{flags['workdir']} is a language model, not a classifier; see configs/classify.py")
    return run


def _tell_texts(flags: Mapping[str, str], size: int) -> None:
    from data_pipeline.labelled_texts import batches_of, read_file
    from data_pipeline.tokenizer import load_tokenizer

    run = _load(flags, lambda text: print(text, file=sys.stderr))
    workdir = Path(flags["workdir"])
    rule = Rule.load(workdir, run.config.data.labels)
    if flags["refusal"]:
        raise UserError("--refusal is fitted with --split; run that first")
    if flags["out"] and not Path(flags["out"]).parent.is_dir():
        raise UserError(f"--out={flags['out']}: there is no folder {Path(flags['out']).parent}")
    size = whole_rows(size, run.mesh)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    texts = read_file(run.config.data, flags["file"]) if flags["file"] else [flags["text"]]
    order, batches = batches_of(run.config.data, tokenizer, texts, size)
    ticker = Ticker("rows of texts read", len(texts))
    found = score(run.model, run.params, batches, run.mesh, size, ticker.update).logits
    ticker.close()
    logits = np.empty_like(found)
    logits[order] = found
    lines = [json.dumps({"text": text, **told}, ensure_ascii=False) for text, told in zip(texts, tell(rule, logits))]
    if flags["out"]:
        try:
            Path(flags["out"]).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out={flags['out']} cannot be written: {error.strerror}") from None
        print(f"{len(lines):,} texts in {flags['out']}", file=sys.stderr)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
