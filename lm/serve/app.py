"""What is served? An ASGI application: who may ask for what, how large and how long a request may be, answers and streams."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from lm.config import UserError
from lm.serve.answer import Answer
from lm.serve.engine import Engine, Job, Piece
from lm.serve.errors import ApiError, shutting_down
from lm.serve.exchange import Exchange, Gone
from lm.serve.wire import Ask, Reply, read_ask, usage_of

BODY_SECONDS = 30  # in which a request must have come
READER_SECONDS = 30  # beyond the time limit, for a client that reads slowly
DEFAULT_MOST = 16  # tokens of a completion, as OpenAI's; an answer in a chat may fill the context


@dataclass
class App:
    """The ASGI application over an engine that runs."""

    engine: Engine
    name: str  # of the model
    tokenizer: Any  # data_pipeline.tokenizer.Tokenizer
    chat: Any  # data_pipeline.chat.Chat; None: no template
    add_bos: bool
    vocab_size: int
    log: Callable[[str], None]
    token: str = ""  # that clients must bear; "": none
    local: bool = True  # only hosts of this machine are served
    max_requests: int = 80  # in work and waiting
    max_seconds: float = 300.0
    max_body_bytes: int = 2**21
    open: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            exchange, began = Exchange(scope, receive, send), time.monotonic()
            try:
                await self._answer(exchange)
            finally:
                seconds = time.monotonic() - began
                status = exchange.status or "gone"
                self.log(f"{exchange.id} {scope['method']} {scope['path']!r} {status} {exchange.note} {seconds:.2f} s")

    async def _answer(self, exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(self.max_seconds + READER_SECONDS):
                try:
                    await self._route(exchange)
                except ApiError as error:
                    await exchange.fail(error)
                except Gone:
                    exchange.note += " gone"
                except Exception:
                    traceback.print_exc(file=sys.stderr)
                    await exchange.fail(ApiError(500, "the server made a mistake; its log says which"))
        except TimeoutError:  # a reader that does not read: the connection is closed
            exchange.note += " too slow"

    async def _route(self, exchange: Exchange) -> None:
        method, path = exchange.scope["method"], exchange.scope["path"]
        routes = {"/health": "GET", "/v1/models": "GET", "/v1/chat/completions": "POST", "/v1/completions": "POST"}
        one = f"/v1/models/{self.name}"
        self._check_client(exchange, path)
        wanted = "GET" if path == one else routes.get(path)
        if wanted is None and path.startswith("/v1/models/"):
            raise self._unknown_model(path.removeprefix("/v1/models/"))
        if wanted is None:
            raise ApiError(404, f"there is no {path[:64]!r} here, only {', '.join(routes)}", code="unknown_url")
        if method not in (wanted, "HEAD" if wanted == "GET" else wanted):
            raise ApiError(405, f"{path} takes {wanted}", code="method_not_allowed")
        model = {"id": self.name, "object": "model", "created": self.created, "owned_by": "lm"}
        if path == "/health":
            up = self.engine.thread.is_alive() and not self.engine.closing
            state = {"status": "ok" if up else "stopping", "running": self.engine.busy(), "open": self.open}
            await exchange.reply(200 if up else 503, state)
        elif wanted == "GET":
            await exchange.reply(200, model if path == one else {"object": "list", "data": [model]})
        else:
            await self._complete(exchange, chat=path == "/v1/chat/completions")

    def _check_client(self, exchange: Exchange, path: str) -> None:
        """Only who bears the token; without one, only pages and programs that address this machine by a name of its own."""
        if self.token and path != "/health":
            kind, _, given = exchange.header("authorization").partition(" ")
            right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token.encode())
            if kind.lower() != "bearer" or not right:
                raise ApiError(401, "the bearer token is missing or wrong", code="invalid_api_key")
        if self.local and not self.token and not _is_local(exchange.header("host")):
            raise ApiError(403, "the Host header must be localhost or a loopback address", code="wrong_host")

    def _unknown_model(self, name: str) -> ApiError:
        return ApiError(404, f"there is no model {name[:64]!r} here, only {self.name!r}", "model", "model_not_found")

    async def _complete(self, exchange: Exchange, chat: bool) -> None:
        if self.open >= self.max_requests:
            raise ApiError(429, f"{self.open} requests are in work or waiting; try again later", code="queue_full")
        if self.engine.closing:
            raise shutting_down()
        self.open += 1
        try:
            deadline = time.monotonic() + self.max_seconds
            kind = exchange.header("content-type").partition(";")[0].strip().lower()
            if kind != "application/json":  # a form that a web page of others sends is none
                raise ApiError(415, "the content-type must be application/json")
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body = await exchange.body(self.max_body_bytes)
            except TimeoutError:
                raise ApiError(408, f"the request did not come within {BODY_SECONDS} seconds") from None
            pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
            ask, job = await asyncio.to_thread(self._make_job, body, chat, deadline, _sender(pieces))
            reply = Reply(chat, f"{'chatcmpl' if chat else 'cmpl'}-{exchange.id}", self.name, int(time.time()))
            async with self._running(exchange, job, pieces) as parts:
                await (_stream if ask.stream else _whole)(exchange, ask, job, reply, parts)
        finally:
            self.open -= 1

    def _make_job(self, body: bytes, chat: bool, deadline: float, emit: Callable[[Piece], None]) -> tuple[Ask, Job]:
        """Reads a request and turns its text into ids; runs beside the event loop, which it would hold up."""
        ask, where = read_ask(body, chat), "messages" if chat else "prompt"
        if ask.model != self.name:
            raise self._unknown_model(ask.model)
        try:
            ids = self._encode(ask.text, chat)
        except UserError as error:
            raise ApiError(400, str(error), where) from None
        places = self.engine.slots.places
        room = places - len(ids)
        most = ask.most or (room if chat else min(DEFAULT_MOST, max(room, 1)))
        if most > room or room < 1:
            wanted = f"{len(ids)} of the {where}" + (f" and {ask.most} of the answer" if ask.most else "")
            message = f"This model's maximum context length is {places} tokens, and the request takes {wanted}"
            raise ApiError(400, message, where, "context_length_exceeded")
        answer = Answer(
            self.tokenizer.stream(begins=chat), self.chat.stop_ids if chat else self.tokenizer.stop_ids, ask.stops
        )
        return ask, Job(ids, most, ask.sampling, ask.seed, answer, deadline, emit)

    def _encode(self, text: Any, chat: bool) -> list[int]:
        if not chat:
            if isinstance(text, str):
                return [self.tokenizer.special.bos] * self.add_bos + self.tokenizer.encode(text)
            if not 0 <= min(text) <= max(text) < self.vocab_size:
                raise UserError(f"prompt holds ids outside the vocabulary of {self.vocab_size}")
            return text
        if self.chat is None:
            raise UserError("this model has no chat template, as it did not learn conversations; use /v1/completions")
        return self.chat.prompt(text, add_bos=self.add_bos)

    @contextlib.asynccontextmanager
    async def _running(
        self, exchange: Exchange, job: Job, pieces: asyncio.Queue[Piece | None]
    ) -> AsyncIterator[AsyncIterator[Piece]]:
        """Runs a job while the client is there; gives its pieces."""

        async def watch() -> None:
            await exchange.gone()
            pieces.put_nowait(None)

        async def each() -> AsyncIterator[Piece]:
            while True:
                piece = await pieces.get()
                if piece is None:
                    raise Gone
                if piece.error:
                    raise piece.error
                yield piece
                if piece.finish:
                    return

        watcher = asyncio.create_task(watch())
        try:
            self.engine.submit(job)
            yield each()
        finally:
            job.cancelled = True  # if it is not done
            watcher.cancel()
            exchange.note = f"{len(job.ids)}+{job.drawn} tokens"


def _sender(pieces: asyncio.Queue[Piece | None]) -> Callable[[Piece], None]:
    """Returns how the engine's thread puts pieces into a queue of this event loop."""
    loop = asyncio.get_running_loop()

    def emit(piece: Piece) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    return emit


async def _whole(exchange: Exchange, ask: Ask, job: Job, reply: Reply, parts: AsyncIterator[Piece]) -> None:
    pieces = [piece async for piece in parts]
    text = "".join(piece.text for piece in pieces)
    await exchange.reply(200, reply.whole(text, pieces[-1].finish, usage_of(len(job.ids), job.drawn)))


async def _stream(exchange: Exchange, ask: Ask, job: Job, reply: Reply, parts: AsyncIterator[Piece]) -> None:
    """Sends chunks; headers go out with the first of them, so that what fails before has a status of its own."""
    usage: dict[str, Any] = {"usage": None} if ask.usage else {}
    async for piece in parts:
        if reply.chat and not exchange.status:
            await exchange.event(reply.chunk("", first=True, **usage))
        if piece.text:
            await exchange.event(reply.chunk(piece.text, **usage))
        if piece.finish:
            await exchange.event(reply.chunk("", piece.finish, **usage))
    if ask.usage:
        await exchange.event(reply.last(usage_of(len(job.ids), job.drawn)))
    await exchange.event("[DONE]")
    await exchange.send({"type": "http.response.body", "body": b""})


def _is_local(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
