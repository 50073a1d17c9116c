"""Are lines that many documents repeat taken out, the same way however the data are prepared?"""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import CleanConfig, SourceConfig, SplitConfig
from data_pipeline.document_reader import DocumentReader, Texts
from data_pipeline.explain import explain_file
from data_pipeline.prepare import build
from data_pipeline.prepare.build import prepare_to
from data_pipeline.prepare.repeated import TABLE, open_table
from data_pipeline.schema import ConfigError
from tests.data_pipeline.conftest import make_text
from tests.data_pipeline.test_near import edited, split_texts
from tests.data_pipeline.test_stages import hashes

NOTICE = "All rights reserved by the publisher of these pages."
MENU = "网站首页 新闻中心 联系我们 关于我们 版权声明 友情链接 意见反馈"
CLEAN = CleanConfig(repeated_lines=5)


@pytest.fixture
def rows(tmp_path):
    """40 pages of which 12 end in a notice and 12 begin with a menu; a line in 5 pages; a page of the notice alone; pairs."""
    rng = random.Random(1)
    pages = [f"{i} {make_text(rng, 30)}" for i in range(40)]
    for i in range(0, 36, 3):
        pages[i] += "\n" + NOTICE
        pages[i + 1] = MENU + "\n" + pages[i + 1]
    for i in range(2, 17, 3):
        pages[i] += "\nThis line stands in five of the pages, no more."
    pages.append(NOTICE)
    rows = [{"text": page} for page in pages]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    pairs = [{"prompt": f"question {i}\n{NOTICE}\n", "completion": f"{MENU}\nanswer {i}"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs), "utf-8")
    return {name: SourceConfig(path=str(tmp_path / f"{name}.jsonl")) for name in ("pages", "pairs")}


@pytest.fixture
def make(config, rows, quiet):
    return lambda **changes: open_data(
        config("", sources=rows, min_completion_kept=0.0, **{"clean": CLEAN, **changes}), log=quiet
    )


def every_text(prepared, source):
    return [text for texts in split_texts(prepared, source).values() for text in texts]


def test_a_repeated_line_stays_in_its_first_document_alone(make):
    plain, data = make(clean=CleanConfig()), make()
    before, after = every_text(plain.prepared, 0), every_text(data.prepared, 0)
    assert sum(NOTICE in text for text in before) == 13
    assert [text.split()[0] for text in after if NOTICE in text] == ["0"]
    assert [text.split("\n")[1].split()[0] for text in after if MENU in text] == ["1"]
    assert sum("no more." in text for text in after) == 5  # not in more than five
    assert sorted(text.replace(NOTICE, "").replace(MENU, "").strip() for text in before if text != NOTICE) == sorted(
        text.replace(NOTICE, "").replace(MENU, "").strip() for text in after
    )
    assert sorted(every_text(data.prepared, 1)) == sorted(
        every_text(plain.prepared, 1)
    )  # questions and answers are whole
    manifest = data.prepared.manifest
    assert manifest["edited"] == {"repeated_lines": 22}
    assert manifest["dropped"] == {"only repeated lines": 1}
    assert manifest["documents_out"] == 48
    lines = list(explain_file(data.prepared, "pages.jsonl:41")), list(explain_file(data.prepared, "pages.jsonl:4"))
    assert lines[0][0].endswith("dropped: only repeated lines")
    assert "edited by repeated_lines" in lines[1][0]


@pytest.mark.parametrize("by", ["hash", "position"])
def test_streaming_takes_out_the_same_lines(make, by):
    split = SplitConfig(by=by, validation=0.2, test=0.1)
    prepared, streamed = make(split=split), make(split=split, streaming=True)
    lines = open_table(streamed.prepared.folder / TABLE, CLEAN)
    for number, source in enumerate(streamed.sources):
        places, keys, sizes, _ = streamed.prepared.places(number, "train")
        reader = DocumentReader(streamed.config, [Texts(source, places, keys, sizes)], streamed.tokenizer, lines)
        read = ["".join(record.parts()) for record in reader.read(np.arange(len(reader.order)))[0]]
        shard = prepared.prepared.shard(number, "train")
        pairs = zip(shard.offsets, shard.offsets[1:])
        assert sorted(read) == sorted(prepared.tokenizer.decode(shard.ids[a:b].tolist()) for a, b in pairs)
    batches = streamed.train_batches(0, (0, 8))
    text = "".join(prepared.tokenizer.decode(row.tolist()) for _ in range(4) for row in next(batches)["targets"])
    batches.close()
    assert text.count(NOTICE) < 10  # of prompts, and one page


def test_the_bytes_do_not_depend_on_the_processes(config, rows, tmp_path, monkeypatch, quiet):
    monkeypatch.setattr(build, "PART_BYTES", 1500)
    made = config("", sources=rows, min_completion_kept=0.0, clean=dataclasses.replace(CLEAN, near_dedup=0.8))
    one, two = (hashes(prepare_to(tmp_path / f"{n}", made, n, quiet).folder) for n in (1, 2))
    assert one == two


def test_near_duplicates_make_no_line_a_repeated_one(config, tmp_path, quiet):
    """Eight copies of a text, each with another letter changed: one is kept, with all its lines."""
    rng = random.Random(3)
    text = "\n".join(make_text(rng, 12) for _ in range(12))
    texts = [edited(rng, text, 1) for _ in range(8)] + [make_text(rng, 60) for _ in range(20)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), "utf-8")
    clean = dataclasses.replace(CLEAN, near_dedup=0.8)
    prepared = open_data(config(path, clean=clean), log=quiet).prepared
    assert prepared.manifest["dropped"] == {"near-duplicate": 7}
    assert prepared.manifest["edited"] == {}
    assert len(set(every_text(prepared, 0)) & set(texts)) == 21


def test_paragraphs_and_wrong_keys(make):
    data = make(clean=CleanConfig(repeated_lines=5, repeated_unit="paragraph"))
    assert data.prepared.manifest["edited"] == {}  # no paragraph repeats: the notice is a line of one
    with pytest.raises(ConfigError, match="repeated_unit: must be one of 'line', 'paragraph', got 'page'"):
        make(clean=CleanConfig(repeated_lines=5, repeated_unit="page"))
    with pytest.raises(ConfigError, match="repeated_lines: must be >= 0"):
        make(clean=CleanConfig(repeated_lines=-1))
