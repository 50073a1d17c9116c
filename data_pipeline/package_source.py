"""How is the Python code of an installed package, or of the standard library, turned into records?"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import io
import os
import sysconfig
import textwrap
import threading
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.records import Bad, Found, Part, Place, Record, add_file, is_encodable
from data_pipeline.schema import UserError

# Tests, generated tables and bundled copies of other projects; folder names anywhere in a package.
SKIPPED_FOLDERS = {
    "test", "tests", "testing_data", "idle_test", "__pycache__", "site-packages", "dist-packages", "pydoc_data",
    "lib-dynload", "turtledemo", "node_modules", "_vendor",
}  # fmt: skip
SKIPPED_PREFIXES = ("config-",)  # the standard library's build settings
SEPARATOR = "\n# Docstring:\n"  # stands between a function and its docstring
PARSING = threading.Lock()  # Python 3.11 fails with SystemError where two threads are in ast.parse
MIN_DOCSTRING = 20  # characters; shorter ones say nothing that the name does not
MAX_LINES = 40  # longer functions are left out: a row would hold only their end


class PackageSource:
    """The .py files of one package: whole files, or one record for each documented function."""

    def __init__(self, name: str, config: SourceConfig, key: str):
        self.name, self.config = name, config
        self.root, self.files = find_package_files(config.path, key)
        self.cached: tuple[int, list[tuple[int, Record]]] = (-1, [])

    def identity(self) -> list[Any]:
        return [[str(path), hashlib.sha256((self.root / path).read_bytes()).hexdigest()] for path in self.files]

    def total_bytes(self) -> int:
        return sum((self.root / path).stat().st_size for path in self.files)

    def credits(self) -> dict[str, str]:
        return {}

    def parts(self, goal: int) -> list[Part]:
        if self.config.max_documents:
            return [Part(0, len(self.files), self.total_bytes())]
        parts: list[Part] = []
        for number, path in enumerate(self.files):
            add_file(parts, number, (self.root / path).stat().st_size, goal)
        return parts

    def read(self, part: Part | None = None) -> Iterator[Found]:
        first, end = (part.first, part.end) if part else (0, len(self.files))
        for number, path in enumerate(self.files[first:end], first):
            size = (self.root / path).stat().st_size
            try:
                records = self._records(number)
            except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError) as error:
                reason = Bad("not valid Python", f"not valid Python: {error}", fatal=False)
                yield Found(Place(number, 0, size, 0), f"{self.root / path}:1", reason)
                continue
            for item, (line, record) in enumerate(records):
                yield Found(Place(number, 0, size, item), f"{self.root / path}:{line}", record)

    def load(self, place: Place) -> Record:
        records = self._records(place.file)
        if place.item >= len(records):
            raise UserError(f"{self.root / self.files[place.file]}: changed since it was indexed; run again")
        return records[place.item][1]

    def _records(self, number: int) -> list[tuple[int, Record]]:
        if self.cached[0] != number:
            self.cached = (number, list(self._parse(self.files[number])))
        return self.cached[1]

    def _parse(self, path: Path) -> Iterator[tuple[int, Record]]:
        raw = (self.root / path).read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
        text = raw.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")  # as Python reads it
        group = path.as_posix()
        if self.config.records == "docstrings":
            yield from find_docstrings(text, group)
        elif text.strip():
            yield 1, Record(text, None, group)


def find_package_files(name: str, key: str) -> tuple[Path, list[Path]]:
    """Returns (root, sorted paths below it) of the .py files of an installed package, or of "stdlib"."""
    if name == "stdlib":
        root = folder = Path(sysconfig.get_paths()["stdlib"])
    else:
        try:
            spec = importlib.util.find_spec(name) if name.isidentifier() else None
        except (ImportError, ValueError):
            spec = None
        if spec is None or not (spec.submodule_search_locations or (spec.origin or "").endswith(".py")):
            raise UserError(f'{key}: no installed Python package {name!r}; pip install it, or use "stdlib"')
        if not spec.submodule_search_locations:
            file = Path(str(spec.origin))
            return file.parent, [Path(file.name)]
        folder = Path(next(iter(spec.submodule_search_locations)))
        root = folder.parent
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith(SKIPPED_PREFIXES))
        found += [Path(here, file).relative_to(root) for file in files if _is_wanted(file)]
    if not found:
        raise UserError(f"{key}: package {name!r} holds no .py files")
    return root, sorted(found)


def _is_wanted(file: str) -> bool:
    is_test = file.startswith("test_") or file.endswith("_test.py") or file == "conftest.py"
    return file.endswith(".py") and not is_test and not file.startswith("_sysconfigdata")


def find_docstrings(text: str, group: str) -> Iterator[tuple[int, Record]]:
    """Yields (line, record) for each documented function of at most MAX_LINES lines.

    The prompt is its source without the docstring, the completion the docstring's first paragraph: what it does.
    """
    with PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code are not our user's business
        tree = ast.parse(text)
    lines = text.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None or not is_encodable(docstring):
            continue
        completion = inspect.cleandoc(docstring).split("\n\n")[0].strip()
        first = node.body[0]
        if len(completion) < MIN_DOCSTRING or first.end_lineno is None or node.end_lineno is None:
            continue
        start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        head, tail = lines[start - 1 : first.lineno - 1], lines[first.end_lineno : node.end_lineno]
        if first.lineno == node.lineno or (len(node.body) > 1 and node.body[1].lineno <= first.end_lineno):
            continue  # docstring and code share a line: it cannot be cut out by lines
        if len(head) + len(tail) > MAX_LINES:
            continue
        code = textwrap.dedent("\n".join([*head, *tail])).strip("\n")
        yield start, Record(code + "\n" + SEPARATOR, completion, group)
