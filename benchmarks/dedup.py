"""How many near-duplicates are found, how many of those are none, how fast is each stage, and does memory grow with the corpus?

Four kinds of rows, each also a JSON line in FILE. `accuracy`: documents, 4 in 10 of them copies of others with edits to a Jaccard
similarity between 0.5 and 1, against all pairs computed exactly; with the pairs of at least 0.7 that two ways of splitting leave across
splits. `speed`: MB of UTF-8 a CPU second of signatures, line hashes and the search for evaluation sets, by length of documents.
`whole`: all stages on one core, in a child process, and its largest resident memory, by size of the corpus (a tenth of it exact, a tenth
near-duplicates). Texts are made up (seeded), or for `accuracy` those of FILE: JSON lines with a "text", or .txt cut at blank lines.

    python benchmarks/dedup.py [--out=FILE.jsonl] [--quick] [--text=FILE] [--documents=20000] [--megabytes=100,1000]

example: python benchmarks/dedup.py --text=corpus.jsonl --out=dedup.jsonl
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.turns import Table, describe_machine
from data_pipeline.config import SplitConfig
from data_pipeline.dedup.clusters import read_fates
from data_pipeline.dedup.codes import batches
from data_pipeline.dedup.deal import split_of_cluster
from data_pipeline.dedup.decontaminate import EvaluationIndex
from data_pipeline.dedup.leakage import find_leaks
from data_pipeline.dedup.lines import LineRule, distinct_units
from data_pipeline.dedup.minhash import band_hashes
from data_pipeline.dedup.names import Names
from data_pipeline.dedup.near import PAIR
from data_pipeline.dedup.stages import DedupRule, Texts, deduplicate
from data_pipeline.records import Record
from data_pipeline.schema import UserError, run_main, split_flags
from data_pipeline.split import text_key

SENTENCES = 20_000
DRAWN = SplitConfig(validation=0.05, test=0.05)


def make_sentences(language: str, rng: random.Random, count: int = SENTENCES) -> list[str]:
    if language == "en":
        letters = "etaoinshrdlucmfwypvbgk"
        words = ["".join(rng.choices(letters, range(22, 0, -1), k=rng.randint(2, 10))) for _ in range(20_000)]
        weights = [1 / (rank + 3) for rank in range(len(words))]
        drawn = iter(rng.choices(words, weights, k=20 * count))
        return [" ".join(next(drawn) for _ in range(rng.randint(6, 19))).capitalize() + ". " for _ in range(count)]
    weights = [1 / (rank + 20) for rank in range(3500)]
    drawn = iter(rng.choices([chr(0x4E00 + 5 * rank) for rank in range(3500)], weights, k=32 * count))
    return ["".join(next(drawn) for _ in range(rng.randint(8, 28))) + "。" for _ in range(count)]


class Corpus:
    """Documents by number, each a function of it: a tenth repeat the one before, a tenth do so with edits."""

    def __init__(self, mean_chars: int):
        rng = random.Random(0)
        self.sentences = [make_sentences(language, rng) for language in ("en", "zh")]
        self.mean_chars = mean_chars

    def text(self, number: int) -> str:
        if number % 10 == 7:
            return self.text(number - 1)
        if number % 10 == 3:
            return edit(self.text(number - 1), 0.85, random.Random(number))
        rng = random.Random(number)
        pool = self.sentences[number % 4 == 0]
        size, parts = 0, []
        wanted = rng.randint(self.mean_chars // 2, self.mean_chars * 3 // 2) / (1 if pool is self.sentences[0] else 3)
        while size < wanted:
            parts.append(pool[int(rng.random() * SENTENCES)])
            size += len(parts[-1])
        return "".join(parts)

    def shard(self, begin: int, end: int) -> Iterator[tuple[bytes, str, str]]:
        for number in range(begin, end):
            text = self.text(number)
            yield text_key(Record(text)), text, ""


def edit(text: str, jaccard: float, rng: random.Random) -> str:
    """Replaces so many characters that about this similarity is left."""
    size = 5 if ord(max(text, default="a")) > 0x2E80 else 8
    chars = list(text)
    kept = [i for i, c in enumerate(chars) if c.isalnum()]
    count = round(len(kept) * (1 - jaccard) / (size * (1 + jaccard)))
    step = len(kept) / max(count, 1)
    for i in range(count):
        chars[kept[int((i + rng.random() * 0.5) * step)]] = rng.choice("零一二三四" if size == 5 else "zqxj")
    return "".join(chars)


def read_texts(path: str) -> list[str]:
    try:
        content = Path(path).read_text("utf-8")
        if path.endswith(".txt"):
            return content.split("\n\n")
        return [json.loads(line)["text"] for line in content.splitlines()]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--text={path}: {error}; give JSON lines with a text, or a .txt file") from None


def measure_accuracy(texts: list[str], count: int) -> dict[str, Any]:
    rng = random.Random(1)
    chosen = [text for text in texts if len(text) >= 60]
    rng.shuffle(chosen)
    chosen = chosen[: count * 6 // 10]
    copies = [edit(rng.choice(chosen), rng.uniform(0.5, 1), rng) for _ in range(len(chosen) * 4 // 6)]
    documents = [(text_key(Record(text)), text, "") for text in [*chosen, *copies]]
    rng.shuffle(documents)
    named = [(str(i), text) for i, (_, text, _) in enumerate(documents)]
    exact = {
        (int(leak.held_out), int(leak.other)): leak.jaccard
        for leak in find_leaks(named, lambda: named, 0.6)
        if int(leak.held_out) < int(leak.other)
    }
    step = -(-len(documents) // 4)
    with tempfile.TemporaryDirectory() as name:
        pieces = [partial(iter, documents[i : i + step]) for i in range(0, len(documents), step)]
        found = deduplicate(pieces, Path(name))
        kept = np.concatenate([read_fates(found.shards, s, found.exact, found.near)[1] for s in range(len(pieces))])
        kept = kept[kept]  # what an exact duplicate repeats may repeat another one
        verified = np.concatenate([np.fromfile(path, PAIR) for path in found.pairs])
        look_up = Names(found.names)
        names = [name for s in range(len(pieces)) for name in look_up.of_shard(found.shards, s)]
    splits = [split_of_cluster(name, DRAWN) for name in names]
    by_row = [split_of_cluster(key, DRAWN) for key, _, _ in documents]
    rows = verified[verified["jaccard"] >= 0.8]
    strings = [spell_jaccard(named[a][1], named[b][1]) for a, b, _ in rows.tolist()]
    dropped = np.flatnonzero(kept != np.arange(len(kept))).tolist()
    held = Counter(where for where in by_row if where != "train")
    similar = [pair for pair, jaccard in exact.items() if jaccard >= 0.7]
    return {
        "documents": len(documents), "bytes": sum(len(text.encode()) for _, text in named),
        "pairs_080": sum(j >= 0.8 for j in exact.values()), "pairs_070": len(similar),
        "recall_080": mean(kept[a] == kept[b] for (a, b), j in exact.items() if j >= 0.8),
        "left_080": sum(bool(kept[a] == a and kept[b] == b) for (a, b), j in exact.items() if j >= 0.8),
        "recall_070": mean(names[a] == names[b] for a, b in similar),
        "precision": mean(likeness >= 0.8 for likeness in strings),
        "dropped": len(dropped),
        "dropped_080_to_kept": mean(spell_jaccard(named[i][1], named[kept[i]][1]) >= 0.8 for i in dropped),
        "held_out_by_row": sum(held.values()),
        "leaks_by_row": sum(by_row[a] != by_row[b] for a, b in similar),
        "leaks_by_cluster": sum(splits[a] != splits[b] for a, b in similar),
    }  # fmt: skip


def mean(values) -> float:
    held = [float(value) for value in values]
    return sum(held) / max(len(held), 1)


def spell_jaccard(a: str, b: str) -> float:
    """Computes the similarity from strings, as docs/dedup.md defines it, with none of the code that is measured."""
    from data_pipeline.split import NOT_COMPARED

    sets = []
    for text in (a, b):
        plain = NOT_COMPARED.sub("", text.casefold()) or text.casefold()
        padded = plain + "\0" * 8
        sets.append({padded[i : i + (5 if ord(c) >= 0x2E80 else 8)] for i, c in enumerate(plain)})
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


def measure_speed(language: str, chars: int, megabytes: float) -> dict[str, Any]:
    rng = random.Random(2)
    sentences = make_sentences(language, rng, 4000)
    texts = []
    total = 0
    while total < megabytes * 1e6:
        size, parts = 0, []
        while size < chars:
            parts.append(rng.choice(sentences))
            size += len(parts[-1])
        texts.append("\n".join(parts)[:chars])
        total += len(texts[-1].encode())
    other = make_sentences(language, random.Random(3), 4000)
    index = EvaluationIndex((f"evaluation:{i}", text * 3) for i, text in enumerate(other))
    rule = LineRule()
    work = {
        "signatures": band_hashes, "lines": lambda batch: distinct_units(batch, rule), "evaluation": index.find,
    }  # fmt: skip
    row: dict[str, Any] = {"language": language, "chars": chars}
    for name, function in work.items():
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            for batch in batches(texts):
                function(batch)
            best = min(best, time.process_time() - began)
        row[f"{name}_mb_per_cpu_sec"] = total / 1e6 / best
    return row


def measure_whole(megabytes: int, mean_chars: int = 2000) -> dict[str, Any]:
    corpus = Corpus(mean_chars)
    count = int(megabytes * 1e6 / mean_chars)
    step = 10_000
    shards: list[Texts] = [partial(corpus.shard, i, min(i + step, count)) for i in range(0, count, step)]
    began = time.process_time()
    size = sum(len(text.encode()) for shard in shards for _, text, _ in shard())
    making = time.process_time() - began  # of the texts, which the stages then do twice
    with tempfile.TemporaryDirectory() as name:
        began = time.process_time()
        found = deduplicate(shards, Path(name), DedupRule(lines=LineRule()), memory_bytes=1 << 25)
        seconds = time.process_time() - began - 2 * making
        fates = np.concatenate([read_fates(found.shards, s, found.exact, found.near)[0] for s in range(len(shards))])
        disk = sum(path.stat().st_size for path in Path(name).iterdir())
    return {
        "megabytes": size / 1e6, "documents": count, "dropped_exact": int((fates == 1).sum()),
        "dropped_near": int((fates == 2).sum()), "mb_per_cpu_sec": size / 1e6 / seconds, "disk_mb": disk / 1e6,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def main(argv: list[str]) -> None:
    defaults = {"out": "", "quick": "false", "text": "", "documents": "20000", "megabytes": "100,1000", "child": ""}
    flags, extra = split_flags(argv, defaults, __doc__ or "")
    sizes = flags["megabytes"].split(",")
    if extra or not all(value.isdecimal() for value in (flags["documents"], *sizes)):
        raise UserError("--documents and --megabytes must be whole numbers; see --help")
    if flags["child"]:
        print(json.dumps(measure_whole(int(flags["child"]))))
        return
    quick = flags["quick"] == "true"
    documents, sizes, most = (1500, ["2", "8"], 0.5) if quick else (int(flags["documents"]), sizes, 4.0)
    corpus = Corpus(1000)
    texts = read_texts(flags["text"]) if flags["text"] else [corpus.text(10 * i) for i in range(documents)]
    machine = describe_machine()
    print(f"{machine['machine']}, load {machine['load']:.1f}\n")
    table = Table("dedup", ["kind", "of", "what"], flags["out"])
    row = measure_accuracy(texts, documents)
    what = (f"recall {row['recall_080']:.4f} at 0.8, {row['recall_070']:.4f} at 0.7; precision {row['precision']:.4f}; pairs >= 0.7 "
            f"across splits {row['leaks_by_row']} by row, {row['leaks_by_cluster']} by cluster")  # fmt: skip
    table.add({"kind": "accuracy", **row}, ["accuracy", f"{row['documents']:,} documents", what])
    for language in ("en", "zh"):
        for chars in (100, 2000, 20_000):
            row = measure_speed(language, chars, most)
            speeds = ", ".join(f"{k.split('_')[0]} {v:.1f}" for k, v in row.items() if k.endswith("sec"))
            table.add({"kind": "speed", **row}, ["speed", f"{language}, {chars:,} characters", f"MB/s: {speeds}"])
    for size in sizes:
        command = [sys.executable, __file__, f"--child={size}"]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        what = f"{row['mb_per_cpu_sec']:.1f} MB/s, {row['rss_mb']:.0f} MB resident, {row['disk_mb']:,.0f} MB of files"
        table.add({"kind": "whole", **row}, ["whole", f"{row['megabytes']:,.0f} MB", what])


if __name__ == "__main__":
    run_main(main)
