"""Are the records of TFRecord, ArrayRecord and Arrow files read whole, found again, and is damage noticed?"""

import gzip
import json
import random
import struct
import tracemalloc

import pyarrow
import pytest

from data_pipeline.config import SourceConfig
from data_pipeline.example import NotExample, form_of_bytes, parse_example
from data_pipeline.prepare import build
from data_pipeline.prepare.build import prepare_to
from data_pipeline.records import Bad, Record
from data_pipeline.schema import UserError
from data_pipeline.sources import open_sources
from data_pipeline.tfrecord import import_crc32c
from tests.data_pipeline.web_pages import page, response, warc_record


def varint(value):
    out = b""
    while True:
        value, low = value >> 7, value & 127
        out += bytes([low | (128 if value else 0)])
        if not value:
            return out


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**features):
    """A tf.train.Example as TensorFlow writes it (test_tensorflow_agrees)."""
    entries = b""
    for name, values in features.items():
        values = values if isinstance(values, list) else [values]
        if isinstance(values[0], (str, bytes)):
            content = field(1, b"".join(field(1, v.encode() if isinstance(v, str) else v) for v in values))
        elif isinstance(values[0], float):
            content = field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            content = field(3, field(1, b"".join(varint(v % 2**64) for v in values)))
        entries += field(1, field(1, name.encode()) + field(2, content))
    return field(1, entries)


def masked(raw):
    crc = import_crc32c()(raw)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def tfrecord(rows):
    heads = [struct.pack("<Q", len(row)) for row in rows]
    return b"".join(head + masked(head) + row + masked(row) for head, row in zip(heads, rows))


def write_array_record(path, rows, options="group_size:1"):
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for row in rows:
        writer.write(row)
    writer.close()


def write_arrow(path, texts, kind="stream", rows=20):
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    make = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def texts_of(count):
    rng = random.Random(0)
    return [f"{i} 行 {rng.random()} words of a text" for i in range(count)]


def read(config, path, **changes):
    (source,) = open_sources(
        config("", sources={"s": SourceConfig(path=str(path), **changes)}, max_line_bytes=5000), print
    )
    found = list(source.read())
    for place, where, record in [*found[::-7], *found]:
        if isinstance(record, Record):
            assert source.load(place) == record, where
    for goal in (1, 2000):
        assert [row for part in source.parts(goal) for row in source.read(part)] == found
    return found


def refusal(config, path):
    """What is said of the first bad row, or of the whole file; "" where all is well."""
    try:
        return next(
            (f"{row.where}: {row.record.message}" for row in read(config, path) if isinstance(row.record, Bad)), ""
        )
    except UserError as error:
        return str(error)


