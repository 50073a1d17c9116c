"""Where does a run begin when `init.source` names an open-weight model: `hf:FOLDER`, `hf:ORG/NAME@REVISION`, `gguf:FILE`?

The model's architecture and tokenizer then follow the source; how it is computed (dtype, attention, scan, remat, dropout)
stays with the config.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm.config import Config, ConfigError, InitConfig, ModelConfig, UserError, from_mapping
from lm.hf.families import class_names, read_config

ORIGIN = "hf_origin.json"  # in a workdir
KINDS = ("hf:", "gguf:")
# What a config decides, whatever the source is. All other keys of `model` follow the source.
OWN = {"init_std", "init_out", "dropout", "attention", "dtype", "scan", "remat", "classes", "pooling"}
FOLLOWS = [field.name for field in dataclasses.fields(ModelConfig) if field.name not in OWN]
FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]  # of a hub repository


@dataclass(frozen=True)
class Foreign:
    """An open-weight model on this disk."""

    place: Path  # the folder, or the GGUF file
    family: str
    model: ModelConfig
    fields: dict[str, Any]  # config.json

    @property
    def labels(self) -> tuple[str, ...]:
        """What a classifier tells apart, in the order of its numbers; () of a language model."""
        return class_names(self.fields)


def is_foreign(source: str) -> bool:
    return source.startswith(KINDS)


@functools.cache  # a run asks several times; a branch on the hub could move in between
def find_foreign(source: str) -> Foreign:
    """Reads what `hf:...` or `gguf:...` is, without its weights; a name that is no folder is asked of the hub."""
    kind, _, name = source.partition(":")
    if not name:
        raise UserError(f"name a model after {source!r}: --config.init.source=hf:FOLDER (or hf:ORG/NAME, gguf:FILE)")
    if kind == "gguf":
        from lm.hf.gguf_file import open_gguf

        tensors, fields = open_gguf(name)
        tensors.close()
        place = Path(name)
    else:
        place = find_folder(name)
        fields = read_json(place / "config.json")
    family, model = read_config(fields)
    return Foreign(place, family, replace(model, classes=len(class_names(fields))), fields)


def find_folder(name: str) -> Path:
    """The folder of that name, or the hub's snapshot of it, whose last part is the commit."""
    if Path(name).is_dir():
        return Path(name)
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if not hub or name.startswith((".", "/")):
        raise UserError(f"{name} is no folder, and no name of a model on the hub (ORG/NAME, ORG/NAME@REVISION) either")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{name} is no folder here, and to download a model huggingface_hub is needed: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(hub[1], revision=hub[2], allow_patterns=FILES))
    except Exception as error:  # it raises its own, requests' and httpx's kinds
        raise UserError(
            f"{name} is no folder here and could not be had from the hub: {' '.join(str(error).split())[:300]}"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a folder that transformers' save_pretrained wrote") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return found


def follow_source(config: Config, workdir: Path | None = None) -> Config:
    """Returns the config with the architecture and tokenizer of its `init.source`.

    Those of a run of ours are taken where the config names none. A run in `workdir` that was begun from the same source is followed instead: it goes on without the source's files.
    Raises ConfigError for a model key that says something else than the source.
    """
    source = config.init.source
    if not is_foreign(source):
        return _follow_run(config, source)
    saved = saved_config(workdir)
    if saved and saved.init.source == source:
        model, place = saved.model, saved.data.tokenizer.path
    else:
        found = find_foreign(source)
        model, place = found.model, str(found.place)
        if found.place.is_file() and not config.data.tokenizer.path:
            place = str(_unpack_tokenizer(found.place, workdir))
    default = ModelConfig()
    problems = [
        f"config.model.{key}: {getattr(config.model, key)!r}, but {source} has {getattr(model, key)!r}: leave it out, "
        "as configs/finetune_hf.py does"
        for key in FOLLOWS
        if getattr(config.model, key) not in (getattr(default, key), getattr(model, key))
    ]
    if problems:
        raise ConfigError(problems)
    model = replace(config.model, **{key: getattr(model, key) for key in FOLLOWS})
    tokenizer = config.data.tokenizer
    if not tokenizer.path:
        tokenizer = replace(tokenizer, kind="auto", path=place)
    return replace(config, model=model, data=replace(config.data, tokenizer=tokenizer))


def _follow_run(config: Config, source: str) -> Config:
    theirs = saved_config(Path(source)) if source else None
    if theirs is None:
        return config
    default, model = ModelConfig(), config.model
    if all(getattr(model, key) == getattr(default, key) for key in FOLLOWS):
        max_len = theirs.model.max_len or (theirs.data.seq_len if theirs.model.position == "learned" else 0)
        followed = {key: getattr(theirs.model, key) for key in FOLLOWS} | {"max_len": max_len}
        model = replace(model, **followed)
    if theirs.model.classes and not reads_anew(config.init):  # the head was learned on what it reads
        model = replace(model, pooling=theirs.model.pooling)
    tokenizer = config.data.tokenizer
    if not tokenizer.path:
        tokenizer = replace(tokenizer, kind="auto", path=str(Path(source) / "tokenizer"))
    return replace(config, model=model, data=replace(config.data, tokenizer=tokenizer))


def reads_anew(init: InitConfig) -> bool:
    """Says whether a classifier begins with a new head whatever its source has."""
    try:
        return any(re.fullmatch(pattern, "classifier") for pattern in init.fresh)
    except re.error:  # lm/check.py lists it
        return False


def _unpack_tokenizer(file: Path, workdir: Path | None) -> Path:
    """Writes a GGUF file's tokenizer as a folder in `workdir`, once."""
    from lm.hf.gguf_tokenizer import write_gguf_tokenizer

    if workdir is None:
        raise ConfigError(f"config.data.tokenizer.path: needs a folder with the tokenizer of {file}")
    folder = workdir / "gguf_tokenizer"
    if not folder.is_dir():
        workdir.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=workdir, prefix=".gguf_tokenizer"))
        write_gguf_tokenizer(file, half)
        with contextlib.suppress(OSError):  # another process was first
            half.rename(folder)
        shutil.rmtree(half, ignore_errors=True)
    return folder


