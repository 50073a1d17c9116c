"""Do near-duplicates share a split, what moves when rows are added, and is a leak found?"""

import random
from collections import Counter
from functools import partial
from itertools import chain

import pytest

from data_pipeline.config import SPLITS, SplitConfig
from data_pipeline.dedup.deal import (
    deal_parts,
    label_clusters,
    place_of,
    split_of_cluster,
)
from data_pipeline.dedup.leakage import find_leaks
from data_pipeline.dedup.names import Names
from data_pipeline.dedup.stages import deduplicate
from data_pipeline.records import Record
from data_pipeline.schema import UserError
from data_pipeline.split import NOT_COMPARED, split_of, text_key

CONFIG = SplitConfig(validation=0.2, test=0.2)


def fold_of(number, salt=""):
    return SplitConfig(test=0.2, folds=5, fold=number, salt=salt)


def write_text(rng):
    return "".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(120))


def half_way(a, b):
    """A text that is alike to two texts which are not alike to each other, where `b` is `vary(a)`."""
    return a[:20] + b[20:60] + a[60:]


def vary(text, rng):
    """Another ending: a Jaccard similarity of about a half."""
    return text[:20] + write_text(rng)[:30] + text[50:]


def as_documents(texts, groups=None):
    return [(text_key(Record(text)), text, (groups or {}).get(text, "")) for text in texts]


def take(documents, places=None):
    return documents if places is None else [documents[i] for i in places]


