"""Which files does a source name, and what is each?"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipeline.config import SourceConfig
from data_pipeline.hf_dataset import find_split, is_saved
from data_pipeline.schema import UserError

SUFFIXES = {
    "text": (".txt", ".text"),
    "markdown": (".md", ".markdown"),
    "html": (".html", ".htm", ".xhtml"),
    "jsonl": (".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather"),
    "warc": (".warc", ".wet"),
    "tfrecord": (".tfrecord", ".tfrecords"),
    "arrayrecord": (".array_record", ".arrayrecord"),
}
PACKED = (".gz", ".zst")
SHARD = re.compile(r"-(\d{5,})-of-(\d{5,})")  # one file of several: a-00000-of-00010.parquet, a.tfrecord-00000-of-00010
SPECIAL = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip
Log = Callable[[str], None]


def find_files(config: SourceConfig, key: str, log: Log) -> list[tuple[str, str]]:
    """Returns (path, kind) of every file that a source names, sorted; raises UserError naming the key."""
    path = Path(config.path).expanduser()
    if config.kind == "hf" or (config.kind in ("auto", "arrow") and path.is_dir() and is_saved(path)):
        paths = find_split(config, key)
        return _with_kinds(paths, "jsonl" if all(p.endswith(".json") for p in paths) else "auto", key)
    if path.is_dir():
        return _in_folder(path, config, key, log)
    if path.is_file():
        paths = [str(path)]
    else:
        found = sorted(glob.glob(str(path), recursive=True))
        paths = [p for p in found if Path(p).is_file()]
        for what in filter(None, (_special(Path(p)) for p in found if glob.has_magic(str(path)))):
            log(f"warning: {key}: {what}, and is left out")
        if not paths and glob.has_magic(str(path)):
            raise UserError(f"{key}: {config.path!r} matches no files")
        if not paths:
            raise UserError(f"{key}: {_special(path) or f'no such file or folder: {config.path!r}'}")
        _warn_of_gaps(paths, key, log)
    return _with_kinds(paths, config.kind, key)


def kind_by_name(path: str) -> str:
    """Returns the kind that a file's name says, or "".

    >>> kind_by_name("a/b.warc.wet.gz"), kind_by_name("c.tfrecord-00000-of-00010"), kind_by_name("d.png")
    ('warc', 'tfrecord', '')
    """
    name = path.lower()
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    name = re.sub(SHARD.pattern + "$", "", name)
    return next((kind for kind, suffixes in SUFFIXES.items() if name.endswith(suffixes)), "")


def _with_kinds(paths: list[str], kind: str, key: str) -> list[tuple[str, str]]:
    kinds = [kind if kind != "auto" else kind_by_name(p) for p in paths]
    for p, kind in zip(paths, kinds):
        if not kind:
            known = ", ".join(SUFFIXES)
            raise UserError(f"{key}: cannot tell what {p!r} is by its name; give it a source with kind= one of {known}")
    return list(zip(paths, kinds))


def _in_folder(path: Path, config: SourceConfig, key: str, log: Log) -> list[tuple[str, str]]:
    found = sorted(_walk(path, key, log))
    known = [(p, kind) for p in found if (kind := kind_by_name(p)) and config.kind in ("auto", kind)]
    wanted = "readable" if config.kind == "auto" else config.kind
    if not known:
        suffixes = ", ".join(s for kind, group in SUFFIXES.items() for s in group if config.kind in ("auto", kind))
        raise UserError(f"{key}: folder {config.path!r} holds no {wanted} files (names that end in {suffixes})")
    if len(known) < len(found):
        log(f"{key}: reads {len(known)} {wanted} files of {config.path}; {len(found) - len(known)} others left out")
    _warn_of_gaps([p for p, _ in known], key, log)
    return known


def _walk(folder: Path, key: str, log: Log) -> Iterator[str]:
    """Yields the files below a folder but hidden ones; a part of it that cannot be read is an error, not a smaller corpus."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{key}: {error.filename}: {error.strerror}")

    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for link in filter(os.path.islink, (os.path.join(here, name) for name in folders)):
            log(f"warning: {key}: {link} is a link to a folder and is not followed")
        for path in (Path(here, name) for name in files if not name.startswith(".")):
            if path.is_file():
                yield str(path)
            elif what := _special(path):
                log(f"warning: {key}: {what}, and is left out")
            else:  # a link to nothing
                raise UserError(f"{key}: {path}: No such file or directory")


def _special(path: Path) -> str:
    """ "PATH is a pipe", or "" where it is none or nothing."""
    try:
        what = SPECIAL.get(stat.S_IFMT(path.stat().st_mode), "")
    except OSError:
        return ""
    return f"{str(path)!r} is {what}, not a file that can be read twice" if what else ""


def _warn_of_gaps(paths: list[str], key: str, log: Log) -> None:
    """Says where of numbered files (-00000-of-00010) some are not there."""
    groups: dict[str, tuple[int, set[int]]] = defaultdict(lambda: (0, set()))
    for path in paths:
        if found := SHARD.search(Path(path).name):
            name = SHARD.sub(f"-*-of-{found[2]}", path)
            groups[name] = (int(found[2]), groups[name][1] | {int(found[1])})
    for name, (total, numbers) in groups.items():
        if len(numbers) < total:
            log(f"warning: {key}: {name}: {len(numbers)} of {total} files are there")
