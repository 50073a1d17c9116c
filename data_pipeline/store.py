"""What is in a folder of prepared data, is it whole, and how is it written so that a crash leaves nothing half made?

00.train.ids.npy         ids of all documents of source 0, one after the other (uint16, or uint32 above 65,536 ids)
00.train.offsets.npy     where each document begins, and the end
00.train.loss_start.npy  ids before the completion, or -1 for a plain text, or -2 for a conversation
00.train.learned.npy     where there are conversations: 1 for each id that an assistant said
00.train.keys.npy        64 bits that name the document
00.train.origins.npy     which of the files in 00.train.files.json it is from, and its line there; no part of what batches are read from
00.train.places.npy      streaming, in place of ids: where each document lies in its source
00.train.sizes.npy       and its bytes of text; no part of what batches are read from
tokenizer/  ledger.jsonl  documents.parquet  report.json  report.md
report.html              report.json to look at, with the licences of the sources: made anew when these change, and not signed
made_of.json             where files are encrypted: what made them, which the manifest does not show then
manifest.json            what made it, counts, size and sha256 of every other file, and its own sha256; written last
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import hmac
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import sealed
from data_pipeline.lines import hash_file
from data_pipeline.machine import sync
from data_pipeline.schema import UserError
from data_pipeline.tokenizer import Tokenizer, load_tokenizer

MANIFEST, MADE_OF, VIEW = "manifest.json", "made_of.json", "report.html"
HIDDEN = ("made_of", "inputs")  # of the manifest, where files are encrypted
STALE_SECONDS = 86_400.0  # a temporary folder in which nothing was written for so long is a leftover of a killed run


@dataclass(frozen=True)
class Shard:
    """The documents of one source in one split; ids lie on disk and are read when used: arrays, or sealed.SealedArray."""

    ids: Any
    offsets: np.ndarray
    loss_start: np.ndarray
    keys: np.ndarray
    learned: Any = None
    labels: np.ndarray | None = None  # of each document the number of its name in label_names


class Prepared:
    """An opened folder of prepared data."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self.sources: list[str] = [entry["name"] for entry in manifest["sources"]]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:  # the check of hashes has found its files whole
        return load_tokenizer(self.folder / "tokenizer")

    def shard(self, source: int, split: str) -> Shard:
        stem = f"{source:02d}.{split}."
        ids = sealed.open_npy(self.folder / f"{stem}ids.npy")
        offsets, starts, keys = (
            load_array(self.folder / f"{stem}{name}.npy") for name in ("offsets", "loss_start", "keys")
        )
        path = self.folder / f"{stem}learned.npy"
        learned = sealed.open_npy(path) if path.exists() else None
        labels = load_array(self.folder / f"{stem}labels.npy") if self.label_names(source, split) else None
        return Shard(ids, offsets, starts, keys, learned, labels)

    def label_names(self, source: int, split: str) -> list[str]:
        """The names of the labels in a shard, in no order that means anything; none where its rows have no label."""
        path = self.folder / f"{source:02d}.{split}.labels.json"
        return json.loads(sealed.read_bytes(path)) if path.exists() else []

    def has_shard(self, source: int, split: str) -> bool:
        return f"{source:02d}.{split}.ids.npy" in self.manifest["files"]

    def origins(self, source: int, split: str) -> tuple[list[str], np.ndarray]:
        """Returns (files, [documents, 2]): of each document the number of its file and its line there, 0 for all of it."""
        stem = f"{source:02d}.{split}."
        files = json.loads(sealed.read_bytes(self.folder / f"{stem}files.json"))
        return files, load_array(self.folder / f"{stem}origins.npy")

    def places(self, source: int, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns (places int64 [documents, 4], keys uint64, bytes of text int64, labels or None) of a source that is streamed."""
        stem = f"{source:02d}.{split}."
        places, keys, sizes = (load_array(self.folder / f"{stem}{name}.npy") for name in ("places", "keys", "sizes"))
        labels = load_array(self.folder / f"{stem}labels.npy") if self.label_names(source, split) else None
        return places, keys, sizes, labels

    def content_sha256(self) -> dict[str, str]:
        """Returns the hash of every file that batches are read from, the same whether it is encrypted or not."""
        return self.manifest.get("content") or _content(
            {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        )


def _content(hashes: dict[str, str]) -> dict[str, str]:
    read, apart = (".npy", ".labels.json"), (".origins.npy", ".sizes.npy")
    return {name: hashes[name] for name in hashes if name.endswith(read) and not name.endswith(apart)}


def save_array(path: Path | str, array: np.ndarray) -> None:
    with sealed.open_to_write(path) as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path) -> np.ndarray:
    with sealed.open_to_read(path) as file:
        return np.load(file)


def open_prepared(folder: Path, key_env: str = "") -> Prepared | str:
    """Opens a folder after checking size and sha256 of every file; returns what is wrong with it otherwise.

    With `key_env`, the environment variable of a key, it must be encrypted; without, the variable it names itself is used.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest.pop("sha256") != _digest(manifest):
            return f"{MANIFEST} has changed (sha256)"
        files = manifest["files"].items()
        encrypted = manifest.get("encrypted")
        if encrypted:
            encrypted = {name: str(encrypted[name]) for name in ("key_env", "key_check", "code")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    if problem := _unlock(folder, manifest, encrypted, key_env):
        return problem
    for name, entry in files:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {entry['bytes']}"
        if hash_file(path) != entry["sha256"]:
            return f"{name} has changed (sha256)"
    if encrypted:
        manifest |= json.loads(sealed.read_bytes(folder / MADE_OF))
    return Prepared(folder, manifest)


def _unlock(folder: Path, manifest: dict[str, Any], encrypted: dict[str, str] | None, key_env: str) -> str:
    """Makes the files of a folder readable; returns what is wrong with it or with the key."""
    if not encrypted:
        sealed.seal(folder, None)
        return f"is not encrypted, as config.data.encrypt_key_env={key_env!r} asks for" if key_env else ""
    try:
        vault = sealed.Vault(key_env or encrypted["key_env"])
    except UserError as error:
        return f"is encrypted, and {error}"
    if vault.check != encrypted["key_check"]:
        return f"was encrypted with another key than the one in the environment variable {vault.variable}"
    shown = {**manifest, "encrypted": {k: v for k, v in manifest["encrypted"].items() if k != "code"}}
    if not hmac.compare_digest(_sign(vault, shown), encrypted["code"]):
        return f"{MANIFEST} was changed by somebody without the key (authentication code)"
    sealed.seal(folder, vault)
    return ""


def _sign(vault: sealed.Vault, manifest: dict[str, Any]) -> str:
    return vault.sign("manifest", json.dumps(manifest, sort_keys=True).encode())


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def make_temporary(cache_dir: Path, key: str) -> Path:
    """Makes a folder to write in, beside the final one; removes those that killed runs left behind long ago."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        for old in cache_dir.glob(".tmp-*"):
            with contextlib.suppress(FileNotFoundError):  # another process was first
                newest = max(path.stat().st_mtime for path in [old, *old.rglob("*")])
                if time.time() - newest > STALE_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f".tmp-{key}-", dir=cache_dir))
    except OSError as error:
        raise explain_write(f"config.data.cache_dir={str(cache_dir)!r}", error) from None


def explain_write(key: str, error: OSError) -> UserError:
    reason = "no space left on the disk" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return UserError(f"{key}: cannot write prepared data: {reason}; name another folder")


def commit(temporary: Path, folder: Path, manifest: dict[str, Any]) -> Prepared:
    """Signs what lies in `temporary`, makes it durable and renames it to `folder`, or uses what another process put there."""
    found = sealed.vault_of(temporary)
    if found:
        content = _content({name: sealed.settle(temporary / name) for name in _names(temporary)})
        hidden = {"content": content, **{key: manifest.pop(key) for key in HIDDEN if key in manifest}}
        write_text(temporary / MADE_OF, [json.dumps(hidden)])
        sealed.settle(temporary / MADE_OF)
    names = [name for name in _names(temporary) if name != VIEW]
    manifest["files"] = {
        name: {"bytes": (temporary / name).stat().st_size, "sha256": hash_file(temporary / name)} for name in names
    }
    key_env = found[0].variable if found else ""
    sealed.seal(temporary, None)
    _write_manifest(temporary, manifest, found[0] if found else None)
    for path in [*(temporary / name for name in names), temporary / "tokenizer", temporary]:
        sync(path)
    for _ in range(3):
        try:
            os.rename(temporary, folder)
            sync(folder.parent)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            theirs = open_prepared(folder, key_env)
            if isinstance(theirs, Prepared):
                shutil.rmtree(temporary, ignore_errors=True)
                return theirs
            set_aside(folder)
    ours = open_prepared(folder, key_env)
    if isinstance(ours, str):
        raise UserError(f"{folder}: {ours} just after it was written; is the disk failing?")
    return ours


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def resign(prepared: Prepared, changes: dict[str, Any]) -> None:
    """Replaces the manifest by one with `changes` to keys that say nothing of the other files."""
    found = sealed.vault_of(prepared.folder)
    prepared.manifest |= changes
    left_out = ("encrypted", "content", *HIDDEN) if found else ()
    manifest = {key: value for key, value in prepared.manifest.items() if key not in left_out}
    _write_manifest(prepared.folder, manifest, found[0] if found else None)


def _write_manifest(folder: Path, manifest: dict[str, Any], vault: sealed.Vault | None) -> None:
    """Signs and writes manifest.json, which lies in clear, in one go."""
    if vault:
        manifest["encrypted"] = {"cipher": sealed.CIPHER, "key_env": vault.variable, "key_check": vault.check}
        manifest["encrypted"]["code"] = _sign(vault, manifest)
    signed = {**manifest, "sha256": _digest(manifest)}
    aside = folder / f"{MANIFEST}.tmp-{os.getpid()}"
    with open(aside, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(signed, indent=1, ensure_ascii=False) + "\n")
    sync(aside)
    os.replace(aside, folder / MANIFEST)


def set_aside(folder: Path) -> None:
    """Removes a damaged folder; the rename first makes sure that nobody reads a half-removed one."""
    aside = Path(tempfile.mkdtemp(prefix=".tmp-damaged-", dir=folder.parent))
    with contextlib.suppress(FileNotFoundError):  # another process was first
        os.rename(folder, aside / "old")
    shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, lines: Iterable[str]) -> None:
    # a file name that is not UTF-8 comes as lone surrogates, which JSON writes as backslashes too
    with sealed.open_to_write(path) as file:
        for line in lines:
            file.write((line + "\n").encode("utf-8", "backslashreplace"))
    sync(path)
