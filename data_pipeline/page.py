"""What is the main text of a web page? Read by resiliparse, in a process of its own that a page may break."""

from __future__ import annotations

import importlib
import importlib.util
import re
import struct
import subprocess
import sys
import tempfile
from typing import IO, Any, cast

import numpy as np

from data_pipeline.page_encoding import decode_page
from data_pipeline.records import Bad, Record
from data_pipeline.schema import ConfigError, UserError

MAX_DEPTH = 5000  # elements in each other: browsers stop at 512, and the time to read a page grows with its square
CPU_SECONDS = 60  # for one page: 16 MB of ordinary paragraphs take 20
MEMORY = 2**31  # bytes, of the process that reads pages
SIZE = struct.Struct("<Q")
# Scripts and comments are passed over whole; \Z: without an end they go on to the end of the page.
TAGS = re.compile(
    r"<(?:!--.*?(?:-->|\Z)|(?:script|style)\b.*?(?:</(?:script|style)|\Z)|(/?[a-z][^\s/>]*))", re.I | re.S
)
# Elements without an end tag, or whose end tag pages leave out.
NO_END = {
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr", "p", "li", "dt",
    "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "option", "optgroup", "rp", "rt", "colgroup",
}  # fmt: skip
BINARY = (
    b"%PDF",
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"\x28\xb5\x2f\xfd",
    b"BZh",
    b"\xfd7zXZ",
)


def import_resiliparse(module: str) -> Any:
    """Returns a module of resiliparse; ConfigError where the package is missing."""
    if importlib.util.find_spec("resiliparse") is None:
        raise ConfigError('reading HTML and WARC needs the package resiliparse: pip install "lm[corpus]"')
    return importlib.import_module(f"resiliparse.{module}")


def depth_of(page: str) -> int:
    """About how deep the elements of a page lie in each other.

    >>> depth_of("<div><p>a<p>b<br></div><i>c</i><!-- <b><b> -->"), depth_of("<b>" * 7)
    (1, 7)
    """
    level = deepest = 0
    for found in TAGS.finditer(page):
        name = found[1] or ""
        bare = name.removeprefix("/").lower()
        if not bare or bare in NO_END:
            continue
        level = max(level - 1, 0) if name.startswith("/") else level + 1
        deepest = max(deepest, level)
    return deepest


def may_be_deep(page: bytes) -> bool:
    """Says, quickly, whether `depth_of` has to look: more elements begin than end."""
    data = np.frombuffer(page, np.uint8)
    after = data[np.flatnonzero(data[:-1] == ord("<")) + 1]
    is_letter = (after | 32 >= ord("a")) & (after | 32 <= ord("z"))
    level = np.cumsum(is_letter.astype(np.int64) - (after == ord("/")))
    return bool(level.size) and int((level - np.minimum(np.minimum.accumulate(level), 0)).max()) > MAX_DEPTH


class PageReader:
    """Turns pages into records; the process that parses them starts with the first page and is made anew when one breaks it."""

    def __init__(self, cpu_seconds: int = CPU_SECONDS, memory: int = MEMORY):
        self.limits = (cpu_seconds, memory)
        self.process: subprocess.Popen[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process": None}

    def read(self, raw: bytes, max_bytes: int, named: str = "") -> Record | Bad:
        """Returns the text of a page of at most `max_bytes`; `named` is the encoding that its server said."""
        if len(raw) > max_bytes:
            message = f"page longer than {max_bytes} bytes; raise config.data.max_line_bytes if it is meant"
            return Bad("page too long", message)
        if raw.startswith(BINARY):
            return Bad("not HTML", "not HTML: an image, an archive or a PDF by its first bytes")
        page = decode_page(raw, named)
        if page is None:
            return Bad("unknown encoding", "in no known encoding, or not HTML")
        content = page.encode("utf-8", "replace")
        if content.count(b"<") > MAX_DEPTH and may_be_deep(content) and depth_of(page) > MAX_DEPTH:
            return Bad("page too deep", f"elements are nested deeper than {MAX_DEPTH}")
        text = self._main_text(content)
        if text is None:
            return Bad("page too complex", f"takes more than {self.limits[0]} s or {self.limits[1] >> 20} MiB to read")
        text = text.strip()
        return Record(text) if text else Bad("empty text", "the page has no text", fatal=False)

    def _main_text(self, content: bytes) -> str | None:
        """The main text, or None where the process died of it."""
        process = self.process = self.process or self._start()
        to, back = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        try:
            to.write(SIZE.pack(len(content)) + content)
            to.flush()
            head = back.read(SIZE.size)
        except BrokenPipeError:
            head = b""
        if len(head) == SIZE.size:
            size = SIZE.unpack(head)[0]
            text = back.read(size)
            if len(text) == size:
                return text.decode()
        self.close()
        return None

    def _start(self) -> subprocess.Popen[bytes]:
        import_resiliparse("extract")  # says what to install
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from data_pipeline.page_process import run; run(*{self.limits!r})"
        )
        pipe = subprocess.PIPE
        try:
            with tempfile.TemporaryFile() as said:
                process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=said)
                if cast(IO[bytes], process.stdout).read(SIZE.size) == SIZE.pack(0):  # it is there
                    return process
                process.communicate()
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
                words = lines[-1] if lines else f"exit code {process.returncode}"
        except OSError as error:
            words = error.strerror or str(error)
        raise UserError(f"the process that reads web pages does not start: {words}")

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def __del__(self) -> None:
        self.close()
