"""Is a text cleaned the same whatever stands beside it in a batch?"""

import random

import pytest

from data_pipeline.clean import EDITS, LOCAL, clean_many, clean_text, clean_texts
from data_pipeline.config import PAGE_RULES, CleanConfig
from data_pipeline.records import Record
from data_pipeline.rules.encoding import repair_encoding, signs_of_damage
from data_pipeline.rules.joined import APART, CHARS, Joined

# Work for each rule, and what a neighbour could hold that would make or unmake it: names before values, halves of pairs.
DIRT = (
    "a\r\nb", "\r", "cafe\u0301", "\u0301", "a\u200b", "\u200d", "end \u3000", "\u3000甲", "乙\u3000丙", "\n\n\n\n\n", "\n\n", "ＡＢ１",
    "&amp;", "&", "amp;", "'", '"&lt;', 'api_key = "q9X2mZ7vK4bT1nRw"', "public", "key: q9X2mZ7vK4bT1nRw", "password", ": q9X2mZ7vK4bT1nRw",
    "-----BEGIN PRIVATE KEY-----", "A" * 40, "-----END PRIVATE KEY-----", "https://me:s3cretpw@host", "://", "abc@qq.com", "abc",
    "@qq.com", "13800138000", "138001", "38000", "电话", "订单号", "10.1.2.3", "版本", "fe80::1:2:3:4", "京A12345", "京", "A12345",
    "itâ€™s a cafÃ©", "Ã", "©", "é", "浣犱粬濂瑰ソ鍚梐", "ÖÐ¹úÈËÃñ", "°²×°", "½M\x91B", "Ä¿Â¼", "µÚ 5 ÕÂ", "绲勬厠", "schön", "首页 > 新闻 > 正文", "上一篇：春天", "版权所有 © 某某公司", "锟斤拷", "|", "|\n",
    "\n|", APART[1:], APART[:-1], "plain", "普通。",
)  # fmt: skip
CONFIG = CleanConfig(rules=PAGE_RULES, pii="mask")


def texts(seed: int) -> list[str]:
    """Texts that begin and end in dirt."""
    draw = random.Random(seed)
    return ["".join(draw.choice((*DIRT, "", "。", "\n")) for _ in range(draw.randint(1, 4))) for _ in range(60)]


@pytest.mark.parametrize("seed", range(20))
def test_a_text_is_cleaned_as_by_itself(seed):
    batch = texts(seed)
    together = clean_texts(batch, CONFIG)
    for text, (cleaned, touched) in zip(batch, together):
        alone: set[str] = set()
        assert (clean_text(text, CONFIG.rules, CONFIG, alone), alone) == (cleaned, touched), text


@pytest.mark.parametrize("name", LOCAL)
def test_no_work_is_missed_at_any_edge(name):
    rule = EDITS[name]
    for seed in range(10):
        batch = texts(seed)
        found = Joined(batch).changed_by(rule)
        assert found >= {i for i, text in enumerate(batch) if rule(text) != text}


def test_damage_has_a_sign():
    for seed in range(10):
        batch = texts(seed)
        found = Joined(batch)
        assert found.of(signs_of_damage(found.text)) >= {i for i, t in enumerate(batch) if repair_encoding(t) != t}


def test_what_spells_the_mark_between_texts_changes_nothing():
    batch = ["a &amp; b", f"one{APART}two", f"{APART}", "ＡＢ", "clean"]
    assert [text for text, _ in clean_texts(batch, CONFIG)] == [clean_text(t, PAGE_RULES, CONFIG, set()) for t in batch]


def test_long_and_short_texts_stay_in_order():
    batch = ["短 &amp; 文", "长" * 3000 + " &amp;", "普通" * 200, "ＡＢ" * (CHARS // 50)] * 60
    cleaned = [one.record.text for one in clean_many([Record(text) for text in batch], CONFIG)]
    assert cleaned == [clean_text(text, PAGE_RULES, CONFIG, set()) for text in batch]
