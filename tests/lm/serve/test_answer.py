"""Does the text of an answer end where it should, however the tokens cut it?"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokenizer import ByteTokenizer
from lm.serve.answer import Answer


class Words:
    """A stream whose ids are pieces of text."""

    def __init__(self, pieces):
        self.pieces = pieces

    def push(self, number):
        return self.pieces[number]

    def close(self):
        return ""


def run(pieces, stops, stop_id=None):
    answer = Answer(Words(pieces), () if stop_id is None else (stop_id,), stops)
    given, shown = "", []
    for number in range(len(pieces)):
        text, ended = answer.push(number)
        given += text
        shown.append(given)
        if ended:
            return given, number, shown
    return given + answer.close(), None, shown


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.text("ab", min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_a_stop_string_ends_the_text_before_it_wherever_the_cuts_are(pieces, stop):
    whole = "".join(pieces)
    text, ended, shown = run(pieces, (stop,))
    assert text == whole.split(stop)[0]
    assert (ended is not None) == (stop in whole)
    if ended is not None:
        assert stop not in "".join(pieces[:ended])  # as soon as it is there
    assert all(text.startswith(part) for part in shown)  # nothing is taken back


def test_what_may_begin_a_stop_string_is_held_until_it_does_not():
    assert run(["x<", "e", "n", "y"], ("<end>", "<enx"))[2] == ["x", "x", "x", "x<eny"]
    assert run(["x<e"], ("<end>",))[0] == "x<e"  # the end of the text gives it up
    assert run(["a", "b<e", ""], ("<end>",), stop_id=2) == ("ab<e", 2, ["a", "ab", "ab<e"])


def test_the_first_of_several_counts():
    assert run(["one two three"], ("three", "two"))[0] == "one "


@pytest.mark.parametrize("cut", range(1, 4))
def test_a_character_comes_whole_and_one_cut_short_as_a_mark(cut):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("好")
    answer = Answer(tokenizer.stream(), (tokenizer.special.eos,), ())
    text = [answer.push(number)[0] for number in ids[:cut]]
    assert text == ["", "", "好"][:cut]
    assert answer.push(tokenizer.special.eos) == ("" if cut == 3 else "\ufffd", True)
