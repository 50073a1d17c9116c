"""Is the main text of a page found in any encoding, and can no page break or hang what reads it?"""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import SourceConfig
from data_pipeline.page import PageReader, depth_of, may_be_deep
from data_pipeline.page_encoding import decode_page
from data_pipeline.records import Bad, Record
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.sources import open_sources
from tests.data_pipeline.web_pages import CHINESE, WORDS, page

LIMIT = 2**24
FRENCH = "À la bibliothèque près de la rivière, les élèves lisent où ils veulent : « c'est très agréable », dit-on."
JAPANESE = "川のそばの新しい図書館は月曜日に開きました。静かな閲覧室が好きな人が多いです。"
TRADITIONAL = "鎮上的新圖書館星期一在河邊開門，來的人大多喜歡安靜的閱覽室，孩子們在窗邊看書。"
RUSSIAN = "Новая библиотека у реки открылась в понедельник, и многим понравились тихие залы."


@pytest.fixture(scope="module")
def reader():
    reader = PageReader()
    yield reader
    reader.close()


def test_the_main_text_is_kept_and_what_is_around_it_is_not(reader):
    for text in (f"{WORDS}\n{WORDS[::-1]}", f"{CHINESE}\n{CHINESE[::-1]}"):
        found = reader.read(page(text).encode(), LIMIT)
        for part in text.split("\n"):
            assert part in found.text
        assert "Section" not in found.text
        assert "go(" not in found.text
    assert reader.read(b"<nav><a href=x>only a menu</a></nav>", LIMIT) == Record(
        "only a menu"
    )  # no main part: all of it
    assert reader.read(b"<html><body><script>x()</script></body></html>", LIMIT).reason == "empty text"


@pytest.mark.parametrize(
    ("encoding", "said", "text"),
    [
        ("gbk", "gb2312", CHINESE + "镕"), ("gb18030", "gb18030", CHINESE + "㐀"), ("big5", "big5", TRADITIONAL),
        ("cp932", "shift_jis", JAPANESE), ("euc_jp", "euc-jp", JAPANESE), ("iso2022_jp", "iso-2022-jp", JAPANESE),
        ("cp1252", "iso-8859-1", FRENCH + " “€ 5”"), ("cp1251", "windows-1251", RUSSIAN), ("utf-8", "utf-8", CHINESE),
    ],
)  # fmt: skip
def test_every_encoding_comes_out_right(encoding, said, text):
    declared = page(text, said)
    assert decode_page(declared.encode(encoding)) == declared
    assert decode_page(page(text).encode(encoding), said) == page(text)  # by the server
    if said != "iso-2022-jp":
        assert decode_page(page(text * 8).encode(encoding)) == page(text * 8)  # nobody says it


def test_what_pages_say_wrongly_does_no_harm():
    assert decode_page(page(CHINESE, "gb2312").encode("utf-8")) == page(CHINESE, "gb2312")
    assert decode_page(page(CHINESE * 4, "iso-8859-1").encode("gbk")) == page(CHINESE * 4, "iso-8859-1")
    assert decode_page(page(CHINESE * 4, "utf-8").encode("gbk")) == page(CHINESE * 4, "utf-8")
    for said in ("no-such-code", "utf-16", "base64", "utf-7", "rot13", "idna", "x" * 30):
        assert decode_page(page(CHINESE, said).encode("utf-8"), said) == page(CHINESE, said)
    for mark in ("utf-8-sig", "utf-16"):
        assert decode_page(page(CHINESE).encode(mark), "gbk") == page(CHINESE)
    broken = page(CHINESE * 4, "gbk").encode("gbk") + b"\xff"
    assert decode_page(broken) == page(CHINESE * 4, "gbk") + "\ufffd"
    half = page(CHINESE * 4, "iso-8859-1").encode() + b"\xff"
    assert decode_page(half, "iso-8859-1") == page(CHINESE * 4, "iso-8859-1") + "\ufffd"
    assert decode_page(b"<p>caf\xe9</p>", "utf-8") == "<p>café</p>"
    assert decode_page(bytes(range(256)) * 9) is None


