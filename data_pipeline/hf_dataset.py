"""Which files of a Hugging Face datasets folder are one split of one configuration, and who is to be credited?

Two layouts: what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` writes, and a snapshot of a repository from the hub
(README.md, data files). Nothing of the folder is run, and `datasets` is not needed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.schema import UserError

SAVED = ("dataset_dict.json", "state.json")  # of several splits; of one
KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}  # that tell the split by the names of files and folders, where README.md says nothing
CREDITS = {"license": "license", "citation": "citation", "homepage": "url"}  # its names and ours


def is_saved(folder: Path) -> bool:
    """Says whether `save_to_disk` made the folder."""
    return any((folder / name).is_file() for name in SAVED)


def find_split(config: SourceConfig, key: str) -> list[str]:
    """Returns the paths of the split's files, in their order; raises UserError naming the key."""
    folder = Path(config.path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{key}: no such folder: {config.path!r}")
    if not is_saved(folder):
        return _of_snapshot(folder, config, key)
    folder = _saved_split(folder, config, key)
    state = _read_json(folder / "state.json", key)
    if state.get("_split") not in (None, config.hf_split):
        raise UserError(f"{key}: {folder} holds the split {state['_split']!r}, not {config.hf_split!r} (set hf_split)")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(
            f"{key}: {folder} was saved with a selection of its rows beside them; save flatten_indices() of it"
        )
    listed = state.get("_data_files")
    names = [str(file.get("filename", "")) if isinstance(file, dict) else "" for file in listed or []]
    if not names or not all(name and Path(name).name == name for name in names):
        raise UserError(f"{key}: {folder / 'state.json'} names no data files")
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{key}: {folder} lacks {name}, which its state.json names")
    return [str(folder / name) for name in names]


def read_credits(config: SourceConfig, key: str) -> dict[str, str]:
    """Returns what the folder says of license, citation and url; nothing where it is no such folder."""
    folder = Path(config.path).expanduser()
    if config.kind != "hf" and not is_saved(folder):
        return {}
    if is_saved(folder):
        path = _saved_split(folder, config, key) / "dataset_info.json"
        said = _read_json(path, key) if path.is_file() else {}
    else:
        said, text = _read_me(folder, key)
        cited = re.search(r"```(?:bibtex)?\s*\n(@.*?)```", text, re.S | re.I)
        at_home = re.search(r"\*\*Homepage:?\*\*:?\s*(?:\[[^\]]*\]\()?<?(https?://[^\s)>]+)", text)
        said = {"citation": cited[1] if cited else "", "homepage": at_home[1] if at_home else "", **said}
    found = {ours: said.get(name) for name, ours in CREDITS.items()}
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list) else str(value).strip()
        for name, value in found.items()
        if value
    }


def _saved_split(folder: Path, config: SourceConfig, key: str) -> Path:
    if not (folder / SAVED[0]).is_file():
        return folder
    splits = _read_json(folder / SAVED[0], key).get("splits") or []
    if config.hf_split not in splits:
        raise UserError(
            f"{key}: {folder} has no split {config.hf_split!r}; it has {', '.join(map(str, splits))} (set hf_split)"
        )
    if not (folder / config.hf_split / "state.json").is_file():
        raise UserError(f"{key}: {folder} lacks {config.hf_split}/state.json, which its dataset_dict.json names")
    return folder / config.hf_split


def _of_snapshot(folder: Path, config: SourceConfig, key: str) -> list[str]:
    every = [
        path for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.name not in ("README.md", "dataset_infos.json", "dataset_info.json", "LICENSE.txt", "LICENSE.md")
    ]  # fmt: skip
    entry = _chosen(_read_me(folder, key)[0].get("configs"), folder, config, key)
    if entry is None or "data_files" not in entry:
        inside = folder / str((entry or {}).get("data_dir", "."))
        files = _by_keywords([path for path in every if path.is_relative_to(inside)], folder)
    else:
        files = _by_patterns(entry, every, folder, key)
    if not any(files.values()):
        script = next((path.name for path in every if path.suffix == ".py"), "")
        made = f"; it is made by {script}, which is not run" if script else ""
        raise UserError(f"{key}: {folder} holds no data files{made}")
    if not files.get(config.hf_split):
        raise UserError(f"{key}: {folder} has no split {config.hf_split!r}; it has {', '.join(files)} (set hf_split)")
    return [str(path) for path in files[config.hf_split]]


def _chosen(entries: Any, folder: Path, config: SourceConfig, key: str) -> dict[str, Any] | None:
    """The configuration that is asked for, or the default one; None where README.md names none."""
    named = {str(entry.get("config_name", "default")): entry for entry in entries or [] if isinstance(entry, dict)}
    default = next((name for name, entry in named.items() if entry.get("default")), "default")
    wanted = config.hf_config or (next(iter(named)) if len(named) == 1 else default)
    if wanted in named:
        return named[wanted]
    if named:
        raise UserError(f"{key}: {folder} has no configuration {wanted!r}; it has {', '.join(named)} (set hf_config)")
    if config.hf_config:
        raise UserError(f"{key}: {folder}/README.md names no configurations; leave hf_config away")
    return None


def _by_patterns(entry: dict[str, Any], every: list[Path], folder: Path, key: str) -> dict[str, list[Path]]:
    """What `data_files` says: a pattern, several, or some for each split."""
    said = entry["data_files"]
    parts = said if isinstance(said, list) else [said]
    files: dict[str, list[Path]] = {}
    for part in parts:
        split, patterns = (
            (str(part.get("split", "train")), part.get("path")) if isinstance(part, dict) else ("train", part)
        )
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            if not isinstance(pattern, str) or not pattern or ".." in Path(pattern).parts or pattern.startswith("/"):
                raise UserError(
                    f"{key}: {folder}/README.md: data_files is {pattern!r}, expected a name or pattern inside the folder"
                )
            found = set(folder.glob(str(Path(str(entry.get("data_dir", ""))) / pattern)))
            here = [path for path in every if path in found]
            if not here:
                raise UserError(f"{key}: {folder} lacks {pattern}, which its README.md names")
            files.setdefault(split, []).extend(path for path in here if path not in files.get(split, []))
    return files


def _by_keywords(every: list[Path], folder: Path) -> dict[str, list[Path]]:
    """Told by words in the names, as `datasets` does; without any all is train."""
    from data_pipeline.find_files import kind_by_name

    data = [path for path in every if kind_by_name(str(path)) not in ("", "markdown", "html")]
    files: dict[str, list[Path]] = {}
    for path in data:
        words = re.split(r"[^a-z]+", str(path.relative_to(folder)).lower())
        split = next((name for name, keys in KEYWORDS.items() if any(key in words for key in keys)), "")
        files.setdefault(split, []).append(path)
    unnamed = files.pop("", [])
    return files or {"train": unnamed}


def _read_me(folder: Path, key: str) -> tuple[dict[str, Any], str]:
    """The values at the head of README.md, and its text."""
    path = folder / "README.md"
    if not path.is_file():
        return {}, ""
    text = path.read_text("utf-8", "replace")
    head = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.S)
    if not head:
        return {}, text
    import yaml

    try:
        values = yaml.safe_load(head[1])
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{key}: {path}: its head is no YAML: {str(error).splitlines()[0]}") from None
    return (values if isinstance(values, dict) else {}), text[head.end() :]


def _read_json(path: Path, key: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{key}: {path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{key}: {path} holds no JSON object")
    return value
