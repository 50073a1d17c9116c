"""Does a Hugging Face tokenizer give the ids it gives elsewhere, come back as text, keep its files, and is damage refused?"""

import io
import json
import os
import random
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.chat import open_chat
from data_pipeline.config import SplitConfig, TokenizerConfig
from data_pipeline.records import Record
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.tasks import check_tokenizer, to_ids
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.train_tokenizer import find_tokenizer
from tests.data_pipeline.small_tokenizers import CONFIGS, HARD, MAKERS, TEXTS, save_folder

TORTURE = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \t\n\r\x00\u2581\u3000\u00a0的是，。😀<>|")),
    max_size=60,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save_folder(tmp_path_factory.mktemp("hf") / name, name) for name in MAKERS}


@pytest.fixture(scope="module")
def tokenizers(folders):
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


@given(text=TORTURE)
@example(text="<|im_end|><|endoftext|></s><s> <tool_call>")
@settings(max_examples=150, deadline=None)
def test_byte_level_gives_every_text_back_and_its_bytes_add_up(tokenizers, text):
    tokenizer = tokenizers["byte_bpe"]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.token_bytes()[ids].sum()) == len(text.encode())
    assert not tokenizer.forbidden & set(ids)


@given(text=TORTURE)
@settings(max_examples=150, deadline=None)
def test_metaspace_with_bytes_gives_every_text_back_but_its_own_space_sign(tokenizers, text):
    tokenizer = tokenizers["llama_like"]
    text = text.replace("\u2581", "_")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.token_bytes()[ids].sum()) == len(text.encode()) + bool(text)  # and the space before the text


@pytest.mark.parametrize("name", MAKERS)
@given(text=TORTURE)
@settings(max_examples=60, deadline=None)
def test_ids_and_text_are_those_of_the_package_itself(tokenizers, name, text):
    engine, tokenizer = MAKERS[name](), tokenizers[name]
    for one in (text, *HARD):
        theirs = engine.encode(one, add_special_tokens=False).ids
        if tokenizer.name_pattern.search(one):
            continue
        assert tokenizer.encode(one) == theirs
        assert tokenizer.encode_template(one) == theirs
        if "\ufffd" not in engine.decode(theirs):  # which it also gives for a part of a character
            assert tokenizer.decode(theirs) == engine.decode(theirs)


@pytest.mark.parametrize("name", MAKERS)
def test_a_name_in_a_text_is_text_and_in_a_template_a_token(tokenizers, name):
    tokenizer = tokenizers[name]
    for special, number in tokenizer.special_names.items():
        if number == tokenizer.special.unk:
            continue
        text = f"a {special}{special} 好{special}"
        assert number not in tokenizer.encode(text)
        assert number not in tokenizer.encode_batch([text, "b"])[0].tolist()
        assert tokenizer.encode_template(text).count(number) == 3
        first = text.index(special)
        assert tokenizer.encode_template(text, [(first, first + len(special))]).count(number) == 2


@pytest.mark.parametrize("name", MAKERS)
def test_text_comes_as_soon_as_its_characters_are_whole(tokenizers, name):
    tokenizer = tokenizers[name]
    for text in [*HARD, *TEXTS]:
        ids = tokenizer.encode(text)
        stream = tokenizer.stream(begins=True)
        parts = [stream.push(number) for number in ids]
        assert "".join(parts) + stream.close() == tokenizer.decode(ids)
        assert not any("\ufffd" in part for part in parts)
    if name == "byte_bpe":
        ids = tokenizer.encode("𠮷")
        assert len(ids) > 1
        stream = tokenizer.stream()
        assert [stream.push(number) for number in ids] == [""] * (len(ids) - 1) + ["𠮷"]
        stream.push(ids[0])
        assert stream.close() == "\ufffd"


