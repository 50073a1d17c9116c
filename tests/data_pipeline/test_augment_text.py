"""Does text change at the rate asked for, the same for the same key, and keep what must stay, in English and Chinese?"""

import doctest
import importlib
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.augment import make_lexicon
from data_pipeline.augment.draw import draw
from data_pipeline.augment.lexicon import Lexicon, find_words, read_lexicon
from data_pipeline.augment.noise import change_case, change_width, mistype
from data_pipeline.augment.sentences import paraphrase_lines, shuffle_sentences, split_sentences
from data_pipeline.augment.text import TEXT_KINDS, augment_text
from data_pipeline.augment.words import delete_words, replace_words, swap_words
from data_pipeline.config import AugmentConfig
from data_pipeline.schema import ConfigError, UserError

N = 2**16
ENGLISH = " ".join(f"{chr(97 + i % 7)}{chr(104 + i % 11)}" for i in range(N))  # no word like its neighbours
CHINESE = "".join(chr(0x4E00 + i % 5003) for i in range(N))
UNIQUE = "".join(map(chr, range(0x4E00, 0x9FFF)))
NEAR = 4 * 0.5 / N**0.5  # four standard errors of a share, at most


def words(text):
    return re.findall(r"[a-z]+|[\u4e00-\u9fff]", text)


@pytest.mark.parametrize("name", ["draw", "lexicon", "words", "noise", "sentences", "text", "spans", "window"])
def test_the_examples_in_the_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(f"data_pipeline.augment.{name}")).failed == 0


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_words_are_swapped_and_left_out_at_their_rates(text, share):
    before = words(text)
    swapped = words(swap_words(text, share, 1))
    assert Counter(swapped) == Counter(before)
    assert abs(np.mean([a != b for a, b in zip(before, swapped)]) - share) < NEAR
    if share < 1:
        left = words(delete_words(text, share, 1))
        assert abs(1 - len(left) / N - share) < NEAR
        rest = iter(before)
        assert all(word in rest for word in left)  # in their order


@pytest.mark.parametrize("text", [ENGLISH, UNIQUE])
@pytest.mark.parametrize("share", [0.03, 0.2])
def test_typos_have_their_rate_and_every_way_is_as_frequent(text, share):
    typed = sum(map(str.isalpha, text))
    out = mistype(text, share, Lexicon({}), 2)
    longer = len(out) - len(text)
    assert abs(longer) < 5 * (share * typed) ** 0.5  # as many are written twice as left out
    if text == UNIQUE:
        kept = Counter(text)
        kept.subtract(Counter(out))
        gone, twice = sum(n for n in kept.values() if n > 0), -sum(n for n in kept.values() if n < 0)
        # where the next one has a typo too, none trades places
        assert abs(gone / typed - share / 3 * (1 + share / 2)) < NEAR
        assert abs(twice / typed - share / 3 * (1 + share / 2)) < NEAR
        alike = Lexicon(dict.fromkeys(text, ("x",)))
        assert abs(mistype(text, share, alike, 2).count("x") / typed - share / 4) < NEAR


