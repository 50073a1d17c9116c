"""The process that parses web pages: what may break it, deep or huge or hostile pages, breaks nothing else.

Each page comes as its size and UTF-8 and goes back as the size and UTF-8 of its text. A page that takes too much time or
memory ends the process.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
import time

from data_pipeline.page import SIZE, import_resiliparse

# Of the main text: no words for pictures, no remarks of visitors, no dates and bylines, no fields to fill in.
TEXT = {"alt_texts": False, "comments": False, "post_meta": False}


def run(cpu_seconds: int, memory: int) -> None:
    """Reads pages from standard input until it ends."""
    extract = import_resiliparse("extract.html2text").extract_plain_text
    parse = import_resiliparse("parse.html").HTMLTree.parse
    with contextlib.suppress(ValueError, OSError):  # some systems know no such limit
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that sends the pages
    from_us, to_us = sys.stdin.buffer, sys.stdout.buffer
    to_us.write(SIZE.pack(0))
    to_us.flush()
    while head := from_us.read(SIZE.size):
        page = from_us.read(SIZE.unpack(head)[0]).decode()
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        soft = int(time.process_time()) + 1 + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
        tree = parse(page)
        text: str = extract(tree, main_content=True, **TEXT)
        if not text.strip():  # a rule that finds no main part of a page that has words
            text = extract(tree, **TEXT)
        content = text.encode("utf-8", "replace")
        to_us.write(SIZE.pack(len(content)) + content)
        to_us.flush()