def run(texts, folder, groups=None, known=None):
    documents = as_documents(texts, groups)
    step = max(len(documents) // 2, 1)
    pieces = [partial(take, documents[i : i + step]) for i in range(0, len(documents), step)]
    found = deduplicate(pieces, folder, known=known, rank=lambda name: SPLITS.index(split_of_cluster(name, CONFIG)))
    look_up = Names(found.names)
    names = [name for shard in range(len(pieces)) for name in look_up.of_shard(found.shards, shard)]
    return dict(zip(texts, names)), found.names


def splits(names):
    return {text: split_of_cluster(name, CONFIG) for text, name in names.items()}


def make_texts(count, seed=0):
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        text = write_text(rng)
        texts += [text, text[:60] + "囍" + text[61:]]  # a pair of 0.92
    return texts


def test_a_text_alone_is_dealt_as_without_clusters_and_a_pair_together(tmp_path):
    texts = make_texts(60)
    names, _ = run([*texts, "一个单独的文本，没有别的像它。"], tmp_path)
    for one, other in zip(texts[::2], texts[1::2]):
        assert names[one] == names[other] == min(text_key(Record(one)), text_key(Record(other)))
    alone = "一个单独的文本，没有别的像它。"
    assert splits(names)[alone] == split_of("", text_key(Record(alone)), CONFIG)
    assert set(splits(names).values()) == {"train", "validation", "test"}


def test_added_rows_move_nothing_when_names_are_known(tmp_path):
    texts = make_texts(150)
    old, known = run(texts[::2], tmp_path / "old")
    new, _ = run(texts[1::2] + texts[::2], tmp_path / "new", known=known)
    assert {text: new[text] for text in old} == old
    assert all(new[a] == new[b] for a, b in zip(texts[::2], texts[1::2]))
    without, _ = run(texts, tmp_path / "without")
    moved = [text for text in old if without[text] != old[text]]
    assert 40 < len(moved) < 110  # where the new copy has the smaller key


def test_what_is_known_stays_known_when_rows_go_and_come_back(tmp_path):
    texts = make_texts(40)
    first, known = run(texts, tmp_path / "1")
    second, known = run(texts[1::2], tmp_path / "2", known=known)  # the partners are gone
    assert all(second[text] == first[text] for text in second)
    third, _ = run(texts, tmp_path / "3", known=known)
    assert third == first


def test_a_join_of_two_known_clusters_puts_them_into_train_where_one_was(tmp_path):
    rng = random.Random(4)
    pairs = [(a, vary(a, rng)) for a in (write_text(rng) for _ in range(150))]
    apart = [text for pair in pairs for text in pair]
    old, known = run(apart, tmp_path / "old")
    assert all(old[a] != old[b] for a, b in pairs)
    joins = [a[:35] + b[35:] for a, b in pairs]
    new, _ = run([*apart, *joins], tmp_path / "new", known=known)
    before, after = splits(old), splits(new)
    joined = 0
    for (a, b), join in zip(pairs, joins):
        if new[a] == new[b]:
            joined += 1
            assert new[join] == new[a] in (old[a], old[b])
            held = {before[a], before[b]}
            assert after[a] == ("train" if "train" in held else "validation" if "validation" in held else "test")
        else:
            assert (new[a], new[b]) == (old[a], old[b])
    assert joined > 30


def test_a_group_shares_a_split_and_takes_near_duplicates_with_it(tmp_path):
    rng = random.Random(7)
    a, b, c = (write_text(rng) for _ in range(3))
    near_a = a[:60] + "囍" + a[61:]
    same_as_c = c + "。"
    other = write_text(rng)
    groups = {a: "g1", b: "g1", near_a: "g2", other: "g2", c: "g3", same_as_c: "g4"}
    names, _ = run([a, b, c, near_a, same_as_c, other], tmp_path, groups)
    assert names[a] == names[b] == names[near_a] == names[other]
    assert names[c] == names[same_as_c] != names[a]  # one text in two groups


def test_names_of_another_kind_of_file_are_refused(tmp_path):
    (tmp_path / "known").write_bytes(b"no names")
    with pytest.raises(UserError, match="not a file of cluster names"):
        run(["甲乙丙"], tmp_path / "out", known=tmp_path / "known")


def test_shares_and_folds_follow_the_hash():
    names = [random.Random(i).randbytes(16) for i in range(4000)]
    dealt = Counter(split_of_cluster(name, CONFIG) for name in names)
    assert abs(dealt["test"] - 800) < 100
    assert abs(dealt["validation"] - 800) < 100
    for name in names[:300]:
        place = place_of(name)
        expected = "test" if place < 0.2 else "validation" if place >= 0.8 else "train"
        assert split_of_cluster(name, CONFIG) == expected
    held = [[name for name in names if split_of_cluster(name, fold_of(n)) == "validation"] for n in range(5)]
    assert sorted(chain(*held)) == sorted(
        name for name in names if place_of(name) >= 0.2
    )  # in one fold each, none of test
    assert max(map(len, held)) < 750
    assert held[0] != [name for name in names if split_of_cluster(name, fold_of(0, salt="b")) == "validation"]


def test_every_label_has_its_share_and_new_rows_move_no_old_one():
    rng = random.Random(3)
    labels = {rng.randbytes(16): rng.choice(["多", "多", "多", "多", "少", "rare"]) for _ in range(700)}
    labels |= {rng.randbytes(16): "three" for _ in range(3)}
    first = dict(list(labels.items())[:200])
    old = deal_parts(first, CONFIG)
    new = deal_parts(labels, CONFIG, known=old)
    assert {name: new[name] for name in old} == old
    for dealt, rows in ((old, first), (new, labels), (deal_parts(labels, CONFIG), labels)):
        for label, total in Counter(rows.values()).items():
            counts = Counter(dealt[name] for name in rows if rows[name] == label)
            for split, share in (("test", 0.2), ("validation", 0.2), ("train", 0.6)):
                assert abs(counts[split] - share * total) <= 1, (label, split, counts)
    folds = deal_parts(labels, fold_of(0), known=deal_parts(first, fold_of(1)))
    for label, total in Counter(labels.values()).items():
        counts = Counter(folds[name] for name in labels if labels[name] == label)
        assert all(abs(counts[f"fold {fold}"] - 0.8 * total / 5) <= 1 for fold in range(5)), (label, counts)
    assert deal_parts(dict(reversed(labels.items())), CONFIG) == deal_parts(labels, CONFIG)


def test_stratifying_after_shares_changed_moves_no_old_row():
    names = {random.Random(i).randbytes(16): "x" for i in range(100)}
    old = deal_parts(names, CONFIG)
    more = {**names, **{random.Random(-i).randbytes(16): "x" for i in range(1000, 1010)}}
    new = deal_parts(more, SplitConfig(validation=0.0, test=0.0), known=old)
    assert {name: new[name] for name in old} == old
    assert {new[name] for name in more if name not in old} == {"train"}


def test_the_label_of_a_cluster_is_the_most_frequent_one():
    rows = [(b"a", "x"), (b"a", "y"), (b"a", "y"), (b"b", "z"), (b"b", "x")]
    assert label_clusters(rows) == ({b"a": "y", b"b": "x"}, 2)


def spelled(text):
    plain = NOT_COMPARED.sub("", text.casefold())
    return {(plain + "\0" * 8)[i : i + (5 if ord(c) >= 0x2E80 else 8)] for i, c in enumerate(plain)}


@pytest.mark.parametrize("chunk", [1, 3000, 10**7])
def test_leaks_are_those_of_all_pairs(chunk):
    rng = random.Random(11)
    base = [write_text(rng)[: rng.randint(5, 120)] for _ in range(40)]
    base += [" ".join("".join(rng.choices("etaoin", k=4)) for _ in range(30)) for _ in range(20)]
    others = []
    for text in base:
        at = rng.randrange(len(text))
        count = rng.randint(0, max(len(text) // 4, 1))
        others.append(text[:at] + "".join(rng.choices("囍qz", k=count)) + text[at + count :])
    others += ["", "?!", *base[:3]]
    held = [(f"h{i}", text) for i, text in enumerate(base)]
    rest = [(f"o{i}", text) for i, text in enumerate(others)]
    found = {(leak.held_out, leak.other): leak.jaccard for leak in find_leaks(held, lambda: rest, 0.7, chunk)}
    for h, a in held:
        for o, b in rest:
            one, two = spelled(a), spelled(b)
            likeness = len(one & two) / max(len(one | two), 1)
            if likeness >= 0.7:
                assert found.pop((h, o)) == pytest.approx(likeness)
    assert not found


def test_a_leak_is_found_through_its_commonest_shingles():
    rng = random.Random(5)
    x, y = ("".join(map(chr, rng.sample(range(0x4E00, 0x9000), n))) for n in (98, 32))
    held = [("b", x), ("again", x), ("c", x[-4:] + y)]  # what is not shared is rarer there than what is
    assert {leak.held_out for leak in find_leaks(held, lambda: [("a", x + y)], 0.7)} == {"b", "again"}
