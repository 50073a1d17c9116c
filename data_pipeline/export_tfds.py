"""How does prepared data become a TensorFlow Datasets data set, which others read without anything of ours?

python -m data_pipeline.export_tfds --data=DIR --out=DIR2
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import SPLITS
from data_pipeline.lines import hash_file
from data_pipeline.prepare.stages import Progress
from data_pipeline.quiet_tf import import_tf
from data_pipeline.records import Record
from data_pipeline.schema import ConfigError, UserError, run_main, split_flags
from data_pipeline.store import Prepared, Shard, open_prepared
from data_pipeline.tasks import CHAT, PLAIN, to_ids
from data_pipeline.tokenizer import Tokenizer

USAGE = """
usage: python -m data_pipeline.export_tfds --data=DIR --out=DIR2 [--name=NAME] [--format=array_record]
                                           [--inexact=leave_out] [--decrypt]

Writes a folder of prepared data as the TensorFlow Datasets data set DIR2/NAME/1.0.0, with features, splits, licence and
citation of the sources, and a hash of each file.

--name: of the data set, small letters and _ (default: prepared). Texts, pairs and conversations together become one each.
--format: array_record, read by as_data_source(), or tfrecord, read by as_dataset().
--inexact=leave_out: leaves out documents whose text cannot be had from their ids exactly; without, the first one is an error.
--decrypt: what is exported lies in clear; encrypted data is exported only with this.

