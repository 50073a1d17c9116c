"""How do sources become a folder of token ids that is made once and used by every run with the same text and rules?

The folder's name is a hash of what made it: the bytes of the sources, the rules and their code, the split, the tokenizer. Row length,
batch size, packing, mixture weights, seed and augmentation are no part of it; they only order what is there.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import itertools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline import sealed
from data_pipeline.accounts import Accounts
from data_pipeline.augment.check import check_augment
from data_pipeline.augment.mask import is_masking
from data_pipeline.chat import template_source
from data_pipeline.config import SPLITS, DataConfig, SourceConfig
from data_pipeline.dedup.stages import Each
from data_pipeline.documents import Documents
from data_pipeline.lines import hash_file
from data_pipeline.machine import release_memory
from data_pipeline.prepare.deal import DEALT, NAMES, known_sha256
from data_pipeline.prepare.decide import DECIDE, Tally, decide, read_fate
from data_pipeline.prepare.encode import ENCODE, encode_part, join_parts, train_texts
from data_pipeline.prepare.join import read_samples, show_clusters, write_documents
from data_pipeline.prepare.manifest import about, totals
from data_pipeline.prepare.read import (
    PART_BYTES,
    READ,
    evaluation_sets,
    evaluation_source,
    read_arrays,
    read_labels,
    read_part,
)
from data_pipeline.prepare.repeated import LINES, TABLE
from data_pipeline.prepare.samples import merge
from data_pipeline.prepare.stages import Context, run_stage
from data_pipeline.prepare.write import PlacesWriter
from data_pipeline.records import CREDITS, Named, Part, Source, credit
from data_pipeline.report import format_report, recredit, write_view
from data_pipeline.rules.pii_cipher import read_key
from data_pipeline.scan import document_key
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.sources import open_sources
from data_pipeline.store import (
    Prepared,
    commit,
    explain_write,
    make_temporary,
    open_prepared,
    set_aside,
    write_text,
)
from data_pipeline.tasks import check_tokenizer
from data_pipeline.tokenizer import STAND_IN, Tokenizer
from data_pipeline.train_tokenizer import find_tokenizer, train_tokenizer

Log = Callable[[str], None]
TRAINING = "training a"  # how the line of the log begins
Spread = Callable[
    [Path], Each
]  # gives, for a folder that all who work see, what does the work in place of processes here
# Prepared data is made anew when the code of one of these changes: a version number would be forgotten. Runs that use data
# whose content stays the same are not affected, since their fingerprint is of the content.
CODE = (
    "array_records", "built_in_templates", "chat", "chat_template", "choices", "clean", "conversation", "documents", "example",
    "fields", "find_files", "forms", "hf_dataset", "hf_folder", "hf_tokenizer", "html_file", "http_message", "line_file", "lines", "marks", "mix",
    "package_source", "packed", "page", "page_encoding", "page_process", "parse", "records", "row_file", "scan", "sealed",
    "sentencepiece_tokenizer", "sources", "split", "store", "tables", "tasks", "tfds_source", "tfrecord", "tokenizer",
    "train_tokenizer", "warc",
)  # fmt: skip


@dataclass(frozen=True)
class Given:
    """A source of data that are prepared; only its weight and name still count."""

    name: str
    config: SourceConfig


def open_given(config: DataConfig) -> tuple[Prepared, Sequence[Named]]:
    """Opens the folder `config.prepared`; UserError where it is damaged, ConfigError where it was made for another configuration."""
    found = open_prepared(Path(config.prepared).expanduser(), config.encrypt_key_env)
    if isinstance(found, str):
        raise UserError(f"config.data.prepared={config.prepared!r}: {found}")
    made_of = found.manifest["made_of"]
    pairs = (
        ("add_bos", config.add_bos, made_of["add_bos"]), ("split.by", config.split.by, made_of["split"]["by"]),
        ("text_template", config.text_template, made_of.get("text_template", "")),
    )  # fmt: skip
    problems = [
        f"config.data.{key}={now!r}, but {config.prepared} was prepared with {then!r}; set it to that, or prepare again"
        for key, now, then in pairs
        if now != then
    ]
    wanted = find_tokenizer(config.tokenizer) if config.tokenizer.path else None
    if wanted and wanted.sha256 != found.tokenizer.sha256:
        problems.append(
            f"config.data.tokenizer.path={config.tokenizer.path!r} is another tokenizer than the one {config.prepared} was "
            "prepared with; prepare it again with this one"
        )
    if made_of["streaming"]:
        problems.append(f"config.data.prepared={config.prepared!r} was prepared for streaming; prepare it without")
    if problems:
        raise ConfigError(problems)
    return found, [Given(name, config.sources.get(name, SourceConfig(path=name))) for name in found.sources]


def prepare(config: DataConfig, log: Log) -> tuple[Prepared, Sequence[Named]]:
    """Returns the prepared data of `config`, made now or taken from the cache or the folder it names, and its sources."""
    if config.prepared:
        return open_given(config)
    sources = open_sources(config, log)
    tokenizer = find_tokenizer(config.tokenizer)
    assert tokenizer or not config.streaming  # data_pipeline/check.py
    made_of, key = _made_of(config, sources, tokenizer)
    cache = Path(config.cache_dir).expanduser()
    folder = cache / key
    if folder.exists():
        found = open_prepared(folder, config.encrypt_key_env)
        if isinstance(found, Prepared):
            return recredit(found, credit(sources)), sources
        log(f"prepared data in {folder} is damaged: {found}; making it anew")
        set_aside(folder)
    temporary = make_temporary(cache, key)
    try:
        report = run_stages(config, sources, tokenizer, temporary / "new", temporary / "work", 1, log)
        return _commit(temporary / "new", folder, {"key": key, "made_of": made_of} | report, sources), sources
    except OSError as error:
        raise explain_write(f"config.data.cache_dir={str(cache)!r}", error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prepare_to(out: Path, config: DataConfig, workers: int, log: Log, spread: Spread | None = None) -> Prepared:
    """Prepares into the folder `out`; what a killed run has done already is not done again, whoever did it.

    Raises UserError where `out` holds anything else, or another process is at it.
    """
    sources = open_sources(config, log)
    tokenizer = find_tokenizer(config.tokenizer)
    made_of, key = _made_of(config, sources, tokenizer)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = open_prepared(out, config.encrypt_key_env)
        if isinstance(found, Prepared) and found.manifest["key"] == key:
            log(f"{out} is prepared already")
            return recredit(found, credit(sources))
        what = found if isinstance(found, str) else "it was made of other sources, rules or settings"
        raise UserError(f"--out={out} holds something else ({what}); name another folder, or delete it")
    work = out.parent / f".{out.name}.{key}"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with open(work / "lock", "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process prepares {out} now; wait for it") from None
            shutil.rmtree(work / "new", ignore_errors=True)
            report = run_stages(config, sources, tokenizer, work / "new", work / "work", workers, log, spread)
            prepared = _commit(work / "new", out, {"key": key, "made_of": made_of} | report, sources)
        shutil.rmtree(work, ignore_errors=True)
        return prepared
    except OSError as error:
        raise explain_write(f"--out={out}", error) from None


def _commit(new: Path, folder: Path, manifest: dict[str, Any], sources: list[Source]) -> Prepared:
    manifest["credits"] = credit(sources)
    write_view(new, manifest["credits"])
    return commit(new, folder, manifest)


def _made_of(config: DataConfig, sources: list[Source], tokenizer: Tokenizer | None) -> tuple[dict[str, Any], str]:
    """Everything that the content of the folder depends on, as JSON, and its hash."""
    import sentencepiece

    described = []
    for source in sources:
        keys = asdict(source.config)
        # the same bytes elsewhere, more often, or of whom
        for name in ("path", "weight", "epochs", "max_epochs", "replay", "tfds_dir", *CREDITS):
            del keys[name]
        described.append([source.name, keys, source.identity()])
    here = Path(__file__).parents[1]
    folders = (sorted(here.glob(f"{name}/*.py")) for name in ("dedup", "prepare", "rules"))
    files = [*(here / f"{name}.py" for name in CODE), *itertools.chain(*folders)]
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    trained = {k: v for k, v in asdict(config.tokenizer).items() if k != "path"}
    made_of = {
        "code": code.hexdigest(), "sources": described, "clean": {**asdict(config.clean), **_outside(config)},
        "split": {**asdict(config.split), "known": ""}, "add_bos": config.add_bos, "streaming": config.streaming,
        "bad_rows": [config.on_bad, config.max_bad_fraction, config.max_line_bytes, config.allow_leak],
        "chat": [template_source(tokenizer or STAND_IN, config.chat)[0], config.chat.date],
        "tokenizer": tokenizer.sha256 if tokenizer else [trained, sentencepiece.__version__],
    }  # fmt: skip
    if config.text_template:
        made_of["text_template"] = config.text_template
    return made_of, hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _outside(config: DataConfig) -> dict[str, Any]:
    """What the rules depend on besides the configuration: files of bad words and evaluation sets; of a key a trace, not the key."""
    clean = config.clean
    sets = evaluation_source(clean.decontaminate, config.max_line_bytes).identity() if clean.decontaminate else []
    keyed = clean.pii in ("surrogate", "encrypt")
    trace = hmac.digest(read_key(clean.pii_key_env), b"lm prepared data", "sha256").hex()[:16] if keyed else ""
    vault = sealed.open_vault(config.encrypt_key_env)
    words = hash_file(clean.bad_words) if clean.bad_words else ""
    key = {"encrypt_key": vault.check} if vault else {}
    return {"bad_words": words, "decontaminate": sets, "pii_key": trace, "known": known_sha256(config), **key}


def run_stages(
    config: DataConfig, sources: list[Source], tokenizer: Tokenizer | None, folder: Path, work: Path, workers: int, log: Log,
    spread: Spread | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Runs the stages in `work` and writes what is prepared to `folder`; returns its report."""
    began = time.monotonic()
    folder.mkdir()
    work.mkdir(exist_ok=True)
    for place in (folder, work):
        sealed.seal(place, sealed.open_vault(config.encrypt_key_env))
    given = None
    if tokenizer:
        given = work / "given"
        tokenizer.save(given)
    context = Context(work, config=config, sources=sources, tokenizer=given)
    context.loaded[given] = tokenizer
    context.spread = spread(work) if spread else None
    if config.clean.decontaminate:
        index = evaluation_sets(context)
        short = f"; {index.too_short:,} are too short to be told from chance" if index.too_short else ""
        log(f"looking for {len(index.items):,} items of evaluation sets{short}")
    tasks, template, tallies = select(context, workers, log)
    _write_ledger(context, len(tasks), folder)
    for name in (NAMES, DEALT, *[TABLE] * config.streaming):
        if (work / name).exists():
            sealed.copy(work / name, folder / name)
    tokenizer = tokenizer or _train(context, tasks, log)
    if template:
        tokenizer.template = template  # whoever loads the tokenizer writes conversations the same way
    tokenizer.save(work / "tokenizer")
    check_tokenizer(tokenizer, config.add_bos, config.split.by == "hash", is_masking(config.augment))
    check_augment(config.augment, tokenizer)
    context.loaded[work / "tokenizer"] = tokenizer
    sizes = [part.size for _, part in tasks]
    encoded = run_stage(context, ENCODE, encode_part, tasks, sizes, workers, log, "encoding")
    release_memory()
    tokenizer.save(folder / "tokenizer")
    entries = []
    for number, source in enumerate(sources):
        here = [i for i, (owner, _) in enumerate(tasks) if owner == number]
        entry: dict[str, Any] = {"name": source.name, **tallies[number].to_json(), "splits": {}}
        for split in SPLITS:
            if any(split in encoded[i] for i in here):
                counts = join_parts(context, number, split, here, folder, tokenizer.vocab_size)
                entry["splits"][split] = {**counts, "bytes": sum(encoded[i].get(split, 0) for i in here)}
        if config.streaming and tallies[number].kept["train"]:
            _write_places(context, here, folder, number)
        entries.append(entry)
    write_documents(context, len(tasks), folder)
    accounts = Accounts(Documents(folder))
    known = {**totals(entries, sum(sizes)), "sources": entries, **about(config, sources, tokenizer, accounts)}
    shown = {"shapes": accounts.shapes(), "samples": merge(read_samples(context, len(tasks))),
             "settings": {"clean": asdict(config.clean), "split": asdict(config.split)}, "clusters": show_clusters(context, tasks, accounts.clusters)}  # fmt: skip
    known["seconds"] = round(time.monotonic() - began, 2)
    write_text(folder / "report.json", [json.dumps({**known, **shown}, indent=1, ensure_ascii=False)])
    write_text(folder / "report.md", format_report(entries, tokenizer, known["languages"]))
    return known


