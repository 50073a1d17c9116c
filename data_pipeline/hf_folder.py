"""What does a Hugging Face folder say beside its vocabulary: special tokens, chat template, what ends an answer?"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.schema import UserError
from data_pipeline.tokenizer import TEMPLATE_FILE, Tokenizer, read_file

TOKENIZER, CONFIG, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
# Kept byte for byte, so that the tokenizer can be handed back as it came.
FILES = (
    TOKENIZER, CONFIG, "special_tokens_map.json", "added_tokens.json", GENERATION, TEMPLATE_FILE, "chat_template.json",
    "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
SPECIAL = ("pad_token", "bos_token", "eos_token", "unk_token", "mask_token", "sep_token", "cls_token")
CONVERT = "transformers writes one: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"


@dataclass(frozen=True)
class Settings:
    """What the small files of a folder say; empty where there are none."""

    texts: dict[str, str] = field(default_factory=dict)  # "eos_token" -> its text
    ids: dict[str, list[int]] = field(default_factory=dict)  # "eos_token" -> ids that generation_config.json gives
    adds_bos: bool | None = None
    template: str = ""
    added: tuple[int, ...] = ()  # ids of tokens that tokenizer_config.json adds


def read_folder(folder: Path) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face folder, or of one that holds a single SentencePiece `.model`."""
    from data_pipeline.sentencepiece_tokenizer import SentencePieceTokenizer

    if (folder / TOKENIZER).is_file():
        return read_tokenizer(folder / TOKENIZER)
    models = sorted(folder.glob("*.model"))
    if len(models) != 1:
        what = f"holds no lm_tokenizer.json, {TOKENIZER} or .model file" if folder.is_dir() else "does not exist"
        hint = f"; {CONVERT}" if (folder / CONFIG).is_file() else ""
        raise UserError(
            f"tokenizer {folder}: {what}; name a tokenizer folder of a run, a Hugging Face folder or a SentencePiece "
            f".model file{hint}"
        )
    tokenizer = SentencePieceTokenizer(read_file(models[0]), str(models[0]))
    settings = read_settings(folder)
    if any(number >= tokenizer.vocab_size for number in settings.added):
        raise UserError(
            f"{folder / CONFIG}: adds tokens that {models[0].name} does not have, so it needs a {TOKENIZER}; {CONVERT}"
        )
    tokenizer.template, tokenizer.adds_bos = settings.template, bool(settings.adds_bos)
    tokenizer.stop_ids = tuple(dict.fromkeys((*tokenizer.stop_ids, *settings.ids.get("eos_token", ()))))
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """Loads a tokenizer.json, with what the files beside it say."""
    from data_pipeline.hf_tokenizer import HfTokenizer

    files = {path.name: read_file(path)}
    if path.name == TOKENIZER:
        files |= {name: read_file(path.parent / name) for name in FILES if (path.parent / name).is_file()}
    named = any((path.parent / name).is_file() for name in (CONFIG, "special_tokens_map.json"))
    settings = read_settings(path.parent) if path.name == TOKENIZER else Settings()
    files = {TOKENIZER: files.pop(path.name), **files}
    return HfTokenizer(files, str(path), settings, guess=not (named and path.name == TOKENIZER))


def read_settings(folder: Path) -> Settings:
    config, map_, generation = (_read_object(folder / name) for name in (CONFIG, "special_tokens_map.json", GENERATION))
    texts = {}
    for name in SPECIAL:
        for source in (config, map_):
            value = source.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str) and value and name not in texts:
                texts[name] = value
    ids = {}
    for name in ("pad_token", "bos_token", "eos_token"):
        value = generation.get(f"{name}_id")
        numbers = value if isinstance(value, list) else [value]
        ids[name] = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    adds_bos = config.get("add_bos_token")
    added = config.get("added_tokens_decoder")
    return Settings(
        texts, ids, adds_bos if isinstance(adds_bos, bool) else None, _read_template(folder, config),
        tuple(int(key) for key in added if key.isdecimal()) if isinstance(added, dict) else (),
    )  # fmt: skip


def _read_template(folder: Path, config: dict[str, Any]) -> str:
    """Returns the chat template; its own file comes before the entry in tokenizer_config.json, as in transformers."""
    if (folder / TEMPLATE_FILE).is_file():
        return read_text(folder / TEMPLATE_FILE)
    template = config.get("chat_template") or _read_object(folder / "chat_template.json").get("chat_template") or ""
    if isinstance(template, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        if "default" not in named:  # said when one is needed: texts need none
            names = ", ".join(map(str, named)) or "(none)"
            message = f"the tokenizer has chat templates named {names}, and none is the default; set config.data.chat.template to a file"
            return "{{ raise_exception(" + json.dumps(message) + ") }}"
        template = named["default"]
    if not isinstance(template, str):
        raise UserError(f"{folder / CONFIG}: chat_template is {type(template).__name__}, expected text")
    return template


def read_text(path: Path) -> str:
    try:
        return read_file(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, expected an object")
    return value
