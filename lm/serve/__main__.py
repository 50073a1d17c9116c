"""How is a run's model served over HTTP, as OpenAI's interface?

python -m lm.serve --workdir=runs/chat
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import Any

from lm.config import ConfigError, UserError
from lm.serve.app import App
from lm.serve.engine import Engine
from lm.serve.slots import Slots

CONTEXT = 4096  # tokens of a text, where the model has more positions and --context_len says nothing
USAGE = f"""
usage: python -m lm.serve --workdir=DIR [--step=best|last|N] [--name=NAME] [--host=127.0.0.1] [--port=8000] [--max_batch=16]
         [--max_queue=64] [--context_len=0] [--max_seconds=300] [--max_body_bytes=2097152] [--grace_seconds=10]
         [--token_file=FILE]

Serves a run's model at http://HOST:PORT/v1 with OpenAI's /chat/completions, /completions and /models; docs/serving.md has more.

  --name           of the model in requests (default: the folder's)
  --port           0: a free one
  --max_batch      answers that are written at the same time; --max_queue more requests wait, others get 429
  --context_len    tokens of a prompt and its answer; 0: the model's positions, at most {CONTEXT}
  --max_seconds    of a request, its wait included
  --grace_seconds  that running answers get when the server is stopped (Ctrl-C)
  --token_file     a file with the bearer token that clients must send; or the environment variable LM_SERVE_TOKEN

example: python -m lm.serve --workdir=runs/chat --port=8000
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read_token(path: str) -> str:
    """Returns the bearer token, "" if there is none; it is not for the command line, which others can see."""
    try:
        token = (Path(path).read_text() if path else os.environ.get("LM_SERVE_TOKEN", "")).strip()
    except OSError as error:
        raise UserError(f"--token_file: {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"--token_file: {path}: not text") from None
    if path and not token:
        raise UserError(f"--token_file: {path} is empty")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError("the token must be one word of ASCII characters")
    return token


def bind(host: str, port: int) -> socket.socket:
    """Takes the address; nothing is accepted before the server runs, so that nobody waits for the compiler."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host={host} --port={port}: {reason}. Choose another port, or 0 for a free one") from None
    return bound


def choose_context(asked: int, places: int, learned: bool) -> int:
    """Returns how many tokens a prompt and its answer may have together."""
    if learned and asked > places:
        raise ConfigError(f"--context_len={asked}: this model has {places} positions and no more")
    if asked > places:
        say(
            f"warning: --context_len={asked} is more than the {places} tokens the model learned with; long texts may be bad"
        )
    return asked or min(places, CONTEXT)


def read_flags(argv: list[str]) -> tuple[dict[str, str], dict[str, int]]:
    """Returns (flags that are texts, flags that are numbers)."""
    from data_pipeline.schema import split_flags

    texts = {"workdir": "", "step": "best", "name": "", "host": "127.0.0.1", "token_file": ""}
    least = {
        "port": 0, "max_batch": 1, "max_queue": 0, "context_len": 0, "max_seconds": 1, "max_body_bytes": 1024,
        "grace_seconds": 0,
    }  # fmt: skip
    defaults = dict(zip(least, ("8000", "16", "64", "0", "300", "2097152", "10"), strict=True))
    flags, extra = split_flags(argv, {**texts, **defaults}, USAGE)
    if not flags["workdir"] or extra:
        raise ConfigError("name a run: python -m lm.serve --workdir=DIR; see --help")
    bad = [f"--{key} must be a whole number >= {low}, got {flags[key]!r}" for key, low in least.items()
           if not (flags[key].isdecimal() and flags[key].isascii() and low <= int(flags[key]) < 2**31)]  # fmt: skip
    if bad:
        raise ConfigError(bad)
    return flags, {key: int(flags[key]) for key in least}


def main(argv: list[str]) -> None:
    try:
        import uvicorn
    except ImportError:
        raise UserError("serving needs the uvicorn package: pip install 'lm[serve]'") from None
    from data_pipeline.chat import open_trained_chat
    from data_pipeline.tokenizer import load_tokenizer
    from lm import build

    flags, number = read_flags(argv)
    token = read_token(flags["token_file"])
    bound = bind(flags["host"], number["port"])
    address, port = bound.getsockname()[:2]
    loaded = build.load_run(flags["workdir"], flags["step"], log=say)
    config, tokenizer = loaded.model.config, load_tokenizer(f"{flags['workdir']}/tokenizer")
    slots = Slots(
        loaded.model, loaded.params, number["max_batch"],
        choose_context(number["context_len"], config.max_len, config.position == "learned"),
    )  # fmt: skip
    say(f"{slots.count} answers at once, {slots.places:,} tokens each: a cache of up to {slots.bytes() / 1e6:,.1f} MB")
    slots.compile(say)
    engine = Engine(slots)
    local = ipaddress.ip_address(address).is_loopback
    app = App(
        engine, flags["name"] or Path(flags["workdir"]).resolve().name, tokenizer,
        open_trained_chat(tokenizer, flags["workdir"]) if tokenizer.template else None, loaded.config.data.add_bos,
        config.vocab_size, say, token, local, slots.count + number["max_queue"], number["max_seconds"],
        number["max_body_bytes"],
    )  # fmt: skip
    if not local and not token:
        say(
            f"warning: anyone who can reach {address} can use this server; set --token_file, and put TLS in front of it"
        )
    url = f"http://[{address}]:{port}/v1" if ":" in address else f"http://{address}:{port}/v1"
    say(f"serving {app.name} at {url}{'' if app.chat else ' (no chat template: /v1/completions only)'}; Ctrl-C stops")
    run(uvicorn, app, bound, number["grace_seconds"])
    say("stopped")


def run(uvicorn: Any, app: App, bound: socket.socket, grace: int) -> None:
    """Serves until a signal comes, then lets running answers end."""

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            app.engine.close(grace)
            super().handle_exit(sig, frame)

    settings = uvicorn.Config(
        app, http="h11", ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=grace + 5,
    )  # fmt: skip
    app.engine.thread.start()
    try:
        Server(settings).run(sockets=[bound])
    except KeyboardInterrupt:  # which uvicorn raises again when all is done
        pass
    finally:
        app.engine.close(0)
        app.engine.thread.join(30)


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
