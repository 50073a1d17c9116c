"""Does what is exported as a TFDS data set load without anything of ours, and come back as the same documents, splits and ids?"""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from data_pipeline import export_tfds
from data_pipeline.batch import open_data
from data_pipeline.config import SourceConfig, TokenizerConfig
from data_pipeline.export_tfds import Export, export
from data_pipeline.prepare.build import prepare_to
from data_pipeline.schema import ConfigError, UserError

tfds = pytest.importorskip("tensorflow_datasets")
ALONE = """
import sys, json
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
data = builder.as_data_source()
rows = {name: [[row["id"].decode(), row["text"].decode(), row["ids"].tolist()] for row in rows] for name, rows in data.items()}
print(json.dumps([rows, builder.info.redistribution_info.license, builder.info.citation, builder.info.description, builder.info.full_name]))
assert not any(name.startswith("data_pipeline") for name in sys.modules)
"""


@pytest.fixture
def prepared(config, corpus, pairs, tmp_path, quiet):
    """Texts and pairs, of two sources with a licence each."""

    def make(out="prepared", **changes):
        sources = {
            "corpus": SourceConfig(path=str(corpus), license="CC-BY-4.0", citation="@misc{corpus, title={文本}}"),
            "pairs": SourceConfig(path=str(pairs), license="MIT"),
        }
        return prepare_to(tmp_path / out, config("", **{"sources": sources, **changes}), 1, quiet)

    return make


def documents(prepared, source, split):
    """{key: (ids, loss start)} of a source and split."""
    shard = prepared.shard(source, split)
    ids = [shard.ids[a:b].tolist() for a, b in zip(shard.offsets, shard.offsets[1:])]
    return dict(zip(shard.keys.tolist(), zip(ids, shard.loss_start.tolist())))


