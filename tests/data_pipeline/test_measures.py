"""Are the counts right, against a slow count of the same, and is a bound a function of counts alone?"""

import random
from collections import Counter

import numpy as np
import pytest

from data_pipeline.rules import measures
from data_pipeline.rules.measures import Measures, measure, measure_many
from data_pipeline.rules.quality import BOUNDS, KINDS, judge, kinds_of, read_bounds
from tests.data_pipeline.clean_texts import CHINESE, CODE, ENGLISH, OTHERS, documents


def is_character(char):
    return "\u3400" <= char <= "\u9fff" or "\u3040" <= char <= "\u30ff"


def units_of(text):
    units, word = [], ""
    for char in text + " ":
        if char.isalnum() and not is_character(char):
            word += char.lower()
            continue
        units += [word] if word else []
        word = ""
        units += [char] if is_character(char) and char.isalnum() else []
    return units


def slow_grams(units, sizes):
    """Top and repeated n-grams, counted with a dictionary."""
    found = {}
    for name, size in zip(measures.GRAMS, sizes):
        grams = [tuple(units[i : i + size]) for i in range(len(units) - size + 1)]
        times = Counter(grams)
        if name.startswith("top"):
            found[name] = max((sum(map(len, gram)) * n for gram, n in times.items() if n > 1), default=0)
            continue
        seen, covered = set(), set()
        for place, gram in enumerate(grams):
            covered.update(range(place, place + size) if gram in seen else ())
            seen.add(gram)
        found[name] = sum(len(units[place]) for place in covered)
    return found


def slow(text):
    units = units_of(text)
    words = [unit for unit in units if not is_character(unit[0])]
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    han = sum("\u3400" <= char <= "\u9fff" for char in text)
    chinese = (
        han + sum("\u3040" <= char <= "\u30ff" for char in text) > sum(c.isalpha() and c < "\u0250" for c in text) / 5
    )
    seen, repeated = set(), 0
    for line in lines:
        repeated += line.lower() in seen
        seen.add(line.lower())
    sizes = measures.CHARACTER_SIZES if chinese else measures.WORD_SIZES
    return slow_grams(units, sizes) | {
        "chars": len(text), "spaces": sum(map(str.isspace, text)), "han": han, "words": len(words),
        "word_chars": sum(map(len, words)), "units": len(units), "unit_chars": sum(map(len, units)),
        "digits": sum(map(str.isdecimal, text)), "lines": len(lines), "repeated_lines": repeated,
        "stop_words": sum(word in measures.STOP_WORDS.split() for word in words),
        "longest_line": max(map(len, lines), default=0), "line_chars": sum(len("".join(line.split())) for line in lines),
    }  # fmt: skip


def mixed_texts():
    rng = random.Random(1)
    texts = ["", "\n", " ", "a", "好", "\n\n a\n", *documents(ENGLISH, 4), *documents(CHINESE, 4), *OTHERS, CODE]
    for sentences in (ENGLISH, CHINESE, (*ENGLISH, *CHINESE), "ab好a \n"):
        for _ in range(25):
            texts.append(rng.choice(["", "\n", " "]).join(rng.choices(sentences, k=rng.randint(1, 40))))
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("many", [1 << 8, 1 << 17])
def test_counts_are_those_of_a_slow_count(many, monkeypatch):
    monkeypatch.setattr(measures, "MANY", many)  # many batches, and all in one
    texts = mixed_texts()
    columns = measure_many(texts)
    for row, text in enumerate(texts):
        want = slow(text)
        got = {name: int(getattr(columns, name)[row]) for name in want}
        assert got == want, text


def test_a_text_has_the_same_counts_alone_and_among_others():
    texts = mixed_texts()
    together = list(zip(*(column.tolist() for column in measure_many(texts))))
    assert [tuple(measure(text)) for text in texts] == together
    assert [len(column) for column in measure_many([])] == [0] * len(Measures._fields)


def test_paragraphs_lines_and_marks():
    counts = measure(
        "One line here.\nand two\n\n• a bullet\n- another…\n\nOne line here.\nAnd two\n\n1. see http://a.b #tag {x}\n"
    )
    want = {
        "lines": 7, "paragraphs": 4, "repeated_paragraphs": 1, "repeated_paragraph_chars": 18, "repeated_lines": 2,
        "ended_lines": 3, "ellipsis_lines": 1, "bullet_lines": 2, "short_lines": 4, "urls": 1, "braces": 1, "hashes": 2,
    }  # fmt: skip
    assert {name: getattr(counts, name) for name in want} == want
    assert measure("甲，\n乙。\n丙\n").ended_lines == 2
    assert measure("lone \ud800 half, \U0001f600 and \U00020000").han == 1


def test_a_long_text_is_measured_in_pieces(monkeypatch):
    text = "\n".join(documents(ENGLISH, 30))
    whole = measure(text)
    monkeypatch.setattr(measures, "LONGEST", 1000)
    pieces = measure(text)
    assert (pieces.chars, pieces.han, pieces.digits) == (whole.chars, whole.han, whole.digits)
    assert abs(pieces.words - whole.words) <= len(text) / 1000 + 1  # a word at an edge counts twice
    assert list(measure_many(["a", text, "b"]).chars) == [1, len(text), 1]


def test_bounds_need_no_text():
    texts = mixed_texts()
    limits, problems = read_bounds(["latin.min_units=12", "max_top_2=none"])
    assert not problems
    columns = Measures(*(np.array(column) for column in measure_many(texts)))
    reasons = judge(columns, limits)
    assert set(reasons) <= {"", *limits}
    shorter = [
        text for text, reason in zip(texts, judge(columns, read_bounds(["min_units=1"])[0])) if reason == "min_units"
    ]
    assert shorter == [text for text in texts if measure(text).units < 1]
    assert len({bound.name for bound in BOUNDS}) == len(BOUNDS)


def test_kinds_of_text():
    texts = [ENGLISH[0], CHINESE[0], CODE, *OTHERS]
    kinds = [KINDS[kind] for kind in kinds_of(measure_many(texts))]
    assert kinds == [
        "latin",
        "chinese",
        "code",
        "latin",
        "latin",
        "latin",
        "latin",
        "latin",
        "other",
        "other",
        "chinese",
    ]
