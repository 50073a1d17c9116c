"""Do personal data and secrets leave the documents on every way in, and does the key leave no trace but one?"""

import json
from dataclasses import replace

import pytest

from data_pipeline.batch import open_data
from data_pipeline.clean import clean_many
from data_pipeline.config import CleanConfig
from data_pipeline.conversation import Conversation
from data_pipeline.prepare.build import prepare_to
from data_pipeline.records import Record
from data_pipeline.rules.pii_cipher import decrypt_text
from data_pipeline.schema import ConfigError, UserError

TEXT = "请联系abc@qq.com谢谢，电话13800138000。"
KEY = "0123456789abcdef" * 2
MASK = CleanConfig(pii="mask")


def test_it_leaves_texts_pairs_and_conversations():
    chat = Conversation(
        ({"role": "user", "content": TEXT}, {"role": "assistant", "content": "好的 " + TEXT}), (False, True)
    )
    records = [Record(TEXT), Record(TEXT + " \n", TEXT), Record("", chat=chat), Record("numpy 1.26.4.1")]
    text, pair, talk, clean = clean_many(records, MASK)
    assert text.record.text == "请联系<EMAIL>谢谢，电话<PHONE>。"
    assert text.rules == ("pii_email", "pii_phone")
    assert pair.record == Record(text.record.text + " \n", text.record.text)
    assert [m["content"] for m in talk.record.chat.messages] == [text.record.text, "好的 " + text.record.text]
    assert clean.record == records[3]
    (phones,) = clean_many([Record(TEXT)], replace(MASK, pii_kinds=("phone",)))
    assert phones.record.text == "请联系abc@qq.com谢谢，电话<PHONE>。"


def test_keys_and_passwords_are_a_rule():
    secret = "aws_key = AKIA" + "Q3EGWUQK7J2XV5TN"
    (found,) = clean_many([Record(secret)], CleanConfig(rules=("secrets",)))
    assert found.record.text == "aws_key = <SECRET>"
    assert found.rules == ("secrets",)


def test_the_secret_is_asked_for_and_another_one_prepares_anew(config, tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} {TEXT}"}) + "\n" for i in range(40)))
    made = config(path, clean=CleanConfig(pii="encrypt"))
    with pytest.raises(UserError, match="LM_PII_KEY is not set"):
        open_data(made)
    monkeypatch.setenv("LM_PII_KEY", KEY)
    one = prepare_to(tmp_path / "one", made, 1, print)
    texts = one.tokenizer.decode(one.shard(0, "train").ids[:400].tolist())
    assert "abc@qq.com" not in texts
    assert "abc@qq.com" in decrypt_text(texts[: texts.rindex("<")], KEY.encode())
    files = [p for p in (tmp_path / "one").rglob("*") if p.is_file()]
    assert not any(KEY.encode() in p.read_bytes() or b"13800138000" in p.read_bytes() for p in files)
    assert one.manifest["edited"] == {"pii_email": 40, "pii_phone": 40}
    monkeypatch.setenv("LM_PII_KEY", KEY[::-1])
    with pytest.raises(UserError, match="made of other sources"):
        prepare_to(tmp_path / "one", made, 1, print)


def test_unknown_ways_and_kinds_are_named(config, corpus):
    with pytest.raises(ConfigError) as caught:
        open_data(config(corpus, clean=CleanConfig(pii="hide", pii_kinds=("email", "names"))))
    assert "clean.pii: must be one of" in str(caught.value)
    assert "clean.pii_kinds: must be one of" in str(caught.value)