def test_pages_are_files_of_one_row(config, tmp_path):
    (tmp_path / "a.html").write_bytes(page(CHINESE, "gbk").encode("gbk"))
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(page(WORDS).encode()))
    (source,) = open_sources(config(tmp_path), print)
    found = list(source.read())
    assert [row.where for row in found] == [f"{tmp_path / name}:1" for name in ("a.html", "b.htm.gz")]
    assert CHINESE in found[0].record.text
    assert WORDS in found[1].record.text
    assert [source.load(row.place) for row in found[::-1]] == [row.record for row in found[::-1]]


BOMBS = {
    "unclosed": (b"<div>" * 3 * 10**5, "nested deeper than 5000"),
    "closed": (b"<div>" * 10**5 + b"x" + b"</div>" * 10**5, "nested deeper than 5000"),
    "long": (b"<p>" + b"x" * 10**7, "page longer than 8000000 bytes; raise config.data.max_line_bytes"),
    "image": (b"\x89PNG\r\n" + bytes(100), "an image, an archive or a PDF"),
    "binary": (bytes(range(256)) * 10, "in no known encoding, or not HTML"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_page_that_is_a_bomb_is_one_bad_row(opened, tmp_path, kind):
    content, words = BOMBS[kind]
    for i in range(20):
        (tmp_path / f"{i:02d}.html").write_text(page(f"{WORDS} {i}"))
    path = tmp_path / "07.html"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        opened(tmp_path, max_line_bytes=8_000_000)
    assert str(caught.value).startswith(f"{path}:1: ")
    assert words in str(caught.value)
    data = opened(tmp_path, max_line_bytes=8_000_000, on_bad="skip", max_bad_fraction=0.1)
    assert data.summary()["sources"]["data"]["read"] == 20
    assert sum(data.summary()["sources"]["data"]["kept"].values()) == 19


def test_a_page_that_takes_too_much_ends_only_the_process_that_reads_it():
    reader = PageReader(cpu_seconds=1)
    attributes = b"<p " + b" ".join(b"a%d=1" % i for i in range(80_000)) + b">text</p>"
    assert reader.read(attributes, LIMIT) == Bad("page too complex", "takes more than 1 s or 2048 MiB to read")
    assert reader.read(b"<p>after it</p>", LIMIT) == Record("after it")
    reader.process.kill()  # as the system does when memory is short
    assert isinstance(reader.read(b"<p>lost</p>", LIMIT), Bad)
    assert reader.read(b"<p>after it</p>", LIMIT) == Record("after it")
    reader.close()


def test_entities_and_unclosed_comments_take_no_time(reader):
    assert reader.read(b"<p>" + b"&amp;" * 10**6, LIMIT) == Record("&" * 10**6)
    for content in (b"<!--" * 10**6, b"<script>" * 10**6, b"<" * 10**6):
        assert depth_of(content.decode()) == 0


def test_depth_is_told_fast_and_well():
    deep, flat = b"<div>" * 6000, b"<p>a<br><img src=x>" * 9000
    assert (may_be_deep(deep), depth_of(deep.decode())) == (True, 6000)
    assert depth_of(flat.decode()) == 0
    assert not may_be_deep(b"<div><i>a</i></div>" * 9000)
    assert not may_be_deep(b"")


def test_a_missing_package_says_what_to_install(config, tmp_path):
    (tmp_path / "a.html").write_text(page(WORDS))
    code = (
        "import sys; sys.modules['resiliparse'] = None\n"
        "from data_pipeline.sources import open_sources; from data_pipeline.config import DataConfig\n"
        f"try: list(open_sources(DataConfig(path={str(tmp_path)!r}), print)[0].read())\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        done.stdout
        == f'{ConfigError.__name__} reading HTML and WARC needs the package resiliparse: pip install "lm[corpus]"\n'
    )


def test_an_interrupted_reader_leaves_no_process(config, tmp_path):
    (tmp_path / "a.html").write_text(page(WORDS))
    open_data(config("", sources={"s": SourceConfig(path=str(tmp_path / "a.html"), kind="html")}), log=print)
    code = (
        "from data_pipeline.page import PageReader; import os\n"
        "reader = PageReader(); reader.read(b'<p>x', 9); print(reader.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    for _ in range(200):
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{int(done.stdout)}/stat")  # a dead process that nobody has asked for stays as a zombie
        if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the process that parses pages goes on without the one that started it")
