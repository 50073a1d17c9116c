"""How many tokens a second does a server give 1, 4 and 16 readers, are greedy answers those given alone, who waits for whom?

    python -m lm.serve --workdir=runs/chat & python benchmarks/serving.py [--url=http://127.0.0.1:8000/v1] [--tokens=100]

Asks a server that runs already, through /completions, with prompts of 4 to 120 random words, temperature 0. The delay is that of
a short request (8 tokens) alone, and while a long one (a prompt of 60 words, `--tokens` x 3 tokens) is being answered. Prints
one JSON object; exit code 1 if an answer differs from what was answered alone.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_pipeline.schema import UserError, run_main, split_flags

STREAMS = (1, 4, 16)


class Server:
    """Asks an OpenAI-compatible server; a token in LM_SERVE_TOKEN goes along."""

    def __init__(self, url: str):
        self.url = urlsplit(url)
        self.model = self.ask("/models")["data"][0]["id"]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.url.hostname or "", self.url.port, timeout=600)
        headers = {
            "content-type": "application/json",
            "authorization": f"Bearer {os.environ.get('LM_SERVE_TOKEN', '')}",
        }
        try:
            connection.request(
                "POST" if body else "GET", self.url.path + path, json.dumps(body) if body else None, headers
            )
            answer = json.loads(connection.getresponse().read())
        except OSError as error:
            raise UserError(f"--url={self.url.geturl()}: {error.strerror or error}") from None
        finally:
            connection.close()
        if "error" in answer:
            raise UserError(f"the server says: {answer['error']['message']}")
        return answer

    def complete(self, prompt: str, most: int) -> tuple[str, int, float]:
        """Returns (text, tokens, seconds)."""
        began = time.perf_counter()
        answer = self.ask("/completions", {"model": self.model, "prompt": prompt, "max_tokens": most, "temperature": 0})
        return answer["choices"][0]["text"], answer["usage"]["completion_tokens"], time.perf_counter() - began


def main(argv: list[str]) -> None:
    flags, extra = split_flags(argv, {"url": "http://127.0.0.1:8000/v1", "tokens": "100"}, __doc__ or "")
    if extra or not flags["tokens"].isdecimal():
        raise UserError("--tokens must be a whole number; see --help")
    server, most, rng = Server(flags["url"]), int(flags["tokens"]), random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=2)) for _ in range(500)]
    prompts = [" ".join(rng.choices(words, k=rng.randint(4, 120))) for _ in range(max(STREAMS))]
    found: dict[str, Any] = {"model": server.model}
    alone = [server.complete(prompt, most)[0] for prompt in prompts]
    for count in STREAMS:
        with ThreadPoolExecutor(count) as pool:
            began = time.perf_counter()
            answers = list(pool.map(lambda prompt: server.complete(prompt, most), prompts[:count]))
            seconds = time.perf_counter() - began
        found[f"tokens_per_second_{count}"] = round(sum(tokens for _, tokens, _ in answers) / seconds, 1)
        found[f"equal_{count}"] = sum(text == one for (text, _, _), one in zip(answers, alone))
    found["short_alone_ms"] = round(1e3 * statistics.median(server.complete("to be", 8)[2] for _ in range(5)), 1)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(server.complete, " ".join(rng.choices(words, k=60)), 3 * most)
        beside = [server.complete("to be", 8)[2]]
        while not long.done():
            beside.append(server.complete("to be", 8)[2])
        found["long_seconds"] = round(long.result()[2], 2)
    found["short_beside_long_ms"] = round(1e3 * statistics.median(beside), 1)
    found["short_beside_long_worst_ms"] = round(1e3 * max(beside), 1)
    print(json.dumps(found))
    if any(found[f"equal_{count}"] != count for count in STREAMS):
        raise UserError("some answers differ from what was answered alone")


if __name__ == "__main__":
    run_main(main)