def test_special_tokens_are_found_where_the_folder_names_them(tmp_path):
    def special(**changes):
        folder = save_folder(tmp_path / str(len(list(tmp_path.iterdir()))), "byte_bpe", **changes)
        return load_tokenizer(folder)

    end, im_end = (MAKERS["byte_bpe"]().token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>"))
    named = special()
    assert (named.special.pad, named.special.bos, named.special.eos) == (end, -1, im_end)
    several = special(generation_config__json={"eos_token_id": [im_end, end], "bos_token_id": 3, "pad_token_id": None})
    assert several.stop_ids == (im_end, end)
    assert several.special.bos == 3  # named by no file but this
    elsewhere = special(
        tokenizer_config__json={"eos_token": "<none>", "pad_token": 5},
        special_tokens_map__json={"pad_token": {"content": "<|im_end|>"}},
    )
    assert (elsewhere.special.eos, elsewhere.special.pad) == (-1, im_end)  # a name that has no id is none
    (tmp_path / "0" / "tokenizer_config.json").unlink()
    alone = load_tokenizer(tmp_path / "0" / "tokenizer.json")
    assert alone.special.eos == end  # by its usual name
    template = special(chat_template__jinja="file", tokenizer_config__json={"chat_template": "config"})
    assert template.template == "file"
    entry = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    assert special(tokenizer_config__json={"chat_template": entry}).template == "b"
    tokenizer = special(tokenizer_config__json={"chat_template": entry[:1], "eos_token": "<|im_end|>"})
    with pytest.raises(UserError, match="chat templates named tool_use, and none is the default"):
        open_chat(tokenizer).prompt([{"role": "user", "content": "a"}])


def test_a_begin_token_that_the_recipe_puts_is_noticed(tmp_path, tokenizers, opened, corpus):
    assert tokenizers["llama_like"].adds_bos
    assert not tokenizers["byte_bpe"].adds_bos
    folder = save_folder(tmp_path / "t", "llama_like")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": False}))
    assert not load_tokenizer(folder).adds_bos
    assert load_tokenizer(folder).encode("a") == tokenizers["llama_like"].encode("a")  # never by encode itself


def test_what_is_missing_is_named(tokenizers):
    with pytest.raises(ConfigError) as caught:
        check_tokenizer(tokenizers["byte_bpe"], add_bos=True, add_eos=True, mask=True)
    assert "no begin token (its tokenizer_config.json names no bos_token" in str(caught.value)
    assert "config.data.add_bos=False" in str(caught.value)
    assert "no mask token" in str(caught.value)
    assert "end token" not in str(caught.value)


def test_a_completion_gets_no_space_of_its_own(tokenizers):
    whole = tokenizers["llama_like"].encode("Answer: yes")
    ids, _, _ = to_ids([Record("Answer:", " yes")], tokenizers["llama_like"], False, True)
    assert ids[0].tolist() == [*whole, tokenizers["llama_like"].special.eos]
    for name in ("llama_like", "metaspace_first", "unigram"):
        check_pairs(tokenizers[name])


def check_pairs(tokenizer):
    """The ids of a prompt are the first ones of what was trained, and no space is put before the completion."""
    pairs = [
        Record("the ", "fox"),
        Record("the", " fox"),
        Record("the qu", "ick"),
        Record("the\n", "\n\nfox"),
        Record("", "fox"),
    ]
    for record, ids, start in zip(pairs, *to_ids(pairs, tokenizer, False, True)[:2]):
        assert ids[:start].tolist() == tokenizer.encode(record.text)
        assert tokenizer.decode(ids.tolist()).split() == f"{record.text}{record.completion}".split()


def test_saved_and_loaded_keeps_every_file(tmp_path, tokenizers):
    extra = {
        "chat_template__jinja": "{{ messages }}",
        "generation_config__json": {"eos_token_id": 1},
        "special_tokens_map__json": {},
    }
    for name in MAKERS:
        folder = save_folder(tmp_path / name, name, **extra)
        tokenizer = load_tokenizer(folder)
        tokenizer.save(tmp_path / "saved" / name)
        tokenizer.save(tmp_path / "saved" / name)  # over itself
        loaded = load_tokenizer(tmp_path / "saved" / name)
        assert (loaded.sha256, loaded.special, loaded.stop_ids) == (
            tokenizer.sha256,
            tokenizer.special,
            tokenizer.stop_ids,
        )
        assert loaded.template == "{{ messages }}"
        assert [loaded.encode(text) for text in HARD] == [tokenizer.encode(text) for text in HARD]
        for path in folder.iterdir():
            assert (tmp_path / "saved" / name / path.name).read_bytes() == path.read_bytes()
    saved = tmp_path / "saved" / "byte_bpe"
    (saved / "chat_template.jinja").write_text("{{ other }}")
    with pytest.raises(UserError, match=r"damaged: chat_template.jinja does not match"):
        load_tokenizer(saved)
    (saved / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"chat_template.jinja is missing"):
        load_tokenizer(saved)


def test_another_template_takes_the_place_of_theirs(tmp_path):
    folder = save_folder(tmp_path / "t", "byte_bpe")
    config = {**CONFIGS["byte_bpe"], "chat_template": "theirs", "model_max_length": 9}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.template == "theirs"
    tokenizer.template = "ours"
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").template == "ours"
    kept = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert kept == {**CONFIGS["byte_bpe"], "model_max_length": 9}  # transformers would take it over the file


def test_the_kind_is_asked_for_or_found(folders):
    for kind in ("hf", "auto"):
        assert find_tokenizer(TokenizerConfig(kind=kind, path=str(folders["unigram"]))).kind == "hf"
    with pytest.raises(ConfigError, match="holds a hf tokenizer; set kind='auto'"):
        find_tokenizer(TokenizerConfig(path=str(folders["unigram"])))


def test_ids_of_a_padded_embedding_stand_for_nothing(tokenizers):
    tokenizer = tokenizers["byte_bpe"]
    ids = tokenizer.encode("好a")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, tokenizer.vocab_size + 99]) == "好a"


