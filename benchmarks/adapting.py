"""How much of a pretrained model must train to classify texts: the last layer, the last blocks, adapters, all, or a new model?

From rows {"text", "label"}, --classes of the classes are drawn a seed, with --texts training texts, 10 for validation and up to --held for
test in each. Every way is the run and the `lm.classify --split=test` that a user would type, of --epochs, its best step by validation loss. The
rates of WAYS were the best of three on the validation split of a draw that no table has (--first_seed=1000 --seeds=1 --times=1, 0.3, 3).
`cost` is the FLOPs of a step beside training everything, `s a step` its seconds; `beside all` is the mean difference to training everything
on the same draw, with the 95 % interval of Student's t; the baselines learn from the same texts. --chosen adds the blocks that a pattern names.

    python benchmarks/adapting.py [--out=FILE.jsonl] [--quick] --data=FILE.jsonl --source=RUN|hf:FOLDER [--classes=30] [--texts=10] [--held=50]
                                  [--epochs=10] [--seeds=3] [--first_seed=0] [--times=1] [--ways="last layer,all"] [--chosen="block_1[45]/.*"] [--config.KEY=VALUE ...]

--quick: made-up texts, a small model of random weights, two ways, one seed. Needs scikit-learn for the baseline.

example: python benchmarks/adapting.py --data=intents.jsonl --source=hf:models/SmolLM2-135M-Instruct --config.data.seq_len=64
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.imbalance import made_up, read_rows, show_gain
from data_pipeline.schema import ConfigError, UserError, run_main, split_flags

ROOT = Path(__file__).resolve().parent.parent
CHECKED = 10  # validation texts of a class
RANK = 16


class Way(NamedTuple):
    rate: float
    train: str
    keys: Mapping[str, str] = {}


TOP = "('norm_out/.*|classifier',True),('.*',False)"
WAYS = {
    "last layer": Way(1e-2, f"({TOP})"),
    "last block": Way(1e-3, f"(('block_-01/.*',True),{TOP})"),
    "last two blocks": Way(1e-3, f"(('block_-0[12]/.*',True),{TOP})"),
    "LoRA": Way(1e-3, f"(('.*_lora_[ab]',True),{TOP})", {"lora.rank": str(RANK), "lora.alpha": str(2.0 * RANK)}),
    "all": Way(2e-4, "(('.*',True),)"),
    "from scratch": Way(3e-4, "(('.*',True),)", {"init.fresh": "('.*',)"}),
}
BASELINES = ("majority", "tfidf")


class Shop:
    """Runs ways on draws, each in processes of their own."""

    def __init__(self, rows: Mapping[str, list[str]], counts: Mapping[str, int], common: Mapping[str, str]):
        self.rows, self.counts, self.common = rows, counts, common

    def deal(self, seed: int, folder: Path) -> None:
        """Writes train.jsonl, validation.jsonl and test.jsonl of a draw."""
        rng, texts = np.random.default_rng(seed), self.counts["texts"]
        least = texts + 2 * CHECKED
        names = sorted(name for name, some in self.rows.items() if len(some) >= least)
        if len(names) < self.counts["classes"]:
            raise UserError(f"{len(names)} classes have {least} texts, {self.counts['classes']} are needed")
        parts: dict[str, list[str]] = defaultdict(list)
        for name in rng.permutation(names)[: self.counts["classes"]].tolist():
            some = rng.permutation(self.rows[name])[: texts + CHECKED + self.counts["held"]].tolist()
            cut = {"train": some[:texts], "validation": some[texts:][:CHECKED], "test": some[texts + CHECKED :]}
            for part, held in cut.items():
                parts[part] += [json.dumps({"text": text, "label": name}, ensure_ascii=False) for text in held]
        for part, lines in parts.items():
            (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def train(self, folder: Path, name: str, seed: int, rate: float) -> dict[str, Any]:
        """Trains one model; returns its scores on test, its cost, and the scores of the baselines."""
        way, workdir = WAYS[name], folder / "run"
        keys = {f"data.{part}_path": str(folder / f"{part}.jsonl") for part in ("train", "validation", "test")}
        keys |= {"data.cache_dir": str(folder / "cache"), "train.seed": str(seed), "data.seed": str(seed)}
        keys |= {"optim.peak_lr": str(rate), "optim.train": way.train, **way.keys, **self.common}
        flags = [f"--config.{key}={value}" for key, value in keys.items()]
        _command("launch.py", "--config=configs/classify.py", f"--workdir={workdir}", *flags)
        summary = json.loads((workdir / "summary.json").read_text())
        receipt = json.loads((workdir / "receipt.json").read_text())
        _command("-m", "lm.classify", f"--workdir={workdir}", "--split=test")
        report = json.loads((workdir / "classification-test.json").read_text())
        found = {"way": name, "seed": seed, "rate": rate, "trained": receipt["trained_params"],
                 "cost": receipt["flops_per_step"] / receipt["flops_per_step_if_all_trained"],
                 "step_seconds": _median_step(workdir), "best_step": summary["best_step"], "steps": summary["steps"],
                 "validation_accuracy": summary["best/eval/accuracy"]}  # fmt: skip
        scores = {"": report["model"], **{f"{other}/": report["baselines"][other] for other in BASELINES}}
        found |= {f"{other}{key}": score[key] for other, score in scores.items() for key in ("accuracy", "macro_f1")}
        shutil.rmtree(workdir)
        return found


def _command(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(words)[:200]} ...: {(done.stderr or done.stdout)[-600:]}")


def _median_step(workdir: Path) -> float:
    """Seconds of a step by the log, the median of its rows."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return float(np.median([row["time/step_ms"] for row in rows if "time/step_ms" in row])) / 1e3


