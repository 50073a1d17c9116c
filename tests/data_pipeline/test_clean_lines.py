"""Does the command clean lines as the rules do, and say what is wrong with a line instead of stopping?"""

import json
import subprocess
import sys

from data_pipeline.clean import clean_many
from data_pipeline.config import PAGE_RULES, CleanConfig
from data_pipeline.records import Record
from tests.data_pipeline.clean_texts import CHINESE, ENGLISH, documents

JUNK = "买一送一！" * 40


def run(data, *flags):
    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline.clean", *flags], input=data, capture_output=True, timeout=300, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def test_lines_are_cleaned_in_order_and_bad_ones_named():
    texts = [*documents(ENGLISH, 3), JUNK, *documents(CHINESE, 3), "itâ€™s in the cafÃ©, you see"]
    good = [json.dumps({"text": text, "id": number, "dropped": "old"}).encode() for number, text in enumerate(texts)]
    bad = [
        b"{",
        b"[1]",
        b'{"text": 5}',
        b'{"a": 1}',
        b'{"text": "\\ud800"}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"text": "' + b"a" * 17_000_000 + b'"}',
    ]
    data = b"\xef\xbb\xbf" + b"\n".join([*good[:2], b"", *bad, *good[2:]])  # the last line has no end
    code, rows, errors = run(data)
    assert code == 0
    assert "Traceback" not in errors
    for number in range(4, 4 + len(bad)):
        assert f"line {number}: " in errors
    want = clean_many([Record(text) for text in texts], CleanConfig(rules=PAGE_RULES))
    assert [row["id"] for row in rows] == list(range(len(texts)))
    assert [row["text"] for row in rows] == [cleaned.record.text for cleaned in want]
    assert [row["rules"] for row in rows] == [list(cleaned.rules) for cleaned in want]
    assert [row.get("dropped", "") for row in rows] == [cleaned.reason for cleaned in want]
    assert rows[3]["dropped"] == "max_top_2"
    assert rows[-1] == {"text": "it’s in the café, you see", "id": 7, "rules": ["repair_encoding"]}
    assert "16 lines: 7 kept; dropped: max_top_2 1; edited: repair_encoding 1; bad: 8" in errors


def test_flags_choose_rules_and_bounds():
    data = "\n".join(json.dumps({"text": text}) for text in (JUNK, "ＡＢ１ is not the end\r\n", "short")).encode()
    flags = ("--rules=width,quality", "--bounds=max_top_2=none,max_top_3=none,max_top_4=none", "--min_chars=6")
    code, rows, _ = run(data, *flags)
    assert code == 0
    assert rows[0]["dropped"].startswith("max_repeated_")
    assert rows[1] == {"text": "AB1 is not the end\r\n", "rules": ["width"]}
    assert rows[2]["dropped"] == "too short"
    code, rows, errors = run(data, "--rules=widht", "--min_chars=-1")
    assert (code, rows) == (2, [])
    assert "no rule 'widht'; did you mean 'width'?" in errors
    assert "--min_chars must be a whole number" in errors
    code, rows, errors = run(b"{\n[\n")
    assert (code, rows) == (1, [])
    assert "none of 2 lines could be read" in errors
