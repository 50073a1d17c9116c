"""Is a piece of an evaluation set found wherever it stands, whatever its case and punctuation, and nothing else?"""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dedup.decontaminate import EvaluationIndex, PieceRule
from data_pipeline.dedup.lines import LineRule, RepeatedLines, cut_units, distinct_units, read_repeated
from data_pipeline.dedup.words import spell, tokenise

QUESTION = "Which of the following planets has the largest number of known moons in the whole solar system today?"
ZH = "下列关于光合作用的叙述中哪一项是正确的请从四个选项里选择一个最合适的答案并说明理由"
MIXED = "请问 Python 3.11 的 asyncio.TaskGroup 与 gather 有什么区别，哪一个会取消其余任务？"
ITEMS = [
    ("quiz.jsonl:1", QUESTION),
    ("quiz.jsonl:2", ZH),
    ("quiz.jsonl:3", MIXED),
    ("quiz.jsonl:4", "Yes or no?"),
    ("quiz.jsonl:5", ""),
]


@pytest.fixture(scope="module")
def index():
    return EvaluationIndex(ITEMS)


def test_a_piece_is_found_and_shown_on_both_sides(index):
    hidden = "lorem ipsum\n-- THE following planets\nhas *the* largest number of known moons, in the whole solar (system) today!!"
    text = f"Some page. {hidden} And more."
    [[match]] = index.find([text])
    assert match.where == "quiz.jsonl:1"
    assert (
        match.text
        == "THE following planets\nhas *the* largest number of known moons, in the whole solar (system) today"
    )
    assert match.their_text == QUESTION[len("Which of ") : -1]
    assert text[match.begin : match.end] == match.text
    assert match.tokens == 16


def test_chinese_is_found_without_words(index):
    text = "试题：" + "，".join(ZH[i : i + 7] for i in range(0, len(ZH), 7)) + "。"
    [[match]] = index.find([text])
    assert match.where == "quiz.jsonl:2"
    assert match.their_text == ZH
    assert match.text == text[3:-1]
    assert index.find(["引用" + ZH[5:24]]) == [[]]  # 19 characters
    assert len(index.find(["引用" + ZH[5:25]])[0]) == 1


def test_twelve_words_are_no_piece_and_thirteen_are(index):
    words = QUESTION.split()
    assert index.find([" ".join(words[2:14]) + " x"]) == [[]]
    assert len(index.find([" ".join(words[2:15]) + " x"])[0]) == 1
    changed = [*words[:8], "other", *words[9:]]
    assert index.find([" ".join(changed)]) == [[]]


def test_a_piece_does_not_reach_from_one_text_into_the_next(index):
    words = QUESTION.split()
    assert index.find([" ".join(words[:9]), " ".join(words[9:])]) == [[], []]
    found = index.find(["x", QUESTION, "", MIXED + QUESTION, "y"])
    assert [len(matches) for matches in found] == [0, 1, 0, 2, 0]


def test_a_short_item_is_found_only_whole():
    item = "How many legs does a common spider have?"
    index = EvaluationIndex(
        [("a:1", item), ("a:2", "唐朝的开国皇帝是哪一位呢"), ("a:3", "two words"), ("a:4", "四个汉字")]
    )
    assert index.too_short == 2
    found = index.find(["He asked: how many legs does a common spider have", "How many legs does a common spider eat?"])
    assert [len(matches) for matches in found] == [1, 0]
    long = EvaluationIndex([("a:1", "one two three four five six seven eight nine ten")])
    assert long.find(["one two three four five six seven eight nine"]) == [[]]
    assert long.find(["zero one two three four five six seven eight nine ten eleven"])[0][0].tokens == 10
    assert len(index.find(["问：唐朝的开国皇帝，是哪一位呢？"])[0]) == 1


def test_of_items_that_begin_alike_the_one_that_goes_on_is_shown():
    prompt = "the following is a multiple choice question about one of many subjects at school"
    items = [(f"m:{i}", f"{prompt} number{i} ends here now") for i in range(10)]
    [[match]] = EvaluationIndex(items).find([f"x {prompt} number7 ends here now y"])
    assert match.where == "m:7"


def test_letters_that_fold_to_several_keep_their_places():
    item = "straße eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn"
    text = "ßß İ " + item.upper().replace("SS", "ß") + " ende"
    [[match]] = EvaluationIndex([("d:1", item)]).find([text])
    assert match.text == text[len("ßß İ ") : -len(" ende")]


def test_an_index_of_nothing_finds_nothing():
    assert EvaluationIndex([]).find([QUESTION, ""]) == [[], []]
    assert EvaluationIndex([("a:1", QUESTION)]).find([]) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab你好ßİ ,。1\n"), max_size=12), min_size=1, max_size=4))
