"""Is each kind of bad input one clear line with its place, or a counted skip, and never a silent loss?"""

import gzip
import json
import os
import random
import socket
import subprocess
import sys
import tracemalloc

import pytest
import zstandard

from data_pipeline.batch import open_data
from data_pipeline.config import CleanConfig, SourceConfig, SplitConfig
from data_pipeline.lines import read_lines
from data_pipeline.schema import UserError
from data_pipeline.sources import open_sources

GOOD = b'{"text": "a good row, \xe5\xa5\xbd"}\n'


def refusal(opened, path, **changes):
    with pytest.raises(UserError) as caught:
        opened(path, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


BAD_LINES = {
    "cut": (b'{"text": "a', "not valid JSON"),
    "missing field": (b'{"txt": "a"}', "or 'instruction' and 'output'); the row has 'txt'"),
    "int": (b'{"text": 3}', "field 'text' is int, expected text"),
    "null": (b'{"text": null}', "field 'text' is null, expected text"),
    "list": (b'{"text": ["a"]}', "field 'text' is list, expected text"),
    "empty": (b'{"text": " "}', "field 'text' is empty"),
    "invalid": (b'{"text": "\xff\xfe"}', "not UTF-8 at byte 10"),
    "overlong": (b'{"text": "\xc0\xaf"}', "not UTF-8 at byte 10"),
    "gbk": ('{"text": "中文"}'.encode("gbk"), "not UTF-8 at byte 10"),
    "surrogate": (b'{"text": "\\ud800"}', "holds a lone surrogate"),
    "long": (b'{"text": "' + b"x" * 3000 + b'"}', "line longer than 2000 bytes; raise config.data.max_line_bytes"),
    "deep": (b"[" * 1500, "not valid JSON"),
    "digits": (b'{"text": "a", "n": ' + b"1" * 1900 + b"e" + b"}", "not valid JSON"),
    "tab": (b'{"text": "a\tb"}', "not valid JSON: Invalid control character at column 12"),
    "array": (b'["text"]', "holds a JSON list, expected an object"),
    "empty completion": (b'{"prompt": "a", "completion": ""}', "field 'completion' is empty"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_refused_with_its_place_or_counted(opened, tmp_path, kind):
    line, words = BAD_LINES[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + line + b"\n" + b"".join(b'{"text": "row %d"}\n' % i for i in range(30)))
    message = refusal(opened, path, max_line_bytes=2000)
    assert message.startswith(f"{path}:2: ")
    assert words in message
    data = opened(path, max_line_bytes=2000, on_bad="skip", max_bad_fraction=0.05)
    assert sum(data.summary()["sources"]["data"]["dropped"].values()) == 1
    drops = (data.prepared.folder / "ledger.jsonl").read_text("utf-8")
    assert (json.loads(drops)["file"], json.loads(drops)["line"]) == (str(path), 2)
    assert "1 of 32 rows are bad" in refusal(opened, path, max_line_bytes=2000, on_bad="skip", max_bad_fraction=0.001)


def test_a_depth_bomb_and_a_huge_number_are_one_line(opened, tmp_path):
    path = tmp_path / "rows.jsonl"
    for line in (b'{"text": ' + b"[" * 200_000, b'{"text": ' + b"1" * 5000 + b"}"):
        path.write_bytes(GOOD + line + b"\n")
        assert "not valid JSON" in refusal(opened, path)


@pytest.mark.parametrize("variant", ["bom", "crlf", "no_final_newline", "two_member_gzip", "zst"])
def test_harmless_forms_give_the_same_documents(opened, tmp_path, variant):
    rows = [f'{{"text": "第{i}行 line\u2028separator"}}' for i in range(20)]
    plain = ("\n".join(rows) + "\n").encode()
    forms = {
        "bom": ("a.jsonl", b"\xef\xbb\xbf" + plain),
        "crlf": ("a.jsonl", plain.replace(b"\n", b"\r\n")),
        "no_final_newline": ("a.jsonl", plain.rstrip()),
        "two_member_gzip": ("a.jsonl.gz", gzip.compress(plain[:300]) + gzip.compress(plain[300:])),
        "zst": ("a.jsonl.zst", zstandard.compress(plain[:300]) + zstandard.compress(plain[300:])),
    }
    name, content = forms[variant]
    (tmp_path / "plain.jsonl").write_bytes(plain)
    (tmp_path / name).write_bytes(content)
    a, b = (opened(tmp_path / n) for n in ("plain.jsonl", name))
    assert a.prepared.content_sha256() == b.prepared.content_sha256()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_every_truncated_archive_is_an_error(opened, tmp_path, suffix):
    text = "".join(f'{{"text": "row {i} {random.Random(i).random()}"}}\n' for i in range(3000)).encode()
    packed = gzip.compress(text) if suffix == ".gz" else zstandard.compress(text)
    path = tmp_path / f"a.jsonl{suffix}"
    for cut in range(20):
        path.write_bytes(packed[: 20 + cut * (len(packed) - 21) // 19])
        assert "damaged or cut short" in refusal(opened, path, on_bad="skip")
    damaged = bytearray(packed)
    damaged[-5] ^= 1  # in the checksum, or in the last block
    path.write_bytes(damaged)
    if suffix == ".gz":
        assert "damaged" in refusal(opened, path)


def test_a_gzip_bomb_stops_at_the_line_limit(opened, tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "' + b"x" * 50_000_000 + b'"}\n'))
    assert "line longer than 100000 bytes" in refusal(opened, path, max_line_bytes=100_000)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl.gz", b'{"text": "not packed"}\n', "is not a gzip file"),
        ("a.jsonl", gzip.compress(GOOD, mtime=0), "looks like a gzip file"),
        ("a.jsonl", zstandard.compress(GOOD), "looks like a zstandard file"),
        ("a.jsonl", b"PK\x03\x04abc", "looks like a zip archive"),
        ("a.jsonl", b"PAR1abc", "looks like a Parquet file"),
        ("a.jsonl", b"\n <!DOCTYPE html><p>", "an HTML page"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16 byte-order mark"),
        ("a.txt", "你好".encode("utf-16"), "UTF-16 byte-order mark"),
        ("a.jsonl", b"", "file is empty"),
        ("a.jsonl", b"\n \n\n", "only blank lines"),
        ("a.txt", b"", "file is empty"),
        ("a.txt", b"\n\n", "blank"),
        ("a.txt", b"fine\n\xffbad", "not UTF-8 at byte 0"),
        ("a.csv", b"text\n", "no rows in it below the header"),
        ("a.csv", b"text,x\nonly one\n", "the row has 1 fields, the header 2"),
        ("a.csv", b"id,x\n1,2\n", "no field 'text'"),
        ("a.csv", b'text,x\n"a" b,1\n', "a.csv:2: not valid CSV"),
        ("a.csv", b'text,x\na,1\n"b,2\nc,3\n', "a.csv:3: the row opens a quote that does not close"),
        ("a.csv", b"te\rxt,x\na,1\nb,2\n", "a.csv:1: the header is not valid CSV"),
        ("a.bin", b"abc", "cannot tell what"),
        ("a.txt", "plain text".encode("utf-16-le") * 9, "NUL bytes; a binary file, or UTF-16 without its mark?"),
        ("a.md", bytes(5000), "NUL bytes"),
        ("a.html", b"", "file is empty"),
        ("a.warc.gz", b"WARC/1.0\r\n", "is damaged or cut short"),
        (
            "a.warc",
            b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 0\r\n\r\n\r\n\r\n",
            "no responses, resources or conversions",
        ),
        ("a.tfrecord", b"", "file is empty"),
        ("a.tfrecord", b"\x1f\x8b" + bytes(60), "looks like a gzip file"),
        ("a.array_record", b"", "is not an ArrayRecord file"),
        ("a.arrow", b"", "is not an Arrow file"),
        ("a.arrow", b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
    ],
)
def test_a_wrong_file_is_named_for_what_it_is(opened, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    message = refusal(opened, tmp_path / name)
    assert words in message
    assert name in message


def test_what_is_no_file_is_said_and_never_waited_for(config, tmp_path):
    said = []
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket.jsonl"))  # such names may have 107 bytes
    for name, what in (
        ("pipe.jsonl", "a pipe"),
        ("link.jsonl", "a pipe"),
        ("socket.jsonl", "a socket"),
        ("/dev/null", "a device"),
    ):
        with pytest.raises(UserError, match=rf"config.data.path: '.*{name}' is {what}, not a file"):
            open_sources(config(tmp_path / name), said.append)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.jsonl" / "a.jsonl").write_bytes(GOOD)
    for path in (tmp_path, tmp_path / "*.jsonl"):
        said.clear()
        if path == tmp_path:
            (source,) = open_sources(config(path), said.append)
            assert [file.path for file in source.files] == [str(tmp_path / "folder.jsonl/a.jsonl")]
        else:
            with pytest.raises(UserError, match="matches no files"):
                open_sources(config(path), said.append)
        assert sum("and is left out" in line for line in said) == 3
    (source,) = open_sources(config(tmp_path / "folder.jsonl"), said.append)
    assert len(list(source.read())) == 1


def test_numbered_files_that_are_missing_are_said(config, tmp_path):
    said = []
    for number in (0, 1, 3):
        (tmp_path / f"a-{number:05d}-of-00004.jsonl").write_bytes(GOOD)
    for path in (tmp_path, tmp_path / "*.jsonl"):
        open_sources(config(path), said.append)
    assert len([line for line in said if "a-*-of-00004.jsonl: 3 of 4 files are there" in line]) == 2


def test_a_file_that_may_not_be_read_is_one_line(opened, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD)
    real = open

    def closed(name, *args, **kwargs):  # the tests may run as root, who may read all
        if os.fspath(name) == str(path):
            raise PermissionError(13, "Permission denied", name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr("builtins.open", closed)
    assert refusal(opened, path) == f"{path}: Permission denied"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.csv", "a.html", "a.warc", "a.tfrecord", "a.array_record", "a.arrow"]
)
def test_a_line_of_a_gigabyte_takes_no_memory(tmp_path, name):
    path = tmp_path / name
    heads = {
        "a.jsonl": b'{"text": "',
        "a.warc": b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 999999999\r\n\r\n",
    }
    with open(path, "wb") as file:
        file.write(heads.get(name, b"text"))
        file.truncate(2**30)  # the rest takes no place on the disk
    code = (
        "from data_pipeline.config import DataConfig; from data_pipeline.sources import open_sources\n"
        f"try: rows = list(open_sources(DataConfig(path={str(path)!r}), print)[0].read()); said = [r.record.message for r in rows]\n"
        "except ValueError as error: said = [str(error)]\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"  # getrusage gives the parent's
        "print(int(peak.split()[1]) // 1024, *said)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, words = done.stdout.split(" ", 1)
    assert int(peak) < 250
    assert any(part in words for part in ("longer than 16777216 bytes", "no record begins", "is not a", "damaged"))


def test_a_zstandard_bomb_is_not_unpacked_whole(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(b"x" * 200_000_000))
    tracemalloc.start()
    assert [(line.length, line.raw) for line in read_lines(str(path), 100_000)] == [(200_000_000, None)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000


def test_a_file_name_that_is_not_utf8_is_only_a_name(config, tmp_path):
    (tmp_path / "good.txt").write_text("some words 好")
    name = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    try:
        open(name, "wb").close()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    data = open_data(config(tmp_path, on_bad="skip", max_bad_fraction=0.5, split=SplitConfig(validation=0, test=0)))
    (drop,) = (data.prepared.folder / "ledger.jsonl").read_text("utf-8").splitlines()
    assert os.fsencode(json.loads(drop)["file"]) == name


def test_a_group_that_is_no_text_is_a_bad_row(opened, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "from": "x"}\n{"text": "b", "from": "\\ud800"}\n')
    message = refusal(opened, "", sources={"s": SourceConfig(path=str(path), group_field="from")})
    assert message.startswith(f"{path}:2: field 'from' holds a lone surrogate")


def test_a_folder_that_cannot_be_read_whole_is_refused(config, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some words")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    said = []
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"config.data.path: .*closed: Permission denied"):
        open_sources(config(tmp_path), said.append)
    monkeypatch.undo()
    (tmp_path / "linked").symlink_to(tmp_path / "closed")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(UserError, match=r"config.data.path: .*b\.txt: No such file"):
        open_sources(config(tmp_path), said.append)
    assert ["linked is a link to a folder and is not followed" in line for line in said] == [True]


def test_a_text_cut_by_position_is_not_in_a_pinned_source_too(opened, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("the same long text " * 50)
    sources = {"cut": SourceConfig(path=str(path)), "pinned": SourceConfig(path=str(path), split="train")}
    for clean in (CleanConfig(), CleanConfig(exact_dedup=False)):
        message = refusal(opened, "", sources=sources, clean=clean, split=SplitConfig(by="position"))
        assert "1 texts of every split are in train too" in message


def test_missing_files_name_the_key(opened, tmp_path):
    assert "config.data.path: no such file or folder" in refusal(opened, tmp_path / "none.txt")
    assert "config.data.path: " in refusal(opened, tmp_path / "*.jsonl")
    assert "matches no files" in refusal(opened, tmp_path / "*.jsonl")
    (tmp_path / "folder").mkdir()
    assert "holds no readable files" in refusal(opened, tmp_path / "folder")
    sources = {"a": SourceConfig(kind="package", path="no_such_package_at_all")}
    assert "config.data.sources.a.path: no installed Python package" in refusal(opened, "", sources=sources)


def test_one_text_in_two_pinned_splits_is_refused(opened, tmp_path):
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "Same words. 同样的话"}}\n{{"text": "only {name}"}}\n')
    sources = {
        n: SourceConfig(path=str(tmp_path / f"{n}.jsonl"), split=s)
        for n, s in (("train", "train"), ("val", "validation"))
    }
    message = refusal(opened, "", sources=sources)
    assert "1 texts of train are in validation too" in message
    assert "val.jsonl:1 repeats a document of source train" in message
    data = opened("", sources=sources, allow_leak=True)
    assert data.summary()["sources"]["val"]["kept"] == {"validation": 2}


def test_twin_files_are_warned_of_and_an_unwritable_cache_is_one_line(config, tmp_path):
    said = []
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("the same text 相同")
    (tmp_path / "c.txt").write_text("another text")
    open_data(config(tmp_path / "?.txt"), log=said.append)
    assert any("b.txt" in line and "same bytes as" in line for line in said)
    with pytest.raises(UserError, match=r"config.data.cache_dir=.*cannot write prepared data"):
        open_data(config(tmp_path / "a.txt", cache_dir=os.devnull + "/x"), log=said.append)