def summarise(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lines of the table of test scores."""
    by: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for row in found:
        by[row["way"]][row["seed"]] = row
    full = by.get("all", {})
    lines = [
        "| trained | numbers | rate | cost | s a step | accuracy | beside all | macro F1 | each seed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way, rows in by.items():
        first = next(iter(rows.values()))
        values = [row["accuracy"] for row in rows.values()]
        gaps = [row["accuracy"] - full[seed]["accuracy"] for seed, row in rows.items() if seed in full]
        cells = (
            f"{first['trained']:,}", f"{first['rate']:.1e}", f"{first['cost']:.2f}",
            f"{np.median([row['step_seconds'] for row in rows.values()]):.2f}", f"{np.mean(values):.3f}",
            show_gain(gaps) if gaps and way != "all" else "", f"{np.mean([row['macro_f1'] for row in rows.values()]):.3f}",
            " ".join(f"{value:.3f}" for value in values),
        )  # fmt: skip
        lines.append(f"| {way} | {' | '.join(cells)} |")
    some = next(iter(by.values()))
    for other in BASELINES:
        values = [row[f"{other}/accuracy"] for row in some.values()]
        gaps = [row[f"{other}/accuracy"] - full[seed]["accuracy"] for seed, row in some.items() if seed in full]
        macro = np.mean([row[f"{other}/macro_f1"] for row in some.values()])
        each = " ".join(f"{value:.3f}" for value in values)
        lines.append(
            f"| {other} | | | | | {np.mean(values):.3f} | {show_gain(gaps) if gaps else ''} | {macro:.3f} | {each} |"
        )
    return lines


def main(argv: list[str]) -> None:
    numbers = {"classes": "30", "texts": "10", "held": "50", "epochs": "10", "seeds": "3"}
    words = {
        "data": "",
        "source": "",
        "ways": ",".join(WAYS),
        "first_seed": "0",
        "times": "1",
        "out": "",
        "chosen": "",
        "quick": "false",
    }
    flags, overrides = split_flags(argv, {**numbers, **words}, f"\n{__doc__}")
    quick = flags["quick"] == "true"
    if quick:
        few = {"classes": "4", "texts": "8", "held": "20", "epochs": "8", "seeds": "1"}
        flags |= {**few, "ways": "last layer,all"}
    ways = [way for way in flags["ways"].split(",") if way]
    if flags["chosen"]:
        WAYS["chosen blocks"] = Way(2e-3, f"(({flags['chosen']!r},True),{TOP})")
        ways.append("chosen blocks")
    given = quick or (flags["data"] and flags["source"])
    if not given or not all(flags[key].isdigit() for key in numbers) or not set(ways) <= set(WAYS):
        raise ConfigError(f"name --data, --source, whole numbers, and ways among {', '.join(WAYS)}; see --help")
    counts = {key: int(flags[key]) for key in numbers}
    rows = made_up(counts["classes"], 50) if quick else read_rows(flags["data"])
    common = {"train.epochs": f"{counts['epochs']}.0", "train.eval_every": "30", "train.early_stop_patience": "0",
              "model.scan": "true", "data.batch_size": "4", "init.source": flags["source"]}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            common["init.source"] = f"{folder}/start"
            _command("launch.py", "--config=configs/smoke.py", f"--workdir={folder}/start")
        shop = Shop(rows, counts, common | overrides)
        seeds = range(int(flags["first_seed"]), int(flags["first_seed"]) + counts["seeds"])
        found = run_all(shop, ways, seeds, float(flags["times"]), flags["out"], Path(folder))
    print("\n".join(summarise(found)))


def run_all(
    shop: Shop, ways: Sequence[str], seeds: Sequence[int], times: float, out: str, folder: Path
) -> list[dict[str, Any]]:
    """Trains every way on every draw; returns their rows, and adds them to the file `out`."""
    found: list[dict[str, Any]] = []
    for seed in seeds:
        place = folder / f"draw {seed}"
        place.mkdir()
        shop.deal(seed, place)
        for way in ways:
            row = shop.train(place, way, seed, WAYS[way].rate * times)
            found.append(row)
            print(f"seed {seed}, {way}, rate {row['rate']:.1e}: validation accuracy {row['validation_accuracy']:.3f}, test {row['accuracy']:.3f}, "
                  f"macro F1 {row['macro_f1']:.3f}, cost {row['cost']:.2f}, {row['step_seconds']:.2f} s a step", flush=True)  # fmt: skip
            if out:
                with open(out, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"benchmark": "adapting", **shop.counts, **row}) + "\n")
    return found


if __name__ == "__main__":
    run_main(main)