def test_batches_hold_the_tokens_that_are_spelled(texts):
    tokens = tokenise(texts)
    for i, text in enumerate(texts):
        words, spans = spell(text)
        first, end = tokens.firsts[i], tokens.firsts[i + 1]
        assert end - first == len(words) == len(spans)
        assert (tokens.hashes[first:end] == tokenise([" ".join(words)]).hashes).all()
        assert all(0 <= a < b <= len(text) for a, b in spans)


def test_windows_hash_alike_where_tokens_are():
    rng = random.Random(0)
    text = " ".join(rng.choices("abcd", k=3000))
    words = text.split()
    tokens = tokenise([text])
    for size in (1, 5, 8, 13, 20):
        seen = {}
        for i, value in enumerate(tokens.windows(size).tolist()):
            assert seen.setdefault(value, tuple(words[i : i + size])) == tuple(words[i : i + size])
        assert len(set(seen.values())) == len(seen)
    assert len(tokens.windows(3001)) == 0


def test_exactness_does_not_rest_on_the_hash(index, monkeypatch):
    real = tokenise

    def colliding(texts):
        tokens = real(texts)
        return type(tokens)(np.zeros_like(tokens.hashes), tokens.wide, tokens.firsts)

    monkeypatch.setattr("data_pipeline.dedup.decontaminate.tokenise", colliding)
    index = EvaluationIndex(ITEMS, PieceRule())
    assert index.find(["one two three four five six seven eight nine ten eleven twelve thirteen"]) == [[]]
    assert index.find([f"x {QUESTION}"])[0][0].where == "quiz.jsonl:1"


def write_repeated(path, texts, rule, first=0):
    from data_pipeline.dedup.lines import find_repeated
    from data_pipeline.dedup.signatures import Shards, SignatureWriter

    with SignatureWriter(path / "s", near=False, lines=rule) as writer:
        for i, text in enumerate(texts):
            writer.add(i.to_bytes(16, "big"), text)
    find_repeated(Shards([path / "s"]), rule, [], path / "repeated")
    return RepeatedLines(read_repeated([path / "repeated"]), rule)


NOTE = "点击这里订阅我们的电子报，每天获取最新的消息"


@pytest.mark.parametrize("keep_first", [True, False])
def test_boilerplate_goes_and_the_rest_stays(tmp_path, keep_first):
    rule = LineRule(min_chars=10, max_documents=3, keep_first=keep_first)
    texts = [
        f"第{i}篇文章的内容，没有别的。\n{NOTE if i % 2 else NOTE + '！'}\n\nShort line\nThe end of {i} is its own"
        for i in range(6)
    ]
    texts.append(f"{NOTE}\n{NOTE}\nA rare but long line of text")
    repeated = write_repeated(tmp_path, texts, rule)
    assert repeated.rows["documents"].tolist() == [7]
    found = repeated.remove(texts, range(len(texts)))
    for i, (left, removed) in enumerate(found[:6]):
        if i == 0 and keep_first:
            assert (left, removed) == (texts[0], [])
        else:
            assert left == f"第{i}篇文章的内容，没有别的。\n\nShort line\nThe end of {i} is its own"
            assert len(removed) == 1
    assert found[6] == ("A rare but long line of text", [NOTE, NOTE])
    assert repeated.remove([found[2][0]], [2]) == [(found[2][0], [])]  # once is enough


def test_a_line_in_as_many_documents_as_allowed_stays(tmp_path):
    texts = [f"A line that is often there\n{i}" for i in range(4)]
    assert len(write_repeated(tmp_path, texts, LineRule(max_documents=4)).rows) == 0
    assert len(write_repeated(tmp_path, texts, LineRule(max_documents=3)).rows) == 1


def test_paragraphs_are_compared_whole(tmp_path):
    rule = LineRule(unit="paragraph", min_chars=10, max_documents=2, keep_first=False)
    notice = "All rights reserved.\nNo part may be copied."
    texts = [f"Text number {i} says something.\n\n{notice}\n \nMore of text {i}." for i in range(4)]
    texts.append("Here it is one line: All rights reserved.")
    found = write_repeated(tmp_path, texts, rule).remove(texts, range(5))
    assert [left for left, _ in found[:4]] == [
        f"Text number {i} says something.\n\nMore of text {i}." for i in range(4)
    ]
    assert found[4] == (texts[4], [])


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("a \n\t甲,"), max_size=30), st.sampled_from(["line", "paragraph"]))
def test_units_and_breaks_make_the_text_again(text, unit):
    units, breaks = cut_units(text, unit)
    assert "".join(u + b for u, b in zip(units, breaks)) == text
    hashes, owners = distinct_units([text, "", text], LineRule(unit, 1))
    assert (hashes[owners == 0] == hashes[owners == 2]).all()
    assert not (owners == 1).any()