def refused(path):
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_damaged_file_is_one_line(folders, tmp_path):
    whole = (folders["byte_bpe"] / "tokenizer.json").read_bytes()
    path = tmp_path / "tokenizer.json"
    rng = random.Random(0)
    for cut in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert "not valid JSON" in refused(tmp_path)
    path.write_bytes(b"[" * 100_000)
    assert "not valid JSON" in refused(path)
    for content in (b"[]", b'"a"', b"{}", b'{"model": 3}'):
        path.write_bytes(content)
        assert "holds an object with a 'model'" in refused(path)
    path.write_bytes(b"\xff\xfe\x00")
    refused(path)
    refusals = []
    for _ in range(60):  # whatever is inside: it loads, or it is one line
        damaged = bytearray(whole)
        at = rng.randrange(len(damaged))
        damaged[at : at + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(0, 9))
        path.write_bytes(damaged)
        try:
            load_tokenizer(path).encode("The quick 好")
        except UserError as error:
            refusals.append(str(error))
    assert refusals
    assert not any("\n" in refusal for refusal in refusals)


def test_hostile_contents_are_one_line(tmp_path):
    path = tmp_path / "tokenizer.json"

    def write(**parts):
        path.write_text(json.dumps({"version": "1.0", "added_tokens": [], **parts}))

    def added(number):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return [{"id": number, "content": "x", "special": True, **flags}]

    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    write(model={**words, "vocab": {"a": 4_000_000_000}})
    assert "id 4000000000 is beyond any vocabulary" in refused(path)
    write(model={**words, "vocab": {}})
    assert "the vocabulary is empty" in refused(path)
    write(model=words, added_tokens=added(99_999_999))
    assert "added token 'x' has id 99999999, but the vocabulary gives 1" in refused(path)
    write(model={**words, "vocab": {"a": -1}})
    assert "cannot use it" in refused(path)
    write(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]})
    assert "cannot use it: Token `b` out of vocabulary" in refused(path)
    write(
        model=words,
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    )
    with pytest.raises(UserError, match=r"cannot use it: .*retry-limit"):
        load_tokenizer(path).encode("a" * 40 + "b")
    write(model=words)
    for name, content in (
        ("tokenizer_config.json", "[]"), ("tokenizer_config.json", "{"), ("generation_config.json", "\ud800".encode("utf-8", "surrogatepass")),
        ("tokenizer_config.json", '{"chat_template": 5}'),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        assert name in refused(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": 5}, "bos_token": ["a"], "add_bos_token": "yes", "added_tokens_decoder": {"x": 1}}'
    )
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [true, -1, "a", 99], "bos_token_id": {}}')
    assert load_tokenizer(tmp_path).special.bos == -1  # of the wrong type: none


def test_a_folder_with_a_sentencepiece_model_only(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[1].split(". ")), model_writer=model, vocab_size=50, model_type="bpe", minloglevel=2
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    config = {
        "add_bos_token": True,
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
    }
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "added_tokens_decoder": {"1": {"content": "<s>"}}})
    )
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    load_tokenizer(tmp_path).save(tmp_path / "saved")
    for folder in (tmp_path, tmp_path / "saved"):
        tokenizer = load_tokenizer(folder)
        assert (tokenizer.kind, tokenizer.adds_bos, tokenizer.stop_ids) == ("sentencepiece", True, (2, 7))
        prompt = open_chat(tokenizer).prompt([{"role": "user", "content": "fox </s>"}])
        assert (prompt[0], prompt[-1], prompt.count(2)) == (1, 2, 1)
        check_pairs(tokenizer)
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"50": {"content": "<|im_end|>"}}}')
    assert "adds tokens that tokenizer.model does not have, so it needs a tokenizer.json" in refused(tmp_path)