def test_case_and_width_change_at_their_rates():
    changed = change_case(ENGLISH, 0.2, 3)
    assert changed.lower() == ENGLISH
    assert abs(np.mean([a != b for a, b in zip(ENGLISH.split(), changed.split())]) - 0.2) < NEAR
    text = "ABC,1２" * (N // 6)
    wide = change_width(text, 0.2, 3)
    assert len(wide) == len(text)
    assert abs(np.mean([a != b for a, b in zip(text, wide)]) - 0.2) < NEAR
    assert change_width(change_width(text, 1.0, 1), 1.0, 2) == text
    assert change_width(CHINESE, 1.0, 3) == CHINESE


def test_synonyms_are_replaced_at_their_rate_and_only_whole_words():
    lexicon = Lexicon({"ah": ("glad", "merry"), "研究": ("钻研",), "研究生": (), "生命": ("性命",)})
    text = "ah ahs AH Ah x " * (N // 4)
    out = replace_words(text, 0.3, lexicon, 4)
    assert abs(1 - out.lower().split().count("ah") / (text.lower().split().count("ah")) - 0.3) < NEAR * 2
    assert Counter(out.split())["ahs"] == N // 4
    assert abs(np.log(out.count("glad") / out.count("merry"))) < 0.2
    assert {"GLAD", "Glad", "glad"} < set(out.split())
    assert replace_words("他是研究生。研究工作", 1.0, lexicon, 4) == "他是研究生。钻研工作"
    assert find_words("研究生命", lexicon) == []  # which of the two words it is nobody knows


SENTENCES = [
    "It rained at 3.14 p.m. on Monday. We stayed! Did you? Yes.",
    "他说：“走吧。”我们走了！去哪里？不知道……再见。",
    "A sentence. 中文一句。Another one! 再一句？",
]


@pytest.mark.parametrize("line", SENTENCES)
def test_shuffling_keeps_the_sentences_and_the_lines(line):
    text = f"{line}\nonly one\n\n  {line}"
    seen = set()
    for key in range(40):
        out = shuffle_sentences(text, 1.0, key)
        for old, new in zip(text.split("\n"), out.split("\n"), strict=True):
            parts = [Counter(s for s, _ in split_sentences(t.strip())) for t in (old, new)]
            assert parts[0] == parts[1]
            assert (old == new) == (len(split_sentences(old)) < 2)
        seen.add(out.split("\n")[0])
    assert len(seen) > 3
    assert "".join(s + space for s, space in split_sentences(line)) == line
    many = "\n".join([line] * 4000)
    share = np.mean([new != line for new in shuffle_sentences(many, 0.25, 1).split("\n")])
    assert abs(share - 0.25) < 0.03


def test_paraphrases_replace_whole_lines():
    text = "\n".join(["  hello there ", "你好", "other"] * 4000)
    table = Lexicon({"hello there": ("hi", "hey"), "你好": ("您好",), "oth": ("no",)})
    lines = paraphrase_lines(text, 0.5, table, 1).split("\n")
    assert set(lines) == {"  hello there ", "  hi ", "  hey ", "你好", "您好", "other"}
    assert abs(Counter(lines)["你好"] / 4000 - 0.5) < 0.04


def test_a_text_is_a_function_of_the_key_and_most_keys_differ(tmp_path):
    (tmp_path / "words.tsv").write_text("# from nowhere\nbrown\tdark\n懒\t惰\n狐狸\t赤狐\n", "utf-8")
    shares = {kind: 0.2 for kind in TEXT_KINDS if kind != "line_paraphrase"}
    config = AugmentConfig(**shares, synonyms=(str(tmp_path / "words.tsv"),))
    text = "The quick brown fox. It jumps over the lazy dog! 敏捷的棕色狐狸。跳过懒狗！"
    outs = [augment_text(text, config, key) for key in range(100)]
    assert outs == [augment_text(text, config, key) for key in range(100)]
    assert len(set(outs)) > 90
    half = AugmentConfig(**shares, synonyms=config.synonyms, text_share=0.5)
    assert abs(sum(augment_text(text, half, key) == text for key in range(400)) - 200) < 45
    for edge in ("", " ", "\n\n", "a", "中", "１", "😀", "\ud7ff", "a\n" * 3):
        for key in range(20):
            assert isinstance(augment_text(edge, config, key), str)
            assert bool(augment_text(edge, AugmentConfig(word_deletion=1.0), key)) == bool(edge)


def test_draws_are_uniform_and_golden():
    assert draw(7, 11, 2).tolist() == draw(7, 11, 3).tolist()[:2]
    u = draw(1, 5, 2**16)
    assert np.abs(np.histogram(u, 16, (0, 1))[0] / 2**12 - 1).max() < 0.06
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"a\t\tb\n", "words.tsv:1: expected WORD"), (b"\xff", "not UTF-8 at byte 0"), (b"# only\nword\n", "no line has a word"), (None, "No such file")],
)  # fmt: skip
def test_a_file_that_is_no_lexicon_is_one_line(tmp_path, content, words):
    path = tmp_path / "words.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_lexicon((str(path),), "synonyms")


