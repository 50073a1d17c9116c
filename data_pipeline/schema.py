"""How does a frozen dataclass become a ConfigDict and come back, and what is wrong with the values in it?

Frozen dataclasses hold every key, type and default once. A config file edits a locked `ConfigDict` made from them, the
command line overrides it, and `from_mapping` turns it back into the dataclass, collecting every problem it meets.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import io
import math
import os
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import ml_collections

T = TypeVar("T")


class UserError(ValueError):
    """Something the user can put right: says what is wrong, which key or file:line, and what to do."""

    exit_code = 1


class ConfigError(UserError):
    """The configuration or the launch is wrong; `problems` holds one line for each fault found."""

    exit_code = 2

    def __init__(self, problems: list[str] | str):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        head = "" if len(self.problems) == 1 else f"{len(self.problems)} problems in the configuration:\n  "
        super().__init__(head + "\n  ".join(self.problems))


def to_config_dict(section: Any) -> ml_collections.ConfigDict:
    """Turns a dataclass instance into a locked ConfigDict; dict fields become sections that take new names."""
    fields = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif isinstance(value, dict):
            value = ml_collections.ConfigDict({name: to_config_dict(entry) for name, entry in value.items()})
        fields[field.name] = value
    config = ml_collections.ConfigDict(fields, type_safe=False)  # from_mapping checks types, and names every fault
    config.lock()
    for field in dataclasses.fields(section):
        if isinstance(getattr(section, field.name), dict):
            getattr(config, field.name).unlock()
    return config


def to_json(section: Any) -> dict[str, Any]:
    """Turns a dataclass instance into plain JSON values (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(section))


def nearest(word: str, valid: list[str]) -> str:
    """Returns ` (did you mean 'x'?)` for the closest valid key, or the whole list where none is close."""
    close = difflib.get_close_matches(word, valid, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else f"; valid keys: {', '.join(valid)}"


def read_config(path: str, overrides: Mapping[str, str], cls: type[T], check: Callable[[T], list[str]]) -> T:
    """Runs a config file, applies overrides, and returns the checked `cls`.

    Raises one ConfigError with all that is wrong: overrides, unknown keys, types, and what `check` finds.
    """
    problems: list[str] = []
    config = _load_config(path, overrides, cls, problems)
    section = _section(cls, config.to_dict(), "config", problems)
    problems += check(section)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return section


def from_mapping(cls: type[T], mapping: Mapping[str, Any] | ml_collections.ConfigDict, where: str = "config") -> T:
    """Builds `cls` from a ConfigDict or JSON object; raises ConfigError with every unknown key and wrong type."""
    problems: list[str] = []
    plain = mapping.to_dict() if isinstance(mapping, ml_collections.ConfigDict) else mapping
    section = _section(cls, plain, where, problems)
    if problems:
        raise ConfigError(problems)
    return section


def _section(cls: type, mapping: Mapping[str, Any], where: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    problems += [f"{where} has no {key!r}{nearest(key, names)}" for key in mapping if key not in names]
    values = {}
    for key in names:
        if key in mapping:
            before = len(problems)
            value = _value(hints[key], mapping[key], f"{where}.{key}", problems)
            if len(problems) == before or dataclasses.is_dataclass(hints[key]):
                values[key] = value  # a faulty one keeps its default, so that the rest can be checked too
    return cls(**values)


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Checks one value against its type hint; returns it in the exact type, or notes the problem."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return _section(typing.cast(type, hint), value, where, problems)
    elif origin is dict:
        if isinstance(value, Mapping):
            return {key: _value(args[1], entry, f"{where}.{key}", problems) for key, entry in value.items()}
    elif origin is tuple:
        if isinstance(value, tuple | list):
            if args[-1] is Ellipsis:
                return tuple(_value(args[0], entry, f"{where}[{i}]", problems) for i, entry in enumerate(value))
            if len(value) == len(args):
                return tuple(_value(a, v, f"{where}[{i}]", problems) for i, (a, v) in enumerate(zip(args, value)))
    elif origin in (types.UnionType, typing.Union):
        for arg in args:
            trial: list[str] = []
            result = _value(arg, value, where, trial)
            if not trial:
                return result
            if isinstance(value, float) and not math.isfinite(value):
                problems += trial
                return None
    elif hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:  # an integer of more than 308 digits
                number = math.inf
            if not math.isfinite(number):
                problems.append(f"{where}: must be a finite number, got {number}")
            return number
    elif hint is str and isinstance(value, str):
        return value
    problems.append(f"{where}: expected {_describe(hint)}, got {value!r}")
    return None


def _describe(hint: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "True or False", str: "text"}
    if hint in words:
        return words[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list of ({_describe(args[0])})"
        return "(" + ", ".join(map(_describe, args)) + ")"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_describe, args))
    return "a section" if dataclasses.is_dataclass(hint) or origin is dict else str(hint)


def _load_config(path: str, overrides: Mapping[str, str], cls: type, problems: list[str]) -> ml_collections.ConfigDict:
    """Runs a config file's `get_config()` and applies `overrides` ({"optim.peak_lr": "1e-4"}) by the types in `cls`.

    A config file is Python and runs with your rights: load only files that you have read.
    Adds a line to `problems` for each faulty override; raises ConfigError with file and line where the file itself fails.
    """
    file, _, word = path.partition(".py:")  # FILE.py:WORD
    config = run_file(f"{file}.py" if word else path, "get_config", word)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"{path} must define get_config() that returns a ConfigDict (start from configs/base.py)")
    for key, text in overrides.items():
        _override(config, cls, key, text, problems)
    return config


