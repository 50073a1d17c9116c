"""Which ids are in batch number s? A function of the configuration and s, for any split over hosts.

Rows are an index in memory over the prepared ids (chunks, packing, mixture); only the rows asked for are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from data_pipeline.augment.check import check_augment
from data_pipeline.augment.mask import augment_batch, is_masking
from data_pipeline.augment.reader import RewrittenRows
from data_pipeline.augment.rewrite import Rewriter, rewrites
from data_pipeline.check import check_data_config
from data_pipeline.classes import find_classes
from data_pipeline.config import SPLITS, DataConfig
from data_pipeline.dedup.lines import RepeatedLines
from data_pipeline.document_reader import DocumentReader, Texts
from data_pipeline.feed import Batch, TrainBatches
from data_pipeline.fingerprint import hash_data
from data_pipeline.mix import Mixture, epoch_key, make_key, permute
from data_pipeline.parts import check_labels, leave_unchanged, prepared_parts, streamed_parts
from data_pipeline.prepare.build import prepare
from data_pipeline.prepare.repeated import TABLE, open_table
from data_pipeline.prepared_batches import ENDED, prepared_batches
from data_pipeline.records import Named, credits_of
from data_pipeline.rows import UNCHANGED, Labelled, RowReader, read_rows
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.shares import Part, describe_epochs, format_epochs, make_mixture
from data_pipeline.store import Prepared, Shard
from data_pipeline.stream import StreamedBatches, Streams
from data_pipeline.tasks import Chunks, Cut, check_tokenizer, cut_chunks, whole_texts
from data_pipeline.tokenizer import Tokenizer

EVAL_ORDER = 0xE7A1  # key of the one shuffled order of evaluation rows, so that the first rows are a fair sample
WELL_FILLED = 0.8  # share of a row: less is said where classes do not share rows


class Data:
    """Opened data: the tokenizer, and the batches of each split."""

    def __init__(self, config: DataConfig, prepared: Prepared, sources: Sequence[Named], log: Callable[[str], None]):
        self.config, self.prepared, self.sources = config, prepared, sources
        self.tokenizer: Tokenizer = prepared.tokenizer
        self.pad_id = self.tokenizer.special.padding()
        check_tokenizer(self.tokenizer, config.add_bos, config.split.by == "hash", is_masking(config.augment))
        check_augment(config.augment, self.tokenizer)
        check_labels(config, prepared)
        self.rewriter = Rewriter(config.augment, self.tokenizer, config.seq_len) if rewrites(config.augment) else None
        self.classes = find_classes(config, prepared) if config.task == "classify" else None
        self.cuts: list[list[Cut]] = [[] for _ in sources]
        self.readers = {split: self._open(split) for split in SPLITS}
        self._check(log)
        known = (
            replace(config, labels=self.classes.names) if self.classes else config
        )  # named or found, the same classes
        self.fingerprint = hash_data(known, prepared, sources)

    def has_split(self, split: str) -> bool:
        """Says whether a split has any row."""
        if self.config.streaming and split == "train":
            return True
        return any(len(reader) for _, reader in self.readers.get(split, ()))

    def train_batches(self, start_step: int, rows: tuple[int, int], state: bytes | None = None) -> TrainBatches:
        """Yields the batches of steps `start_step`, `start_step + 1`, ...: rows `rows[0]` to `rows[1]` of each."""
        if self.config.streaming:
            return self._stream(start_step, rows, state)
        n_rows = self._rows("train")
        if n_rows < self.config.batch_size:
            raise UserError(
                f"the train split has {n_rows} rows of {self.config.seq_len} tokens, fewer than config.data.batch_size="
                f"{self.config.batch_size}: lower it or config.data.seq_len, or add text"
            )
        readers = [reader for _, reader in self.parts]
        return prepared_batches(self.config, self.mixture, readers, self.epoch_keys, self._augment, start_step, rows)

    @cached_property
    def parts(self) -> list[tuple[Part, RowReader]]:
        """What training rows are mixed of, where they are prepared."""
        pack = partial(self._pack, rewriter=self.rewriter)
        return prepared_parts(self.config, self.prepared, self.sources, self.readers["train"], pack)

    @cached_property
    def texts(self) -> list[tuple[Part, Texts, float]]:
        """What training rows are mixed of, where they are streamed."""
        return streamed_parts(self.config, self.prepared, self.sources, self.rewriter, self.lines)

    @cached_property
    def lines(self) -> RepeatedLines | None:
        """What is taken out of plain texts while they are streamed."""
        clean = self.config.clean
        return open_table(self.prepared.folder / TABLE, clean) if clean.repeated_lines else None

    @cached_property
    def mixture(self) -> Mixture:
        """The order of the training rows; where they are streamed, about that."""
        return make_mixture(self.config, self._parts())

    def _parts(self) -> list[Part]:
        return [part for part, *_ in (self.texts if self.config.streaming else self.parts)]

    def epoch_keys(self, epoch: np.ndarray) -> np.ndarray:
        """Returns what augmentation of the rows of these epochs is keyed by."""
        keys = epoch_key(self.config.seed, epoch)
        return np.where(epoch > 0, keys, UNCHANGED) if self.config.augment.only_repeats else keys

    def describe_steps(self, steps: int) -> list[str]:
        """Says how often each source and class is read in `steps` steps; raises ConfigError where its rows do not suffice."""
        table = self._epochs(steps)
        end = self.mixture.end // self.config.batch_size
        if steps > end and not self.config.streaming:
            raise ConfigError(
                f"config.train.steps={steps:,}: after {end:,} steps {ENDED}; train for so many, or raise them"
            )
        lines = list(format_epochs(table, steps, self.config.streaming))
        if self.config.label_shares and not self.config.streaming:
            drawn = [entry["rows_drawn"] for entry in table]
            fill = float(np.average([reader.fill() for _, reader in self.parts], weights=drawn)) if any(drawn) else 1.0
            if fill < WELL_FILLED:
                lines.append(
                    f"  warning: rows of one class are {fill:.0%} full; a shorter config.data.seq_len (now "
                    f"{self.config.seq_len}) wastes less"
                )
        return lines

    def _epochs(self, steps: int) -> list[dict[str, Any]]:
        return describe_epochs(self.mixture, self._parts(), self.config, steps)

    def trace(self, step: int, row: int) -> tuple[int, int, list[tuple[int, int, int]]]:
        """Says what row `row` of step `step` holds: (source, epoch, [(document, first token of it, tokens)])."""
        place = np.array([step * self.config.batch_size + row])
        source, epoch, number = (int(array[0]) for array in self.mixture.locate(place))
        part, reader = self.parts[source]
        return part.source, epoch, reader.held(number, self.epoch_keys(np.array([epoch])))

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

    def summary(self, steps: int = 0) -> dict[str, Any]:
        """Returns JSON values: what each source gives to each split, what was dropped and changed, its epochs in `steps`."""
        sources = {}
        for number, entry in enumerate(self.prepared.manifest["sources"]):
            splits = {split: dict(counts) for split, counts in entry["splits"].items()}
            for split in SPLITS:
                for n, reader in self.readers[split]:
                    if n == number:
                        splits[split] |= _describe(reader)
            kept = {key: entry[key] for key in ("read", "kept", "dropped", "changed")}
            more = {"weight": self._weight(number), "splits": splits, "credits": self.credits()[entry["name"]]}
            sources[entry["name"]] = kept | more
        rows = {split: self._rows(split) for split in SPLITS}
        epochs = self.config.batch_size / rows["train"] if rows["train"] else None
        return {"sources": sources, "rows": rows, "epochs_per_step": epochs, "folder": str(self.prepared.folder),
                **({"epochs": self._epochs(steps)} if steps else {})}  # fmt: skip

    def _rows(self, split: str) -> int:
        readers = self.parts if split == "train" and not self.config.streaming else self.readers[split]
        return sum(len(reader) for _, reader in readers)

    def _stream(self, start_step: int, rows: tuple[int, int], state: bytes | None) -> TrainBatches:
        parts, config = self.texts, self.config
        mixture = make_mixture(config, self._parts(), known=False)
        groups = [[texts] for _, texts, _ in parts] if mixture.weighted else [[texts for _, texts, _ in parts]]
        readers = [DocumentReader(config, group, self.tokenizer, self.lines) for group in groups]
        ratio = max(ratio for _, _, ratio in parts)
        streams = Streams(config, readers, mixture, self.tokenizer, self.pad_id, self.rewriter, rows, ratio)
        dataset = streams.dataset(self._augment)
        return StreamedBatches(streams, dataset, self.fingerprint, start_step, rows, state)

    def _augment(self, batch: dict[str, Any]) -> dict[str, Any]:
        special = self.tokenizer.special
        return augment_batch(batch, self.config.augment, special.bos, special.mask)

    def _weight(self, number: int) -> float:
        return self.sources[number].config.weight

    def _open(self, split: str) -> list[tuple[int, RowReader]]:
        config, readers = self.config, []
        for number, source in enumerate(self.sources):
            if source.config.replay and split != "train":
                continue
            if self.prepared.has_shard(number, split):
                shard = self.prepared.shard(number, split)
                rewriter = self.rewriter if split == "train" else None
                if split == "train":
                    shard = leave_unchanged(shard, config, self.prepared.label_names(number, split))
                chunks = cut_chunks(
                    shard.offsets,
                    shard.loss_start,
                    config.seq_len,
                    config.add_bos,
                    config.loss_on_prompt,
                    shard.learned,
                    rewriter.limit() if rewriter else None,
                    whole_texts(config) if self.classes else "",
                )
                reader = self._pack(shard, chunks, rewriter, self._labelled(number, split))
                self.cuts[number].append(chunks.cut)
                if len(reader):
                    readers.append((number, reader))
        return readers

    def _labelled(self, source: int, split: str) -> Labelled | None:
        if self.classes is None:
            return None
        number = self.classes.numbers(self.prepared, source, split)
        weight = self.classes.weights[number] if split == "train" else np.ones(len(number), np.float32)
        return Labelled(number, weight)

    def _pack(
        self, shard: Shard, chunks: Chunks, rewriter: Rewriter | None, labelled: Labelled | None = None
    ) -> RowReader:
        config, bos_id = self.config, self.tokenizer.special.bos
        if rewriter:
            return RewrittenRows(shard, chunks, config.packing, bos_id, self.pad_id, rewriter, labelled=labelled)
        return RowReader(shard, chunks, config.seq_len, config.packing, bos_id, self.pad_id, labelled=labelled)

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
            long = sum(c.cut_documents for c in cuts)
            if self.classes and long:
                documents = sum(
                    len(reader.chunks.document) for split in SPLITS for n, reader in self.readers[split] if n == number
                )
                log(
                    f"source {source.name}: {long:,} of {documents:,} texts are longer than config.data.seq_len={config.seq_len} "
                    "tokens; their end is not read"
                )
            if lost:
                log(
                    f"source {source.name}: {lost} conversations have no answer within {config.seq_len} tokens and are left out"
                )
        rows = sum(len(reader) for _, reader in self.readers["train"])
        streamed = config.streaming and any(entry["kept"].get("train") for entry in self.prepared.manifest["sources"])
        if not rows and not streamed:
            raise UserError("the train split is empty: lower config.data.split.validation and test, or add documents")
        for line in self.classes.describe() if self.classes else ():
            log(line)
        pinned = {source.config.split for source in self.sources}
        validation = config.split.validation if config.split.fold >= 0 else 0
        for split, share in (("validation", validation), ("test", config.split.test)):
            if not self.has_split(split) and (share > 0 or split in pinned):
                log(
                    f"warning: no document fell into the {split} split (share {share:g}); raise config.data.split.{split}"
                )
        if self.tokenizer.adds_bos and not config.add_bos and not all(cut.chats for cuts in self.cuts for cut in cuts):
            log(
                "warning: this tokenizer was made to put a begin token before each text; with config.data.add_bos=False there "
                "is none (in conversations their template decides)"
            )


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
