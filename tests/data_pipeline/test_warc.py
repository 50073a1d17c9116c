"""Are the pages of web archives found, and found again, and is damage of their frames noticed?"""

import gzip
import hashlib
import struct
import zlib

import brotli
import pytest
import zstandard

from data_pipeline.config import SourceConfig, SplitConfig
from data_pipeline.http_message import join_chunks, unpack
from data_pipeline.prepare.read import split_where
from data_pipeline.records import Bad, Record
from data_pipeline.schema import UserError
from data_pipeline.sources import open_sources
from tests.data_pipeline.web_pages import CHINESE, WORDS, page, response, sha1, warc_record

PACKINGS = {"": lambda records: b"".join(records), ".gz": lambda records: b"".join(map(gzip.compress, records)),
            ".zst": lambda records: b"".join(map(zstandard.compress, records))}  # fmt: skip


def texts(numbers):
    return [warc_record(response(page(f"{WORDS} {i}").encode()), url=f"http://h{i % 3}.example/{i}") for i in numbers]


def rows_of(config, path, **changes):
    """(number, record) of every row; each good one is found again, from the last to the first."""
    source = SourceConfig(path=str(path), **changes)
    (opened,) = open_sources(config("", sources={"s": source}, max_line_bytes=100_000), print)
    found = list(opened.read())
    for place, where, record in found[::-1]:
        if isinstance(record, Record):
            assert opened.load(place) == record, where
    return [(split_where(where)[1], record) for _, where, record in found]


@pytest.mark.parametrize("packing", [*PACKINGS, "one member"])
def test_pages_of_an_archive(config, tmp_path, packing):
    records = [
        warc_record(b"software: x\r\n", "warcinfo"),
        *texts(range(2)),
        warc_record(b"GET / HTTP/1.1\r\n\r\n", "request"),
        warc_record(response(page(CHINESE).encode("gbk"), "text/html; charset=gb2312")),
        warc_record(response("纯文本 plain".encode(), "text/plain")),
        warc_record("从网页里取出的文字".encode(), "conversion", headers=["Content-Type: text/plain"]),
        warc_record(page(WORDS).encode(), "resource", headers=["Content-Type: text/html"]),
        warc_record(response(b"\x89PNG", "image/png")),
        warc_record(response(page(WORDS).encode(), status="404 Not Found")),
        warc_record(response(page(WORDS).encode()), headers=["WARC-Segment-Number: 1"]),
        warc_record(b"20240101 1.2.3.4", headers=["Content-Type: text/dns"]),
    ]
    path = tmp_path / ("a.warc.gz" if packing == "one member" else f"a.warc{packing}")
    path.write_bytes(gzip.compress(b"".join(records)) if packing == "one member" else PACKINGS[packing](records))
    rows = rows_of(config, path)
    good = {number: record.text for number, record in rows if isinstance(record, Record)}
    assert {number: text.replace("News\n\n", "") for number, text in good.items()} == {
        2: f"{WORDS} 0", 3: f"{WORDS} 1", 5: CHINESE, 6: "纯文本 plain", 7: "从网页里取出的文字", 8: WORDS,
    }  # fmt: skip
    bad = {number: (record.reason, record.fatal) for number, record in rows if isinstance(record, Bad)}
    assert bad == {
        9: ("not HTML or text", False), 10: ("HTTP status is not 200", False), 11: ("segmented record", False),
        12: ("not HTML or text", False),
    }  # fmt: skip


