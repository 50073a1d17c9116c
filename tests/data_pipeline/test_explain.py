"""Can every dropped, edited and kept document be found again, and every row be traced to lines of files?"""

import json
import linecache
import random
import shutil

import numpy as np
import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import SourceConfig
from data_pipeline.explain import explain_row, main
from data_pipeline.prepare.build import prepare_to
from data_pipeline.records import Record
from data_pipeline.schema import ConfigError, UserError
from tests.data_pipeline.clean_texts import clean_record
from tests.data_pipeline.conftest import make_text


@pytest.fixture
def sources(tmp_path):
    """Two sources of JSON lines with dirt, 90 rows."""
    rng, named = random.Random(2), {}
    for name in "ab":
        texts = [f"{name}{i} {make_text(rng, rng.randint(1, 50))}" for i in range(45)]
        texts[5], texts[9], texts[12] = texts[4], texts[9] + "  \nend", "bad \ufffd"
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        named[name] = SourceConfig(path=str(path))
    return named


def said(capsys, *argv):
    main(list(argv))
    return capsys.readouterr().out


@pytest.mark.parametrize("weights", [(0, 0), (3, 1)])
def test_a_row_is_traced_to_the_lines_it_came_from(config, sources, quiet, weights):
    from dataclasses import replace

    weighted = {name: replace(s, weight=w) for (name, s), w in zip(sources.items(), weights)}
    data = open_data(config("", sources=weighted, batch_size=4, seq_len=48), log=quiet)
    batches = data.train_batches(0, (0, 4))
    cleaned = {}
    for source in sources.values():
        for number in range(1, 46):
            text = json.loads(linecache.getline(source.path, number))["text"]
            cleaned[source.path, number] = clean_record(Record(text), data.config.clean)
    for step in range(12):
        batch = next(batches)
        for row in range(4):
            source, _, held = data.trace(step, row)
            files, origins = data.prepared.origins(source, "train")
            shard = data.prepared.shard(source, "train")
            assert len(held) == batch["segments"][row].max()
            for number, (document, start, tokens) in enumerate(held, start=1):
                inside = batch["segments"][row] == number
                ids = shard.ids[shard.offsets[document] + start :][: tokens + 1]
                np.testing.assert_array_equal(batch["tokens"][row][inside], ids[:-1])
                np.testing.assert_array_equal(batch["targets"][row][inside], ids[1:])
                file, line = origins[document].tolist()
                assert data.tokenizer.decode(ids[:-1].tolist()).strip("\ufffd") in cleaned[files[file], line].text
            lines = list(explain_row(data, step, row))
            assert len(lines) == 1 + 2 * len(held)
    batches.close()


def test_every_document_is_found_by_its_id_and_by_its_line(config, sources, tmp_path, capsys):
    out = tmp_path / "out"
    prepared = prepare_to(out, config("", sources=sources), 1, print)
    capsys.readouterr()
    ledger = [json.loads(line) for line in (out / "ledger.jsonl").read_text("utf-8").splitlines()]
    assert {entry.get("reason") for entry in ledger} == {"duplicate", "mojibake", None}
    for entry in ledger:
        words = f"dropped: {entry['reason']}" if "reason" in entry else f"edited by {entry['rules'][0]}"
        assert f"{entry['file']}:{entry['line']}" in said(capsys, f"--data={out}", f"--doc={entry['id']}")
        by_line = said(capsys, f"--data={out}", f"--file={entry['file'][-7:]}:{entry['line']}")
        assert words in by_line
        assert ("kept, " in by_line) == ("rules" in entry)
    repeat = next(entry for entry in ledger if entry.get("reason") == "duplicate")
    both = said(capsys, f"--data={out}", f"--doc={repeat['id']}")  # the same id is that of the one that was kept
    assert "dropped: duplicate" in both
    assert ":5  source" in both
    assert "kept, " in both
    whole = said(capsys, f"--data={out}", "--file=a.jsonl").splitlines()
    assert len(whole) == 45 + sum("rules" in entry and entry["source"] == "a" for entry in ledger)
    assert said(capsys, f"--data={out}", "--file=c.jsonl") == "no such document was read\n"
    assert prepared.content_sha256().keys().isdisjoint(name for name in prepared.manifest["files"] if "origins" in name)


def test_wrong_questions_are_answered_with_what_to_ask(config, sources, tmp_path):
    out = tmp_path / "out"
    prepare_to(out, config("", sources=sources), 1, print)
    for argv, words in [
        (["--doc=" + "0" * 32], "name a config or a folder"),
        ([f"--data={out}"], "one of --doc"),
        ([f"--data={out}", "--doc=xyz"], "32 hexadecimal"),
        ([f"--data={out}", "--step=1", "--row=0"], "--step needs --config"),
    ]:
        with pytest.raises(ConfigError, match=words):
            main(argv)
    shutil.rmtree(out / "tokenizer")
    with pytest.raises(UserError, match="is missing"):
        main([f"--data={out}", "--file=a"])
