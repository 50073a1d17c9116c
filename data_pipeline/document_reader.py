"""In which order are the documents of a stream read, and which of them are augmented?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data_pipeline.augment.select import changes, is_selective
from data_pipeline.config import DataConfig
from data_pipeline.dedup.lines import RepeatedLines
from data_pipeline.mix import epoch_key
from data_pipeline.records import Place, Record, Source
from data_pipeline.rows import UNCHANGED
from data_pipeline.scan import Cleaner, part_for
from data_pipeline.schema import UserError
from data_pipeline.tokenizer import Tokenizer


@dataclass(frozen=True)
class Texts:
    """The training documents of a source, or of one class in it: where they lie."""

    source: Source
    places: np.ndarray  # int64 [documents, 4]
    keys: np.ndarray  # uint64
    sizes: np.ndarray  # int64: bytes of text
    label: str = ""
    labels: np.ndarray | None = None  # of each document, where they are mixed
    names: tuple[str, ...] = ()  # of the labels

    def of_class(self, label: int) -> Texts:
        assert self.labels is not None
        here = self.labels == label
        return Texts(self.source, self.places[here], self.keys[here], self.sizes[here], self.names[label])

    def __str__(self) -> str:
        return f"{self.source.name}, class {self.label}" if self.label else self.source.name

    def label_of(self, number: int) -> str:
        return self.label if self.labels is None else self.names[self.labels[number]]


class DocumentReader:
    """The documents of some sources as one endless sequence: all of them once an epoch, the sources evenly mixed."""

    def __init__(
        self, config: DataConfig, parts: list[Texts], tokenizer: Tokenizer, lines: RepeatedLines | None = None
    ):
        """`lines`: what is taken out of plain texts."""
        self.config, self.cleaner, self.parts, self.lines = config, Cleaner(config, tokenizer), parts, lines
        self.name = str(parts[0]) if len(parts) == 1 else "all sources"
        sizes = [len(part.keys) for part in parts]
        self.source = np.repeat(np.arange(len(parts)), sizes)
        self.within = np.concatenate([np.arange(size) for size in sizes])
        # Each source is read in its own order, so that packed files are read forwards.
        progress = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
        self.order = np.argsort(progress, kind="stable")
        self.sizes = np.concatenate([part.sizes for part in parts])[
            self.order
        ]  # bytes of text, in the order of reading
        epochs = parts[0].source.config.max_epochs  # where there are limits, there is one part
        self.end = max(round(epochs * len(self.order)), 1) if epochs else None  # places of the sequence
        few = bool(parts[0].label)  # a small class would be shuffled over many of its epochs
        self.shuffled = min(config.shuffle_documents, len(self.order)) if few else config.shuffle_documents

    def read(self, numbers: np.ndarray) -> tuple[list[Record], np.ndarray, np.ndarray]:
        """Returns (records, epoch, document key) for places of the endless sequence."""
        index = self.order[numbers % len(self.order)]
        documents = [(self.parts[p], i) for p, i in zip(self.source[index].tolist(), self.within[index].tolist())]
        loaded = [part.source.load(Place(*part.places[i].tolist())) for part, i in documents]
        records, keys = [], np.array([part.keys[i] for part, i in documents], np.uint64)
        for (part, _), (cleaned, *_), key in zip(documents, self.cleaner.clean_many(loaded), keys.tolist()):
            source = part.source
            if not isinstance(cleaned, Record):
                raise UserError(f"source {source.name}: a document changed since it was indexed ({cleaned}); run again")
            if self.lines and not cleaned.is_whole():
                cleaned = replace(cleaned, text=self.lines.remove([cleaned.text], [key])[0][0])
            records.append(part_for(cleaned, "train", source.config.split, self.config))
        return records, numbers // len(self.order), keys

    def augmentation_keys(self, numbers: np.ndarray, epochs: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Returns the keys with the epoch in them, since rows of a window may hold documents of two epochs."""
        keys = keys ^ epoch_key(self.config.seed, epochs)
        if is_selective(self.config.augment):
            index = self.order[numbers % len(self.order)]
            places = zip(self.source[index].tolist(), self.within[index].tolist())
            labels = [self.parts[part].label_of(i) for part, i in places]
            keys = np.where(changes(self.config.augment, epochs, labels), keys, UNCHANGED)
        return keys
