"""Which answers does a row offer, and which is right? Multiple choice, and classes that the model names by words.

Both are trained as a prompt and its completion, the right answer. An answer begins with the white space that the prompt ends in,
or else with the source's `answer_separator`: tokenizers join a space with the word behind it. So does lm-evaluation-harness.
"""

from __future__ import annotations

import functools
import json
import string
from collections.abc import Sequence
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.conversation import kind_of
from data_pipeline.fields import FIELD, fill_template, read_field, read_text
from data_pipeline.records import Bad, Record, is_encodable

QUESTION = "question"  # a prompt's other usual name


def asks_labels(config: SourceConfig) -> bool:
    """Says whether the rows of a source that offer no choices are read as labels in words."""
    return config.form == "label" or (config.form == "auto" and bool(config.prompt_template or config.label_words))


def read_choices(row: dict[str, Any], config: SourceConfig) -> Record | Bad:
    """Returns the prompt with the right choice as its completion, and all choices in their order."""
    prompt = _prompt(row, config)
    if isinstance(prompt, Bad):
        return prompt
    found = _options(row.get(config.choices_field), config.choices_field)
    if isinstance(found, Bad):
        return found
    options, marks = found
    right = _right(row.get(config.answer_field), config.answer_field, options, marks)
    if isinstance(right, Bad):
        return right
    body, choices = join_answers(prompt, options, config.answer_separator)
    return Record(body, choices[right], choices=choices)


def read_labelled(row: dict[str, Any], config: SourceConfig) -> Record | Bad:
    """Returns the prompt, with the word for the row's class as its completion."""
    prompt = fill_template(config.prompt_template, row) if config.prompt_template else read_text(row, config)
    if isinstance(prompt, Bad):
        return prompt
    name = str(row.get(config.label_field, ""))  # what may be wrong with it, the reader of labels says
    body, (answer,) = join_answers(prompt, [word_of(config, name)], config.answer_separator)
    return Record(body, answer)


def join_answers(prompt: str, answers: Sequence[str], separator: str) -> tuple[str, tuple[str, ...]]:
    """Returns the prompt without the white space at its end, and the answers, which begin with that.

    >>> join_answers("2 + 2 =", ["4", " 5"], " "), join_answers("Answer:\\n", ["yes"], " "), join_answers("", ["yes"], " ")
    (('2 + 2 =', (' 4', ' 5')), ('Answer:', ('\\nyes',)), ('', ('yes',)))
    """
    body = prompt.rstrip()
    gap = prompt[len(body) :]
    return body, tuple((gap or ("" if not body or answer[:1].isspace() else separator)) + answer for answer in answers)


def blank_prompt(config: SourceConfig, text: str) -> str:
    """Returns the prompt of a row that says nothing but `text`."""
    return FIELD.sub(lambda _: text, config.prompt_template).rstrip() if config.prompt_template else text.rstrip()


@functools.lru_cache(maxsize=64)
def read_words(label_words: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Reads a source's label_words; returns ({class: word}, problems)."""
    words: dict[str, str] = {}
    problems = []
    for entry in label_words:
        name, _, word = (part.strip() for part in entry.partition("="))
        if not name or not word:
            problems.append(f"label_words: expected CLASS=WORD, got {entry!r}")
        elif name in words:
            problems.append(f"label_words: names {name!r} twice")
        elif word in words.values():
            problems.append(f"label_words: {name!r} has the word of another class, {word!r}")
        else:
            words[name] = word
    return words, problems


def word_of(config: SourceConfig, name: str) -> str:
    return read_words(config.label_words)[0].get(name, name)


def check_answers(config: SourceConfig) -> list[str]:
    """Returns one line for each impossible value or combination of the keys that choices and labels have."""
    problems = list(read_words(config.label_words)[1])
    if (config.form == "label" or config.label_words) and not config.label_field:
        problems.append("label_field: which field holds the class? Labels in words need it")
    other = config.form not in ("auto", "choices", "label")
    problems += [f"{key}: has no use with form={config.form!r}" for key in ("prompt_template", "label_words")
                 if other and getattr(config, key)]  # fmt: skip
    if config.pair_field and config.form not in ("auto", "text", "label"):
        problems.append(f"pair_field: has no use with form={config.form!r}")
    if config.pair_field and config.prompt_template:
        problems.append("pair_field: has no use with a prompt_template, which names both fields itself")
    if config.pair_field and config.pair_field == config.text_field:
        problems.append(f"pair_field: is the text_field, {config.text_field!r}, too")
    return problems


def _prompt(row: dict[str, Any], config: SourceConfig) -> str | Bad:
    if config.prompt_template:
        return fill_template(config.prompt_template, row)
    name = config.prompt_field
    return read_field(row, QUESTION if name not in row and QUESTION in row else name, may_be_empty=True)


def _options(value: Any, name: str) -> tuple[list[str], list[str]] | Bad:
    """The texts of the choices, and their marks where the row has some: {"text": [...], "label": ["A", ...]}."""
    if isinstance(value, str):  # a cell of a CSV file
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return Bad("wrong type", f"field {name!r} is text, expected a list, or such a list as JSON")
    marks: Any = []
    if isinstance(value, dict):
        value, marks = value.get("text"), value.get("label")
    if not isinstance(value, list) or not isinstance(marks, list):
        return Bad("wrong type", f"field {name!r} is {kind_of(value)}, expected a list of texts")
    if len(value) < 2:
        return Bad("too few choices", f"field {name!r} has {len(value)}, expected two choices or more")
    for number, choice in enumerate(value):
        if not isinstance(choice, str):
            return Bad("wrong type", f"field {name!r}: choice {number} is {kind_of(choice)}, expected text")
        if not choice.strip():
            return Bad("empty text", f"field {name!r}: choice {number} is empty")
        if not is_encodable(choice):
            return Bad(
                "lone surrogate", f"field {name!r}: choice {number} holds a lone surrogate, which is no character"
            )
        earlier = next((i for i, other in enumerate(value[:number]) if other.strip() == choice.strip()), -1)
        if earlier >= 0:
            return Bad(
                "equal choices", f"field {name!r}: choices {earlier} and {number} are both {choice.strip()[:40]!r}"
            )
    return value, [str(mark) for mark in marks]


def _right(answer: Any, name: str, options: list[str], marks: list[str]) -> int | Bad:
    """The number of the right choice."""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(options):
            return answer
        return Bad(
            "answer out of range", f"field {name!r} is {answer}, and the {len(options)} choices have numbers from 0"
        )
    if not isinstance(answer, str):
        return Bad(
            "wrong type", f"field {name!r} is {kind_of(answer)}, expected a number, a letter or the text of a choice"
        )
    word = answer.strip()
    ways = {
        "text": [option.strip() for option in options],
        "mark": marks,
        "letter": [] if marks else list(string.ascii_uppercase[: len(options)]),
        "number": [str(number) for number in range(len(options))],
    }
    found = {way: texts.index(word) for way, texts in ways.items() if word in texts}
    if not found:
        last = string.ascii_uppercase[min(len(options), 26) - 1]
        expected = f"a number from 0 to {len(options) - 1}, a letter from A to {last}, or the text of a choice"
        return Bad("answer out of range", f"field {name!r} is {word[:40]!r}, expected {expected}")
    if len(set(found.values())) > 1:
        both = " and ".join(f"the {way} of choice {number}" for way, number in found.items())
        return Bad("answer of two meanings", f"field {name!r} is {word!r}, {both}; write a letter, or in JSON a number")
    return next(iter(found.values()))
