"""Do the stages find the same duplicates however the corpus is cut and whenever it was killed, and do they keep what they should?"""

import errno
import os
import random
from functools import partial

import numpy as np
import pytest

from data_pipeline.dedup import near
from data_pipeline.dedup.clusters import EXACT, KEPT, NEAR, connect, read_clusters, read_fates
from data_pipeline.dedup.lines import LineRule, read_repeated
from data_pipeline.dedup.names import Names
from data_pipeline.dedup.runs import RunWriter, parts_for, read_range
from data_pipeline.dedup.shingles import shingle_set
from data_pipeline.dedup.signatures import SignatureWriter
from data_pipeline.dedup.stages import DedupRule, deduplicate
from data_pipeline.records import Record
from data_pipeline.schema import UserError
from data_pipeline.split import text_key

EQUAL = "One text that stands in many documents, again and again, with a few spaces more at its end."
LINES = LineRule(min_chars=8, max_documents=3)


def write_text(rng, chinese):
    if chinese:
        return "".join(chr(0x4E00 + rng.randrange(2000)) for _ in range(rng.randint(40, 200))) + "。"
    return " ".join("".join(rng.choices("etaoinshr", k=rng.randint(2, 7))) for _ in range(rng.randint(20, 80))) + "."


def edit(text, rng, count):
    chars = list(text)
    for i in rng.sample(range(len(chars)), count):
        chars[i] = "囍" if ord(chars[i]) > 0x2E80 else "z"
    return "".join(chars)


def make_documents(count=240, seed=0):
    """A quarter copies: exact ones (with other punctuation), near ones, and chains of them."""
    rng = random.Random(seed)
    texts = []
    for i in range(count):
        if i % 8 == 3:
            texts.append(texts[-1].replace(".", " !").replace("。", "！") + "  ")
        elif i % 8 in (4, 5):
            texts.append(edit(texts[-1], rng, 1))
        else:
            texts.append(write_text(rng, i % 3 == 0))
        if i % 6 == 1:
            texts[-1] += "\nSubscribe to our newsletter"
    rng.shuffle(texts)
    return [(text_key(Record(text)), text, "") for text in texts]


def take(documents, places=None):
    return documents if places is None else [documents[i] for i in places]


