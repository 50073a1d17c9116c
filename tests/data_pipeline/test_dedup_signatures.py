"""Are texts cut, hashed and compared as docs/dedup.md says, alone and in batches, and always in the same way?"""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dedup.codes import BATCH_CHARS, batches, normalise
from data_pipeline.dedup.minhash import band_hashes, signatures
from data_pipeline.dedup.shingles import jaccard, shingle_set
from data_pipeline.records import Record
from data_pipeline.split import NOT_COMPARED, text_key

EN = "The quick brown fox jumps over the lazy dog, and then it sleeps for a while under the old tree. " * 3
ZH = "床前明月光，疑是地上霜。举头望明月，低头思故乡。白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
MIXED = "用 Python 3.11 训练 language models 时，seed 要固定；otherwise the results change。"
TEXTS = [
    EN,
    ZH,
    MIXED,
    "hi",
    "好",
    "a b",
    "",
    "!?",
    "ß STRASSE",
    "𠀀𠀁字",
    "é e\u0301",
    "\ud800x",
    "a\U0010ffffb",
    "\0",
]


def spelled(text):
    plain = NOT_COMPARED.sub("", text.casefold())
    return {(plain + "\0" * 8)[i : i + (5 if ord(c) >= 0x2E80 else 8)] for i, c in enumerate(plain)}


def test_the_shingles_are_those_that_the_rule_spells():
    for text in (EN, ZH, MIXED, "hi", "好", "𠀀𠀁字", ""):
        assert len(shingle_set(text)) == len(spelled(text)), text


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (EN, EN.replace("lazy", "idle")),
        (ZH, ZH.replace("黄河", "长江")),
        (MIXED, MIXED.replace("seed", "种子")),
        (EN + ZH, ZH + EN),
        ("好的", "好的呀"),
        (EN, ZH),
        ("", EN),
    ],
)
def test_similarity_is_that_of_the_strings(a, b):
    one, two = spelled(a), spelled(b)
    assert jaccard(shingle_set(a), shingle_set(b)) == pytest.approx(len(one & two) / max(len(one | two), 1), abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.sampled_from("aAbß 。,，你好Ａ０0\n\u3000éΣς!§²İ"), max_size=6), min_size=2, max_size=4))
def test_texts_are_equal_here_where_text_key_says_so(texts):
    batch = normalise(texts)
    codes = [batch.codes[a : a + n].tobytes() for a, n in zip(batch.starts, batch.sizes)]
    keys = [text_key(Record(text)) for text in texts]
    for i in range(len(texts)):
        for j in range(i):
            assert (codes[i] == codes[j]) == (keys[i] == keys[j]), (texts[i], texts[j])


def test_a_signature_does_not_depend_on_the_batch():
    long = "".join(chr(97 + (i * i + i // 7) % 26) for i in range(BATCH_CHARS + 5000))
    poor = "ha" * BATCH_CHARS  # a long text of two shingles and its end
    texts = [*TEXTS, long, poor]
    together, there = band_hashes(texts)
    for i, text in enumerate(texts):
        alone, here = band_hashes([text])
        assert here[0] == there[i] == bool(text), text
        assert (alone[0] == together[i]).all(), text
    assert [text for batch in batches(texts) for text in batch] == texts


def test_signatures_are_the_same_for_ever():
    hashes, _ = band_hashes([EN, ZH, MIXED, "hi", "好"])
    assert hashlib.sha256(hashes.astype("<u8").tobytes()).hexdigest()[:16] == "0375d2426758cf19"
    content = shingle_set(MIXED).astype("<u4").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "91952092c1bb918c"


def test_case_and_punctuation_make_no_difference():
    a, b = signatures(normalise([EN, "  " + EN.upper().replace(",", " --")]))
    assert (a == b).all()


@pytest.mark.parametrize("size", [12, 40, 150, 3000])
def test_bins_agree_as_often_as_the_sets_do(size):
    rng = np.random.default_rng(size)
    errors = []
    for _ in range(150):
        letters = rng.integers(0, 4000, size) + 0x4E00
        other = letters.copy()
        other[rng.choice(size, max(size // 40, 1), replace=False)] = 0x9000
        a, b = ("".join(map(chr, x)) for x in (letters, other))
        one, two = signatures(normalise([a, b]))
        errors.append(float((one == two).mean()) - jaccard(shingle_set(a), shingle_set(b)))
    assert abs(np.mean(errors)) < 0.008  # 0.03 / sqrt(150) is 0.0025
    assert np.std(errors) < 0.035  # sqrt(0.2 * 0.8 / 240) is 0.026