def test_ids_are_the_same_every_time(folders, tmp_path):
    parts = json.loads((folders["byte_bpe"] / "tokenizer.json").read_text())
    parts["model"]["dropout"] = 0.5
    parts["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    parts["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    tokenizer = load_tokenizer(tmp_path)
    for text in TEXTS:
        assert (
            tokenizer.encode(text)
            == tokenizer.encode_template(text)
            == load_tokenizer(folders["byte_bpe"]).encode(text)
        )


def test_folders_without_a_tokenizer_say_what_to_do(tmp_path):
    assert "does not exist" in refused(tmp_path / "none")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "vocab.json").write_text("{}")
    assert "save_pretrained" in refused(tmp_path)


def test_the_end_is_learned_also_where_it_is_the_padding(opened, pairs, tmp_path):
    folder = save_folder(tmp_path / "t", "byte_bpe")
    config = {**CONFIGS["byte_bpe"], "pad_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    data = opened(
        pairs,
        tokenizer=TokenizerConfig(kind="hf", path=str(folder)),
        seq_len=128,
        split=SplitConfig(validation=0.0, test=0.0),
    )
    eos = data.tokenizer.special.eos
    assert data.pad_id == eos
    batches = data.train_batches(0, (0, 8))
    batch = next(batches)
    batches.close()
    ends = (batch["targets"] == eos) & (batch["segments"] > 0)
    assert ends.any()
    assert (batch["weights"][ends] == 1).all()
    assert (batch["weights"][batch["segments"] == 0] == 0).all()


@pytest.mark.parametrize("name", MAKERS)
def test_ids_are_those_of_transformers(folders, tokenizers, name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folders[name])
    tokenizer = tokenizers[name]
    names = ["".join(tokenizer.special_names), "a <|im_end|> b</s>", "<tool_call>\n{}"]
    for text in [*HARD, *TEXTS, *names]:
        assert tokenizer.encode_template(text) == theirs.encode(text, add_special_tokens=False)
        if not tokenizer.name_pattern.search(text):
            assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)

    @given(text=TORTURE)
    @settings(max_examples=60, deadline=None)
    def agree(text):
        assert tokenizer.encode_template(text) == theirs.encode(text, add_special_tokens=False)

    agree()
    for mine, their in (("bos", theirs.bos_token_id), ("eos", theirs.eos_token_id), ("pad", theirs.pad_token_id)):
        assert getattr(tokenizer.special, mine) == (-1 if their is None else their)


def assets(*parts):
    if not os.environ.get("LM_ASSETS"):
        pytest.skip("LM_ASSETS names no folder of real models and tokenizers")
    path = Path(os.environ["LM_ASSETS"], *parts)
    if not path.exists():
        pytest.skip(f"LM_ASSETS holds no {'/'.join(parts)}")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gpt-2", "qwen2", "starcoder", "mpt", "refact", "phi-3", "llama-bpe", "llama-spm", "command-r"]
)
def test_real_vocabularies_give_the_ids_that_are_published(name):
    """tokenizers/NAME/golden.json, and beside it the vocabulary: tokenizer.json, or tokenizer.model."""
    golden = json.loads(assets("tokenizers", name, "golden.json").read_text("utf-8"))
    folder = assets("tokenizers", name)
    if not any((folder / file).exists() for file in ("tokenizer.json", "tokenizer.model")):
        pytest.skip(f"{folder} holds no vocabulary: rebuild it from a GGUF file first")
    tokenizer = load_tokenizer(folder)
    assert len(golden) >= 46
    for entry in golden:
        ids = tokenizer.encode(entry["text"])
        assert ids == entry["ids"], entry["text"]
        assert tokenizer.decode(ids) == entry["text"]
        assert tokenizer.encode_template(entry["text"]) == ids


@pytest.mark.slow
def test_a_real_tokenizer_json_and_its_sentencepiece_twin_agree():
    folder = assets("stories260k")
    json_, model = load_tokenizer(folder), load_tokenizer(folder / "tokenizer.model")
    assert (json_.kind, model.kind) == ("hf", "sentencepiece")
    assert json_.special == model.special
    assert json_.pieces == model.pieces
    rng = random.Random(0)
    words = ["Once", " upon", "\n", "  ", "你", "好", "，", "😀", "é", "\t", "<s>", "a", ".", "'s", "\x00", "１"]
    for text in [*HARD, *TEXTS, *("".join(rng.choices(words, k=12)) for _ in range(300))]:
        if "\u2581" in text:  # sentencepiece's own sign for a space
            continue
        assert json_.encode(text) == model.encode(text), text
        assert json_.encode_template(text) == model.encode_template(text), text
        assert json_.decode(json_.encode(text)) == text