def run(documents, folder, shards=3, **given):
    step = max(-(-len(documents) // shards), 1)
    pieces = [partial(take, documents[i : i + step]) for i in range(0, max(len(documents), 1), step)]
    return deduplicate(pieces, folder, **given)


def fates(found):
    parts = [read_fates(found.shards, s, found.exact, found.near) for s in range(len(found.shards.stems))]
    return np.concatenate([f for f, _ in parts]), np.concatenate([of for _, of in parts])


def kept_texts(found, documents):
    return sorted(text for (_, text, _), fate in zip(documents, fates(found)[0]) if fate == KEPT)


def scrambled(function, jobs):
    for job in reversed(jobs):
        function(*job)


def test_any_cut_memory_and_order_of_work_gives_the_same(tmp_path):
    documents = make_documents()
    rule = DedupRule(lines=LINES)
    one = run(documents, tmp_path / "one", shards=1, rule=rule)
    many = run(documents, tmp_path / "many", shards=7, rule=rule, memory_bytes=8_000, each=scrambled)
    assert len(many.pairs) > 2
    assert len(many.exact) > 1
    for a, b in zip(fates(one), fates(many)):
        assert (a == b).all()
    assert one.names.read_bytes() == many.names.read_bytes()
    rows = [read_repeated(found.repeated) for found in (one, many)]
    assert (rows[0] == rows[1]).all()
    assert len(rows[0]) == 1
    how = fates(one)[0].tolist()
    assert how.count(EXACT) > 10
    assert how.count(NEAR) > 20


def test_the_order_of_files_does_not_change_what_is_kept(tmp_path):
    documents = make_documents(seed=3)
    there = run(documents, tmp_path / "there")
    back = run(documents[::-1], tmp_path / "back")
    assert kept_texts(there, documents) == kept_texts(back, documents[::-1])
    assert there.names.read_bytes() == back.names.read_bytes()


def test_no_pair_of_kept_documents_is_alike_and_every_dropped_one_is_like_what_it_repeats(tmp_path):
    documents = make_documents(seed=5)
    found = run(documents, tmp_path)
    how, of = fates(found)
    sets = [shingle_set(text) for _, text, _ in documents]
    kept = np.flatnonzero(how == KEPT).tolist()
    assert not [(a, b) for a in kept for b in kept if a < b and near.reaches(sets[a], sets[b], 0.8)]
    for i in np.flatnonzero(how != KEPT).tolist():
        assert near.reaches(sets[i], sets[of[i]], 0.8 if how[i] == NEAR else 1.0)
    for key, members in read_clusters(found.shards, found.near):
        assert how[members[0]] == KEPT
        assert key == min(documents[i][0] for i in members)
        assert len(documents[members[0]][1]) >= max(len(documents[i][1]) for i in members)


def test_a_chain_loses_no_text_that_differs_from_what_is_kept(tmp_path):
    rng = random.Random(1)
    chain = ["".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(300))]
    for step in range(12):  # each link is alike, first and last share little
        at = 20 * step
        chain.append(chain[-1][:at] + "囍" * 10 + chain[-1][at + 10 :])
    documents = [(text_key(Record(text)), text, "") for text in chain]
    found = run(documents, tmp_path)
    how, of = fates(found)
    assert KEPT in how
    assert 2 <= (how == KEPT).sum() < 8
    sets = [shingle_set(text) for text in chain]
    assert all(near.reaches(sets[i], sets[of[i]], 0.8) for i in range(len(chain)))
    names = Names(found.names).of_shard(found.shards, 0)
    assert names[0] == names[1]  # a chain shares its split all the same


def test_a_large_bucket_leaves_one(tmp_path):
    rng = random.Random(2)
    text = "".join(write_text(rng, True) for _ in range(6))
    texts = [edit(text, rng, 2) for _ in range(150)]
    documents = [(text_key(Record(t)), t, "") for t in texts]
    found = run(documents, tmp_path)
    how, _ = fates(found)
    assert (how == KEPT).sum() == 1
    assert len({name for s in range(3) for name in Names(found.names).of_shard(found.shards, s)}) == 1


def test_which_pairs_of_a_large_bucket_are_compared_does_not_depend_on_the_order_of_files(tmp_path):
    texts = [EQUAL + " " * i for i in range(60)]  # as keys differ, no exact duplicates
    documents = [(i.to_bytes(16, "little"), text, "") for i, text in enumerate(texts, 1)]
    seen = []
    for name, rows in (("there", documents), ("back", documents[::-1])):
        found = run(rows, tmp_path / name)
        a, b = read_range(tmp_path / name / "candidates-0000-of-0001")
        keys = [key for key, _, _ in rows]
        seen.append({frozenset((keys[i], keys[j])) for i, j in zip(a.tolist(), b.tolist())})
        assert (fates(found)[0] == KEPT).sum() == 1
    assert seen[0] == seen[1]
    assert len(seen[0]) < 60 * 18


def test_a_killed_run_goes_on_and_leaves_the_same_bytes(tmp_path):
    documents = make_documents()
    whole = run(documents, tmp_path / "whole")

    def broken(begin, end, fail, places=None):
        for i in range(begin, end) if places is None else (begin + places).tolist():
            if i == fail:
                raise KeyboardInterrupt
            yield documents[i]

    folder = tmp_path / "killed"
    for fail in (0, 100, 239):
        with pytest.raises(KeyboardInterrupt):
            deduplicate([partial(broken, i, i + 80, fail) for i in (0, 80, 160)], folder)
        assert not [path for path in folder.iterdir() if ".tmp" in path.name]
    assert (folder / "shard-00001.docs").exists()
    assert not (folder / "shard-00002.docs").exists()
    found = run(documents, folder)
    before = found.pairs[0].stat().st_mtime_ns
    found.near.unlink()
    again = run(documents, folder)
    assert again.pairs[0].stat().st_mtime_ns == before
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert kept_texts(again, documents) == kept_texts(whole, documents)


def test_texts_that_changed_between_the_passes_are_refused(tmp_path):
    documents = make_documents()
    calls = []

    def texts(places=None):
        calls.append(0)
        return take(documents, places)[: 50 if len(calls) > 1 else None]

    with pytest.raises(UserError, match="fewer documents"):
        deduplicate([texts], tmp_path)


@pytest.mark.parametrize(
    "texts", [[], [""], ["", "", "!"], ["one"], ["", "a long enough text", "a long enough text!", "", "?"]]
)
def test_small_and_empty_corpora(tmp_path, texts):
    documents = [(text_key(Record(text)), text, "") for text in texts]
    found = run(documents, tmp_path, shards=2, rule=DedupRule(lines=LINES))
    assert len(kept_texts(found, documents)) == len({key for key, _, _ in documents})


def test_a_corpus_without_shards(tmp_path):
    found = deduplicate([], tmp_path, DedupRule(lines=LINES))
    assert list(read_clusters(found.shards, found.near)) == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(UserError, match=r"s\.(keys|bands|nodes|docs): no space left on the disk"),
        SignatureWriter(tmp_path / "s") as writer,
    ):
        writer.add(bytes(16), "text")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(UserError, match="cannot be written"), SignatureWriter(tmp_path / "none" / "s"):
        pass


def test_thresholds_that_cannot_work_are_refused(tmp_path):
    for rule in (DedupRule(same=0.7, alike=0.8), DedupRule(alike=0.3), DedupRule(same=1.1)):
        with pytest.raises(UserError, match="alike <= same"):
            deduplicate([], tmp_path, rule)


def test_runs_give_back_every_pair_of_a_range(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.dedup.runs.BLOCK", 100)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 1234, np.uint64)
    hashes[:3] = [0, 2**64 - 1, 2**63]
    with RunWriter(tmp_path / "runs") as file:
        for part in np.array_split(np.arange(1234), 7):
            file.add(hashes[part], part)
    seen = []
    for low, high in ((0, 2**62), (2**62, 2**63), (2**63, 2**64)):
        got, numbers = read_range(tmp_path / "runs", low, high)
        assert (hashes[numbers] == got).all()
        assert all(low <= int(h) < high for h in got)
        seen += numbers.tolist()
    assert sorted(seen) == list(range(1234))
    assert parts_for([tmp_path / "runs"], 10_000) == -(-4 * (1234 * 16 + 14 * 8) // 10_000)


def test_connected_components():
    rng = random.Random(0)
    edges = [(rng.randrange(300), rng.randrange(300)) for _ in range(180)] + [(i, i + 1) for i in range(1000, 1999)]
    nodes, labels = connect(*(np.array(side) for side in zip(*edges)))
    union = near.Union()
    for a, b in edges:
        if union.find(a) != union.find(b):
            union.join(a, b)
    least = {}
    for node in nodes.tolist():
        root = union.find(node)
        least[root] = min(least.get(root, node), node)
    assert nodes[labels].tolist() == [least[union.find(node)] for node in nodes.tolist()]
