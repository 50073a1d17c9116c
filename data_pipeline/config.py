"""Which keys does the data pipeline have, what do they mean, and which combinations are impossible?"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date

SPLITS = ("train", "validation", "test")
SOURCE_KINDS = ("auto", "text", "markdown", "jsonl", "csv", "parquet", "package", "tfds")
CLEAN_RULES = (
    "line_ends", "repair_encoding", "nfc", "control", "trailing_space", "blank_lines", "width", "html_entities", "boilerplate",
    "simplified", "secrets", "mojibake", "quality",
)  # fmt: skip
PAGE_RULES = (
    "line_ends", "repair_encoding", "html_entities", "nfc", "control", "width", "mojibake", "trailing_space", "boilerplate",
    "blank_lines", "secrets", "quality",
)  # for pages from the web and other documents nobody chose  # fmt: skip
PII_WAYS = ("mask", "surrogate", "encrypt")
PII_KINDS = ("email", "phone", "id", "card", "ip", "plate", "ssn")
TOKENIZER_KINDS = ("auto", "sentencepiece", "bytes", "char", "hf")
FORMS = ("auto", "text", "prompt", "messages", "sharegpt", "alpaca")


@dataclass(frozen=True)
class SourceConfig:
    """One place that text comes from."""

    kind: str = "auto"  # auto | text | markdown | jsonl | csv | parquet | package | tfds; auto goes by the file names
    path: str = (
        ""  # a file, a folder or a glob; for package: a module name or "stdlib"; for tfds: NAME[/CONFIG][:VERSION]
    )
    weight: float = 0.0  # share of training rows; 0 in every source: each row once an epoch
    epochs: float = 0.0  # in place of weights: a source with 2 is read twice as often as one with 1; 0: not used
    max_epochs: float = 0.0  # it is read at most so often, then its share goes to the others; 0: no limit
    split: str = ""  # "" | train | validation | test: puts the whole source into one split
    document: str = "file"  # text: one document is a "file", a "paragraph" (blank lines between) or a "line"
    records: str = "source"  # package: "source" (files) or "docstrings" (function -> docstring as prompt, completion)
    form: str = "auto"  # jsonl, csv, parquet, tfds rows: text | prompt | messages | sharegpt | alpaca; auto tells by their fields
    text_field: str = "text"  # jsonl, csv, parquet, tfds: the field that holds the text
    prompt_field: str = "prompt"  # jsonl, csv, parquet: used when a row has this field and completion_field
    completion_field: str = "completion"
    group_field: str = ""  # jsonl, csv, parquet, tfds: rows with the same value always share a split
    label_field: str = ""  # jsonl, csv, parquet, tfds: the class of a row, for split.stratify and for sampling by class
    tfds_split: str = "train"  # tfds: which of its splits to read
    tfds_dir: str = ""  # tfds: its data_dir; "" is the library's default
    max_documents: int = 0  # stop after this many documents; 0 reads all


@dataclass(frozen=True)
class CleanConfig:
    """Which rules every document passes, in order; `python -m data_pipeline.clean` lists them."""

    rules: tuple[str, ...] = (
        "line_ends", "repair_encoding", "nfc", "control", "mojibake", "trailing_space", "blank_lines",
    )  # fmt: skip
    bounds: tuple[
        str, ...
    ] = ()  # of the rule quality, as "chinese.min_units=50" or "max_digits=none"; docs/cleaning.md
    keep_languages: tuple[str, ...] = ()  # ISO 639 codes as ("en", "zh"): texts in others are dropped; (): all stay
    bad_words: str = ""  # a file of words, one a line: texts that hold one are dropped
    decontaminate: str = (
        ""  # evaluation sets, a file, folder or glob: documents that hold a piece of one are dropped; docs/dedup.md
    )
    pii: str = ""  # personal data: "" leaves it | mask | surrogate | encrypt; docs/privacy.md
    pii_kinds: tuple[str, ...] = PII_KINDS[:-1]  # email, phone, id, card, ip, plate; also: ssn
    pii_key_env: str = (
        "LM_PII_KEY"  # environment variable with the secret of surrogate and encrypt, 32 characters or more
    )
    min_chars: int = 1  # shorter documents are dropped, with the reason counted
    max_chars: int = 0  # longer documents are dropped; 0: no limit
    near_dedup: float = (
        0.0  # drop documents so alike (Jaccard similarity, 0.8 is usual), and keep those of 0.7 in one split; 0: off
    )
    exact_dedup: bool = True  # drop documents that repeat an earlier one (compared by letters, digits and Han only)


@dataclass(frozen=True)
class SplitConfig:
    """How documents are dealt to train, validation and test."""

    by: str = (
        "hash"  # "hash": stable hash of the group or the text; "position": first, middle and last part of each text
    )
    validation: float = 0.05  # share of documents (hash) or of characters (position)
    test: float = 0.05
    salt: str = ""  # another salt deals another split


@dataclass(frozen=True)
class TokenizerConfig:
    """Text to ids."""

    kind: str = "sentencepiece"  # sentencepiece | bytes | char | hf (a tokenizer.json) | auto (what `path` holds)
    path: str = ""  # a run's tokenizer folder, a Hugging Face folder or tokenizer.json, a .model; "": trained on the train split
    vocab_size: int = 4096  # pieces to train, special ones included
    model_type: str = "bpe"  # bpe | unigram
    character_coverage: float = 0.9995  # characters beyond it go through bytes; nothing is ever lost
    train_chars: int = 20_000_000  # sentencepiece: characters of the train split that training looks at


@dataclass(frozen=True)
class ChatConfig:
    """How conversations are written as text; other rows do not care."""

    template: str = ""  # "": the tokenizer's own, or chatml where it has none; chatml | alpaca; or a .jinja file
    date: str = "2026-01-01"  # what templates that print today's date print in training data, so that it never changes


@dataclass(frozen=True)
class AugmentConfig:
    """Changes to the inputs of the train split, never to targets; a pure function of (seed, epoch, document, place)."""

    token_dropout: float = 0.0  # share of input tokens replaced by the mask token
    span_mask: float = 0.0  # share of input tokens in spans that are replaced by the mask token
    span_length: int = 3  # tokens in such a span
    only_repeats: bool = False  # leave a document as it is the first time; change it in its later epochs
    labels: tuple[str, ...] = ()  # change documents of these classes only (a source's label_field); (): of all


@dataclass(frozen=True)
class DataConfig:
    """Everything that decides which ids are in which batch. A batch is a function of this section and the step."""

    path: str = ""  # one file, folder or glob, of a kind told by its name; when set, it stands in place of `sources`
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # or several, by name
    mixture: tuple[
        tuple[int, str], ...
    ] = ()  # weights from a step on, as ((0, "web=0.8,code=0.2"), (9000, "web=1,code=1"))
    temperature: float = (
        0.0  # in place of weights: share of a source ~ rows ** (1 / temperature); 1: by size; 0: not used
    )
    label_shares: tuple[
        str, ...
    ] = ()  # shares of the classes in a source: ("uniform",), ("sqrt",), ("spam=0.3", "ham=0.7")
    prepared: str = ""  # a folder that `data_pipeline.prepare --out` wrote: read as it is, in place of path and sources
    clean: CleanConfig = CleanConfig()
    split: SplitConfig = SplitConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    chat: ChatConfig = ChatConfig()
    augment: AugmentConfig = AugmentConfig()
    seq_len: int = 256  # tokens in a row
    batch_size: int = 32  # rows in a step, over all devices and micro-batches
    packing: str = "best_fit"  # "best_fit": several documents share a row and never see each other; "none": one a row
    add_bos: bool = False  # put the begin token before each document
    loss_on_prompt: bool = False  # prompt/completion rows: learn the prompt too; conversations: learn every turn
    min_completion_kept: float = (
        0.95  # share: refuse a source where seq_len leaves fewer of its completions or answers whole
    )
    seed: int = 0  # order of rows, augmentation
    streaming: bool = False  # read, clean, tokenise and pack on the fly instead of preparing first
    shuffle_documents: int = 2048  # streaming: documents in the shuffle buffer
    buffer_bytes: int = 2**30  # of host memory for all that is read ahead; more is refused before the run, or stops it
    cache_dir: str = "data_cache"  # prepared data lives here, by the hash of what made it
    on_bad: str = "error"  # a bad row: "error" stops, "skip" counts and reports
    max_bad_fraction: float = 0.01  # skip: more bad rows than this stop all the same
    max_line_bytes: int = 16_777_216  # longest line of a text, JSONL or CSV file
    allow_leak: bool = False  # go on although one text is in two splits (pinned splits can do that)


def _is_date(text: str) -> bool:
    try:
        return len(text) == 10 and bool(date.fromisoformat(text))
    except ValueError:
        return False


def check_data_config(data: DataConfig) -> list[str]:
    """Returns one line for each impossible value or combination; reads no file."""
    problems = []

    def must(ok: bool, message: str) -> None:
        if not ok:
            problems.append(f"config.data.{message}")

    def one_of(key: str, value: str, valid: tuple[str, ...]) -> None:
        must(value in valid, f"{key}: must be one of {', '.join(repr(v) for v in valid)}, got {value!r}")

    must(
        bool(data.path or data.sources or data.prepared),
        "path: name a file, folder or glob, as in --config.data.path=FILE (or fill sources)",
    )
    must(not (data.prepared and data.path), "prepared: stands in place of path; set one of them")
    must(not (data.prepared and data.streaming), "prepared: is not streamed; set streaming=False")
    for name, source in data.sources.items():
        key = f"sources.{name}"
        must(bool(source.path), f"{key}.path: must name a file, folder, glob, package or TFDS data set")
        one_of(f"{key}.kind", source.kind, SOURCE_KINDS)
        one_of(f"{key}.split", source.split, ("", *SPLITS))
        one_of(f"{key}.form", source.form, FORMS)
        one_of(f"{key}.document", source.document, ("file", "paragraph", "line"))
        one_of(f"{key}.records", source.records, ("source", "docstrings"))
        must(source.max_documents >= 0, f"{key}.max_documents: must be >= 0 (0 reads all), got {source.max_documents}")
    from data_pipeline.shares import check_shares

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
    for rule in data.clean.rules:
        one_of("clean.rules", rule, CLEAN_RULES)
    must(len(set(data.clean.rules)) == len(data.clean.rules), "clean.rules: names a rule twice")
    if data.clean.bounds:
        from data_pipeline.rules.quality import read_bounds

        problems += [f"config.data.clean.bounds: {problem}" for problem in read_bounds(data.clean.bounds)[1]]
    near = data.clean.near_dedup
    must(near == 0 or 0.7 <= near <= 1, f"clean.near_dedup: must be 0 (off) or in [0.7, 1], got {near}")
    one_of("clean.pii", data.clean.pii, ("", *PII_WAYS))
    for kind in data.clean.pii_kinds:
        one_of("clean.pii_kinds", kind, PII_KINDS)
    one_of("split.by", data.split.by, ("hash", "position"))
    for key in ("validation", "test"):
        must(0 <= getattr(data.split, key) < 1, f"split.{key}: must be in [0, 1), got {getattr(data.split, key)}")
    must(data.split.validation + data.split.test < 1, "split: validation + test leave nothing to train on")
    for key in ("token_dropout", "span_mask"):
        must(0 <= getattr(data.augment, key) < 1, f"augment.{key}: must be in [0, 1), got {getattr(data.augment, key)}")
    must(data.augment.span_length >= 1, f"augment.span_length: must be >= 1, got {data.augment.span_length}")
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
