"""Does the tokenizer.json of an export give exactly the ids of the run's tokenizer, and is none written where it would not?"""

import io
import json
import random
import shutil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline import train_tokenizer as training
from data_pipeline.chat import open_chat
from data_pipeline.config import TokenizerConfig
from data_pipeline.sentencepiece_tokenizer import SentencePieceTokenizer
from data_pipeline.tokenizer import ByteTokenizer, load_tokenizer
from data_pipeline.train_tokenizer import train_tokenizer
from lm.config import Config, InitConfig
from lm.hf import tokenizer_json
from lm.hf.__main__ import main
from lm.hf.source import follow_source
from lm.hf.tokenizer_json import Inexpressible, hard_texts, write_tokenizer_json
from tests.data_pipeline.small_tokenizers import HARD, TEXTS
from tests.lm.hf.test_families import CONFIGS
from tests.lm.hf.test_folder import random_tensors, save

KINDS = ("bytes", "char", "bpe", "unigram", "like_llama")
FILES = ("tokenizer.json", "tokenizer_config.json")
TORTURE = st.lists(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(" \t\n\r\x00\u2581\u3000\u00a0的是，。😀<>"),
        st.sampled_from(["</s>", "<unk>", "<0x41>", "    ", "\n\n", "the ", "return "]),
    ),
    max_size=40,
).map("".join)


def sentencepiece(**changes):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in text.split("\n")]), model_writer=model,
        **{"vocab_size": 420, "model_type": "bpe", "byte_fallback": True, "character_coverage": 0.98, "minloglevel": 2, **changes},
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue(), "the model")


LIKE_LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "split_digits": True}


