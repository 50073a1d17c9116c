"""How many UTF-8 MB of text does preparation pass in a core-second, end to end, beside datatrove on the same files, and does its memory
grow with the corpus?

Ours is `python -m data_pipeline.prepare --config=configs/corpus.py --workers=1` with language identification and personal data masked: read,
clean, every page rule, exact and near-duplicates, split, tokenise, write; with a tokenizer trained before. CPU time of the process and its
children, start of the interpreter included; MB are those of the texts, not of the files. datatrove (benchmarks/peer_datatrove.py) runs the
first --peer_mb of the same files, with the same tokenizer, by the interpreter --peer that has it.

`--memory=100,1000` instead prepares made-up English and Chinese of so many MB, a tenth of it exact and a tenth near-duplicates, and says
the largest resident memory of a process (`--workers` of them).

    python benchmarks/prepare.py --texts=english.jsonl,chinese.jsonl [--mb=40] [--peer=PYTHON] [--peer_mb=1] [--out=FILE.jsonl]
    python benchmarks/prepare.py --memory=100,1000 [--workers=1] [--out=FILE.jsonl]

example: python benchmarks/prepare.py --memory=10
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.dedup import Corpus
from benchmarks.turns import ENVIRONMENT, ROOT, Table
from data_pipeline.schema import ConfigError, UserError, run_main, split_flags
from data_pipeline.tokenizer import load_tokenizer
from lm.hf.tokenizer_json import write_tokenizer_json

PREPARE = ("-m", "data_pipeline.prepare", "--config=configs/corpus.py")
COLUMNS = ("texts", "side", "MB", "documents", "kept", "CPU s", "MB a core-second", "wall s", "MB of memory")
LANGUAGES = '--config.data.clean.keep_languages=("en","zh")'


class Used(NamedTuple):
    """What a process and its children took."""

    cpu_seconds: float
    wall_seconds: float
    memory_mb: float  # of the largest process


def measure(command: Sequence[str]) -> Used:
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, env={**os.environ, **ENVIRONMENT})
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise UserError(
                f"{' '.join(command[:4])} ... ended with {process.returncode}: {said.read().strip().splitlines()[-1:]}"
            )
    return Used(used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024)


def write_rows(path: Path, texts: Iterator[str], total_mb: float) -> tuple[int, float]:
    """Writes JSON lines until they hold `total_mb` of text; returns documents and MB."""
    count = size = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in texts:
            if size >= total_mb * 1e6:
                break
            file.write(json.dumps({"text": text, "id": str(count)}, ensure_ascii=False) + "\n")
            count, size = count + 1, size + len(text.encode())
    return count, size / 1e6


def read_rows(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: not lines of {{"text"}}: {error}') from None


def prepare(rows: Path, out: Path, workers: int, *flags: str) -> tuple[Used, int]:
    """Returns what it took, and the documents that were kept."""
    command = (sys.executable, *PREPARE, f"--config.data.path={rows}", f"--out={out}", f"--workers={workers}", *flags)
    used = measure(command)
    return used, json.loads((out / "manifest.json").read_text("utf-8"))["documents_out"]


def compare(texts: Sequence[str], mb: float, peer: str, peer_mb: float, table: Table) -> None:
    for name in texts:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            count, size = write_rows(work / "sample.jsonl", read_rows(name), min(mb, 10))
            prepare(work / "sample.jsonl", work / "trained", 1)
            tokenizer = work / "trained" / "tokenizer"
            count, size = write_rows(work / "rows.jsonl", read_rows(name), mb)
            flags = (f"--config.data.tokenizer.path={tokenizer}", LANGUAGES, "--config.data.clean.pii=mask")
            used, kept = prepare(work / "rows.jsonl", work / "prepared", 1, *flags)
            add(table, Path(name).stem, "ours", size, count, kept, used)
            if peer:
                (work / "peer").mkdir()
                count, size = write_rows(work / "peer" / "rows.jsonl", read_rows(name), min(mb, peer_mb))
                as_json = export(tokenizer, work)
                text = next(read_rows(name))
                language = "zho" if sum("一" <= c <= "鿿" for c in text) > len(text) / 5 else "eng"
                program = str(ROOT / "benchmarks" / "peer_datatrove.py")
                used = measure(
                    (peer, program, str(work / "peer" / "rows.jsonl"), language, str(as_json), str(work / "run"))
                )
                add(table, Path(name).stem, "datatrove", size, count, kept_by_peer(work / "run"), used)


def kept_by_peer(run: Path) -> int:
    path = run / "logs" / "tokens" / "stats.json"
    return json.loads(path.read_text("utf-8"))[-2]["stats"]["forwarded"] if path.exists() else 0


def export(tokenizer: Path, folder: Path) -> Path:
    """Writes one of our tokenizers as tokenizer.json."""
    write_tokenizer_json(load_tokenizer(tokenizer), folder, adds_bos=False)
    return folder / "tokenizer.json"


def memory(sizes: Sequence[float], workers: int, table: Table) -> None:
    corpus = Corpus(2000)
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            made = (corpus.text(number) for number in range(10**9))
            count, mb = write_rows(work / "rows.jsonl", made, size)
            bounds = '--config.data.clean.bounds=("min_stop_words=none",)'  # words that are made up are no stop words
            used, kept = prepare(work / "rows.jsonl", work / "prepared", workers, bounds)
            add(table, "made up", f"ours, {workers} workers", mb, count, kept, used)


def add(table: Table, texts: str, side: str, mb: float, documents: int, kept: int, used: Used) -> None:
    row = {"texts": texts, "side": side, "mb": mb, "documents": documents, "kept": kept, **used._asdict()}
    cells = (
        texts, side, f"{mb:.1f}", f"{documents:,}", f"{kept:,}", f"{used.cpu_seconds:.1f}", f"{mb / used.cpu_seconds:.2f}",
        f"{used.wall_seconds:.1f}", f"{used.memory_mb:,.0f}",
    )  # fmt: skip
    table.add(row, cells)


def main(argv: list[str]) -> None:
    names = {"texts": "", "mb": "40", "peer": "", "peer_mb": "1", "memory": "", "workers": "1", "out": ""}
    flags, rest = split_flags(argv, names, __doc__ or "")
    if rest or bool(flags["texts"]) == bool(flags["memory"]):
        raise ConfigError("name --texts=FILE,FILE or --memory=MB,MB; see --help")
    table = Table("prepare", COLUMNS, flags["out"])
    try:
        mb, peer_mb, workers = float(flags["mb"]), float(flags["peer_mb"]), int(flags["workers"])
        sizes = [float(size) for size in flags["memory"].split(",") if size]
    except ValueError as error:
        raise ConfigError(f"--mb, --peer_mb, --memory and --workers are numbers: {error}") from None
    if sizes:
        memory(sizes, workers, table)
    else:
        compare(flags["texts"].split(","), mb, flags["peer"], peer_mb, table)


if __name__ == "__main__":
    run_main(main)
