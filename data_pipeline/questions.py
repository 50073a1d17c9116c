"""Which rows of a split or a file ask for one of several answers, and which ids are the prompt and each answer?

Rows are read, cleaned and encoded as training does it; a split is what preparation dealt to it, row by row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

from data_pipeline.choices import asks_labels, blank_prompt, word_of
from data_pipeline.clean import clean_many
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.documents import split_where
from data_pipeline.records import Bad, Found, Record, Source
from data_pipeline.scan import Cleaner
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.sources import FileSource
from data_pipeline.tasks import to_ids
from data_pipeline.tokenizer import Tokenizer

Log = Callable[[str], None]
Ids = tuple[int, ...]
Row = tuple[str, Record]  # file:line, and what is there
MANY, BATCH = 5, 256  # faults that a message names; rows that are cleaned or encoded at once


@dataclass(frozen=True)
class Question:
    """A prompt and the answers that may follow it."""

    where: str  # file:line
    prompt: str
    answers: tuple[str, ...]
    right: int
    pairs: tuple[tuple[Ids, Ids], ...] = ()  # of each answer the ids before it, and its own


@dataclass(frozen=True)
class Questions:
    """What is scored; `names` are the classes, where the answers of every row are words for them."""

    rows: tuple[Question, ...]
    names: tuple[str, ...]
    blank: str  # the prompt of a row that says nothing
    lost: int = 0  # rows left out: cleaning dropped them, or an answer is longer than a row
    cut: int = 0  # prompts of which the beginning was cut off


def is_asked(config: SourceConfig, labels: bool) -> bool:
    """Says whether rows of a source may be such questions."""
    return asks_labels(config) if labels else config.form in ("auto", "choices") and not asks_labels(config)


def class_names(data: Any) -> list[str]:
    """The classes of the training rows whose labels are written as words; `data` is what `open_data` returns."""
    numbers = [number for number, source in enumerate(data.sources) if is_asked(source.config, True)]
    return sorted({name for number in numbers for name in data.prepared.label_names(number, "train")})


def read_questions(
    config: DataConfig, data: Any, tokenizer: Tokenizer, file: str, split: str, labels: bool, given: str, log: Log
) -> Questions:
    """Reads the rows of `file`, or of a split of `data` where there is none; with `labels` those with a class.

    Raises UserError for rows that are bad, of a class that training has not seen, or of which there are none.
    """
    config = replace(config, sources=config.named_sources(), path="")
    names = class_names(data) if labels else []
    if labels and len(names) < 2:
        raise UserError(
            f"--labels: the training rows have {len(names)} classes with words; a source has those by its label_field "
            "and form='label' (or a prompt_template), which --config may say in place of the run's own"
        )
    sources = _sources(config, file, labels, log) if file else list(data.sources)
    found = _rows_of_file(sources, config, log) if file else _rows_of_split(data, split, labels)
    rows, lost = _clean(found, config, tokenizer, labels, log)
    what = f"--file={file}" if file else f"the {split} split"
    if not rows:
        wanted = "a class" if labels else 'choices (fields "question", "choices", "answer")'
        hint = "" if labels else "; for classes in words add --labels"
        raise UserError(f"{what} has no row with {wanted}{hint}")
    asked, *others = [source.config for source in sources if is_asked(source.config, labels)]
    if labels and any(other.label_words != asked.label_words for other in others):
        raise ConfigError("label_words: sources have other words for their classes; give them the same")
    if labels:
        questions = _of_labels(rows, names, asked, config, what)
    else:
        questions = [Question(at, r.text, r.choices, r.choices.index(r.completion or "")) for at, r in rows]
    blank = blank_prompt(asked, given) if given else ""
    return Questions(tuple(questions), tuple(names), blank, lost)


def _sources(config: DataConfig, file: str, labels: bool, log: Log) -> list[Source]:
    """The file, read as the first source of such questions is."""
    alike = {name: source for name, source in config.sources.items() if is_asked(source, labels)}
    name = min(alike, default="")
    if len(alike) > 1:
        log(f"{file} is read as the source {name} is")
    source = replace(alike.get(name, SourceConfig()), path=file, kind="auto", split="", max_documents=0)
    return [FileSource("file", source, "--file", config.max_line_bytes, log)]


def _rows_of_file(sources: Sequence[Source], config: DataConfig, log: Log) -> Iterator[Row]:
    bad = 0
    for source in sources:
        for _, where, record in source.read():
            if isinstance(record, Record):
                yield where, record
            elif config.on_bad == "error" or record.reason == "empty file":
                raise UserError(f"{where}: {record.message}")
            else:
                bad += record.fatal
    if bad:
        log(f"warning: {bad} bad rows are left out")


def _rows_of_split(data: Any, split: str, labels: bool) -> Iterator[Row]:
    for number, source in enumerate(data.sources):
        if not is_asked(source.config, labels) or not data.prepared.has_shard(number, split):
            continue
        if not hasattr(source, "read"):
            raise UserError(f"source {source.name}: prepared data has no wrong answers; name the rows with --file")
        files, origins = data.prepared.origins(number, split)
        kept = {(files[file], line) for file, line in origins.tolist()}
        for found in source.read():
            if isinstance(found.record, Record) and _place(found) in kept:
                yield found.where, found.record


def _place(found: Found) -> tuple[str, int]:
    file, line = split_where(found.where)
    return file, line or 0


def _clean(
    rows: Iterator[Row], config: DataConfig, tokenizer: Tokenizer, labels: bool, log: Log
) -> tuple[list[Row], int]:
    """Returns the rows that are questions, cleaned, and how many were dropped by a rule."""
    cleaner, dropped = Cleaner(config, tokenizer), Counter[str]()
    asked = [(at, record) for at, record in rows if record.completion is not None and (labels or record.choices)]
    kept: list[Row] = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        for (where, _), outcome in zip(part, cleaner.clean_many([record for _, record in part])):
            if isinstance(outcome.record, Record):
                kept.append((where, outcome.record))
            else:
                dropped[outcome.record.reason if isinstance(outcome.record, Bad) else outcome.record] += 1
    for reason, count in dropped.items():
        log(f"warning: {count} rows are left out, since config.data.clean drops them: {reason}")
    return kept, sum(dropped.values())


def _of_labels(
    rows: list[Row], names: list[str], source: SourceConfig, config: DataConfig, what: str
) -> list[Question]:
    """Each row with the words of all classes as its answers, which begin as its own does."""
    known = {name: number for number, name in enumerate(names)}
    strange = [(where, record.label) for where, record in rows if record.label not in known]
    if strange:
        shown = "; ".join(f"{where}: {label!r}" for where, label in strange[:MANY])
        more = f" and {len(strange) - MANY} more" if len(strange) > MANY else ""
        raise UserError(
            f"{what}: {len(strange)} rows have a class that no training row has: {shown}{more}. Take them out, or add "
            f"training rows; there are {', '.join(names[:MANY])}{' ...' if len(names) > MANY else ''}"
        )
    words: dict[str, tuple[str, ...]] = {}  # by the white space that they begin with
    questions = []
    for where, record in rows:
        written = record.completion or ""
        lead = written[: len(written) - len(written.lstrip())]
        if lead not in words:
            answers = tuple(lead + word_of(source, name) for name in names)
            words[lead] = clean_many([Record("", answers[0], choices=answers)], config.clean)[0].record.choices
            same = [(a, b) for a, b in pairwise(sorted(names, key=lambda n: words[lead][known[n]]))
                    if words[lead][known[a]] == words[lead][known[b]]]  # fmt: skip
            if same:
                raise ConfigError(f"label_words: the classes {same[0][0]!r} and {same[0][1]!r} have the same word")
        questions.append(Question(where, record.text, words[lead], known[record.label]))
    return questions


def encode_questions(
    questions: Questions, tokenizer: Tokenizer, add_bos: bool, end: bool, seq_len: int, log: Log
) -> tuple[Questions, Ids]:
    """Returns the questions with the ids of prompts and answers, cut to `seq_len` inputs, and the ids of the blank prompt.

    A prompt loses its beginning where its longest answer would not fit; a row with an answer that fits in no row is left out.
    `end`: the end token is part of an answer. A prompt without ids is the begin token (else the end token) alone.
    """
    special = tokenizer.special
    first: Ids = (special.bos if special.bos >= 0 else max(special.eos, 0),)
    head: Ids = (special.bos,) if add_bos else ()
    rows: list[Question] = []
    lost = cut = 0
    for start in range(0, len(questions.rows), BATCH):
        for row, pairs in _encode(questions.rows[start : start + BATCH], tokenizer, add_bos, end):
            room = seq_len + 1 - max(len(answer) for _, answer in pairs)
            if room < 1:
                lost += 1
                continue
            cut += any(len(prompt) > room for prompt, _ in pairs)
            kept = [(_cut(prompt, room, head) or first, answer) for prompt, answer in pairs]
            rows.append(replace(row, pairs=tuple(kept)))
    if lost:
        log(f"warning: {lost} rows have an answer longer than {seq_len} tokens and are left out; raise --seq_len")
    if cut:
        log(f"warning: {cut} prompts lose their beginning, since {seq_len} tokens do not hold them; raise --seq_len")
    if not rows:
        raise UserError(
            f"no row is left to score: every one has an answer longer than {seq_len} tokens; raise --seq_len"
        )
    blank = (*head, *tokenizer.encode(questions.blank))[: seq_len // 2] if questions.blank else first
    return replace(questions, rows=tuple(rows), lost=questions.lost + lost, cut=cut), blank


def _cut(prompt: Ids, room: int, head: Ids) -> Ids:
    """The end of a prompt, behind the begin token where there is one."""
    return prompt if len(prompt) <= room else (*head, *prompt[len(prompt) - room + len(head) :])


def _encode(
    rows: Sequence[Question], tokenizer: Tokenizer, add_bos: bool, end: bool
) -> Iterator[tuple[Question, list[tuple[Ids, Ids]]]]:
    """Yields each row with the ids of its prompt and of every answer, as `to_ids` writes them for training."""
    records = [Record(row.prompt, answer) for row in rows for answer in row.answers]
    encoded = zip(*to_ids(records, tokenizer, add_bos, True)[:2])
    for row in rows:
        pairs = []
        for ids, start in islice(encoded, len(row.answers)):
            whole = tuple(ids.tolist())
            pairs.append((whole[:start], whole[start : None if end else -1]))
        yield row, pairs