def make(kind):
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "like_llama":  # a space before each text, no padding token, the unknown one first
        return sentencepiece(**LIKE_LLAMA)
    config = {
        "char": TokenizerConfig(kind="char"),
        "bpe": TokenizerConfig(vocab_size=500, character_coverage=0.98),
        "unigram": TokenizerConfig(vocab_size=350, model_type="unigram", character_coverage=0.98),
    }
    return train_tokenizer(config[kind], TEXTS)


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory):
    """A tokenizer, and the folder that was written from it."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = make(request.param)
    write_tokenizer_json(tokenizer, folder, False)
    return tokenizer, folder


@pytest.fixture(scope="module")
def both(written):
    return written[0], load_tokenizer(written[1])


@given(text=TORTURE)
@example(text="\u2581 \u2581\u2581a \u2581 ")
@example(text="    x\n\n\n\t\t\ty  <mask><pad></s><unk> <0xE2><0x96><0x81>")
@settings(max_examples=150)
def test_every_text_has_the_same_ids_and_comes_back_alike(both, text):
    ours, theirs = both
    ids = ours.encode(text)
    assert theirs.encode(text) == ids
    assert theirs.encode_behind(text, "x") == ours.encode_behind(text, "x")  # as it goes on behind an "x"
    assert theirs.engine.decode(ids, skip_special_tokens=True) == ours.decode(ids) == theirs.decode(ids)


def test_what_ids_are_and_special_ones_mean_is_the_same(both):
    ours, theirs = both
    assert ours.pieces == theirs.pieces
    assert (ours.special, ours.stop_ids, ours.special_texts) == (theirs.special, theirs.stop_ids, theirs.special_texts)
    assert ours.special_names == theirs.special_names
    text = "user: hi</s> there<s>"  # as a chat template writes it
    assert ours.encode_template(text) == theirs.encode_template(text)
    assert [ours.encode(text) for text in HARD] == [theirs.encode(text) for text in HARD]


def test_the_begin_token_is_put_where_the_run_learned_it(written, tmp_path):
    from tokenizers import Tokenizer

    write_tokenizer_json(written[0], tmp_path, True)
    for folder, adds in ((tmp_path, True), (written[1], False)):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert (config["add_bos_token"], config["add_eos_token"]) == (adds, False)
        assert load_tokenizer(folder).adds_bos == adds
        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a b").ids
        assert ids == [written[0].special.bos] * adds + written[0].encode("a b")


def test_a_chat_begins_with_the_token_once(tmp_path):
    tokenizer = make("bpe")
    messages = [{"role": "user", "content": "Hi"}]
    for number, begin in enumerate(("", "{{ bos_token }}")):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizer.template = begin + "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        write_tokenizer_json(tokenizer, folder, True)
        wanted = open_chat(tokenizer).prompt(messages, add_bos=True)
        assert wanted.count(tokenizer.special.bos) == 1
        assert open_chat(load_tokenizer(folder)).prompt(messages) == wanted


def random_model(rng):
    """A sentencepiece model of pieces that a few characters make, with any ranks; and its characters."""
    from sentencepiece import sentencepiece_model_pb2

    characters = rng.choice(["a▁", "ab▁", "abc▁", "aβ<▁"])
    pieces, is_bpe, has_bytes = set(characters), rng.random() < 0.6, rng.random() < 0.7
    for _ in range(rng.randrange(2, 25)):
        piece = rng.choice(sorted(pieces)) + rng.choice(sorted(pieces))
        pieces |= {piece} if len(piece) < 12 else set()
    adds, takes = rng.random() < 0.4, rng.random() < 0.3
    user_defined = rng.choice([(), ("\n", "\n\n"), ("ab\n", "b\n\n")]) if is_bpe and not adds and not takes else ()
    order = sorted(pieces - set(characters), key=lambda piece: (rng.choice([len(piece), rng.random() * 8]), piece))
    ranks = {piece: -float(place) for place, piece in enumerate([*order, *sorted(characters)])}
    scores = ranks if is_bpe else {piece: -rng.randrange(1, 3000) / 256 for piece in sorted(pieces)}
    proto = sentencepiece_model_pb2.ModelProto()
    rows = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), *((text, 0, 4) for text in user_defined)]
    rows += [(f"<0x{byte:02X}>", 0, 6) for byte in range(256) if has_bytes]
    for text, score, kind in [*rows, *((text, score, 1) for text, score in scores.items())]:
        proto.pieces.add(piece=text, score=score, type=kind)
    trained, spec = proto.trainer_spec, proto.normalizer_spec
    trained.model_type, trained.byte_fallback, trained.vocab_size = 2 if is_bpe else 1, has_bytes, len(proto.pieces)
    trained.unk_id, trained.bos_id, trained.eos_id, trained.pad_id = 0, 1, 2, -1
    spec.name, spec.add_dummy_prefix, spec.remove_extra_whitespaces = "identity", adds, takes
    return SentencePieceTokenizer(proto.SerializeToString(), "random"), characters.replace("▁", " ")


@pytest.mark.parametrize("seed", range(4))
def test_models_of_any_pieces_and_ranks(seed):
    rng = random.Random(seed)
    compared = 0
    for _ in range(25):
        tokenizer, characters = random_model(rng)
        try:
            engine = tokenizer_json._make_engine(tokenizer, False)
        except Inexpressible:  # names of special tokens, and no bytes for a character in them
            continue
        engine.encode_special_tokens = True
        for _ in range(60):
            rest = " \n▁<0x41>😀"[: rng.choice([1, 2, 3, 11])]
            text = "".join(rng.choices(characters * 3 + rest, k=rng.randrange(30)))
            assert engine.encode(text, add_special_tokens=False).ids == tokenizer.encode(text), repr(text)
        compared += 1
    assert compared > 12


REFUSED = {
    "normalisation": (lambda: sentencepiece(), r"has normalisation \(nmt_nfkc\)"),
    "user-defined": (
        lambda: sentencepiece(**LIKE_LLAMA, user_defined_symbols=["<tool>"]),
        "user-defined pieces beside a space put before each text",
    ),
    "scores": (
        lambda: sentencepiece(**LIKE_LLAMA, model_type="unigram", vocab_size=350),
        "unigram scores need rounding",
    ),
    "words": (lambda: sentencepiece(**LIKE_LLAMA, model_type="word", vocab_size=20, byte_fallback=False), "kind 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_expressed_is_refused(name, tmp_path):
    make_it, says = REFUSED[name]
    with pytest.raises(Inexpressible, match=says):
        write_tokenizer_json(make_it(), tmp_path, False)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_found_before_anything_is_written(tmp_path, monkeypatch):
    find = tokenizer_json.find_merges
    monkeypatch.setattr(tokenizer_json, "find_merges", lambda pieces, scores: find(pieces, scores)[::-1])
    with pytest.raises(Inexpressible, match=r"the text '.*' would be"):
        write_tokenizer_json(make("bpe"), tmp_path, False)
    assert list(tmp_path.iterdir()) == []


def test_unigram_scores_are_rounded_and_one_line_end_is_one_piece():
    tokenizer = make("unigram")
    scores = [tokenizer.engine.get_score(i) for i in range(tokenizer.vocab_size)]
    assert all(score % training.SCORE_STEP == 0 for score in scores)
    assert len(tokenizer.encode("\n\n")) == len(tokenizer.encode("\n")) == len(tokenizer.encode("\t\t")) == 1


def test_a_space_has_a_piece_where_the_training_text_has_none():
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=300), ["春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n" * 5]
    )
    assert tokenizer.decode(tokenizer.encode("春 眠")) == "春 眠"


def make_run(tmp_path, tokenizer):
    """A run of a tiny random Llama with this tokenizer."""
    fields = {**CONFIGS["llama"], "vocab_size": tokenizer.vocab_size + 3}
    folder = save(tmp_path / "model", fields, random_tensors("llama", fields, "float32"))
    tokenizer.save(folder)
    main(["import", str(folder), str(tmp_path / "run")])
    shutil.rmtree(folder)
    return tmp_path / "run"


def export(tmp_path, tokenizer, monkeypatch):
    from lm.hf import verify

    monkeypatch.setattr(verify, "has_transformers", lambda: False)
    run = make_run(tmp_path, tokenizer)
    main(["export", str(run), str(tmp_path / "out")])
    return tmp_path / "out"


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_starts_a_run_with_the_same_ids(kind, tmp_path, monkeypatch):
    tokenizer = make(kind)
    tokenizer.template = "{% for m in messages %}{{ bos_token + m.content + eos_token }}{% endfor %}"
    out = export(tmp_path, tokenizer, monkeypatch)
    config = follow_source(Config(init=InitConfig(source=f"hf:{out}")))
    theirs = load_tokenizer(config.data.tokenizer.path)
    assert theirs.kind == "hf"
    assert theirs.template == tokenizer.template
    assert [theirs.encode(text) for text in HARD] == [tokenizer.encode(text) for text in HARD]
    fields, generation, names = (
        json.loads((out / f"{name}.json").read_text()) for name in ("config", "generation_config", "tokenizer_config")
    )
    for name in ("bos", "eos", "pad"):
        wanted = getattr(tokenizer.special, name)
        assert fields[f"{name}_token_id"] == (wanted if wanted >= 0 else None)
        assert generation.get(f"{name}_token_id", -1) == wanted
        assert theirs.special_names.get(names.get(f"{name}_token"), -1) == wanted


def test_an_export_without_a_tokenizer_says_why(tmp_path, monkeypatch, capsys):
    out = export(tmp_path, sentencepiece(), monkeypatch)
    assert not any((out / name).exists() for name in FILES)
    said = capsys.readouterr().err
    assert "/out holds no tokenizer that transformers reads" in said
    assert "nmt_nfkc" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids(kind, tmp_path, capsys):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = make(kind)
    tokenizer.template = "{% for m in messages %}{{ bos_token + m.role + '\n' + m.content + eos_token }}{% endfor %}"
    run = make_run(tmp_path, tokenizer)
    main(["export", str(run), str(tmp_path / "out")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1].removeprefix("done: "))
    assert (result["ok"], result["tokens_equal"], result["chat_equal"]) == (True, True, True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    for text in [*TEXTS, *hard_texts(tokenizer)]:
        ids = tokenizer.encode(text)
        assert theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
        if not any(name in text for name in tokenizer.special_names):
            assert theirs(text)["input_ids"] == ids
    for name, number in zip(("pad", "bos", "eos", "unk", "mask"), vars(tokenizer.special).values()):
        assert getattr(theirs, f"{name}_token_id") == (number if number >= 0 else None)
