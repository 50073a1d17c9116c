"""How is a TensorFlow Datasets data set, of any file format, turned into records?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import SourceConfig
from data_pipeline.forms import fields_of, record_from_fields
from data_pipeline.lines import hash_file
from data_pipeline.quiet_tf import import_tf
from data_pipeline.records import Bad, Found, Part, Place, Record
from data_pipeline.schema import UserError


class TfdsSource:
    """One split of a data set that is prepared in its data_dir; nothing is downloaded here."""

    def __init__(self, name: str, config: SourceConfig, key: str):
        import_tf()
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError(
                f"{key}: reading TFDS needs tensorflow-datasets and importlib_resources ({error})"
            ) from None
        self.name, self.config, self.key = name, config, key
        data_dir = str(Path(config.tfds_dir).expanduser()) if config.tfds_dir else None
        try:
            self.builder: Any = tfds.builder(config.path, data_dir=data_dir)
        except Exception as error:  # tfds raises many kinds, all meaning that there is no such data set
            raise UserError(
                f"{key}: no TFDS data set {config.path!r} in {data_dir or 'its default folder'}: {_first_line(error)}"
            ) from None
        if not Path(self.builder.data_dir).is_dir():
            try:
                self.builder.download_and_prepare()  # the library shows its own progress
            except Exception as error:  # no network, no disk, a source that moved, a manual download that is missing
                raise UserError(
                    f"{key}: {config.path!r} is not in {self.builder.data_dir} and cannot be made: {_first_line(error)}"
                ) from None
        if config.tfds_split not in self.builder.info.splits:
            splits = ", ".join(self.builder.info.splits)
            raise UserError(
                f"{key}: {config.path!r} has no split {config.tfds_split!r}; it has {splits} (set tfds_split)"
            )
        self.split = self.builder.info.splits[config.tfds_split]
        self.random_access: Any = None

    def identity(self) -> list[Any]:
        files = [[Path(path).name, hash_file(str(path))] for path in self.split.filepaths]
        return [self.builder.info.full_name, self.config.tfds_split, files]

    def total_bytes(self) -> int:
        return sum(Path(path).stat().st_size for path in self.split.filepaths)

    def parts(self, goal: int) -> list[Part]:
        return [Part(0, 1, self.total_bytes())]

    def read(self, part: Part | None = None) -> Iterator[Found]:
        number = 0
        try:
            for number, row in enumerate(self._rows(), start=1):
                where = f"{self.builder.info.full_name}/{self.config.tfds_split}:{number}"
                yield Found(Place(0, number - 1, 0, 0), where, self._record(row))
        except UserError:
            raise
        except Exception as error:  # a damaged record file: tf.errors.DataLossError and array_record's own kinds
            raise UserError(
                f"{self.key}: record {number + 1} of {self.config.path!r} cannot be read: {_first_line(error)}"
            ) from None
        if number != self.split.num_examples:
            raise UserError(
                f"{self.key}: {self.config.path!r} gave {number} records of {self.split.num_examples}; a file is cut short"
            )

    def load(self, place: Place) -> Record:
        if self.random_access is None:
            if not self._is_array_record():
                raise UserError(
                    f"{self.key}: streaming reads TFDS data by record number, which needs file_format='array_record'; "
                    "build it that way, or set config.data.streaming=False"
                )
            self.random_access = self.builder.as_data_source(split=self.config.tfds_split)
        record = self._record(self.random_access[place.offset])
        if isinstance(record, Bad):
            raise UserError(f"{self.key}: record {place.offset} changed since it was indexed ({record.message})")
        return record

    def credits(self) -> dict[str, str]:
        info = self.builder.info
        said = {
            "license": getattr(info.redistribution_info, "license", ""), "citation": info.citation, "url": info.homepage,
        }  # fmt: skip
        return {name: str(value) for name, value in said.items() if value}

    def _is_array_record(self) -> bool:
        return self.builder.info.file_format is not None and self.builder.info.file_format.name == "ARRAY_RECORD"

    def _rows(self) -> Iterator[dict[str, Any]]:
        if self._is_array_record():
            yield from self.builder.as_data_source(split=self.config.tfds_split)
        else:
            tf = import_tf()
            options = tf.data.Options()
            options.deterministic = True
            yield from (
                self.builder.as_dataset(split=self.config.tfds_split, shuffle_files=False)
                .with_options(options)
                .as_numpy_iterator()
            )

    def _record(self, row: Any) -> Record | Bad:
        if not isinstance(row, dict):
            return Bad("not an object", f"a record is {type(row).__name__}, expected named features")
        if row and all(value is None for value in row.values()):  # what array_record gives beyond a file's end
            raise UserError(f"{self.key}: a record of {self.config.path!r} is empty; a file is damaged or cut short")
        config = self.config
        named = fields_of(config)
        try:  # a field that is not asked for may hold bytes of any kind
            fields = {name: _plain(value) if name in named else value for name, value in row.items()}
        except UnicodeDecodeError as error:
            return Bad("not UTF-8", f"not UTF-8 at byte {error.start}")
        return record_from_fields(fields, config)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value