def run_file(path: str, function: str, word: str = "") -> Any:
    """Runs a Python file; returns what its `function` does (of `word`, if any), None where there is none. Raises as `_load_config`."""
    if not Path(path).is_file():
        raise ConfigError(f"no such config file: {path}")
    root = str(Path(path).resolve().parent.parent)  # so that `from configs import base` works from any folder
    if root not in sys.path:
        sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(f"config_file_{abs(hash(str(Path(path).resolve())))}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; a config file ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get = getattr(module, function, None)
        return get(*[word] * bool(word)) if callable(get) else None
    except UserError:
        raise
    except SyntaxError as error:
        raise ConfigError(
            f"{error.filename or path}:{error.lineno or 1}: {error.msg}: {(error.text or '').strip()}"
        ) from None
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == Path(path).name]
        line = f":{frames[-1].lineno}" if frames else ""
        message = " ".join(str(error).split())
        raise ConfigError(f"{path}{line}: {type(error).__name__}: {message}") from None


def _override(config: ml_collections.ConfigDict, cls: Any, key: str, text: str, problems: list[str]) -> None:
    """Sets `config[key]` from command-line text, walking the schema beside the ConfigDict."""
    parts, hint, where = key.split("."), cls, "config"
    node: Any = config
    for depth, part in enumerate(parts):
        if typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
            if part not in node:
                node[part] = to_config_dict(hint())
        elif dataclasses.is_dataclass(hint):
            hints = typing.get_type_hints(hint)
            if part not in hints:
                problems.append(f"{where} has no {part!r}{nearest(part, list(hints))}")
                return
            hint = hints[part]
        else:
            problems.append(f"{where} is a value, not a section, so it has no {part!r}")
            return
        where = f"{where}.{part}"
        if depth < len(parts) - 1:
            node = node[part]
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict:
        problems.append(f"{where} is a section; set one of its keys, as in --{where}.KEY=VALUE")
        return
    value = _parse(hint, text)
    before = len(problems)
    value = _value(hint, value, where, problems)
    if len(problems) == before:
        node[parts[-1]] = value


def _parse(hint: Any, text: str) -> Any:
    """Reads command-line text as the hinted type; text that does not fit comes back as it is, for `_value` to refuse."""
    if hint is str:
        return text
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        try:
            return float(text)  # nan and inf, refused later by name
        except ValueError:
            value = text
    is_tuple = typing.get_origin(hint) is tuple
    if is_tuple and value == "":
        return ()
    return (value,) if is_tuple and not isinstance(value, tuple | list) else value


def flat_items(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (`section.key`, value) for every leaf of nested mappings."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns (key, old, new) for every leaf that differs between two JSON objects; a missing side is None."""
    before, after = dict(flat_items(old)), dict(flat_items(new))
    pairs = [(k, before.get(k), after.get(k)) for k in sorted(before.keys() | after.keys())]  # to Python True == 1
    return [(k, a, b) for k, a, b in pairs if a != b or str(a).count("True") != str(b).count("True")]


def run_main(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs a command: what the user can put right becomes one line on stderr and an exit code, without a traceback.

    Exit codes: 0 done, 1 error, 2 configuration or launch, 3 workdir in use, 75 interrupted. LM_TRACEBACK=1 shows where.
    """
    code = 0
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # text or a file name that the terminal cannot show is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        if os.environ.get("LM_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:  # the disk or the system, not us: full, read-only, out of files
        if isinstance(error, BrokenPipeError):  # the reader of a pipe has gone, as in `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        elif os.environ.get("LM_TRACEBACK"):
            raise
        else:
            print(f"error: {error.filename or 'writing'}: {error.strerror or error}", file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        code = 75
    raise SystemExit(code)


def split_flags(argv: list[str], names: Mapping[str, str], usage: str) -> tuple[dict[str, str], dict[str, str]]:
    """Splits `--name=value` / `--name value` flags from `--config.key=value` overrides.

    `names` maps each flag to its default; a default of "false" marks a switch that takes no value.
    Returns (flags, overrides). `--help` prints `usage` and exits 0; an unknown flag is a ConfigError.
    """
    flags, overrides, problems = dict(names), {}, []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            print(usage.strip())
            raise SystemExit(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not (name in names or name.startswith("config.")):
            problems.append(f"unknown argument {word!r}{nearest(name, list(names))}")
        else:
            switch = names.get(name) == "false"
            if not has_value:
                takes_next = not switch and bool(rest) and not rest[0].startswith("--")
                if not switch and not takes_next:
                    problems.append(f"--{name} needs a value")
                value = rest.pop(0) if takes_next else "true"
            if name.startswith("config."):
                overrides[name.removeprefix("config.")] = value
            else:
                flags[name] = value
    if problems:
        raise ConfigError([*problems, "see --help"])
    return flags, overrides