WRITERS = {
    "a.tfrecord": lambda path, texts: path.write_bytes(tfrecord([example(text=t, by=len(t), x=[0.5]) for t in texts])),
    "a.tfrecord.gz": lambda path, texts: path.write_bytes(gzip.compress(tfrecord([example(text=t) for t in texts]))),
    "a.tfrecord-00000-of-00001": lambda path, texts: path.write_bytes(tfrecord([example(text=t, i=-3) for t in texts])),
    "b.array_record": lambda path, texts: write_array_record(path, [example(text=t) for t in texts]),
    "c.array_record": lambda path, texts: write_array_record(path, [t.encode() for t in texts], "group_size:50"),
    "d.array_record": lambda path, texts: write_array_record(path, [json.dumps({"text": t}).encode() for t in texts]),
    "e.arrow": lambda path, texts: write_arrow(path, texts),
    "f.feather": lambda path, texts: write_arrow(path, texts, "file"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_records_come_in_order_and_are_found_again(config, tmp_path, name):
    texts, path = texts_of(600), tmp_path / name
    WRITERS[name](path, texts)
    found = read(config, path)
    assert [row.record for row in found] == [Record(text) for text in texts]
    assert [row.where for row in found] == [f"{path}:{i + 1}" for i in range(600)]
    whole = path.read_bytes()
    for cut in (len(whole) - 5, len(whole) // 2, 40):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=name):
            read(config, path)
    for content in (b"", b"no such file at all " * 20):
        path.write_bytes(content)
        assert name in refusal(config, path)


def test_a_folder_of_all_kinds_is_prepared_the_same_by_any_number_of_processes(config, tmp_path, monkeypatch, quiet):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(WRITERS):
        WRITERS[name](folder / name, [f"{number}.{text}" for text in texts_of(300)])
    archive = [gzip.compress(warc_record(response(page(f"archived {text}").encode()))) for text in texts_of(30)]
    (folder / "g.warc.gz").write_bytes(b"".join(archive))
    for number, text in enumerate(texts_of(20)):
        (folder / f"{number:02d}.html").write_text(page(f"page {text}"), "utf-8")
    monkeypatch.setattr(build, "PART_BYTES", 4000)
    made = config(folder)
    one, three = (prepare_to(tmp_path / f"out{workers}", made, workers, quiet) for workers in (1, 3))
    assert one.content_sha256() == three.content_sha256()
    assert one.manifest["documents_in"] == 300 * len(WRITERS) + 50
    assert one.manifest["dropped"] == {}
    few = prepare_to(
        tmp_path / "few", config("", sources={"s": SourceConfig(path=str(folder), max_documents=450)}), 1, quiet
    )
    assert few.manifest["documents_in"] == 450


def test_pairs_conversations_and_groups(config, tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(
        tfrecord([example(prompt="问", completion="答", by=["x"], image=b"\xff\xfe"), example(prompt="a", by="y")])
    )
    good, bad = (row.record for row in read(config, path, group_field="by"))
    assert good == Record("问", "答", "x")
    assert bad.reason == "missing field"
    chat = {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hi"}]}
    write_array_record(tmp_path / "a.array_record", [json.dumps(chat).encode()] * 3)
    assert read(config, tmp_path / "a.array_record")[2].record.chat.messages[1]["content"] == "hi"


def test_a_bad_record_is_one_bad_row(config, tmp_path):
    rows = [
        example(text="a good row"),
        example(text=b"\xff"),
        example(text="x" * 6000),
        example(text=3),
        b"\x0a\xff",
        example(text="b"),
    ]
    reasons = ["", "not UTF-8", "line too long", "wrong type", "not an Example", ""]
    path = tmp_path / "a.tfrecord"
    path.write_bytes(tfrecord(rows))
    assert [getattr(row.record, "reason", "") for row in read(config, path)] == reasons
    write_array_record(tmp_path / "a.array_record", rows)
    assert [getattr(row.record, "reason", "") for row in read(config, tmp_path / "a.array_record")] == reasons
    deep = json.dumps({"text": "a"}).encode(), b'{"text": ' + b"[" * 4000
    write_array_record(tmp_path / "b.array_record", deep)
    assert [getattr(row.record, "reason", "") for row in read(config, tmp_path / "b.array_record")] == [
        "",
        "not valid JSON",
    ]
    write_arrow(tmp_path / "a.arrow", ["a good row", "QQQ not UTF-8", "c"])
    content = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(content.replace(b"QQQ", b"\xff\xfe\xfd"))
    assert [getattr(row.record, "reason", "") for row in read(config, tmp_path / "a.arrow")] == [
        "",
        "lone surrogate",
        "",
    ]


def test_every_flipped_byte_of_a_tfrecord_is_noticed(config, tmp_path):
    path = tmp_path / "a.tfrecord"
    whole = tfrecord([example(text=text) for text in texts_of(4)])
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(bytes(damaged))
        assert "damaged" in refusal(config, path)


def test_a_huge_length_takes_no_memory(config, tmp_path):
    path = tmp_path / "a.tfrecord"
    head = struct.pack("<Q", 10**15)
    path.write_bytes(tfrecord([example(text="a")]) + head + masked(head) + bytes(10**6))
    tracemalloc.start()
    with pytest.raises(UserError, match="cut short in record 2"):
        read(config, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7


def test_arrow_batches_that_lie_about_their_sizes_are_refused(config, tmp_path):
    path = tmp_path / "a.arrow"
    write_arrow(path, texts_of(60))
    whole, rng, noticed = path.read_bytes(), random.Random(1), 0
    for _ in range(60):  # a wrong offset that is believed reads beyond the end, or ends the process
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[rng.randrange(400, len(whole))] ^= 255
        path.write_bytes(bytes(damaged))
        noticed += bool(refusal(config, path))
    assert noticed > 30


def test_bytes_that_are_no_example():
    for raw in (b"\xff", b"\x0a", b"\x0a\x05abc", example(text="a")[:-1], field(2, b""), b"\x08\x01"):
        with pytest.raises(NotExample):
            parse_example(raw)
    assert form_of_bytes("{ 好".encode()) == "text"
    assert form_of_bytes(b'{"a": ' + b"[" * 10**5) == "text"
    assert parse_example(example(a=["x", "y"], b=[1.5, -2.0], c=[1, -1, 2**40])) == {
        "a": [b"x", b"y"], "b": [1.5, -2.0], "c": [1, -1, 2**40],
    }  # fmt: skip


@pytest.mark.slow
def test_tensorflow_agrees(tmp_path):
    import tensorflow as tf

    lists = {"text": tf.train.Feature(bytes_list=tf.train.BytesList(value=["好".encode(), b"b"])),
             "n": tf.train.Feature(int64_list=tf.train.Int64List(value=[1, -5])),
             "f": tf.train.Feature(float_list=tf.train.FloatList(value=[0.5, 2.0]))}  # fmt: skip
    made = tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString()
    assert parse_example(made) == {"text": ["好".encode(), b"b"], "n": [1, -5], "f": [0.5, 2.0]}
    ours = example(text=["好", "b"], n=[1, -5], f=[0.5, 2.0])
    assert tf.train.Example.FromString(ours) == tf.train.Example.FromString(made)
    (tmp_path / "ours").write_bytes(tfrecord([ours, made]))
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for row in (ours, made):
            writer.write(row)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
