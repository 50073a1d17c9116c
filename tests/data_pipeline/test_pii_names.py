"""Are names of people found where a cue announces them, and is every other word left alone?"""

import json
import subprocess
import sys
import time
from collections import Counter

import pytest

from data_pipeline.clean import clean_many
from data_pipeline.config import CleanConfig
from data_pipeline.prepare.build import prepare_to
from data_pipeline.records import Record
from data_pipeline.rules.pii import DEFAULT_KINDS, KINDS, anonymize, find_pii
from data_pipeline.rules.pii_cipher import decrypt_text
from data_pipeline.rules.pii_name_words import COMPOUND, OTHER_COMPOUND, OTHER_GIVEN, OTHER_SURNAMES, SURNAMES
from data_pipeline.rules.pii_surrogate import is_surrogate, surrogate

KEY = b"a key of thirty-two bytes or more"
NAMES = ("name",)
FOUND = [
    ("I met Dr. Grace O'Brien-Smith, Mr. J. R. Smith's dog, Mrs Jones and Prof. van der Berg.",
     "I met Dr. <NAME>, Mr. <NAME>'s dog, Mrs <NAME> and Prof. <NAME>."),
    ("My name is Ivan Petrov. I'm called Bob, and this is Mary.", "My name is <NAME>. I'm called <NAME>, and this is <NAME>."),
    ("Dear John,\nsee below.\n\nBest regards,\nMary Ann Jones\nSales Department", "Dear <NAME>,\nsee below.\n\nBest regards,\n<NAME>\nSales Department"),
    ('Contact: Mary Jones, {"name": "John Smith"}, 姓名：Peter Pan', 'Contact: <NAME>, {"name": "<NAME>"}, 姓名：<NAME>'),
    ("高老师、小王老师、欧阳女士和我们的李明老师", "<NAME>老师、小<NAME>老师、<NAME>女士和我们的<NAME>老师"),
    ("班主任王老师，感谢王建国主任，关于李医生", "班主任<NAME>老师，感谢<NAME>主任，关于<NAME>医生"),
    ("我叫李明来自北京。我是王小明，他叫小强。", "我叫<NAME>来自北京。我是<NAME>，他叫小强。"),
    ("联系人：王小明电话13800138000 收件人：欧阳修，姓名: 李四\n", "联系人：<NAME>电话<PHONE> 收件人：<NAME>，姓名: <NAME>\n"),
    ("联系Mr. Smith先生或Dr. Lee谢谢", "联系Mr. <NAME>先生或Dr. <NAME>谢谢"),
]  # fmt: skip
LEFT = [
    "John Smith met Mary. Name: Section Two. Contact: Head Office. Author: The Team. name = John",
    "Dear Customer, Dear Sir or Madam, Dear All,\nThanks,\nThe Team\n\nBest,\nSales Department",
    "I am Going. This is It. Hello World! Hi There, I'm Fine. Mr. and Mrs. X. Dr. No. 5, Miss Universe, Mr. President",
    "Ms SQL, MS Word 2019, drMr. Prof.1.2.3, version 1.2.3.4, Dr.Smith.py, name: alice@x",
    "高等教育，黄金，王国，我是高中老师。我是程序员。我是江苏人，我是金牛座，我是韩国人。",
    "对于老师，许多医生，任课老师，曾经理解，语文老师，基金经理，高级教授，首先生成，历史老师，谢谢老师，任何同学",
    "姓名：必填，联系人：请填写，名字是什么，我叫车来，我叫他来，联系人高度重视，本人万分感谢，由熊猫任主任",
    "版本1.2.3，第3章，白大褂医生，师范老师，其余老师，明白老师，提高老师的水平，地方医生，双方经理",
]


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_names_behind_a_cue_are_masked_in_both_languages(text, expected):
    masked, counts = anonymize(text, kinds=("name", "phone"))
    assert masked == expected
    assert counts["name"] == expected.count("<NAME>")
    assert anonymize(masked, kinds=KINDS) == (masked, Counter())


@pytest.mark.parametrize("text", LEFT)
def test_ordinary_words_and_names_without_a_cue_stay(text):
    assert [text[one.start : one.end] for one in find_pii(text, NAMES)] == []