def select(context: Context, workers: int, log: Log) -> tuple[list[tuple[int, Part]], str | None, list[Tally]]:
    """Reads all sources and decides what stays: the parts, the chat template where there are conversations, the tallies."""
    tasks = [
        (number, part) for number, source in enumerate(context.held["sources"]) for part in source.parts(PART_BYTES)
    ]
    sizes = [part.size for _, part in tasks]
    answers = run_stage(context, READ, read_part, tasks, sizes, workers, log, "reading")
    template = next((answer["template"] for answer in answers if answer["template"]), None)
    return tasks, template, decide(context, tasks, answers, workers, log)


def _train(context: Context, tasks: list[tuple[int, Part]], log: Log) -> Tokenizer:
    """Trains a tokenizer on the train split."""
    config: DataConfig = context.held["config"]
    total = 0
    for number in range(len(tasks)):
        total += int(read_arrays(context, number, "chars")["chars"][read_fate(context, number) & 1 == 1].sum())
    if not total:
        raise UserError("no document is in the train split, so there is nothing to train a tokenizer on")
    limit = total if config.tokenizer.kind == "char" else config.tokenizer.train_chars
    log(f"{TRAINING} {config.tokenizer.kind} tokenizer on {min(total, limit):,} of {total:,} characters")
    tokenizer = train_tokenizer(config.tokenizer, train_texts(context, tasks, total, limit))
    release_memory()  # sentencepiece frees 200 MB that the encoding of any corpus would add to
    return tokenizer


def _write_ledger(context: Context, parts: int, folder: Path) -> None:
    with sealed.open_to_write(folder / "ledger.jsonl") as file:
        for number in range(parts):
            for path in (context.path(stage, number, "ledger") for stage in (READ, DECIDE, LINES)):
                if path.exists():
                    with sealed.open_to_read(path) as part:
                        shutil.copyfileobj(part, file)


def _write_places(context: Context, numbers: list[int], folder: Path, source: int) -> None:
    """Where the training documents of a source lie, for streaming, with their sizes and labels."""
    training = [read_fate(context, number) & 1 == 1 for number in numbers]
    labelled = bool(context.held["sources"][source].config.label_field)
    writer = PlacesWriter(folder, source, "train", sum(int(here.sum()) for here in training), labelled)
    for number, here in zip(numbers, training):
        arrays, labels = (
            read_arrays(context, number, "place", "key", "bytes"),
            list(itertools.compress(read_labels(context, number), here.tolist())),
        )
        keys = [document_key(key.tobytes(), "train") for key in arrays["key"][here]]
        writer.add(arrays["place"][here], keys, arrays["bytes"][here], labels)
    writer.close()
