"""What do class weights, over-sampling, logit adjustment and focal loss do for rare classes, beside plain training?

From a file of rows {"text", "label"}, --classes of the classes are drawn a seed: half keep --common training texts, half a --ratio-th of
that. Test rows are balanced. Every way trains the same model on the same rows for the same steps; `gain` is the mean of what a way has more
than plain training on the same seed, with the 95 % interval by Student's t. Rare recall is the mean over the rare classes.

    python benchmarks/imbalance.py [--out=FILE.jsonl] [--quick] --data=FILE.jsonl [--source=RUN] [--classes=10] [--common=100]
                                   [--ratio=20] [--seeds=5] [--steps=150] [--ways=plain,inverse weights,...] [--config.KEY=VALUE ...]

--source starts from a run of ours or hf:FOLDER; without it from random weights. --quick: made-up texts, one seed, few steps.

example: python benchmarks/imbalance.py --data=intents.jsonl --source=runs/pretrain
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipeline.records import Record
from data_pipeline.schema import ConfigError, UserError, run_main, split_flags
from data_pipeline.split import text_key

WAYS: dict[str, dict[str, str]] = {
    "plain": {},
    "inverse weights": {"data.class_weights": '("inverse",)'},
    "effective weights": {"data.class_weights": '("effective",)'},
    "over-sampling": {"data.label_shares": '("uniform",)'},
    "logit adjustment": {"train.logit_adjustment": "1.0"},
    "focal loss": {"train.focal_gamma": "2.0"},
}
MEASURES = ("macro_f1", "rare_recall", "accuracy")
HELD = 40  # rows of a class that are for validation (10) and test
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # 97.5 %


def made_up(classes: int, rows: int) -> dict[str, list[str]]:
    rng = np.random.default_rng(0)
    own = {f"class {c}": [f"w{c}x{i}" for i in range(3)] for c in range(classes)}
    return {
        name: [" ".join([*rng.choice(words, 2), *(f"n{n}" for n in rng.integers(0, 30, 4))]) for _ in range(rows)]
        for name, words in own.items()
    }


def read_rows(path: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    seen: set[bytes] = set()
    try:
        for line in Path(path).read_text("utf-8").splitlines():
            row = json.loads(line)
            key = text_key(Record(row["text"]))
            if key not in seen:  # else one text could be in two splits
                found[row["label"]].append(row["text"])
            seen.add(key)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: not lines of {{"text", "label"}}: {error}') from None
    return found


def deal(rows: Mapping[str, list[str]], flags: Mapping[str, int], seed: int, folder: Path) -> list[str]:
    """Writes train.jsonl, validation.jsonl and test.jsonl; returns the rare classes."""
    rng = np.random.default_rng(seed)
    names = sorted(name for name, texts in rows.items() if len(texts) >= flags["common"] + HELD)
    if len(names) < flags["classes"]:
        raise UserError(f"{len(names)} classes have {flags['common'] + HELD} texts, {flags['classes']} are needed")
    chosen = rng.permutation(names)[: flags["classes"]].tolist()
    rare = chosen[len(chosen) // 2 :]
    parts: dict[str, list[str]] = defaultdict(list)
    for name in chosen:
        texts = rng.permutation(rows[name]).tolist()
        count = max(flags["common"] // flags["ratio"], 1) if name in rare else flags["common"]
        for part, some in (("test", texts[10:HELD]), ("validation", texts[:10]), ("train", texts[HELD:][:count])):
            parts[part] += [json.dumps({"text": text, "label": name}, ensure_ascii=False) for text in some]
    for part, lines in parts.items():
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return rare


def train(folder: Path, way: str, seed: int, common: Mapping[str, str], rare: list[str]) -> dict[str, float]:
    """Trains one model and scores its last weights on the test rows."""
    import launch
    from data_pipeline.batch import open_data
    from lm import build, classify
    from lm.check import read_config
    from lm.scores import classification_report

    workdir = folder / f"run {way}"
    paths = {f"data.{part}_path": str(folder / f"{part}.jsonl") for part in ("train", "validation", "test")}
    keys = {**paths, "data.cache_dir": str(folder / "cache"), "train.seed": str(seed), "data.seed": str(seed), **common}
    config = read_config("configs/classify.py", {**keys, **WAYS[way]}, workdir=workdir)
    workdir.mkdir()
    with open(workdir / "log", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        launch.run(config, workdir, None, time.perf_counter())
        run = build.load_run(str(workdir), "last", print, any_task=True)
        data = open_data(run.config.data)
    scored = classify.score(run.model, run.params, data.eval_batches("test", 32, (0, 32)), run.mesh, 32)
    report = classification_report(*scored, run.config.data.labels)
    recalls = [row["recall"] for row in report["per_class"] if row["class"] in rare]
    return {"macro_f1": report["macro_f1"], "accuracy": report["accuracy"], "rare_recall": float(np.mean(recalls))}


def summarise(found: Mapping[str, list[dict[str, float]]]) -> list[str]:
    """Returns the lines of the table."""
    lines = ["| way | macro F1 | gain | rare recall | gain | accuracy |", "|---|---|---|---|---|---|"]
    for way, runs in found.items():
        cells = []
        for measure in MEASURES:
            values = np.array([run[measure] for run in runs])
            cells.append(f"{values.mean():.3f}")
            if measure == "accuracy":
                continue
            gains = values - np.array([run[measure] for run in found["plain"]])
            cells.append("" if way == "plain" else show_gain(gains))
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def show_gain(gains: Sequence[float] | np.ndarray) -> str:
    """Returns the mean with the 95 % interval of Student's t, which one run does not have."""
    mean, runs = float(np.mean(gains)), len(gains)
    half = STUDENT.get(runs, 2.0) * float(np.std(gains, ddof=1)) / runs**0.5 if runs > 1 else None
    return f"{mean:+.3f}" if half is None else f"{mean:+.3f} +- {half:.3f}"