example: python -m data_pipeline.export_tfds --data=corpus --out=tfds --name=my_corpus
"""
VERSION = "1.0.0"
SHARD_BYTES = 2**28
BATCH_TOKENS = 2**19  # decoded at once, and encoded again to see that the ids are the same
FORMS = {"text": "texts", "prompt": "prompts and completions", "chat": "conversations"}
Log = Callable[[str], None]


@dataclass(frozen=True)
class Export:
    """What is written, and how."""

    prepared: Prepared
    out: Path
    name: str
    format: str
    leave_out: bool


def form_of(loss_start: np.ndarray) -> np.ndarray:
    """Returns for each document the number of its form in FORMS."""
    return np.select([loss_start == PLAIN, loss_start == CHAT], [0, 2], 1)


def export(what: Export, log: Log) -> list[Path]:
    """Writes the data sets, one for each form that is there; returns their folders, which appear whole or not at all."""
    prepared = what.prepared
    pieces = [(n, split) for split in SPLITS for n in range(len(prepared.sources)) if prepared.has_shard(n, split)]
    tokens = np.zeros(len(FORMS), np.int64)
    for source, split in pieces:
        shard = prepared.shard(source, split)
        tokens += np.bincount(form_of(shard.loss_start), np.diff(shard.offsets), len(FORMS)).astype(np.int64)
    forms = [form for n, form in enumerate(FORMS) if tokens[n]]
    progress = Progress(log, "exporting", int(tokens.sum()) * 4)
    folders = []
    for form in forms:
        name = what.name if len(forms) == 1 else f"{what.name}_{form}"
        folder = what.out / name / VERSION
        if folder.exists():
            raise UserError(f"--out={what.out}: {folder} is there already; delete it, or name another folder or --name")
        aside = folder.with_name(f".tmp-{VERSION}-{os.getpid()}")
        try:
            aside.mkdir(parents=True)
            _Writer(what, form, name, aside, progress).write()
            os.rename(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        folders.append(folder)
    return folders


class _Writer:
    """Writes the documents of one form."""

    def __init__(self, what: Export, form: str, name: str, folder: Path, progress: Progress):
        import_tf()
        import tensorflow_datasets as tfds

        self.tfds: Any = tfds
        self.what, self.prepared, self.tokenizer = what, what.prepared, what.prepared.tokenizer
        self.form, self.name, self.folder, self.progress = form, name, folder, progress
        self.left_out: Counter[str] = Counter()
        ids = tfds.features.Tensor(shape=(None,), dtype=np.int32)
        texts = ("prompt", "completion") if form == "prompt" else ("text",)
        features: dict[str, Any] = {key: tfds.features.Text() for key in (*texts, "id", "source", "file")}
        features |= {"line": np.int64, "ids": ids}
        if form == "chat":
            features["learned"] = tfds.features.Tensor(shape=(None,), dtype=np.uint8)
        self.features: Any = tfds.features.FeaturesDict(features)

    def write(self) -> None:
        core = self.tfds.core
        file_format = core.FileFormat(self.what.format)
        adapter = core.file_adapters.ADAPTER_FOR_FORMAT[file_format]
        template = core.ShardedFileTemplate(
            data_dir=self.folder, dataset_name=self.name, filetype_suffix=adapter.FILE_SUFFIX
        )
        infos, hashes = [], {}
        for split in SPLITS:
            shards, lengths = self._deal(split), []
            for number, documents in itertools.groupby(
                self._documents(split, shards), key=lambda document: document[0]
            ):
                length = [0]
                path = self.folder / f"part-{number}"
                adapter.write_examples(path, _count(documents, length))
                lengths.append((path, length[0]))
            for number, (path, _) in enumerate(lengths):
                named = template.replace(split=split).sharded_filepath(shard_index=number, num_shards=len(lengths))
                os.rename(path, named)
                hashes[named.name] = {"bytes": Path(named).stat().st_size, "sha256": hash_file(str(named))}
            if lengths:
                size = sum(hashes[name]["bytes"] for name in hashes if f"-{split}." in name)
                infos.append(core.SplitInfo(name=split, shard_lengths=[n for _, n in lengths], num_bytes=size, filename_template=template))  # fmt: skip
        if not infos:
            raise UserError(f"no document of the {FORMS[self.form]} comes back from its ids exactly: nothing to write")
        self._describe(infos, hashes)

    def _describe(self, infos: list[Any], hashes: dict[str, Any]) -> None:
        manifest = self.prepared.manifest
        entries = [{"license": "", "citation": "", **manifest["credits"][e["name"]], **e} for e in manifest["sources"]]
        counts = ", ".join(f"{info.num_examples:,} in {info.name}" for info in infos)
        left_out = f" Left out, since their ids do not give their text: {dict(self.left_out)}." if self.left_out else ""
        chat = " `text` is what the chat template wrote; `learned` marks the ids that an assistant said." if self.form == "chat" else ""  # fmt: skip
        description = (
            f"{FORMS[self.form].capitalize()} ({counts}), cleaned, deduplicated and split by `data_pipeline.prepare` "
            f"(key {manifest['key']}). `ids` are those of the tokenizer with sha256 {self.tokenizer.sha256}.{chat}{left_out}\n\n"
            + "\n".join(f"- {entry['name']}: {_by_count(entry['kept'])}; licence: {entry['license'] or 'not stated'}" for entry in entries)
        )  # fmt: skip
        said = {
            key: "\n\n".join(f"{e['name']}: {e[key]}" for e in entries if e[key]) for key in ("license", "citation")
        }
        metadata = {"files": hashes, "prepared": {"key": manifest["key"], "made_of": manifest["made_of"]}}
        info = self.tfds.core.DatasetInfo(
            builder=self.tfds.core.DatasetIdentity(
                name=self.name, version=self.tfds.core.Version(VERSION), data_dir=str(self.folder), module_name=""
            ),
            features=self.features, description=description, citation=said["citation"] or None,
            license=said["license"] or None, metadata=self.tfds.core.MetadataDict(metadata), disable_shuffling=True,
        )  # fmt: skip
        info.set_file_format(self.tfds.core.FileFormat(self.what.format))
        info.set_splits(self.tfds.core.SplitDict(infos))
        info.write_to_directory(self.folder)

    def _deal(self, split: str) -> list[np.ndarray]:
        """Returns for each source the number of the file that each of its documents goes to."""
        sizes = [np.zeros(0, np.int64)] * len(self.prepared.sources)
        for source in range(len(sizes)):
            if self.prepared.has_shard(source, split):
                shard = self.prepared.shard(source, split)
                sizes[source] = np.diff(shard.offsets)[form_of(shard.loss_start) == list(FORMS).index(self.form)]
        ends = np.cumsum(np.concatenate(sizes)) * 8  # bytes, about: an id takes two to three, its text four
        return np.split(ends // SHARD_BYTES, np.cumsum([len(one) for one in sizes])[:-1])

    def _documents(self, split: str, shards: list[np.ndarray]) -> Iterator[tuple[int, bytes]]:
        """Yields (number of the file, serialised example) of the documents of a split, in the order of the sources."""
        for source, name in enumerate(self.prepared.sources):
            if not self.prepared.has_shard(source, split):
                continue
            shard, (files, origins) = self.prepared.shard(source, split), self.prepared.origins(source, split)
            chosen = np.flatnonzero(form_of(shard.loss_start) == list(FORMS).index(self.form))
            batches = np.cumsum(np.diff(shard.offsets)[chosen]) // BATCH_TOKENS
            for batch in np.split(np.arange(len(chosen)), np.flatnonzero(np.diff(batches)) + 1):
                numbers = chosen[batch].tolist()
                examples = self._decode(shard, numbers)
                for at, number, example in zip(batch.tolist(), numbers, examples):
                    file, line = origins[number].tolist()
                    if example is None:
                        self._leave_out(name, f"{files[file]}:{line}" if line else files[file])
                        continue
                    example |= {
                        "id": f"{int(shard.keys[number]):016x}",
                        "source": name,
                        "file": files[file],
                        "line": line,
                    }
                    yield int(shards[source][at]), self.features.serialize_example(example)
                self.progress.add(sum(int(shard.offsets[n + 1] - shard.offsets[n]) for n in numbers) * 4)

    def _leave_out(self, source: str, where: str) -> None:
        if not self.what.leave_out:
            raise UserError(
                f"{where}: the text of this document cannot be had from its ids exactly, since the tokenizer changes text or has "
                "no id for a character of it; --inexact=leave_out exports the others, and counts such documents"
            )
        self.left_out[source] += 1

    def _decode(self, shard: Shard, numbers: list[int]) -> list[dict[str, Any] | None]:
        """Returns the examples of some documents; None where the ids do not give a text of which they are the ids."""
        all_ids = [np.asarray(shard.ids[shard.offsets[n] : shard.offsets[n + 1]]).astype(np.int32) for n in numbers]
        if self.form == "chat":
            learned = [np.asarray(shard.learned[shard.offsets[n] : shard.offsets[n + 1]]) for n in numbers]
            return [
                {"text": show_conversation(ids, self.tokenizer), "ids": ids, "learned": said}
                for ids, said in zip(all_ids, learned)
            ]
        made_of = self.prepared.manifest["made_of"]
        add_bos, add_eos = made_of["add_bos"], made_of["split"]["by"] == "hash"
        starts = shard.loss_start[numbers].tolist()
        records = []
        for ids, start in zip(all_ids, starts):
            body = ids[int(add_bos) : len(ids) - int(add_eos or start >= 0)].tolist()
            text = self.tokenizer.decode(body)
            prompt = self.tokenizer.decode(body[: start - int(add_bos)]) if start >= 0 else ""
            records.append(Record(prompt, text[len(prompt) :]) if start >= 0 else Record(text))
        again, starts_again, _ = to_ids(records, self.tokenizer, add_bos, add_eos)
        names = ("prompt", "completion") if self.form == "prompt" else ("text",)
        return [
            {**dict(zip(names, record.parts())), "ids": ids}
            if np.array_equal(one, ids) and start == start_again
            else None
            for record, ids, one, start, start_again in zip(records, all_ids, again, starts, starts_again)
        ]


def show_conversation(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """Returns what the chat template wrote, special tokens by their names."""
    names = {number: name.encode() for name, number in tokenizer.special_names.items()}
    return b"".join(names.get(i) or tokenizer.piece(i) for i in ids.tolist()).decode("utf-8", "replace")


def _count(documents: Iterator[tuple[int, bytes]], length: list[int]) -> Iterator[tuple[int, bytes]]:
    for number, (_, content) in enumerate(documents):
        length[0] = number + 1
        yield number, content


def _by_count(kept: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in kept.items())


def main(argv: list[str]) -> None:
    defaults = {"data": "", "out": "", "name": "prepared", "format": "array_record", "inexact": "", "decrypt": "false"}
    flags, _ = split_flags(argv, defaults, USAGE)
    problems = [f"--{key}: name a folder" for key in ("data", "out") if not flags[key]]
    if not (flags["name"].isidentifier() and flags["name"].isascii() and flags["name"].islower()):
        problems.append(f"--name={flags['name']}: must be small letters, digits and _, and begin with a letter")
    for key, valid in (("format", ("array_record", "tfrecord")), ("inexact", ("", "leave_out"))):
        if flags[key] not in valid:
            problems.append(f"--{key}={flags[key]}: must be {' or '.join(filter(None, valid))}")
    if problems:
        raise ConfigError([*problems, "see --help"])
    prepared = open_prepared(Path(flags["data"]).expanduser())
    if isinstance(prepared, str):
        raise UserError(f"--data={flags['data']}: {prepared}")
    if prepared.manifest.get("encrypted") and flags["decrypt"] != "true":
        raise UserError(f"--data={flags['data']} is encrypted; what is exported lies in clear: add --decrypt to do so")
    out = Path(flags["out"]).expanduser()
    what = Export(prepared, out, flags["name"], flags["format"], flags["inexact"] == "leave_out")
    read = "as_data_source()" if what.format == "array_record" else "as_dataset()"
    try:
        folders = export(what, print)
    except OSError as error:
        raise UserError(f"--out={flags['out']}: {error.strerror or error}") from None
    for folder in folders:
        print(f"written: {folder}. Read it: tfds.builder_from_directory({str(folder)!r}).{read}")


if __name__ == "__main__":
    run_main(main)
