"""Does every text come back exactly, do bytes add up, and is a damaged tokenizer refused?"""

import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.config import SplitConfig, TokenizerConfig
from data_pipeline.records import Record
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.tasks import to_ids
from data_pipeline.tokenizer import OURS, ByteTokenizer, load_tokenizer
from data_pipeline.train_tokenizer import find_tokenizer, train_tokenizer

TEXTS = [
    "def read(self, path):\n    return open(path).read()\n" * 3,
    "The quick brown fox jumps over the lazy dog. " * 20,
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。" * 5 + "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 5,
]
TORTURE = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \t\n\r\x00\u2581\u3000\u00a0的是，。😀<>")),
    max_size=60,
)


@pytest.fixture(scope="module", params=["bpe", "unigram", "bytes"])
def lossless(request):
    if request.param == "bytes":
        return ByteTokenizer()
    size = {"bpe": 400, "unigram": 332}[request.param]
    return train_tokenizer(TokenizerConfig(vocab_size=size, model_type=request.param, character_coverage=0.98), TEXTS)


@given(text=TORTURE)
@example(text=" leading, trailing  \n\n\n\t")
@example(text="<mask><pad></s><unk>▁ ▁▁ <0x41>")
@example(text="👩‍👩‍👧 १२३ ﷺ e\u0301 𠮷野家")
@settings(max_examples=200)
def test_every_text_comes_back_and_its_bytes_add_up(lossless, text):
    ids = lossless.encode(text)
    assert lossless.decode(ids) == text
    assert int(lossless.token_bytes()[ids].sum()) == len(text.encode())
    assert not {OURS.pad, OURS.bos, OURS.eos, OURS.unk, OURS.mask} & set(ids)
    assert all(0 <= i < lossless.vocab_size for i in ids)


@given(a=TORTURE, b=TORTURE)
def test_texts_encoded_apart_decode_together(lossless, a, b):
    assert lossless.decode([OURS.bos, *lossless.encode(a), *lossless.encode(b), OURS.eos]) == a + b


def test_saved_and_loaded_is_the_same(lossless, tmp_path):
    lossless.save(tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.sha256 == lossless.sha256
    assert all(loaded.encode(text) == lossless.encode(text) for text in TEXTS)
    assert loaded.special == OURS


def test_training_is_deterministic_and_encodes_batches_alike():
    a, b = (train_tokenizer(TokenizerConfig(vocab_size=400), TEXTS) for _ in range(2))
    assert a.sha256 == b.sha256
    assert [ids.tolist() for ids in a.encode_batch(TEXTS)] == [b.encode(text) for text in TEXTS]
    assert len(a.encode(TEXTS[2])) < len(TEXTS[2].encode()) / 2


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_encoding_by_word_and_by_line_gives_the_same_ids(model_type, monkeypatch):
    monkeypatch.setattr("data_pipeline.sentencepiece_tokenizer.CACHED_CHARS", 40)  # so that words are forgotten
    texts = [*TEXTS, "if a:\n    return  b" * 20]
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=340, model_type=model_type), texts)
    assert tokenizer.by_word
    rng = random.Random(1)
    texts += ["\n\n\n a\n\n\n\n  b\t\n", "\n", "", " ", "   ", "a  ", "  \n  a"]
    texts += ["".join(rng.choices(" \n\t\u3000ab你好re,.", k=40)) for _ in range(300)]
    expected = tokenizer.engine.encode(texts)
    for by_word in (True, False):
        tokenizer.by_word = by_word
        assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
        assert [tokenizer.encode(text) for text in texts] == expected


def test_char_tokenizer_counts_what_it_does_not_know(opened, tmp_path):
    tokenizer = train_tokenizer(TokenizerConfig(kind="char"), ["春眠 abc\n"])
    assert tokenizer.decode(tokenizer.encode("cab 春\n")) == "cab 春\n"
    assert tokenizer.encode("z") == [OURS.unk]
    tokenizer.save(tmp_path / "t")
    path = tmp_path / "a.txt"
    path.write_text("abc 春夏", "utf-8")
    config = TokenizerConfig(kind="auto", path=str(tmp_path / "t"))
    data = opened(path, tokenizer=config, split=SplitConfig(validation=0.0, test=0.0))
    assert data.summary()["sources"]["data"]["splits"]["train"]["unknown"] == 1


def test_a_broken_model_is_refused_in_one_line(tmp_path):
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=400), TEXTS)
    model = tmp_path / "m.model"
    for content in (b"", b"\0" * 500, random.Random(0).randbytes(5000), b'{"a": 1}', tokenizer.content[:100]):
        model.write_bytes(content)
        with pytest.raises(UserError, match=r"m.model is not a SentencePiece model$"):
            load_tokenizer(model)
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "none")


def test_a_changed_tokenizer_folder_is_refused(tmp_path):
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=400), TEXTS)
    tokenizer.save(tmp_path)
    rng = random.Random(0)
    model = tmp_path / "sentencepiece.model"
    for _ in range(40):
        damaged = bytearray(tokenizer.content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        model.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged|not a SentencePiece model"):
            load_tokenizer(tmp_path)
    model.write_bytes(tokenizer.content)
    meta = json.loads((tmp_path / "lm_tokenizer.json").read_text())
    (tmp_path / "lm_tokenizer.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        load_tokenizer(tmp_path)


def test_a_third_party_model_loads_and_says_what_it_lacks(opened, corpus, tmp_path):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[1].split(". ") * 9),
        model_writer=model,
        vocab_size=40,
        model_type="bpe",
        minloglevel=2,
        eos_id=-1,
    )
    path = tmp_path / "theirs.model"
    path.write_bytes(model.getvalue())
    tokenizer = load_tokenizer(path)
    assert (tokenizer.special.pad, tokenizer.special.eos, tokenizer.special.mask) == (-1, -1, -1)
    assert tokenizer.decode(tokenizer.encode("the quick fox")) == "the quick fox"
    with pytest.raises(ConfigError, match="the tokenizer has no end token"):
        opened(corpus, tokenizer=TokenizerConfig(kind="auto", path=str(path)))
    with pytest.raises(ConfigError, match="no end token, which completions end with"):
        to_ids([Record("a", "b")], tokenizer, add_bos=False, add_eos=False)


def test_impossible_training_names_the_key(tmp_path):
    for config, words in (
        (TokenizerConfig(vocab_size=50_000), r"vocab_size=50000: .* at most \d+"),
        (TokenizerConfig(vocab_size=300, character_coverage=1.0), r"vocab_size=300: .*character_coverage"),
    ):
        text = ["".join(chr(0x4E00 + i) for i in range(400)) + TEXTS[0]]
        with pytest.raises(ConfigError, match=words):
            train_tokenizer(config, text)
    ByteTokenizer().save(tmp_path)
    with pytest.raises(ConfigError, match="holds a bytes tokenizer"):
        find_tokenizer(TokenizerConfig(kind="sentencepiece", path=str(tmp_path)))