def main(argv: list[str]) -> None:
    numbers = {"classes": "10", "common": "100", "ratio": "20", "seeds": "5", "steps": "150"}
    flags, overrides = split_flags(
        argv, {**numbers, "data": "", "source": "", "ways": ",".join(WAYS), "out": "", "quick": "false"}, f"\n{__doc__}"
    )
    quick = flags["quick"] == "true"
    if quick:
        flags |= {"classes": "4", "common": "20", "seeds": "1", "steps": "8", "ways": "plain,inverse weights"}
    ways = flags["ways"].split(",")
    if not (quick or flags["data"]) or not all(flags[key].isdigit() for key in numbers) or not set(ways) <= set(WAYS):
        raise ConfigError(f"name rows: --data=FILE.jsonl, whole numbers, and ways among {', '.join(WAYS)}; see --help")
    ways = ["plain", *(way for way in ways if way != "plain")]
    counts = {key: int(flags[key]) for key in numbers}
    rows = made_up(counts["classes"], counts["common"] + HELD) if quick else read_rows(flags["data"])
    common: dict[str, str] = {"train.steps": flags["steps"], "train.epochs": "0.0", "train.eval_every": "0", "data.batch_size": "8",
                              "train.early_stop_patience": "0", "data.seq_len": "64", "init.source": flags["source"]}  # fmt: skip
    if quick:
        common |= {"model.layers": "1", "model.dim": "16", "model.heads": "2", "optim.warmup_steps": "1"}
    common |= overrides
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(counts["seeds"]):
        with tempfile.TemporaryDirectory() as name:
            rare = deal(rows, counts, seed, Path(name))
            for way in ways:
                row: dict[str, Any] = train(Path(name), way, seed, common, rare)
                found[way].append(row)
                print(f"seed {seed}, {way}: " + ", ".join(f"{key} {row[key]:.3f}" for key in MEASURES), flush=True)
                if flags["out"]:
                    with open(flags["out"], "a", encoding="utf-8") as file:
                        file.write(
                            json.dumps({"benchmark": "imbalance", "seed": seed, "way": way, **counts, **row}) + "\n"
                        )
    print("\n".join(summarise(found)))


if __name__ == "__main__":
    run_main(main)
