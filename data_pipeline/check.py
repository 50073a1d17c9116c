"""Which combinations of the data pipeline's keys are impossible?"""

from __future__ import annotations

from datetime import date

from data_pipeline.augment.check import augment_problems
from data_pipeline.augment.text import changes_text
from data_pipeline.choices import check_answers
from data_pipeline.config import (
    CLEAN_RULES,
    FORMS,
    PII_KINDS,
    PII_WAYS,
    SOURCE_KINDS,
    SPLITS,
    TASKS,
    TEXT,
    TOKENIZER_KINDS,
    DataConfig,
)
from data_pipeline.rules.quality import read_bounds
from data_pipeline.shares import check_shares, read_table


def _is_date(text: str) -> bool:
    try:
        return len(text) == 10 and bool(date.fromisoformat(text))
    except ValueError:
        return False


def _check_split(data: DataConfig) -> list[str]:
    split, key = data.split, "config.data.split"
    labelled = any(source.label_field for source in data.named_sources().values() if not source.split)
    rules = (
        (split.folds == 0 or split.folds >= 2, f"{key}.folds: must be 0 (off) or >= 2, got {split.folds}"),
        ((-1 if split.folds else 0) <= split.fold < max(split.folds, 1), f"{key}.fold: must be from 0 to folds - 1 = {max(split.folds, 1) - 1} (or -1 with folds: all train), got {split.fold}"),
        (not split.stratify or labelled or bool(data.prepared or data.train_path) or not data.is_named(), f"{key}.stratify: no source that is split has a label_field; give sources one"),
        (not split.stratify or data.clean.exact_dedup, f"{key}.stratify: needs config.data.clean.exact_dedup=True, so that no text is dealt twice"),
        (not split.known or split.stratify or data.clean.near_dedup > 0, f"{key}.known: has work only with stratify or clean.near_dedup; a plain hash never moves a document"),
        (split.by == "hash" or not (split.folds or split.stratify), f"{key}.by={split.by!r} cuts each text; folds and stratify deal whole ones: set by='hash'"),
    )  # fmt: skip
    return [message for ok, message in rules if not ok]


def _check_task(data: DataConfig) -> list[str]:
    """Returns one line for each key that does not go with the task."""
    classify, augment, weights = data.task == "classify", data.augment, data.class_weights
    problems = [] if data.task in TASKS else [f"task: must be one of {', '.join(TASKS)}, got {data.task!r}"]
    unlabelled = [name for name, source in data.named_sources().items() if not source.label_field]
    if not classify:
        return [f"config.data.{problem}" for problem in problems] + [
            f"config.data.{key}: only config.data.task='classify' reads it"
            for key in ("text_template", "labels", "class_weights")
            if getattr(data, key)
        ]
    table, wrong = ({}, []) if weights in (("inverse",), ("effective",)) or not weights else read_table(weights)
    rules = (
        (not data.streaming, "streaming: labelled texts are prepared first; set streaming=False"),
        (data.split.by == "hash", "split.by: the label belongs to the whole text; set by='hash'"),
        (not unlabelled, f"sources: {', '.join(unlabelled)}: give each a label_field, the field that holds the class"),
        (len(set(data.labels)) == len(data.labels), "labels: names a class twice"),
        (all(data.labels), "labels: a class without a name"),
        (data.text_template.count(TEXT) == (data.text_template != ""), f"text_template: must hold {TEXT} once, got {data.text_template!r}"),
        (not (data.text_template and changes_text(augment)), "text_template: augmentation that changes texts would change it too; leave one of them out"),
        (not data.loss_on_prompt, "loss_on_prompt: a classifier learns no text; set it to False"),
        (len(data.labels) != 1, "labels: one class leaves nothing to tell apart"),
        (not (augment.span_corruption or augment.fill_in_middle), "augment: span_corruption and fill_in_middle make texts to write; set both to 0"),
        (not augment.window_shift, "augment.window_shift: only the beginning of a text is read; set it to False"),
        (all(table.values()), "class_weights: a class of weight 0 is never learned; give each a weight > 0"),
    )  # fmt: skip
    problems += [message for ok, message in rules if not ok]
    return [f"config.data.{problem}" for problem in problems + [f"class_weights: {problem}" for problem in wrong]]