def chunked(body):
    parts = [body[i : i + 100] for i in range(0, len(body), 100)]
    return b"".join(b"%x;x=y\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def test_what_servers_pack_is_unpacked_and_what_crawlers_unpacked_stays(config, tmp_path):
    body = page(WORDS).encode()
    packed = {
        "gzip": gzip.compress(body),
        "br": brotli.compress(body),
        "deflate": zlib.compress(body),
        "zstd": zstandard.compress(body),
    }
    raw = zlib.compressobj(wbits=-15)
    contents = [response(content, headers=[f"Content-Encoding: {name}"]) for name, content in packed.items()]
    contents += [response(body, headers=[f"Content-Encoding: {name}"]) for name in packed]
    contents += [
        response(raw.compress(body) + raw.flush(), headers=["Content-Encoding: deflate"]),
        response(chunked(body), headers=["Transfer-Encoding: chunked"]),
        response(body, headers=["Transfer-Encoding: chunked"]),
        response(chunked(packed["gzip"]), headers=["Transfer-Encoding: chunked", "content-encoding: gzip"]),
        response(gzip.compress(packed["br"]), headers=["Content-Encoding: br, gzip"]),
    ]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(PACKINGS[".gz"]([warc_record(content) for content in contents]))
    assert [record.text for _, record in rows_of(config, path)] == [f"News\n\n{WORDS}"] * len(contents)
    for name, content in packed.items():
        for cut in (len(content) // 2, len(content) - 1):
            assert unpack(content[:cut], name, 10**6) is None
        assert len(unpack(content, name, 50)) > 50  # more than is allowed, and not all
    bomb = brotli.compress(bytes(10**7))
    assert len(unpack(bomb, "br", 10**6)) < 1.2 * 10**6
    assert unpack(b"abc", "compress", 100) is None
    assert join_chunks(b"Add to it.\nAnd more") is None
    for cut in (3, 50, 300):
        with pytest.raises(EOFError):
            join_chunks(chunked(body)[:-cut])


def test_damaged_content_is_counted(config, tmp_path):
    content = response(page(WORDS).encode())
    body = page(WORDS).encode()
    good = [f"WARC-Block-Digest: {sha1(content)}", f"WARC-Payload-Digest: sha256:{hashlib.sha256(body).hexdigest()}"]
    zipped = gzip.compress(body)
    in_gzip = response(zipped, headers=["Content-Encoding: gzip"])
    records = [
        warc_record(content, headers=good),
        warc_record(in_gzip, headers=[f"WARC-Payload-Digest: {sha1(zipped)}"]),
        warc_record(in_gzip, headers=[f"WARC-Payload-Digest: {sha1(body)}"]),  # tools differ in what they take
        warc_record(content.replace(b"library", b"LIBRARY"), headers=good[:1]),
        warc_record(content.replace(b"library", b"LIBRARY"), headers=good[1:]),
        warc_record(response(b"x" * 200_000, "text/plain")),
        warc_record(response(gzip.compress(b"x" * 200_000), "text/plain", headers=["Content-Encoding: gzip"])),
        warc_record(response(zipped[:40], headers=["Content-Encoding: gzip"])),
        warc_record(response(chunked(body)[:300], headers=["Transfer-Encoding: chunked"])),
    ]
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join(records))
    rows = rows_of(config, path)
    assert [record.reason if isinstance(record, Bad) else "" for _, record in rows] == [
        "", "", "", "digest mismatch", "digest mismatch", "page too long", "page too long", "bad Content-Encoding",
        "page cut short",
    ]  # fmt: skip
    assert [record.fatal for _, record in rows if isinstance(record, Bad)] == [True, True, *[False] * 4]
    assert all("http://news.example/1" in record.message for _, record in rows if isinstance(record, Bad))


FRAMES = {
    "too short": warc_record(response(page(WORDS).encode()), length=5),
    "too long": warc_record(response(page(WORDS).encode()), length=2000),
    "beyond the file": warc_record(response(page(WORDS).encode()), length=10**15),
    "negative": warc_record(response(page(WORDS).encode()), length=-5),
    "no number": warc_record(response(page(WORDS).encode()), length="many"),
    "huge": warc_record(response(page(WORDS).encode()), length="9" * 30),
    "none": warc_record(response(page(WORDS).encode())).replace(b"Content-Length: ", b"Length: "),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("kind", FRAMES)
def test_a_record_with_a_wrong_length_is_one_bad_row(config, tmp_path, kind, packing):
    path = tmp_path / f"a.warc{packing}"
    path.write_bytes(PACKINGS[packing]([*texts(range(3)), FRAMES[kind], *texts(range(3, 6))]))
    rows = rows_of(config, path)
    assert [(number, record.reason) for number, record in rows if isinstance(record, Bad)] == [(4, "bad WARC record")]
    assert "Content-Length" in rows[3][1].message
    assert [record.text[-1] for _, record in rows if isinstance(record, Record)] == list("012345")


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_archive_that_is_cut_short_is_noticed(config, tmp_path, packing):
    whole = PACKINGS[packing](texts(range(8)))
    path = tmp_path / f"a.warc{packing}"
    for cut in (len(whole) - 40, len(whole) // 2 + 7, 60):
        path.write_bytes(whole[:cut])
        if packing:
            with pytest.raises(UserError, match=rf"a\.warc{packing}: .* stream is damaged or cut short; record"):
                rows_of(config, path)
        else:
            assert rows_of(config, path)[-1][1].reason == "bad WARC record"
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0x55
    path.write_bytes(bytes(damaged))
    if packing == ".gz":
        with pytest.raises(UserError, match="damaged"):
            rows_of(config, path)
    path.write_bytes(b"")
    assert [record.reason for _, record in rows_of(config, path)] == ["empty file"]
    for content in (b"hello world\n" * 100, b"\x1f\x8b\x08" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.warc"):
            rows_of(config, path)


def test_frames_packed_with_a_dictionary(config, tmp_path):
    records = texts(range(40))
    samples = [record[i : i + 300] for record in records for i in range(0, len(record), 300)]
    dictionary = zstandard.train_dictionary(4000, samples)
    packer = zstandard.ZstdCompressor(dict_data=dictionary)
    frames = b"".join(map(packer.compress, records))
    for content in (dictionary.as_bytes(), zstandard.compress(dictionary.as_bytes())):
        path = tmp_path / "a.warc.zst"
        path.write_bytes(struct.pack("<II", 0x184D2A5D, len(content)) + content + frames)
        assert [record.text for _, record in rows_of(config, path)] == [f"News\n\n{WORDS} {i}" for i in range(40)]
    path.write_bytes(frames)
    with pytest.raises(UserError, match="damaged"):
        rows_of(config, path)


def test_pages_of_one_host_are_a_group(config, tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(PACKINGS[".gz"](texts(range(9))))
    rows = rows_of(config, tmp_path / "*.warc.gz", group_field="host")
    assert [record.group for _, record in rows] == ["h0.example", "h1.example", "h2.example"] * 3
    (bad, *_) = rows_of(config, tmp_path / "a.warc.gz", group_field="author")
    assert "it may be url or host" in bad[1].message


@pytest.mark.slow
def test_archives_are_streamed(opened, tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(PACKINGS[".gz"](texts(range(30))))
    batches = opened(tmp_path / "a.warc.gz", streaming=True, split=SplitConfig(validation=0, test=0)).train_batches(
        0, (0, 8)
    )
    for _ in range(40):  # some epochs
        assert (next(batches)["weights"] > 0).any()
    batches.close()
