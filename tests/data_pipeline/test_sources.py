"""Does each kind of source give the records it should, and find each again by its place?"""

import ast
import dataclasses
import json
from collections import Counter

import pytest

from data_pipeline.config import CleanConfig, SourceConfig
from data_pipeline.package_source import SEPARATOR, find_docstrings
from data_pipeline.records import Bad
from data_pipeline.schema import UserError
from data_pipeline.sources import open_sources


def records_of(config, source, quiet=lambda text: None):
    opened = open_sources(config("", sources={"s": source}), quiet)[0]
    found = list(opened.read())
    for place, where, record in found:
        if not isinstance(record, Bad):
            assert opened.load(place) == record, where
    return [(where, record) for _, where, record in found]


def test_text_documents_by_file_paragraph_and_line(config, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff一 one\n二 two\n\n \n三 three\r\n四 four".encode())
    texts = {
        d: [r.text.split() for _, r in records_of(config, SourceConfig(path=str(path), document=d))]
        for d in ("file", "paragraph", "line")
    }
    path.write_text("一\n　　\n\xa0\n二\n", "utf-8")  # Chinese text writes blank lines with full-width spaces
    for document in ("paragraph", "line"):
        records = records_of(config, SourceConfig(path=str(path), document=document))
        assert [(where[-1], record.text) for where, record in records] == [("1", "一\n"), ("4", "二\n")]
    words = ["一", "one", "二", "two", "三", "three", "四", "four"]
    assert texts["file"] == [words]
    assert texts["paragraph"] == [words[:4], words[4:]]
    assert texts["line"] == [words[i : i + 2] for i in range(0, 8, 2)]


def test_csv_fields_may_hold_line_ends_and_quotes(config, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,prompt,completion\n1,"two\nlines, 逗号","said ""yes"""\n\n2,5" pipe,好\n', "utf-8")
    records = records_of(config, SourceConfig(path=str(path), group_field="id"))
    assert [(w.rsplit(":", 1)[1], r.text, r.completion, r.group) for w, r in records] == [
        ("2", "two\nlines, 逗号", 'said "yes"', "1"),
        ("5", '5" pipe', "好", "2"),
    ]
    path = tmp_path / "a.tsv"
    path.write_text("text\tx\n你好\t1\n", "utf-8")
    assert [r.text for _, r in records_of(config, SourceConfig(path=str(path)))] == ["你好"]


def test_a_folder_is_read_by_suffix_and_in_order(config, tmp_path):
    said = []
    for name in ("b.md", "a.txt", "sub/c.jsonl", "d.png", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}))
    records = records_of(config, SourceConfig(path=str(tmp_path)), said.append)
    assert [where.rsplit("/", 1)[1] for where, _ in records] == ["a.txt:1", "b.md:1", "c.jsonl:1"]
    assert any("1 others left out" in line for line in said)


def test_docstring_records_hold_the_function_without_its_docstring(config):
    records = records_of(config, SourceConfig(kind="package", path="json", records="docstrings"))
    assert len(records) > 5
    for where, record in records:
        assert record.text.endswith(SEPARATOR)
        code = record.text.removesuffix(SEPARATOR)
        assert record.completion not in code
        assert record.group.startswith("json/"), where
        assert len(record.completion) >= 20
    text = 'class A:\n  @x\n  def f(self):\n    """写一个足够长的文档字符串，二十个字以上才算数。\n\n    第二段。\n    """\n    return 1\n'
    [(line, record)] = find_docstrings(text, "g")
    assert line == 2
    assert record.completion == "写一个足够长的文档字符串，二十个字以上才算数。"  # the first paragraph
    assert record.text.startswith("@x\ndef f(self):\n  return 1\n")
    ast.parse(record.text)


def test_held_out_modules_go_whole_to_a_split(opened, scan):
    source = SourceConfig(kind="package", path="email", records="docstrings")
    data = opened("", sources={"s": source}, min_completion_kept=0.0)
    whole = opened("", sources={"s": SourceConfig(kind="package", path="email")})
    kept = data.summary()["sources"]["s"]["kept"]
    assert kept["train"]
    groups = {}
    for opened_data in (data, whole):  # the files and the functions in them are dealt alike
        for document, place in zip(scan(opened_data.config)[0], scan.places):
            group = opened_data.sources[document.source].load(place).group
            groups.setdefault(group, set()).add(document.split)
    assert all(len(splits) == 1 for splits in groups.values())
    assert len(set().union(*groups.values())) > 1


def test_duplicates_are_dropped_by_their_letters_alone(opened, tmp_path):
    texts = ["Hello, World!", "hello world", "你好，世界！", "你好世界", "你好，视界"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    summary = opened(path).summary()["sources"]["data"]
    assert summary["dropped"] == {"duplicate": 2}
    both = opened(path, clean=CleanConfig(exact_dedup=False)).summary()["sources"]["data"]
    assert both["dropped"] == {}
    assert sum(both["kept"].values()) == 5


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_real_tfds_data_set_is_read_whole(config, opened, tmp_path, file_format):
    tfds = pytest.importorskip("tensorflow_datasets")
    rows = [{"text": f"文本 number {i}", "label": i % 2} for i in range(40)]
    features = tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    )
    builder = tfds.dataset_builders.AdhocBuilder(
        name="my_rows", version="1.0.0", file_format=file_format, features=features,
        split_datasets={"train": list(enumerate(rows))}, data_dir=str(tmp_path / "tfds"),
    )  # fmt: skip
    builder.download_and_prepare()
    source = SourceConfig(kind="tfds", path="my_rows", tfds_dir=str(tmp_path / "tfds"), group_field="label")
    data = opened("", sources={"s": source})
    summary = data.summary()["sources"]["s"]
    assert summary["read"] == 40
    texts = Counter()
    for split in ("train", "validation", "test"):
        if data.prepared.has_shard(0, split):
            shard = data.prepared.shard(0, split)
            texts.update(
                data.tokenizer.decode(shard.ids[a:b].tolist()) for a, b in zip(shard.offsets, shard.offsets[1:])
            )
    assert texts == Counter(row["text"] for row in rows)
    streamed = opened("", sources={"s": source}, streaming=True)
    if file_format == "array_record":
        batches = streamed.train_batches(0, (0, 8))
        assert (next(batches)["weights"] > 0).any()
        batches.close()
    else:
        with pytest.raises(UserError, match="needs file_format='array_record'"):
            streamed.train_batches(0, (0, 8))
    wrong = (({"tfds_split": "dev"}, "has no split 'dev'"), ({"path": "your_rows"}, "no TFDS data set 'your_rows'"))
    for change, words in wrong:
        with pytest.raises(UserError, match=words):
            opened("", sources={"s": dataclasses.replace(source, **change)})
    shard = next((tmp_path / "tfds").rglob(f"*train.{file_format}*"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match=r"sources\.s\.path"):
        opened("", sources={"s": source})
