"""Are rows of Parquet files the records that the same JSON lines would be, in parts, by number, and when they are bad?"""

import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import SourceConfig
from data_pipeline.prepare import build
from data_pipeline.prepare.build import prepare_to
from data_pipeline.records import Bad
from data_pipeline.schema import UserError
from data_pipeline.sources import open_sources
from tests.data_pipeline.conftest import make_text

ROWS = 90


@pytest.fixture
def texts():
    rng = random.Random(0)
    return [f"{i} {make_text(rng, rng.randint(1, 50))}" for i in range(ROWS)]


def write(path, columns, rows_a_group=20):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_a_group)
    return path


def test_it_gives_what_the_same_json_lines_give(config, texts, tmp_path, monkeypatch, quiet):
    path = write(
        tmp_path / "a.parquet", {"id": list(range(ROWS)), "text": texts, "by": [f"g{i % 9}" for i in range(ROWS)]}
    )
    lines = tmp_path / "a.jsonl"
    rows = [{"text": text, "by": f"g{i % 9}"} for i, text in enumerate(texts)]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    made = [config("", sources={"s": SourceConfig(path=str(p), group_field="by")}) for p in (path, lines)]
    one, two = (open_data(c, log=quiet).prepared for c in made)
    assert one.content_sha256() == two.content_sha256()
    (source,) = open_sources(made[0], print)
    whole = list(source.read())
    assert [found.where for found in whole] == [f"{path}:{i + 1}" for i in range(ROWS)]
    for goal in (1, path.stat().st_size // 3, 10**9):
        parts = source.parts(goal)
        assert [found for part in parts for found in source.read(part)] == whole
    assert len(source.parts(1)) == 5
    for found in [*whole[::-7], *whole[::5]]:
        assert source.load(found.place) == found.record
    monkeypatch.setattr(build, "PART_BYTES", 1000)
    assert prepare_to(tmp_path / "out", made[0], 3, print).content_sha256() == two.content_sha256()


def test_conversations_pairs_and_missing_values(config, tmp_path):
    messages = [[{"role": "user", "content": "你好"}, {"role": "assistant", "content": "hi"}]] * 3
    path = write(tmp_path / "chat.parquet", {"messages": messages})
    (source,) = open_sources(config(path), print)
    assert [found.record.chat.messages[1]["content"] for found in source.read()] == ["hi"] * 3
    path = write(tmp_path / "pairs.parquet", {"prompt": ["a", "b"], "completion": [b"c", None], "time": [None, 3]})
    (source,) = open_sources(config(path), print)
    good, bad = (found.record for found in source.read())
    assert (good.text, good.completion) == ("a", "c")
    assert isinstance(bad, Bad)


def test_bad_files_and_rows_are_one_line(config, texts, tmp_path, quiet):
    path = write(tmp_path / "a.parquet", {"text": texts})
    whole = path.read_bytes()
    for content in (whole[:-10], whole[: len(whole) // 2], b"PAR1", b"no Parquet at all", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.parquet: is not a Parquet file") as caught:
            open_data(config(path), log=quiet)
        assert "\n" not in str(caught.value)
    damaged = bytearray(whole)
    for at in range(300, 700):
        damaged[at] ^= 0x5A
    path.write_bytes(bytes(damaged))
    with pytest.raises(UserError, match=r"a\.parquet"):
        open_data(config(path), log=quiet)
    path = write(tmp_path / "b.parquet", {"body": texts})
    with pytest.raises(UserError, match=r"b\.parquet:1: .*text"):
        open_data(config(path), log=quiet)
    path = write(tmp_path / "c.parquet", {"text": [b"\xff\xfe bad", b"good"]})
    with pytest.raises(UserError, match=r"c\.parquet:1: "):
        open_data(config(path), log=quiet)
    path = write(tmp_path / "d.parquet", {"text": pyarrow.array([], pyarrow.string())})
    with pytest.raises(UserError, match=r"d\.parquet: "):
        open_data(config(path), log=quiet)
