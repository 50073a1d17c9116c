"""Do the scores of generated texts tell loops from prose, in both scripts, and does the command refuse what it cannot score?"""

import json
import sys
from types import SimpleNamespace

import pytest

from data_pipeline.dedup.words import spell
from data_pipeline.rules.language import script
from lm import text_scores
from lm.config import ConfigError, UserError
from lm.generate import generate
from lm.sampling import Sampling
from lm.text_measures import distinct, format_scores, repeated_runs, repetition, score_against, score_texts, summarise
from lm.text_scores import main, read_rows, write_on

PROSE = "The quick brown fox jumps over the lazy dog, and then it sleeps in the sun until the evening comes."
POEM = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"


def cut(text):
    return spell(text)[0]


def test_distinct_counts_all_texts_together():
    texts = [["a", "b", "a"], ["a", "b"]]
    assert distinct(texts, 1) == 2 / 5
    assert distinct(texts, 2) == 2 / 3  # ab, ba, ab
    assert distinct(texts, 3) == 1
    assert distinct(texts, 4) is None


def test_repetition_is_the_mean_over_texts():
    assert repetition([list("abcd"), list("abababab"), ["a"]]) == pytest.approx((0 + 3 / 5) / 2)
    assert repetition([["a"]]) is None


@pytest.mark.parametrize(
    ("text", "longest", "last"),
    [
        (PROSE, 0, 0),
        (POEM, 0, 0),
        ("哈" * 40, 40, 40),
        ("x" + "and then " * 5 + "and th", 51, 51),  # cut in the middle of a block
        ("no no no no no, " + PROSE, 14, 0),
        ("ab", 0, 0),
        ("abab", 0, 0),  # twice is no run
        ("", 0, 0),
        ("end!!!!\n", 4, 4),
        ("春天来了。" * 3 + "\ufffd", 15, 15),  # a character whose bytes did not all come
    ],
)
def test_runs_are_found_whatever_the_script(text, longest, last):
    assert repeated_runs(text) == (longest, last)


def test_han_is_counted_by_characters_and_english_by_words():
    scores = score_texts([POEM, PROSE, PROSE + " It is so," * 9, " "], cut)
    assert scores["loops"] == 0.25
    assert scores["empty"] == 0.25
    assert scores["mean_units"] == (20 + 20 + 47 + 0) / 4
    assert scores["longest_run"] == 90
    assert score_texts([POEM], cut)["distinct_1"] == 17 / 20  # 明, 月, 头 come twice


def test_scores_are_those_of_sacrebleu_with_the_tokenizer_of_the_script():
    sacrebleu = pytest.importorskip("sacrebleu")
    english = score_against([PROSE], [PROSE.replace("lazy", "old")], "Latn")
    assert english["bleu"] == pytest.approx(sacrebleu.corpus_bleu([PROSE], [[PROSE.replace("lazy", "old")]]).score)
    assert "tok:13a" in english["bleu_signature"]
    other = POEM.replace("明月", "山月")
    chinese = summarise([{"generated": POEM, "completion": other}, {"generated": POEM}], cut, script)
    assert chinese["bleu"] == pytest.approx(sacrebleu.corpus_bleu([POEM], [[other]], tokenize="zh").score)
    assert chinese["bleu"] > 40 > sacrebleu.corpus_bleu([POEM], [[other]]).score  # 13a takes a clause for a word
    assert chinese["chrf"] == pytest.approx(sacrebleu.corpus_chrf([POEM], [[other]]).score)
    assert "tok:zh" in chinese["bleu_signature"]
    assert (chinese["texts"], chinese["references"], chinese["stop_rate"]) == (2, 1, None)
    assert all(line.replace("\\|", "").count("|") == 3 for line in format_scores(chinese).splitlines())


def test_without_sacrebleu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(UserError, match=r"pip install 'lm\[adapt\]'"):
        score_against(["a"], ["b"], "Latn")


def test_prompts_are_continued_as_each_alone_and_stops_are_seen(make_model, tokenizer, monkeypatch):
    monkeypatch.setattr(text_scores, "BATCH", 2)
    model, params = make_model(layers=1, vocab_size=261)
    rows = [{"prompt": "ab" * (3 - i % 3) + chr(97 + i), "completion": "x", "extra": 1} for i in range(4)]
    ids, done = [tokenizer.encode(row["prompt"]) for row in rows], []
    loaded, greedy = SimpleNamespace(model=model, params=params), Sampling(temperature=0.0)
    free = [
        text for pair in (ids[:2], ids[2:]) for text in generate(model, params, pair, max_new_tokens=6, sampling=greedy)
    ]
    stop = free[3][2]
    found = write_on(loaded, tokenizer, rows, ids, 6, greedy, 0, [stop], done.append)
    for row, text, result in zip(rows, free, found):
        wanted = text[: text.index(stop)] if stop in text else text
        assert (result["prompt"], result["completion"]) == (row["prompt"], "x")
        assert (result["tokens"], result["stopped"]) == (len(wanted), stop in text)
        stream = tokenizer.stream()
        assert result["generated"] == "".join(map(stream.push, wanted)) + stream.close()
    assert done == sorted(done)
    assert done[-1] == len(rows) * 6
    scores = summarise(found, cut, script)
    assert 0 < scores["stop_rate"] == sum(row["stopped"] for row in found) / len(rows)


def test_texts_of_any_origin_are_scored_without_a_model(tmp_path, capsys):
    file = tmp_path / "texts.jsonl"
    rows = [{"generated": PROSE, "completion": PROSE, "stopped": True}, {"generated": POEM, "stopped": False}]
    file.write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    main([f"--generated={file}"])
    out, err = capsys.readouterr()
    scores = json.loads(out)
    assert (scores["texts"], scores["stop_rate"], scores["bleu"]) == (2, 0.5, pytest.approx(100))
    assert "| distinct_2 |" in err


def test_bad_rows_are_named_by_file_and_line(tmp_path):
    file = tmp_path / "p.jsonl"
    bad = ['{"prompt": 1}', "{", "[1]", '{"text": "a"}', '{"prompt": ""}', '{"prompt": "\\ud800"}', '{"prompt": null}',
           '{"prompt": "a", "completion": 2}', '{"prompt": "a", "stopped": 2}']  # fmt: skip
    file.write_text("\n".join(['{"prompt": "ok"}', "", *bad]))
    with pytest.raises(UserError) as caught:
        read_rows(str(file), "prompt")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:5]] == [f"{file}:{number}" for number in range(3, 8)]
    assert lines[0].endswith("'prompt' must be text, got 1")
    assert lines[-1] == "... and 4 more rows"
    file.write_text("\n")
    with pytest.raises(UserError, match="no rows"):
        read_rows(str(file), "prompt")
    with pytest.raises(UserError, match="No such file"):
        read_rows(str(tmp_path / "none.jsonl"), "prompt")


def test_flags_that_do_not_go_together_are_refused(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "generated": "b"}')
    for argv in ([], ["--workdir=x"], [f"--file={file}"], [f"--generated={file}", "--workdir=x"],
                 [f"--generated={file}", f"--out={tmp_path}/o"], ["--workdir=x", f"--file={file}", f"--out={file}"],
                 ["--workdir=x", f"--file={file}", "--max_new_tokens=0"]):  # fmt: skip
        with pytest.raises(ConfigError):
            main(argv)
    assert file.read_text() == '{"prompt": "a", "generated": "b"}'