SENSES = "happy%3:00:00:: 001 1 9\nglad%3:00:00:: 001 1 5\nglad%1:00:00:: 002 2 1\nfelicitous%3:00:00:: 003 1 1\nhappily%4:02:00:: 001 1 1\n"
CEDICT = """# CC-CEDICT
高興 高兴 [gao1 xing4] /happy/glad/
開心 开心 [kai1 xin1] /to feel happy/happy/glad/to joke/
愉快 愉快 [yu2 kuai4] /cheerful/
倍兒 倍儿 [bei4 r5] /(dialect) happy/glad/
研究生 研究生 [yan2 jiu1 sheng1] /postgraduate student/
"""


def test_lexicons_are_made_from_wordnet_cedict_and_vectors(tmp_path):
    (tmp_path / "index.sense").write_text(SENSES)
    (tmp_path / "cedict.txt").write_text(CEDICT, "utf-8")
    (tmp_path / "two.vec").write_text("3 2\nking 1 0.1\nqueen 1 0.2\nbread 0 1\n")
    for flag, expected in (
        ("wordnet", {"happy": ("glad",), "glad": ("happy",), "felicitous": (), "happily": ()}),
        ("cedict", {"高兴": ("开心",), "开心": ("高兴",), "研究生": ()}),
        ("vectors", {"king": ("queen",), "queen": ("king",), "bread": ()}),
    ):
        source = {"wordnet": tmp_path, "cedict": tmp_path / "cedict.txt", "vectors": tmp_path / "two.vec"}[flag]
        out = tmp_path / f"{flag}.tsv"
        make_lexicon.main([f"--{flag}={source}", f"--out={out}"])
        lexicon = read_lexicon((str(out),), "synonyms")
        assert {word: lexicon[word] for word in expected} == expected
        assert out.read_text("utf-8").startswith("# ")
    sounds = [
        f"{c} {c} [{p}] /x/\n{c}{'甲' * 2} {c}{'甲' * 2} [x] /x/\n" * 20
        for c, p in (("绝", "jue2"), ("觉", "jue2"), ("叫", "jiao4"))
    ]
    (tmp_path / "cedict.txt").write_text("".join(sounds), "utf-8")
    make_lexicon.main([f"--homophones={tmp_path / 'cedict.txt'}", f"--out={tmp_path / 'h.tsv'}"])
    lexicon = read_lexicon((str(tmp_path / "h.tsv"),), "homophones")
    assert (lexicon["绝"], lexicon["觉"], lexicon["叫"]) == (("觉",), ("绝",), ())


@pytest.mark.parametrize(
    ("argv", "error", "words"),
    [
        ([], ConfigError, "name one source"), (["--wordnet=W", "--vectors=V", "--out=o"], ConfigError, "name one source"),
        (["--wordnet=W", "--out=o"], UserError, "No such file"), (["--vectors=V", "--out=o"], UserError, "V:2: 3 numbers"),
        (["--vectors=E", "--out=o"], UserError, "E:2: expected a word"), (["--cedict=V", "--out=o"], UserError, "right file"),
        (["--vectors=V", "--out=o", "--similarity=x"], ConfigError, "expected a number"),
    ],
)  # fmt: skip
def test_a_source_that_is_none_is_one_line(tmp_path, monkeypatch, argv, error, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "V").write_text("a 1 2\nb 1 2 3\n")
    (tmp_path / "E").write_text("a 1 2\nb x y\n")
    with pytest.raises(error, match=words):
        make_lexicon.main(argv)


def test_every_key_is_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs/augmentation.md").read_text("utf-8")
    assert [field.name for field in fields(AugmentConfig) if f"`{field.name}" not in text] == []
