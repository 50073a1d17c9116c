"""Is one split of a Hugging Face datasets folder read whole, in order, with its credits, and nothing of it run?"""

import json

import pyarrow
import pyarrow.parquet
import pytest

from data_pipeline.config import SourceConfig
from data_pipeline.records import Record
from data_pipeline.schema import UserError
from data_pipeline.sources import open_sources

HEAD = """---
license: [cc-by-4.0, mit]
configs:
- config_name: plain
  default: true
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: [data/test-00000-of-00001.parquet]
- config_name: zh
  data_files: "zh/*.jsonl"
---
# A set
- **Homepage:** [here](https://example.org/set)
```bibtex
@misc{set, title={A set}}
```
"""


def save(folder, texts, files=2, split=None):
    """Writes what `Dataset.save_to_disk` does (test_the_library_agrees)."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    for number, name in enumerate(names):
        part = texts[number * len(texts) // files : (number + 1) * len(texts) // files]
        table = pyarrow.table({"text": part, "label": list(range(len(part)))})
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "a", "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    info = {
        "citation": "@misc{x}",
        "license": "mit",
        "homepage": "https://example.org",
        "description": "",
        "features": {},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


def opened(config, path, **changes):
    said = []
    source = SourceConfig(path=str(path), **{"kind": "hf", **changes})
    (found,) = open_sources(config("", sources={"s": source}), said.append)
    return found


def texts_in(source):
    found = list(source.read())
    for place, where, record in [*found[::-9], *found]:
        assert source.load(place) == record, where
    assert [row for part in source.parts(1) for row in source.read(part)] == found
    return [row.record.text for row in found if isinstance(row.record, Record)]


def test_what_save_to_disk_writes(config, tmp_path):
    texts = [f"文本 {i}" for i in range(50)]
    save(tmp_path / "one", texts)
    save(tmp_path / "several/train", texts, 3, "train")
    save(tmp_path / "several/test", texts[:5], 1, "test")
    (tmp_path / "several/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for kind in ("hf", "auto"):
        assert texts_in(opened(config, tmp_path / "one", kind=kind)) == texts
        assert texts_in(opened(config, tmp_path / "several", kind=kind)) == texts
    assert texts_in(opened(config, tmp_path / "several", hf_split="test")) == texts[:5]
    credits = {"license": "mit", "citation": "@misc{x}", "url": "https://example.org"}
    assert opened(config, tmp_path / "several").credits() == credits
    assert opened(config, tmp_path / "one/data-00000-of-00002.arrow", kind="auto").credits() == {}


def test_a_snapshot_of_the_hub(config, tmp_path):
    texts = [f"text {i}" for i in range(30)]
    (tmp_path / "data").mkdir()
    (tmp_path / "zh").mkdir()
    for name, part in {
        "train-00000-of-00002": texts[:10],
        "train-00001-of-00002": texts[10:20],
        "test-00000-of-00001": texts[20:],
    }.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": part}), tmp_path / f"data/{name}.parquet")
    (tmp_path / "zh/a.jsonl").write_text('{"text": "中文"}\n', "utf-8")
    (tmp_path / "set.py").write_text("raise SystemExit('run')")
    (tmp_path / "README.md").write_text(HEAD)
    assert texts_in(opened(config, tmp_path)) == texts[:20]
    assert texts_in(opened(config, tmp_path, hf_split="test")) == texts[20:]
    assert texts_in(opened(config, tmp_path, hf_config="zh")) == ["中文"]
    assert opened(config, tmp_path).credits() == {
        "license": "cc-by-4.0, mit", "citation": "@misc{set, title={A set}}\n".strip(), "url": "https://example.org/set",
    }  # fmt: skip
    for changes, words in (
        ({"hf_split": "dev"}, "has no split 'dev'; it has train, test"), ({"hf_config": "de"}, "it has plain, zh"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            opened(config, tmp_path, **changes)
    (tmp_path / "README.md").write_text("# no head")  # then names tell
    (tmp_path / "zh/a.jsonl").unlink()
    assert texts_in(opened(config, tmp_path)) == texts[:20]
    assert texts_in(opened(config, tmp_path, hf_split="test")) == texts[20:]
    for head, words in {
        "---\nconfigs: [\n---\n": "its head is no YAML",
        "---\nconfigs:\n- data_files: ../*.parquet\n---\n": "inside the folder",
        "---\nconfigs:\n- data_files: gone/*\n---\n": "lacks gone",
        "---\nconfigs: !!python/object/apply:os.system [exit]\n---\n": "its head is no YAML",
    }.items():
        (tmp_path / "README.md").write_text(head)
        with pytest.raises(UserError, match=words):
            opened(config, tmp_path)


def test_folders_that_are_not_whole(config, tmp_path):
    save(tmp_path / "a", ["x"] * 20, split="test")
    with pytest.raises(UserError, match="holds the split 'test', not 'train'"):
        opened(config, tmp_path / "a")
    path = tmp_path / "a/data-00001-of-00002.arrow"
    whole = path.read_bytes()
    for content, words in (
        (whole[:-8], "has no end|damaged"), (whole[:100], "damaged"), (b"version https://git-lfs.github.com", "a git-lfs pointer"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            list(opened(config, tmp_path / "a", hf_split="test").read())
    path.unlink()
    with pytest.raises(UserError, match=r"lacks data-00001-of-00002\.arrow"):
        opened(config, tmp_path / "a", hf_split="test")
    (tmp_path / "a/state.json").write_text('{"_data_files": [{"filename": "../../etc/passwd"}], "_split": null}')
    with pytest.raises(UserError, match="names no data files"):
        opened(config, tmp_path / "a")
    (tmp_path / "a/state.json").write_text("[")
    with pytest.raises(UserError, match=r"state\.json cannot be read"):
        opened(config, tmp_path / "a")
    (tmp_path / "script").mkdir()
    (tmp_path / "script/script.py").write_text("raise SystemExit('run')")
    with pytest.raises(UserError, match=r"made by script\.py, which is not run"):
        opened(config, tmp_path / "script")
    with pytest.raises(UserError, match="no such folder"):
        opened(config, tmp_path / "none")


@pytest.mark.slow
def test_the_library_agrees(config, tmp_path):
    datasets = pytest.importorskip("datasets")
    texts = [f"文本 {i}" for i in range(2500)]
    info = datasets.DatasetInfo(license="mit", citation="@misc{x}", homepage="https://example.org")
    made = datasets.Dataset.from_dict({"text": texts, "label": list(range(2500))}, info=info)
    made.save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict({"train": made, "test": made.select(range(9))}).save_to_disk(tmp_path / "several")
    made.shuffle(seed=1).save_to_disk(tmp_path / "shuffled")
    assert texts_in(opened(config, tmp_path / "one")) == texts
    assert texts_in(opened(config, tmp_path / "several", hf_split="test")) == texts[:9]
    assert texts_in(opened(config, tmp_path / "shuffled")) == made.shuffle(seed=1)["text"][:]
    assert opened(config, tmp_path / "several").credits()["license"] == "mit"