def test_names_are_off_unless_asked_for():
    assert "name" not in DEFAULT_KINDS
    assert CleanConfig().pii_kinds == DEFAULT_KINDS
    text = "Dear John,\n我叫王小明，电话13800138000"
    (plain,) = clean_many([Record(text)], CleanConfig(pii="mask"))
    assert plain.record.text == "Dear John,\n我叫王小明，电话<PHONE>"
    (named,) = clean_many([Record(text)], CleanConfig(pii="mask", pii_kinds=(*DEFAULT_KINDS, "name")))
    assert named.record.text == "Dear <NAME>,\n我叫<NAME>，电话<PHONE>"
    assert named.rules == ("pii_name", "pii_phone")


def test_texts_cleaned_together_are_cleaned_as_each_alone():
    texts = [text for pair in FOUND for text in pair[:1]] + LEFT + ["Best regards,", "Mary Jones\n", "我叫", "王小明"]
    config = CleanConfig(rules=(), pii="mask", pii_kinds=KINDS)
    together = [one.record.text for one in clean_many([Record(text) for text in texts], config)]
    assert together == [anonymize(text, kinds=KINDS)[0] for text in texts]


def test_surrogates_are_of_the_same_script_and_length_and_one_person_stays_one():
    for value in ("王小明", "李明", "欧阳修", "张", "Mary Q. Smith", "SMITH", "Jan van der Berg"):
        other = surrogate("name", value, KEY)
        assert other != value
        assert other.isascii() == value.isascii()
        assert len(other.split()) == len(value.split())
        assert value.isascii() or len(other) == len(value)
    assert surrogate("name", "王", KEY) == surrogate("name", "王小明", KEY)[0]
    assert surrogate("name", "Mary Smith", KEY).split()[1] == surrogate("name", "SMITH", KEY).capitalize()
    text = "Dr. Mary Smith wrote. Dear Mary,\n王小明先生说，王先生不在。"
    once, counts = anonymize(text, "surrogate", NAMES, KEY)
    assert counts == Counter(name=4)
    assert anonymize(once, "mask", KINDS) == (once, Counter())
    assert is_surrogate("name", surrogate("name", "Mary Q. Smith", b"k" * 40))
    assert not is_surrogate("name", "Mary Smith")


def test_what_surrogates_are_made_of_is_never_looked_for():
    assert not SURNAMES & {*OTHER_SURNAMES, *OTHER_GIVEN, *"".join(OTHER_COMPOUND)}
    assert not COMPOUND & set(OTHER_COMPOUND)
    assert len(set(OTHER_SURNAMES)) == len(OTHER_SURNAMES)


def test_encrypted_names_come_back():
    pytest.importorskip("cryptography")
    text = FOUND[0][0] + FOUND[4][0]
    hidden, _ = anonymize(text, "encrypt", NAMES, KEY)
    assert "Grace" not in hidden
    assert "李明" not in hidden
    assert decrypt_text(hidden, KEY) == text


def test_they_are_counted_in_the_manifest_the_ledger_and_the_report(config, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [f"{n} Dear John,\nplease come. 我叫王小明，谢谢。{' word' * n}" for n in range(30)] + ["Nobody at all."]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    made = prepare_to(
        tmp_path / "out", config(path, clean=CleanConfig(pii="mask", pii_kinds=(*DEFAULT_KINDS, "name"))), 1, print
    )
    assert made.manifest["edited"] == {"pii_name": 30}
    ledger = [json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    assert [row["rules"] for row in ledger] == [["pii_name"]] * 30
    page = (tmp_path / "out" / "report.html").read_text()
    assert "names of people" in page
    assert "王小明" not in page


def test_the_command_takes_kinds():
    command = [sys.executable, "-m", "data_pipeline.clean", "--anonymize", "--rules=default"]
    line = json.dumps({"text": "Dear John, a@b.com"}) + "\n"
    done = subprocess.run([*command, "--pii_kinds=name"], input=line, capture_output=True, text=True)
    assert json.loads(done.stdout)["text"] == "Dear <NAME>, a@b.com"
    done = subprocess.run([*command, "--pii_kinds=nam"], input=line, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--pii_kinds: must be one of" in done.stderr


@pytest.mark.parametrize(
    "hard",
    ["Dr. A. " * 20_000, "Mr. " + "A." * 60_000, "Dear " + "Aa-" * 60_000, "Thanks\n" * 30_000, "王" * 100_000, "王先生" * 30_000,
     "我叫王" * 30_000, "Name: John " * 20_000, "My name is A" * 15_000, "Mr. A" + "a'" * 60_000],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_time_grows_with_length_alone(hard):
    start = time.process_time()
    find_pii(hard, NAMES)
    assert time.process_time() - start < 3