def check_data_config(data: DataConfig) -> list[str]:
    """Returns one line for each impossible value or combination; reads no file."""
    problems = []

    def must(ok: bool, message: str) -> None:
        if not ok:
            problems.append(f"config.data.{message}")

    def one_of(key: str, value: str, valid: tuple[str, ...]) -> None:
        must(value in valid, f"{key}: must be one of {', '.join(repr(v) for v in valid)}, got {value!r}")

    must(
        data.is_named(),
        "path: name a file, folder or glob, as in --config.data.path=FILE (or fill sources)",
    )
    must(not (data.prepared and data.path), "prepared: stands in place of path; set one of them")
    must(
        not (data.train_path and (data.path or data.prepared)),
        "train_path: stands in place of path and prepared; set one of them",
    )
    for key in ("validation_path", "test_path"):
        must(bool(data.train_path) or not getattr(data, key), f"{key}: needs train_path")
    problems += _check_task(data)
    must(not (data.prepared and data.streaming), "prepared: is not streamed; set streaming=False")
    must(
        not (data.encrypt_key_env and data.streaming),
        "encrypt_key_env: the position of a stream holds text, and goes into checkpoints; set streaming=False",
    )
    for name, source in data.sources.items():
        key = f"sources.{name}"
        must(bool(source.path), f"{key}.path: must name a file, folder, glob, package or TFDS data set")
        one_of(f"{key}.kind", source.kind, SOURCE_KINDS)
        one_of(f"{key}.split", source.split, ("", *SPLITS))
        one_of(f"{key}.form", source.form, FORMS)
        problems += [f"config.data.{key}.{problem}" for problem in check_answers(source)]
        one_of(f"{key}.document", source.document, ("file", "paragraph", "line"))
        one_of(f"{key}.records", source.records, ("source", "docstrings"))
        must(source.max_documents >= 0, f"{key}.max_documents: must be >= 0 (0 reads all), got {source.max_documents}")
    problems += check_shares(data)
    must(
        not data.streaming or bool(data.tokenizer.path) or data.tokenizer.kind == "bytes",
        "streaming=True needs a tokenizer that exists: set config.data.tokenizer.path (train one with "
        "`python -m data_pipeline.prepare` on part of the text), or tokenizer.kind='bytes'",
    )
    one_of("tokenizer.kind", data.tokenizer.kind, TOKENIZER_KINDS)
    one_of("tokenizer.model_type", data.tokenizer.model_type, ("bpe", "unigram"))
    must(
        data.tokenizer.kind != "auto" or bool(data.tokenizer.path),
        "tokenizer.kind='auto' needs config.data.tokenizer.path",
    )
    must(
        data.tokenizer.kind != "hf" or bool(data.tokenizer.path),
        "tokenizer.kind='hf' needs config.data.tokenizer.path, a Hugging Face folder or a tokenizer.json",
    )
    must(_is_date(data.chat.date), f"chat.date: must be a day as 2026-01-31, got {data.chat.date!r}")
    must(data.tokenizer.vocab_size >= 300, f"tokenizer.vocab_size: must be >= 300, got {data.tokenizer.vocab_size}")
    must(0 < data.tokenizer.character_coverage <= 1, "tokenizer.character_coverage: must be in (0, 1]")
    must(data.tokenizer.train_chars > 0, "tokenizer.train_chars: must be > 0")
    must(
        not data.tokenizer.extra_tokens or (data.tokenizer.kind == "sentencepiece" and not data.tokenizer.path),
        "tokenizer.extra_tokens: only for a sentencepiece tokenizer that is trained here",
    )
    for rule in data.clean.rules:
        one_of("clean.rules", rule, CLEAN_RULES)
    must(len(set(data.clean.rules)) == len(data.clean.rules), "clean.rules: names a rule twice")
    if data.clean.bounds:
        problems += [f"config.data.clean.bounds: {problem}" for problem in read_bounds(data.clean.bounds)[1]]
    near = data.clean.near_dedup
    must(near == 0 or 0.7 <= near <= 1, f"clean.near_dedup: must be 0 (off) or in [0.7, 1], got {near}")
    must(
        data.clean.repeated_lines >= 0, f"clean.repeated_lines: must be >= 0 (0: off), got {data.clean.repeated_lines}"
    )
    one_of("clean.repeated_unit", data.clean.repeated_unit, ("line", "paragraph"))
    one_of("clean.pii", data.clean.pii, ("", *PII_WAYS))
    for kind in data.clean.pii_kinds:
        one_of("clean.pii_kinds", kind, PII_KINDS)
    one_of("split.by", data.split.by, ("hash", "position"))
    for key in ("validation", "test"):
        must(0 <= getattr(data.split, key) < 1, f"split.{key}: must be in [0, 1), got {getattr(data.split, key)}")
    must(data.split.validation + data.split.test < 1, "split: validation + test leave nothing to train on")
    problems += _check_split(data)
    problems += [f"config.data.{problem}" for problem in augment_problems(data)]
    must(data.seq_len >= 2, f"seq_len: must be >= 2, got {data.seq_len}")
    must(data.batch_size >= 1, f"batch_size: must be >= 1, got {data.batch_size}")
    one_of("packing", data.packing, ("best_fit", "none"))
    one_of("on_bad", data.on_bad, ("error", "skip"))
    must(0 <= data.max_bad_fraction <= 1, "max_bad_fraction: must be in [0, 1]")
    must(0 <= data.min_completion_kept <= 1, "min_completion_kept: must be in [0, 1]")
    must(data.shuffle_documents >= 1, "shuffle_documents: must be >= 1")
    must(data.buffer_bytes >= 2**24, f"buffer_bytes: must be >= {2**24:,} (16 MiB), got {data.buffer_bytes:,}")
    must(data.max_line_bytes >= 1024, "max_line_bytes: must be >= 1024")
    must(data.seed >= 0, f"seed: must be >= 0, got {data.seed}")
    must(data.clean.min_chars >= 1, f"clean.min_chars: must be >= 1, got {data.clean.min_chars}")
    must(data.clean.max_chars >= 0, f"clean.max_chars: must be >= 0 (0: no limit), got {data.clean.max_chars}")
    must(
        data.clean.max_chars == 0 or data.clean.max_chars >= data.clean.min_chars,
        f"clean.max_chars={data.clean.max_chars} is less than min_chars={data.clean.min_chars}: no document can pass",
    )
    return problems
