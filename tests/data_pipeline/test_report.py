"""Is every document accounted for, by language and rule, and does the page show it without showing what it must not?"""

import ast
import html
import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline import accounts
from data_pipeline.batch import open_data
from data_pipeline.config import CleanConfig, SourceConfig, TokenizerConfig
from data_pipeline.documents import RULES, Documents
from data_pipeline.explain import explain_row
from data_pipeline.fertility import main as fertility
from data_pipeline.prepare import build
from data_pipeline.prepare.build import prepare_to
from data_pipeline.prepare.samples import show_change
from data_pipeline.report_words import MEANINGS, WORDS
from data_pipeline.rules.quality import BOUNDS
from data_pipeline.store import open_prepared
from tests.data_pipeline.conftest import make_text

PAGES = ("line_ends", "repair_encoding", "html_entities", "nfc", "control", "width", "mojibake", "trailing_space", "boilerplate",
         "blank_lines", "secrets", "quality")  # fmt: skip
ATTACK = "</span><script>alert(1)</script><img src=x onerror=alert(1)> are words that stand in a page of the web. "
PHONE, MAIL, TOKEN = "13800138000", "someone.private@example-mail.com", "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
EDITED = "full width ＡＢＣ１２３ stands here, and the rest of the sentence is as it should be. "


@pytest.fixture
def rows(tmp_path):
    rng = random.Random(7)
    texts = [f"{i} {make_text(rng, rng.randint(5, 40))}" for i in range(60)]
    texts += ["今天天气很好，我们一起去公园散步吧。" + str(i) for i in range(20)]
    texts += [ATTACK + "One more.", ATTACK * 9, ATTACK + "lost \ufffd", EDITED + ATTACK, EDITED + ATTACK]
    # Private: plain, put in order by another rule first, in a line that goes, in what is dropped, in duplicates.
    texts += [
        f"{EDITED} Call {PHONE} or write to {MAIL}.",
        f"Call 138\u200b0013\u200b8000 and {MAIL} please, it is about the text.",
    ]
    texts += [
        f"A page of words, and these are its notes.\n\n{MAIL} {PHONE} cookies policy | privacy policy\n\nEnd of the words."
    ]
    texts += [f"{PHONE} \ufffd", f"key {TOKEN} is a secret which stands in this text. " * 2, f"{TOKEN} \ufffd"]
    texts += [f"Same text with the number {PHONE} in it and a few words more."] * 2
    path = tmp_path / "a<b>.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + '{"text": 1}\n', "utf-8")
    return path


