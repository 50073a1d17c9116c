"""Does a plan tell what a preparation will do, from a sample that is fair, and without reading or leaving anything else?"""

import gzip
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile

import pytest

from data_pipeline import sources
from data_pipeline.config import CleanConfig, SourceConfig
from data_pipeline.prepare.__main__ import main
from data_pipeline.prepare.build import prepare_to
from data_pipeline.prepare.plan import format_plan, make_plan
from data_pipeline.prepare.sample import SampledSource, part_sizes, unpacked_ratio
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.sources import open_sources
from tests.data_pipeline.conftest import make_text
from tests.data_pipeline.test_stages import rows as rows


def open_one(config, path, **changes):
    made = config("", sources={"s": SourceConfig(path=str(path), **changes)})
    return open_sources(made, print, twins=False)[0]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """6 MB in three files of lines: short ones, long ones, and very long ones beside short ones."""
    rng, folder = random.Random(3), tmp_path_factory.mktemp("uneven")
    text = make_text(rng, 30_000)
    for name, sizes in (("a", [40]), ("b", [2000]), ("c", [100, 100, 100, 20_000])):
        with open(folder / f"{name}.jsonl", "w") as file:
            while file.tell() < 2_000_000:
                size = rng.choice(sizes)
                start = rng.randrange(len(text) - size)
                file.write(json.dumps({"text": text[start : start + size]}, ensure_ascii=False) + "\n")
    return folder


def test_a_sample_is_fair_to_short_and_long_documents(config, uneven):
    source = open_one(config, uneven)
    found = list(source.read())
    sample = SampledSource(source, 700_000)
    taken = list(sample.read())
    assert sum(one.place.length for one in taken) < 1_000_000
    assert len(taken) == sample.documents
    assert {(one.place.file, one.place.offset) for one in taken} <= {(o.place.file, o.place.offset) for o in found}
    assert len({one.place for one in taken}) == len(taken)
    assert sample.documents * sample.scale == pytest.approx(len(found), rel=0.15)
    assert [part.documents for part in SampledSource(source, 700_000).pieces] == [p.documents for p in sample.pieces]
    both = [one for part in sample.parts(0) for one in sample.read(part)]
    assert both == taken
    assert len(sample.parts(0)) == 2


def test_parts_are_foretold_without_reading(config, uneven, tmp_path):
    source = open_one(config, uneven)
    for goal in (300_000, 3_000_000, 10**8):
        foretold, parts = part_sizes(source, goal), [part.size for part in source.parts(goal)]
        assert sum(foretold) == sum(parts)
        assert abs(len(foretold) - len(parts)) <= 3
    for i in range(30):
        (tmp_path / f"{i:02d}.txt").write_text(f"document {i} 好\n" * 200)
    few = open_one(config, tmp_path / "*.txt")
    assert part_sizes(few, 9000) == [part.size for part in few.parts(9000)]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_packed_files_are_sampled_by_their_beginnings(config, uneven, tmp_path, suffix):
    import zstandard

    raw = (uneven / "b.jsonl").read_bytes()
    packed = gzip.compress(raw) if suffix == "gz" else zstandard.compress(raw)
    path = tmp_path / f"b.jsonl.{suffix}"
    path.write_bytes(packed)
    assert unpacked_ratio(str(path)) == pytest.approx(len(raw) / len(packed), rel=0.1)
    sample = SampledSource(open_one(config, path), len(packed) // 10)
    assert sample.at_beginnings
    assert sample.documents * sample.scale == pytest.approx(raw.count(b"\n"), rel=0.15)
    assert sample.documents < raw.count(b"\n") / 5


def test_a_source_of_the_first_few_documents_is_sampled_as_such(config, uneven):
    sample = SampledSource(open_one(config, uneven / "a.jsonl", max_documents=70), 10**6)
    assert (sample.documents, sample.scale) == (70, 1.0)


PLAN = """
import json, pickle, sys
from data_pipeline.prepare.plan import make_plan
if __name__ == "__main__":
    plan = make_plan(pickle.load(open(sys.argv[1], "rb")), 3, lambda line: None)
    print(json.dumps(plan["memory_bytes"]))
"""


def test_a_plan_of_a_small_corpus_is_what_preparation_does(config, rows, tmp_path, monkeypatch):
    made = config(rows, on_bad="skip", max_bad_fraction=0.1, clean=CleanConfig(near_dedup=0.8))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(sources, "hash_file", lambda path: pytest.fail("read whole"))
        plan = make_plan(made, 3, print)
    assert not os.listdir(tmp_path / "temporary")
    assert not (tmp_path / "cache").exists()
    manifest = prepare_to(tmp_path / "out", made, 1, print).manifest
    assert (plan["documents_in"], plan["documents_out"]) == (manifest["documents_in"], manifest["documents_out"])
    assert plan["tokens"] == sum(split["tokens"] for split in manifest["splits"].values())
    assert {reason: round(share[0] * 220) for reason, share in plan["dropped"].items()} == manifest["dropped"]
    assert all(low <= share <= high for share, low, high in plan["dropped"].values())
    assert plan["bad"] == pytest.approx(1 / 220)
    (tmp_path / "config").write_bytes(pickle.dumps(made))  # in a process of its own: this one has much loaded
    run = subprocess.run([sys.executable, "-c", PLAN, tmp_path / "config"], capture_output=True, text=True, check=True)
    memory = json.loads(run.stdout)
    assert 3e7 < memory["worker"] <= memory["all"] < 1e9
    page = format_plan(plan)
    assert "lower bound" in page
    assert "at least" in page
    assert "3 workers" in page


def test_a_plan_says_what_would_stop_the_run_and_does_not_stop(config, rows):
    plan = make_plan(config(rows), 1, print)
    assert any("on_bad='error' would stop" in text for text in plan["warnings"])
    with pytest.raises(UserError, match=r"the sample of 220 documents: .* none of its 220 documents is left"):
        make_plan(config(rows, clean=CleanConfig(min_chars=10**6)), 1, print)


def test_a_plan_is_asked_for_by_a_flag(uneven, capsys):
    main(["--config=configs/pretrain.py", f"--config.data.path={uneven}/b.jsonl", "--config.data.tokenizer.kind=bytes",
          "--workers=2", "--plan"])  # fmt: skip
    out = capsys.readouterr().out
    assert "core-hours" in out
    with pytest.raises(ConfigError, match="goes with --out"):
        main(["--config=configs/pretrain.py", f"--config.data.path={uneven}", "--workers=2"])