def keep_origin(source: str, workdir: Path) -> None:
    """Leaves in `workdir` what an export needs to know of the open-weight model that the run goes back to, if to any."""
    path, earlier = workdir / ORIGIN, Path(source) / ORIGIN
    if path.exists():
        return
    if is_foreign(source):
        found = find_foreign(source)
        path.write_text(
            json.dumps({"source": source, "place": str(found.place), "config": found.fields}, indent=1) + "\n"
        )
    elif source and earlier.is_file():
        path.write_bytes(earlier.read_bytes())


def read_origin(workdir: Path) -> dict[str, Any]:
    """The config.json that a run goes back to; {} where it was begun from nothing."""
    return read_json(workdir / ORIGIN)["config"] if (workdir / ORIGIN).is_file() else {}


def saved_config(workdir: Path | None) -> Config | None:
    """The config of the run in `workdir`, if there is one that this code can read."""
    if workdir is None or not (workdir / "config.json").is_file():
        return None
    try:
        return from_mapping(Config, read_json(workdir / "config.json"))
    except UserError:
        return None  # damaged or of another version: whoever needs it says so


def same_model(one: ModelConfig, other: ModelConfig) -> bool:
    """Says whether two configs compute the same, whatever stands for a default in them."""

    def resolved(model: ModelConfig) -> dict[str, Any]:
        model = replace(model, kv_heads=model.n_kv_heads, head_dim=model.q_head_dim, mlp_dim=model.mlp_width)
        model = replace(model, max_len=model.max_len if model.position == "learned" else 0)
        base = model.base_dim if model.width_multiplier != 1 else 0
        model = replace(model, attn_scale=model.score_scale, base_dim=base, base_head_dim=0)
        if not model.experts:
            model = replace(model, experts_per_token=0, expert_norm=False)
        return {key: getattr(model, key) for key in FOLLOWS}

    return resolved(one) == resolved(other)