@pytest.fixture
def make(config, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PART_BYTES", 4000)

    def make(name, workers=1, credits=(), **changes):
        clean = CleanConfig(rules=PAGES, near_dedup=0.8, pii="mask")
        source = SourceConfig(path=str(rows), **dict(credits))
        made = config("", sources={"s&t": source}, on_bad="skip", max_bad_fraction=0.1, clean=clean)
        return prepare_to(tmp_path / name, replace(made, **changes), workers, lambda text: None)

    return make


def test_counts_agree_wherever_they_stand(make):
    prepared = make("out")
    manifest, languages = prepared.manifest, prepared.manifest["languages"].values()
    for total, by in (("dropped", "dropped"), ("edited", "edited")):
        added = {name: sum(counts[by].get(name, 0) for counts in languages) for name in manifest[total]}
        assert added == manifest[total]
    for name in ("documents_in", "documents_out"):
        assert sum(counts[name] for counts in languages) == manifest[name]
    assert sum(counts["tokens"] for counts in languages) == sum(
        split["tokens"] for split in manifest["splits"].values()
    )
    assert manifest["languages"]["zh"]["fertility"]["bytes_per_token"] == pytest.approx(1, abs=0.1)
    assert manifest["languages"]["zh"]["fertility"]["fallback"] > 0.3
    (file,) = manifest["inputs"]["s&t"]
    assert file["sha256"] == json.loads(json.dumps(manifest["made_of"]["sources"]))[0][2][0][1]
    assert len(manifest["rules"]["rules/measures.py"]) == 64
    reasons, numbers, lines = [], [], []
    for columns in Documents(prepared.folder).read("reason", "number", "line", "key", "rules", "tokens"):
        reasons += [columns["reason"][0][n] for n in columns["reason"][1]]
        numbers += columns["number"].tolist()
        lines += columns["line"].tolist()
        changed = {rule for bit, rule in enumerate(RULES) if (columns["rules"] >> bit & 1).any()}
    assert lines == list(range(1, manifest["documents_in"] + 1))
    assert {reason: reasons.count(reason) for reason in set(reasons) - {""}} == manifest["dropped"]
    assert sorted(n for n in numbers if n >= 0) == list(range(max(numbers) + 1))
    assert set(manifest["edited"]) <= changed
    assert f"| zh | {manifest['languages']['zh']['documents_in']} |" in (prepared.folder / "report.md").read_text(
        "utf-8"
    )


def test_the_page_runs_nothing_and_shows_nothing_private(make):
    page = (make("out").folder / "report.html").read_text("utf-8")
    assert len(page.encode()) < 500_000
    assert "<script" not in page.lower()
    assert "<img" not in page.lower()
    assert "&lt;script&gt;alert(1)" in page
    assert "a&lt;b&gt;.jsonl" in page
    assert "s&amp;t" in page
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)\s*=(?!\s*["']?#)""", re.sub(r"&lt;.*?&gt;", "", page))
    text = html.unescape(re.sub("<[^>]*>", "", page))
    text = text.replace("⟨U+200B⟩", "").replace("·", " ")
    for private in (PHONE, MAIL, "someone.private", TOKEN, TOKEN[8:30], "0013", "\u200b"):
        assert private not in text, private
    for shown in ("<PHONE>", "<EMAIL>", "<SECRET>", "ＡＢＣ１２３"):
        assert shown in text, shown


def test_lines_that_are_taken_out_are_counted_by_language_too(config, tmp_path):
    lines = [f"This is line number {n} of a page, and it stands in many of them, 每一页都有." for n in range(3)]
    texts = ["\n".join([f"The words of document {i} alone."] * (i > 3) + lines) + "!" * i for i in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    clean = CleanConfig(repeated_lines=2, exact_dedup=False)
    manifest = prepare_to(tmp_path / "out", config(tmp_path / "a.jsonl", clean=clean), 1, lambda text: None).manifest
    assert manifest["edited"]["repeated_lines"] > 3
    for by in ("dropped", "edited"):
        added = sum((Counter(counts[by]) for counts in manifest["languages"].values()), Counter())
        assert added == Counter(manifest[by])


@pytest.mark.parametrize("value", [MAIL, PHONE, TOKEN, "138\u200b0013\u200b8000", "１３８００１３８０００"])
def test_a_change_that_would_show_private_data_is_not_shown(value):
    config = CleanConfig(rules=PAGES, pii="mask")
    old = f"A line that goes: {value}, as it is.\nThe next line stays."
    assert show_change(old, "The next line stays.", config) == {"hidden": True}
    assert show_change("A　line", "A line", config) == {"change": [["=", "A"], ["-", "　"], ["+", " "], ["=", "line"]]}
    plain = show_change(old, "The next line stays.", replace(config, pii=""))
    assert (plain == {"hidden": True}) == (value == TOKEN)  # secrets are never shown


def test_the_page_is_whole_markup_in_both_languages(make):
    page = (make("out").folder / "report.html").read_text("utf-8")
    whole = re.sub(r"<(meta[^>]*|input[^>]*)>", "", page.removeprefix("<!doctype html>"))
    whole = whole.replace('style="width', "style='width").replace(" class=r", ' class="r"')
    whole = re.sub(r"style='([^\"]*)\"", r"style='\1'", whole)
    tree = ElementTree.fromstring(whole)
    kinds = {name: [node for node in tree.iter() if node.get("class") == name] for name in ("en", "zh")}
    assert len(kinds["en"]) == len(kinds["zh"]) > 80
    ids = {node.get("id") for node in tree.iter() if node.get("id")}
    assert {node.get("href")[1:] for node in tree.iter("a")} <= ids
    assert all(english and chinese and english != chinese for english, chinese in [*WORDS.values(), *MEANINGS.values()])
    assert {bound.name for bound in BOUNDS} | set(RULES) <= set(MEANINGS)


def test_the_numbers_of_the_page_are_those_of_the_manifest(make):
    prepared = make("out")
    manifest, page = prepared.manifest, (prepared.folder / "report.html").read_text("utf-8")
    sections = dict(re.findall(r'<h2 id="(\w+)">(.*?)(?=<h2|<p class="soft"><span[^>]*>Every dropped)', page, re.S))

    def number(text):
        return int(text.replace(",", ""))

    for name, total in (("lengths", "documents_in"), ("token_part", "documents_out")):
        bars = [number(text.rpartition(": ")[2]) for text in re.findall("<title>(.*?)</title>", sections[name])]
        assert sum(bars) == manifest[total]
    gone = [number(text) for text in re.findall("−([0-9,]+)", sections["flow"])]
    assert sum(gone) == sum(manifest["dropped"].values()) == manifest["documents_in"] - manifest["documents_out"]
    counts = r"(?s)<tr><td><code>(\w[^<]*)</code>.*?<td class=r>([0-9,]+)</td>"
    for name, total in (("drops", "dropped"), ("edits", "edited")):
        assert {rule: number(count) for rule, count in re.findall(counts, sections[name])} == manifest[total]
    private = {rule: number(count) for rule, count in re.findall(counts, sections["pii"])}
    assert private == {
        rule: n for rule, n in manifest["edited"].items() if rule == "secrets" or rule.startswith("pii_")
    }
    for split, found in manifest["splits"].items():
        cells = f"<td class=r>{found['documents']:,}</td><td class=r>{found['tokens']:,}</td>"
        assert re.search(f">{split}</span>.{{0,60}}</td>{cells}", sections["token_part"])


def test_every_reason_for_an_unreadable_row_is_explained_in_both_languages():
    reasons = set()
    for text in (path.read_text("utf-8") for path in Path(accounts.__file__).parent.glob("*.py")):
        tree = ast.parse(text if "Bad" in text else "")
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        named = (
            call.args[0] for call in calls if getattr(call.func, "id", "") in ("Bad", "BadConversation") and call.args
        )
        reasons |= {first.value for first in named if isinstance(first, ast.Constant)}
    assert len(reasons) > 30
    assert reasons - {"gone", "not writable"} <= set(MEANINGS)  # not of prepared data


def test_who_is_to_be_cited_can_change_without_preparing_again(make, config, rows, tmp_path, quiet):
    first = make("out", credits={"license": "CC-BY-4.0 <b>"})
    stamps = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.npy")}
    assert first.manifest["credits"] == {"s&t": {"license": "CC-BY-4.0 <b>"}}
    assert "CC-BY-4.0 &lt;b&gt;" in (first.folder / "report.html").read_text("utf-8")
    again = make("out", credits={"license": "CC0", "citation": "Ann Author, 2026", "url": "https://example.org"})
    assert {path: path.stat().st_mtime_ns for path in again.folder.rglob("*.npy")} == stamps
    page = (again.folder / "report.html").read_text("utf-8")
    assert "CC-BY" not in page
    assert "Ann Author, 2026" in page
    found = open_prepared(again.folder)
    assert found.manifest["credits"] == again.manifest["credits"]
    data = open_data(config("", prepared=str(again.folder), seq_len=32, batch_size=2), log=quiet)
    assert "  citation: Ann Author, 2026" in list(explain_row(data, 0, 0))
    assert data.summary()["sources"]["s&t"]["credits"]["license"] == "CC0"
    (again.folder / "report.html").unlink()
    make("out", credits={"license": "CC0"})
    assert "CC0" in (again.folder / "report.html").read_text("utf-8")


def test_an_empty_corner_of_everything_has_a_page(config, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one text only, of words")
    made = config(path, clean=CleanConfig(rules=(), exact_dedup=False), tokenizer=TokenizerConfig(kind="bytes"))
    prepared = prepare_to(tmp_path / "out", made, 1, lambda text: None)
    page = (prepared.folder / "report.html").read_text("utf-8")
    assert "None." in page
    assert "无。" in page


def test_tokenizers_are_compared_on_the_same_text(tmp_path, capsys):
    (tmp_path / "en.txt").write_text("The cat sat on the mat, and that was all it did that day. " * 3)
    (tmp_path / "zh.jsonl").write_text(json.dumps({"text": "今天天气很好，我们一起去公园散步吧。"}))
    fertility(["--tokenizer=bytes", str(tmp_path / "en.txt"), str(tmp_path / "zh.jsonl")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] in ("en", "Latn")
    assert lines[1].split()[2:6] == ["bytes", "1.000", "1.000", lines[1].split()[5]]
    assert lines[2].split()[0] == "zh"
    assert lines[2].split()[3:5] == ["1.000", "3.000"]
    assert lines[2].split()[6] == "100.00%"