def test_others_read_it_without_us(prepared, tmp_path, quiet, monkeypatch):
    monkeypatch.setattr(export_tfds, "SHARD_BYTES", 20_000)  # so that there are several files
    monkeypatch.setattr(export_tfds, "BATCH_TOKENS", 1000)
    data = prepared()
    texts, pairs = export(Export(data, tmp_path / "tfds", "mine", "array_record", False), quiet)
    assert [path.parent.name for path in (texts, pairs)] == ["mine_text", "mine_prompt"]
    assert len(list(texts.glob("mine_text-train.array_record-0*"))) > 1
    command = [sys.executable, "-c", ALONE, str(texts)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    rows, license, citation, description, name = json.loads(done.stdout)
    for split in ("train", "validation", "test"):
        expected = documents(data, 0, split)
        assert [(int(key, 16), ids) for key, _, ids in rows[split]] == [
            (key, ids) for key, (ids, _) in expected.items()
        ]
        assert all(data.tokenizer.encode(text) == ids[:-1] for _, text, ids in rows[split])
    assert (license, name) == ("corpus: CC-BY-4.0\n\npairs: MIT", "mine_text/1.0.0")
    assert citation == "corpus: @misc{corpus, title={文本}}"
    assert data.manifest["key"] in description
    metadata = json.loads((texts / "metadata.json").read_text("utf-8"))
    for file, entry in metadata["files"].items():
        assert hashlib.sha256((texts / file).read_bytes()).hexdigest() == entry["sha256"]
    assert len(metadata["files"]) == len(list(texts.glob("mine_text-*")))


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_our_own_source_reads_back_the_same_documents(prepared, config, corpus, tmp_path, quiet, kind):
    tokenizer = TokenizerConfig(kind=kind, vocab_size=400)
    data = prepared(tokenizer=tokenizer)
    export(Export(data, tmp_path / "tfds", "mine", "array_record", False), quiet)
    sources = {
        f"{form}_{split}": SourceConfig(kind="tfds", path=f"mine_{form}", tfds_dir=str(tmp_path / "tfds"), tfds_split=split, split=split)
        for form in ("text", "prompt") for split in ("train", "validation", "test")
    }  # fmt: skip
    same = TokenizerConfig(kind="auto", path=str(data.folder / "tokenizer"))
    again = prepare_to(tmp_path / "again", config("", sources=sources, tokenizer=same), 1, quiet)
    for number, name in enumerate(again.sources):
        form, split = name.split("_")
        assert documents(again, number, split) == documents(data, int(form == "prompt"), split), name
    entry = again.manifest["credits"]["text_train"]
    assert entry["license"] == "corpus: CC-BY-4.0\n\npairs: MIT"
    assert "文本" in entry["citation"]


def test_the_place_of_every_document_comes_along(prepared, tmp_path, quiet, corpus):
    texts, pairs = export(Export(prepared(), tmp_path / "tfds", "mine", "array_record", False), quiet)
    lines = corpus.read_text("utf-8").splitlines()
    for row in tfds.builder_from_directory(texts).as_data_source(split="validation"):
        assert row["source"] == b"corpus"
        assert json.loads(lines[row["line"] - 1])["text"] == row["text"].decode()
        assert row["file"].decode().endswith("corpus.jsonl")
    row = tfds.builder_from_directory(pairs).as_data_source(split="train")[0]
    assert {"prompt", "completion", "ids", "id", "source", "file", "line"} == set(row)


def test_tfrecord_holds_the_same(prepared, tmp_path, quiet):
    data = prepared()
    both = [
        export(Export(data, tmp_path / kind, "mine", kind, False), quiet)[1] for kind in ("array_record", "tfrecord")
    ]
    one = list(tfds.builder_from_directory(both[0]).as_data_source(split="train"))
    other = list(tfds.builder_from_directory(both[1]).as_dataset(split="train").as_numpy_iterator())
    assert len(one) == len(other) > 10
    assert all((a[key] == b[key]).all() if key == "ids" else a[key] == b[key] for a, b in zip(one, other) for key in a)


def test_conversations_keep_what_is_learned(config, tmp_path, quiet):
    path = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "hi 你好 {}"}, {"role": "assistant", "content": "yes {}"}]
    rows = [{"messages": [{**turn, "content": turn["content"].format(i)} for turn in turns]} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    data = prepare_to(tmp_path / "out", config(path), 1, quiet)
    (folder,) = export(Export(data, tmp_path / "tfds", "mine", "array_record", False), quiet)
    shard = data.shard(0, "train")
    for number, row in enumerate(tfds.builder_from_directory(folder).as_data_source(split="train")):
        here = slice(*shard.offsets[number : number + 2])
        assert (row["ids"] == shard.ids[here]).all()
        assert (row["learned"] == shard.learned[here]).all()
        assert "你好" in row["text"].decode()
        assert data.tokenizer.decode(row["ids"][row["learned"] > 0]).startswith("yes ")


def test_what_ids_cannot_give_back_is_said_or_left_out(prepared, config, corpus, tmp_path, quiet):
    export_to = Export(prepared(), tmp_path / "tfds", "mine", "array_record", False)
    part = tmp_path / "part.jsonl"
    part.write_text("\n".join(json.dumps({"text": f"only these letters {i}"}) for i in range(50)))
    open_data(config(part, tokenizer=TokenizerConfig(kind="char")), log=quiet).tokenizer.save(tmp_path / "char")
    given = TokenizerConfig(kind="char", path=str(tmp_path / "char"))
    both = {"part": SourceConfig(path=str(part)), "corpus": SourceConfig(path=str(corpus))}
    data = prepare_to(tmp_path / "unknown", config("", sources=both, tokenizer=given), 1, quiet)
    with pytest.raises(UserError, match=r"corpus\.jsonl:\d+: the text of this document cannot be had .*leave_out"):
        export(Export(data, tmp_path / "tfds", "lossy", "array_record", False), quiet)
    assert not list((tmp_path / "tfds").rglob("*"))[1:]  # nothing half made
    (folder,) = export(Export(data, tmp_path / "tfds", "lossy", "array_record", True), quiet)
    builder = tfds.builder_from_directory(folder)
    assert {row["source"] for row in builder.as_data_source(split="train")} == {b"part"}
    assert "Left out" in builder.info.description
    assert "'corpus': 1" in builder.info.description
    export(export_to, quiet)
    with pytest.raises(UserError, match="is there already"):
        export(export_to, quiet)


def test_the_command_exports_and_refuses_in_one_line(prepared, tmp_path, monkeypatch, capsys):
    pytest.importorskip("cryptography")
    monkeypatch.setenv("LM_TEST_KEY", "k" * 40)
    data = prepared(encrypt_key_env="LM_TEST_KEY")
    command = [f"--data={data.folder}", f"--out={tmp_path / 'tfds'}"]
    with pytest.raises(UserError, match="is encrypted; what is exported lies in clear: add --decrypt to do so"):
        export_tfds.main(command)
    for wrong, words in (("--name=Mine", "small letters"), ("--format=csv", "array_record or tfrecord")):
        with pytest.raises(ConfigError, match=words):
            export_tfds.main([*command, wrong])
    export_tfds.main([*command, "--decrypt"])
    folder = tmp_path / "tfds" / "prepared_text" / "1.0.0"
    assert f"tfds.builder_from_directory('{folder}').as_data_source()" in capsys.readouterr().out
    assert len(tfds.builder_from_directory(folder).as_data_source(split="train")) == len(documents(data, 0, "train"))
