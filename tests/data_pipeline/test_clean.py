"""Are the rules idempotent, silent on clean text in any language, and right on planted dirt?"""

import importlib.util
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.check import check_data_config
from data_pipeline.clean import EDITS, RULES, clean_many, control, edit
from data_pipeline.config import CLEAN_RULES, CleanConfig, DataConfig
from data_pipeline.records import Record
from tests.data_pipeline.clean_texts import clean_record

CLEAN = [
    "A plain paragraph.\n\nAnother one, with a tab:\tand quotes “…”.\n",
    "def f(x):\n    return x\n\n\ndef g(x):\n    return 2 * x\n",
    "春眠不觉晓，处处闻啼鸟。（唐·孟浩然）《春晓》：１２３ＡＢＣ\n夜来风雨声……花落知多少？！",
    "👨‍👩‍👧‍👦 👩🏽‍💻 ❤️‍🔥 क्‍ष می‌خواهم 日本語のテキスト、カタカナ・ｶﾅ 한국어",
    "naïve café Ünïcödé ﷼ ½ ² 𝒜 ①",
]
DIRTY = st.text(
    st.sampled_from("a b中，１Ａ\u3000\u200b\u200c\u200d\ufeff\r\n\t \x00\x85e\u0301&amp;lt;न\u094d👩\xa0"), max_size=40
)


@pytest.mark.parametrize("text", CLEAN)
def test_clean_text_is_not_edited(text):
    (cleaned,) = clean_many([Record(text)], CleanConfig())
    assert cleaned.record == Record(text)
    assert not cleaned.rules


INSTALLED = [name for name in RULES if name != "simplified" or importlib.util.find_spec("opencc")]


@settings(deadline=None)  # tables and models are made at first use
@given(DIRTY)
def test_rules_are_idempotent_alone_and_together(text):
    for name, rule in EDITS.items():
        if name in INSTALLED:
            assert rule(rule(text)) == rule(text), name
    for rules in (CleanConfig().rules, tuple(INSTALLED)):
        once = edit(text, rules)
        assert edit(once, rules) == once


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("一\r\n二\r三", "一\n二\n三"),
        ("Zu\u0308rich，中国", "Zürich，中国"),
        ("看\u200b不\ufeff见\x00的\u200d字", "看不见的字"),
        ("行尾 \t\n下一行\u3000\n", "行尾\n下一行\n"),
        ("上\n\n\n\n\n\n下", "上\n\n\n下"),
    ],
)
def test_planted_dirt_is_removed(dirty, clean):
    assert clean_record(Record(dirty), CleanConfig()) == Record(clean)


@pytest.mark.parametrize("text", ["锟斤拷锟斤拷", "烫烫烫烫", "屯屯屯", "bad \ufffd char"])
def test_mojibake_is_dropped_with_its_reason(text):
    assert clean_record(Record(text), CleanConfig()) == "mojibake"
    assert clean_record(Record("烫手，屯田"), CleanConfig()) == Record("烫手，屯田")


def test_space_between_prompt_and_completion_stays():
    record = Record("答案： \n\nAnswer: ", " 四十二 \n")
    assert clean_record(record, CleanConfig()) == Record("答案：\n\nAnswer: ", " 四十二\n")
    record = Record("问：\r\x85\x1c　 \r\n", "好")  # but what no text may hold goes there too
    assert clean_record(record, CleanConfig()) == Record("问：\n　 \n", "好")
    assert clean_record(record, CleanConfig(rules=())) == record


def test_a_long_run_of_joiners_takes_no_longer_than_other_text():
    began = time.monotonic()
    assert control("é" + "\u200d" * 100_000 + "é").count("\u200d") == 100_000
    assert control("é" + "\u200d" * 100_000 + "好") == "é好"
    assert time.monotonic() - began < 5  # 200 s where each joiner looks at all after it


def test_the_schema_names_the_rules_that_exist():
    assert sorted(RULES) == sorted(CLEAN_RULES)
    problems = check_data_config(DataConfig(path="x", clean=CleanConfig(rules=("nfkc",))))
    assert problems == [f"config.data.clean.rules: must be one of {', '.join(map(repr, CLEAN_RULES))}, got 'nfkc'"]


def test_lengths_are_in_characters():
    assert clean_record(Record("你好"), CleanConfig(min_chars=3)) == "too short"
    assert clean_record(Record("你好吗"), CleanConfig(min_chars=3, max_chars=3)) == Record("你好吗")
    assert clean_record(Record("你好吗啊"), CleanConfig(max_chars=3)) == "too long"
    (problem,) = check_data_config(DataConfig(path="x", clean=CleanConfig(min_chars=9, max_chars=3)))
    assert problem.endswith("max_chars=3 is less than min_chars=9: no document can pass")


def test_the_command_lists_rules_and_cleans_a_file(tmp_path):
    def run(*words):
        return subprocess.run([sys.executable, "-m", "data_pipeline.clean", *words], capture_output=True, text=True)

    assert all(rule in run().stdout for rule in RULES)
    (tmp_path / "a.txt").write_text("好 \n\u200b１", "utf-8")
    done = run(str(tmp_path / "a.txt"), "--rules=trailing_space,width")
    assert (done.returncode, done.stdout) == (0, "好\n\u200b1")
    assert "trailing_space, width" in done.stderr
    bad = run(str(tmp_path / "a.txt"), "--rules=widht")
    assert (bad.returncode, bad.stderr) == (2, "error: no rule 'widht'; did you mean 'width'?\n")
    assert run(str(tmp_path / "none.txt")).returncode == 1
