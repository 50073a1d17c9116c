"""Which ids are in batch number s? A function of the configuration and s, for any split over hosts.

Rows are an index in memory over the prepared ids (chunks, packing, mixture); only the rows asked for are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, cast

import numpy as np

from data_pipeline.augment.check import augment_identity, check_augment, is_on
from data_pipeline.augment.mask import augment_batch, is_masking
from data_pipeline.augment.reader import RewrittenRows
from data_pipeline.augment.rewrite import Rewriter, rewrites
from data_pipeline.config import SPLITS, DataConfig, check_data_config
from data_pipeline.feed import Batch, Calls, TrainBatches
from data_pipeline.mix import Mixture, epoch_key, make_key, permute
from data_pipeline.prepare.build import prepare
from data_pipeline.prepare.repeated import TABLE, open_table
from data_pipeline.quiet_tf import import_tf
from data_pipeline.records import Named, Source, credits_of
from data_pipeline.rows import BATCH_DTYPES, ORIGIN_DTYPES, RowReader, read_rows
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.store import Prepared
from data_pipeline.stream import DocumentReader, StreamedBatches, Streams
from data_pipeline.tasks import Cut, check_tokenizer, cut_chunks
from data_pipeline.tokenizer import Tokenizer

VERSION = 1  # raise it when the same prepared data gives other batches
EVAL_ORDER = 0xE7A1  # key of the one shuffled order of evaluation rows, so that the first rows are a fair sample
PREFETCH = 4  # batches read ahead
LOCATED = 4096  # rows whose places are computed at once: one batch alone takes as long, nearly all of it calls of numpy


class Data:
    """Opened data: the tokenizer, and the batches of each split."""

    def __init__(self, config: DataConfig, prepared: Prepared, sources: Sequence[Named], log: Callable[[str], None]):
        self.config, self.prepared, self.sources = config, prepared, sources
        self.tokenizer: Tokenizer = prepared.tokenizer
        special = self.tokenizer.special
        self.pad_id = special.pad if special.pad >= 0 else max(special.eos, 0)
        check_tokenizer(self.tokenizer, config.add_bos, config.split.by == "hash", is_masking(config.augment))
        check_augment(config.augment, self.tokenizer)
        self.rewriter = Rewriter(config.augment, self.tokenizer, config.seq_len) if rewrites(config.augment) else None
        self.cuts: list[list[Cut]] = [[] for _ in sources]
        self.readers = {split: self._open(split) for split in SPLITS}
        self._check(log)
        self.fingerprint = self._fingerprint()

    def has_split(self, split: str) -> bool:
        """Says whether a split has any row."""
        if self.config.streaming and split == "train":
            return True
        return any(len(reader) for _, reader in self.readers.get(split, ()))

    def train_batches(self, start_step: int, rows: tuple[int, int], state: bytes | None = None) -> TrainBatches:
        """Yields the batches of steps `start_step`, `start_step + 1`, ...: rows `rows[0]` to `rows[1]` of each."""
        if self.config.streaming:
            return self._stream(start_step, rows, state)
        n_rows = sum(len(reader) for _, reader in self.readers["train"])
        if n_rows < self.config.batch_size:
            raise UserError(
                f"the train split has {n_rows} rows of {self.config.seq_len} tokens, fewer than config.data.batch_size="
                f"{self.config.batch_size}: lower it or config.data.seq_len, or add text"
            )
        tf = import_tf()
        origins, calls = is_on(self.config.augment), Calls()
        dtypes = BATCH_DTYPES | (ORIGIN_DTYPES if origins else {})
        mixture, readers = self._mixture()

        local = np.arange(*rows)
        steps = max(LOCATED // max(len(local), 1), 1)

        @lru_cache(maxsize=2)
        def locate(block: int) -> list[np.ndarray]:
            step = np.arange(block * steps, (block + 1) * steps)
            places = step[:, None] * self.config.batch_size + local
            return [array.reshape(places.shape) for array in mixture.locate(places.reshape(-1))]

        def read(step: np.ndarray) -> list[np.ndarray]:
            block, nth = divmod(int(step), steps)
            source, epoch, row = (array[nth] for array in locate(block))
            batch = read_rows(readers, source, row, epoch_key(self.config.seed, epoch) if origins else None)
            return [batch[name] for name in dtypes]

        def to_batch(step: Any) -> dict[str, Any]:
            shape: list[int | None] = [rows[1] - rows[0], self.config.seq_len]
            arrays = calls.tensors(read, (step,), list(dtypes.values()), [shape] * len(dtypes))
            batch = dict(zip(dtypes, arrays))
            return self._augment(batch) if origins else batch

        dataset = tf.data.Dataset.counter(start=start_step).map(to_batch)
        return TrainBatches(dataset.prefetch(PREFETCH), calls)

    def _mixture(self) -> tuple[Mixture, list[RowReader]]:
        numbers, readers = zip(*self.readers["train"])
        sizes, weights = [len(reader) for reader in readers], [self._weight(n) for n in numbers]
        return Mixture([self.sources[n].name for n in numbers], sizes, weights, self.config.seed), list(readers)

    def trace(self, step: int, row: int) -> tuple[int, int, list[tuple[int, int, int]]]:
        """Says what row `row` of step `step` holds: (source, epoch, [(document, first token of it, tokens)])."""
        mixture, readers = self._mixture()
        place = np.array([step * self.config.batch_size + row])
        source, epoch, number = (int(array[0]) for array in mixture.locate(place))
        held = readers[source].held(number, epoch_key(self.config.seed, np.array([epoch])))
        return self.readers["train"][source][0], epoch, held

    def eval_batches(self, split: str, batch_size: int, rows: tuple[int, int]) -> Iterator[Batch]:
        """Yields every row of a split once, in one fixed order; the last batch is filled with rows of weight 0."""
        readers = [reader for _, reader in self.readers[split]]
        sizes = np.array([len(reader) for reader in readers], np.int64)
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        for start in range(0, total, batch_size):
            places = np.arange(start + rows[0], min(start + rows[1], total))
            row, source = np.full(rows[1] - rows[0], -1), np.zeros(rows[1] - rows[0], np.int64)
            if len(places):
                shuffled = permute(places, total, make_key(EVAL_ORDER))
                source[: len(places)] = np.searchsorted(ends, shuffled, side="right")
                row[: len(places)] = shuffled - (ends - sizes)[source[: len(places)]]
            yield read_rows(readers, source, row)

    def credits(self) -> dict[str, dict[str, str]]:
        """Returns of each source its licence, citation and address, where they are known."""
        known = self.prepared.manifest.get("credits", {})  # a folder that an older version prepared has none
        return {source.name: credits_of(source.config, known.get(source.name, {})) for source in self.sources}

    def summary(self) -> dict[str, Any]:
        """Returns JSON values: what each source gives to each split, and what was dropped and changed."""
        sources = {}
        for number, entry in enumerate(self.prepared.manifest["sources"]):
            splits = {split: dict(counts) for split, counts in entry["splits"].items()}
            for split in SPLITS:
                for n, reader in self.readers[split]:
                    if n == number:
                        splits[split] |= _describe(reader)
            kept = {key: entry[key] for key in ("read", "kept", "dropped", "changed")}
            sources[entry["name"]] = {**kept, "weight": self._weight(number), "splits": splits}
            sources[entry["name"]]["credits"] = self.credits()[entry["name"]]
        rows = {split: sum(len(reader) for _, reader in self.readers[split]) for split in SPLITS}
        epochs = self.config.batch_size / rows["train"] if rows["train"] else None
        return {"sources": sources, "rows": rows, "epochs_per_step": epochs, "folder": str(self.prepared.folder)}

    def _stream(self, start_step: int, rows: tuple[int, int], state: bytes | None) -> TrainBatches:
        numbers = self._training_sources()
        groups = [[n] for n in numbers] if any(map(self._weight, numbers)) else [numbers]
        clean = self.config.clean
        lines = open_table(self.prepared.folder / TABLE, clean) if clean.repeated_lines else None
        readers = [
            DocumentReader(
                self.config,
                [(cast(Source, self.sources[n]), *self.prepared.places(n, "train")) for n in group],
                self.tokenizer,
                lines,
            )
            for group in groups
        ]
        mixture = Mixture([self.sources[n].name for n in numbers], [1] * len(numbers), [self._weight(n) for n in numbers],
                          self.config.seed)  # fmt: skip
        streams = Streams(self.config, readers, mixture, self.tokenizer, self.pad_id, self.rewriter)
        return StreamedBatches(
            streams.dataset(rows, self._augment), streams.calls, self.fingerprint, start_step, rows, state
        )

    def _augment(self, batch: dict[str, Any]) -> dict[str, Any]:
        special = self.tokenizer.special
        return augment_batch(batch, self.config.augment, special.bos, special.mask)

    def _weight(self, number: int) -> float:
        return self.sources[number].config.weight

    def _training_sources(self) -> list[int]:
        entries = self.prepared.manifest["sources"]
        return [number for number, entry in enumerate(entries) if entry["kept"].get("train")]

    def _open(self, split: str) -> list[tuple[int, RowReader]]:
        config, readers = self.config, []
        for number in range(len(self.sources)):
            if self.prepared.has_shard(number, split):
                shard = self.prepared.shard(number, split)
                rewriter = self.rewriter if split == "train" else None
                chunks = cut_chunks(
                    shard.offsets,
                    shard.loss_start,
                    config.seq_len,
                    config.add_bos,
                    config.loss_on_prompt,
                    shard.learned,
                    rewriter.limit() if rewriter else None,
                )
                bos_id = self.tokenizer.special.bos
                reader = (
                    RewrittenRows(shard, chunks, config.packing, bos_id, self.pad_id, rewriter)
                    if rewriter
                    else RowReader(shard, chunks, config.seq_len, config.packing, bos_id, self.pad_id)
                )
                self.cuts[number].append(chunks.cut)
                if len(reader):
                    readers.append((number, reader))
        return readers

    def _check(self, log: Callable[[str], None]) -> None:
        """Raises UserError for data that cannot train; says what is allowed but unexpected."""
        config = self.config
        for number, source in enumerate(self.sources):
            cuts = self.cuts[number]
            answers, cut, lost = (sum(getattr(c, k) for c in cuts) for k in ("answers", "cut_answers", "lost_chats"))
            what = "answers" if any(c.chats for c in cuts) else "completions"
            if cut > (1 - config.min_completion_kept) * answers:
                raise UserError(
                    f"source {source.name}: config.data.seq_len={config.seq_len} cuts the end of {cut} of {answers} {what}; "
                    f"raise it, or lower config.data.min_completion_kept={config.min_completion_kept:g}"
                )
            if lost:
                log(
                    f"source {source.name}: {lost} conversations have no answer within {config.seq_len} tokens and are left out"
                )
        rows = sum(len(reader) for _, reader in self.readers["train"])
        if not rows and not (config.streaming and self._training_sources()):
            raise UserError("the train split is empty: lower config.data.split.validation and test, or add documents")
        pinned = {source.config.split for source in self.sources}
        for split, share in (("validation", config.split.validation), ("test", config.split.test)):
            if not self.has_split(split) and (share > 0 or split in pinned):
                log(
                    f"warning: no document fell into the {split} split (share {share:g}); raise config.data.split.{split}"
                )
        if self.tokenizer.adds_bos and not config.add_bos and not all(cut.chats for cuts in self.cuts for cut in cuts):
            log(
                "warning: this tokenizer was made to put a begin token before each text; with config.data.add_bos=False there "
                "is none (in conversations their template decides)"
            )

    def _fingerprint(self) -> str:
        config = asdict(self.config)
        for key in ("path", "sources", "prepared", "split", "tokenizer", "cache_dir", "encrypt_key_env", "on_bad", "max_bad_fraction", "max_line_bytes",
                    "allow_leak", "min_completion_kept"):  # fmt: skip
            del config[key]  # they decide what is prepared, and its content is in the hash below
        del config["clean"]["count_languages"]
        if not self.config.streaming:  # which cleans while it reads, so its text is not in what is prepared
            del config["shuffle_documents"], config["clean"], config["chat"]
        config["augment"] = augment_identity(self.config.augment)
        if config["augment"] is None:
            del config["augment"]
        weights = [[source.name, source.config.weight] for source in self.sources]
        identity = [cast(Source, source).identity() for source in self.sources] if self.config.streaming else []
        content = self.prepared.content_sha256()
        what = [VERSION, config, weights, identity, content, self.tokenizer.sha256]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _describe(reader: RowReader) -> dict[str, Any]:
    out: dict[str, Any] = {"rows": len(reader), "fill": round(reader.fill(), 4)}
    return out | {name: count for name, count in asdict(reader.chunks.cut).items() if reader.chunks.cut.answers}


def open_data(config: DataConfig, *, log: Callable[[str], None] = print) -> Data:
    """Prepares the data of `config`, or finds it prepared, and opens it; raises UserError for what is wrong with it."""
    problems = check_data_config(config)
    if problems:
        raise ConfigError(problems)
    check_augment(config.augment, None)
    prepared, sources = prepare(config, log)
    return Data(config, prepared, sources, log)
