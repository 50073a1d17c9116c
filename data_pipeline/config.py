"""Which keys does the data pipeline have, and what do they mean?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

SPLITS = ("train", "validation", "test")
SOURCE_KINDS = (
    "auto", "text", "markdown", "html", "jsonl", "csv", "parquet", "arrow", "warc", "tfrecord", "arrayrecord", "hf", "package", "tfds",
)  # fmt: skip
TASKS = ("lm", "classify")
TEXT = "{text}"  # in a text_template, where the text goes
CLEAN_RULES = (
    "line_ends", "repair_encoding", "nfc", "control", "trailing_space", "blank_lines", "width", "html_entities", "boilerplate",
    "simplified", "secrets", "mojibake", "quality",
)  # fmt: skip
PAGE_RULES = (
    "line_ends", "repair_encoding", "html_entities", "nfc", "control", "width", "mojibake", "trailing_space", "boilerplate",
    "blank_lines", "secrets", "quality",
)  # for pages from the web and other documents nobody chose  # fmt: skip
PII_WAYS = ("mask", "surrogate", "encrypt")
DEFAULT_PII_KINDS = ("email", "phone", "id", "card", "ip", "plate")
PII_KINDS = (*DEFAULT_PII_KINDS, "ssn", "name")  # ssn: nine digits are often something else; name: behind cues alone
TOKENIZER_KINDS = ("auto", "sentencepiece", "bytes", "char", "hf")
FORMS = ("auto", "text", "prompt", "messages", "sharegpt", "alpaca", "choices", "label")


@dataclass(frozen=True)
class SourceConfig:
    """One place that text comes from."""

    kind: str = "auto"  # auto goes by the file names; the others: docs/data.md
    path: str = (
        ""  # a file, a folder or a glob; for package: a module name or "stdlib"; for tfds: NAME[/CONFIG][:VERSION]
    )
    weight: float = 0.0  # share of training rows; 0 in every source: each row once an epoch
    epochs: float = 0.0  # in place of weights: a source with 2 is read twice as often as one with 1; 0: not used
    max_epochs: float = 0.0  # it is read at most so often, then its share goes to the others; 0: no limit
    split: str = ""  # "" | train | validation | test: puts the whole source into one split
    document: str = "file"  # text: one document is a "file", a "paragraph" (blank lines between) or a "line"
    records: str = "source"  # package: "source" (files) or "docstrings" (function -> docstring as prompt, completion)
    form: str = "auto"  # rows with named fields: text | prompt | messages | sharegpt | alpaca | choices | label; auto tells by their fields
    text_field: str = "text"  # rows with named fields (jsonl, csv, parquet, arrow, tfrecord, arrayrecord, tfds): the one that holds the text
    prompt_field: str = "prompt"  # rows with named fields: used when a row has this field and completion_field
    completion_field: str = "completion"
    group_field: str = (
        ""  # rows with the same value of this field always share a split; of a web archive "url" or "host"
    )
    label_field: str = ""  # the class of a row, for split.stratify and for sampling by class
    tfds_split: str = "train"  # tfds: which of its splits to read
    tfds_dir: str = ""  # tfds: its data_dir; "" is the library's default
    hf_split: str = "train"  # hf: which of its splits to read
    hf_config: str = ""  # hf: which of its configurations; "" is the default or only one
    max_documents: int = 0  # stop after this many documents; 0 reads all
    license: str = ""  # what the manifest, the report and explain say of the source: its licence, as "CC-BY-4.0",
    citation: str = (
        ""  # how it wants to be cited, and where it comes from; "": what the source itself says, if anything.
    )
    url: str = ""  # They are no part of what prepared data are known by
    replay: bool = False  # text of the pretraining: its validation and test documents are held out, and never evaluated
    pair_field: str = ""  # rows with a text: the field of a second one, which is put behind it
    pair_separator: str = "\n"  # and what stands between the two
    prompt_template: str = ""  # choices, label: the prompt, as "{text}\nIntent:" with fields of the row in braces; "": the prompt or the text
    label_words: tuple[
        str, ...
    ] = ()  # label: what is written for a class, as ("spam=junk mail",); for one that is not named, its name
    choices_field: str = "choices"  # choices: the answers that a row offers
    answer_field: str = "answer"  # which of them is right: its number from 0, its letter or its text
    answer_separator: str = " "  # choices, label: stands before an answer, where there is no white space yet


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
    pii_kinds: tuple[str, ...] = DEFAULT_PII_KINDS  # email, phone, id, card, ip, plate; also: ssn, name
    pii_key_env: str = (
        "LM_PII_KEY"  # environment variable with the secret of surrogate and encrypt, 32 characters or more
    )
    min_chars: int = 1  # shorter documents are dropped, with the reason counted
    max_chars: int = 0  # longer documents are dropped; 0: no limit
    near_dedup: float = (
        0.0  # drop documents so alike (Jaccard similarity, 0.8 is usual), and keep those of 0.7 in one split; 0: off
    )
    repeated_lines: int = (
        0  # take lines of 20 characters or more that stand in more documents than this out of all but the first; 0: off
    )
    repeated_unit: str = "line"  # or "paragraph" (blank lines between)
    exact_dedup: bool = True  # drop documents that repeat an earlier one (compared by letters, digits and Han only)
    count_languages: bool = False  # the report tells languages of one script apart, and what_if can keep others; takes a model and 6 % longer

    def tells_languages(self) -> bool:
        """Says whether the language of every document is found by the model, and not by its script alone."""
        return self.count_languages or bool(self.keep_languages)


@dataclass(frozen=True)
class SplitConfig:
    """How documents are dealt to train, validation and test."""

    by: str = (
        "hash"  # "hash": stable hash of the group or the text; "position": first, middle and last part of each text
    )
    validation: float = 0.05  # share of documents (hash) or of characters (position)
    test: float = 0.05
    folds: int = (
        0  # K: what is not test is dealt to K folds, of which `fold` is the validation split; 0: by `validation`
    )
    fold: int = 0  # which one, from 0; -1: none, all folds train
    stratify: bool = False  # every label (label_field) has its share in every split, to within one document
    known: str = (
        ""  # an earlier prepared folder: what it held keeps its split, and new documents make up what is missing
    )
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
    extra_tokens: tuple[str, ...] = ()  # sentencepiece: special tokens to train in besides ours, as "<|fim_prefix|>"


@dataclass(frozen=True)
class ChatConfig:
    """How conversations are written as text; other rows do not care."""

    template: str = ""  # "": the tokenizer's own, or chatml where it has none; chatml | alpaca; or a .jinja file
    date: str = "2026-01-01"  # what templates that print today's date print in training data, so that it never changes


@dataclass(frozen=True)
class AugmentConfig:
    """Changes to the rows of the train split, anew each epoch; a pure function of (seed, epoch, document, place).

    Shares are between 0, which is off, and 1. docs/augmentation.md says of each kind what is learned and what it costs.
    """

    # hide inputs; targets stay
    token_dropout: float = 0.0  # share of input tokens replaced by the mask token
    span_mask: float = 0.0  # share of input tokens in spans that are replaced by the mask token
    span_length: int = 3  # tokens in such a span
    # reorder plain texts
    span_corruption: float = 0.0  # share of chunks that become: write what was taken out (T5, UL2)
    denoisers: tuple[float, ...] = (
        1.0,
        0.0,
        0.0,
    )  # how these are shared out to UL2's kinds: regular, sequential, extreme
    noise_density: float = 0.15  # regular: share of tokens taken out
    noise_length: float = 3.0  # regular: mean tokens of a span
    fill_in_middle: float = 0.0  # share of chunks that become: beginning, end, then the middle
    suffix_first: float = 0.5  # share of these with the end before the beginning (SPM)
    window_shift: bool = False  # chunks of a long text begin elsewhere in each epoch
    # change the words of plain texts and prompts, never answers
    text_share: float = 1.0  # share of chunks that the kinds below act on
    line_paraphrase: float = 0.0  # share of lines replaced, of those that `paraphrases` has
    sentence_shuffle: float = 0.0  # share of lines (paragraphs) whose sentences change places
    word_synonym: float = 0.0  # share of words replaced, of those that `synonyms` has others for
    word_swap: float = 0.0  # share of words that trade places with a neighbour
    word_deletion: float = 0.0  # share of words left out
    word_case: float = 0.0  # share of words in another case
    char_typo: float = 0.0  # share of letters and Chinese characters mistyped
    char_width: float = 0.0  # share of characters in the other width (full or half)
    synonyms: tuple[str, ...] = ()  # files of WORD<TAB>OTHER<TAB>OTHER...
    homophones: str = ""  # such a file of Chinese characters, from which typos are taken
    paraphrases: str = ""  # such a file of lines, as from back-translation
    room: float = 0.05  # share of tokens that changed text may grow by; what goes beyond is cut off
    # which documents, of all kinds
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
    encrypt_key_env: str = (
        ""  # environment variable with a secret of 32 characters or more: prepared data is encrypted; docs/privacy.md
    )
    on_bad: str = "error"  # a bad row: "error" stops, "skip" counts and reports
    max_bad_fraction: float = 0.01  # skip: more bad rows than this stop all the same
    max_line_bytes: int = 16_777_216  # longest line of a text, JSONL or CSV file, web page, or record
    allow_leak: bool = False  # go on although one text is in two splits (pinned splits can do that)
    replay: float = 0.0  # share of rows from sources with replay=True, in place of weights; 0: not used
    task: str = "lm"  # "lm": predict the next token; "classify": predict the label of each text (label_field)
    train_path: str = ""  # in place of path: the train split; without validation_path, validation is dealt from it
    validation_path: str = ""
    test_path: str = ""  # is then the test split, and split.test is 0
    text_template: str = (
        ""  # classify: what stands around each text, as "Customer: {text}\nIntent:", put there after cleaning
    )
    labels: tuple[str, ...] = ()  # classify: the classes in the order of their numbers; (): those of the train split
    class_weights: tuple[
        str, ...
    ] = ()  # classify, train split: ("inverse",) of the documents, ("effective",) number, or ("spam=5", "ham=1")

    def __post_init__(self) -> None:
        if self.train_path and self.test_path:
            object.__setattr__(self, "split", replace(self.split, test=0.0))

    def named_sources(self) -> dict[str, SourceConfig]:
        """The sources by name; `path`, or `train_path` and its kin, stand in their place."""
        source = SourceConfig(label_field="label" if self.task == "classify" else "")
        if self.path:
            return {"data": replace(source, path=self.path)}
        if not self.train_path:
            return self.sources
        dealt = replace(source, path=self.train_path, split="train" if self.validation_path else "")
        more = (("validation", self.validation_path), ("test", self.test_path))
        return {"train": dealt} | {name: replace(source, path=path, split=name) for name, path in more if path}

    def is_named(self) -> bool:
        """Says whether there is anything to read."""
        return bool(self.path or self.train_path or self.sources or self.prepared)

    def key_of(self, source: str) -> str:
        """The key that says where a source lies."""
        if self.path:
            return "config.data.path"
        return f"config.data.{source}_path" if self.train_path else f"config.data.sources.{source}.path"
