"""Do the splits of prepared data share near-duplicates? Asked of what will be trained on, not of how it was made.

python -m data_pipeline.leaks --data=DIR
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.dedup.leakage import find_leaks
from data_pipeline.explain import place
from data_pipeline.prepare.stages import Progress
from data_pipeline.schema import ConfigError, UserError, run_main, split_flags
from data_pipeline.store import Prepared, open_prepared

USAGE = """
usage: python -m data_pipeline.leaks --data=DIR [--at_least=0.7] [--show=10]

Compares every validation and test document of a prepared folder (`prepare --out=DIR`, or one in data_cache) with all of the other splits: every
pair whose character shingles are at least so alike (exact Jaccard similarity, docs/dedup.md). Exit code 1 where there is one.

example: python -m data_pipeline.leaks --data=data_cache/0123456789abcdef
"""


def read_texts(prepared: Prepared, split: str) -> Iterator[tuple[str, str]]:
    """(split and file:line, text) of every document of a split, decoded from its ids."""
    for source in range(len(prepared.sources)):
        if prepared.has_shard(source, split):
            shard, (files, origins) = prepared.shard(source, split), prepared.origins(source, split)
            for number, (file, line) in enumerate(origins.tolist()):
                ids = shard.ids[shard.offsets[number] : shard.offsets[number + 1]].tolist()
                yield f"{split} {place(files[file], line)}", prepared.tokenizer.decode(ids)


def main(argv: list[str]) -> None:
    flags, rest = split_flags(argv, {"data": "", "at_least": "0.7", "show": "10"}, USAGE)
    if rest or not flags["data"]:
        raise ConfigError("name a folder of prepared data: python -m data_pipeline.leaks --data=DIR; see --help")
    try:
        at_least, show = float(flags["at_least"]), int(flags["show"])
    except ValueError:
        raise ConfigError("--at_least is a number and --show a whole one; see --help") from None
    if not 0.1 <= at_least <= 1:
        raise ConfigError(f"--at_least={at_least:g}: must be in [0.1, 1]")
    prepared = open_prepared(Path(flags["data"]).expanduser())
    if isinstance(prepared, str):
        raise UserError(f"--data={flags['data']}: {prepared}")
    if prepared.manifest["made_of"]["streaming"]:
        raise UserError(
            f"--data={flags['data']}: prepared for streaming, so its training text is not there; prepare it without"
        )
    pairs = compare(prepared, at_least, show)
    if pairs:
        counts = ", ".join(f"{count:,} between {a} and {b}" for (a, b), count in sorted(pairs.items()))
        raise UserError(
            f"{pairs.total():,} pairs are at least {at_least:g} alike: {counts}. config.data.clean.near_dedup=0.8 keeps what is alike in one split"
        )
    print(f"no pair of documents in two splits is {at_least:g} alike")


def compare(prepared: Prepared, at_least: float, show: int) -> Counter[tuple[str, str]]:
    """Counts the pairs by their splits, and prints the first ones."""
    found: Counter[tuple[str, str]] = Counter()
    rounds = {"validation": ("train", "test"), "test": ("train",)}
    sizes = {split: counts["bytes"] for split, counts in prepared.manifest["splits"].items()}
    progress = Progress(print, "comparing", sum(sizes.get(split, 0) for rest in rounds.values() for split in rest))
    for held_out, rest in rounds.items():

        def others(rest: tuple[str, ...] = rest) -> Iterator[tuple[str, str]]:
            for split in rest:
                for pair in read_texts(prepared, split):
                    progress.add(len(pair[1].encode()))
                    yield pair

        for leak in find_leaks(read_texts(prepared, held_out), others, at_least):
            found[held_out, leak.other.split(" ", 1)[0]] += 1
            if found.total() <= show:
                print(f"{leak.jaccard:.2f}  {leak.held_out}  =  {leak.other}")
    return found


if __name__ == "__main__":
    run_main(main)
