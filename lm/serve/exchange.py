"""How is one HTTP request read and answered, over ASGI?"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lm.serve.errors import ApiError


class Gone(Exception):
    """The client is no longer there."""


@dataclass
class Exchange:
    """One request and what has been sent in answer to it."""

    scope: dict[str, Any]
    receive: Callable[[], Any]
    send: Callable[[dict[str, Any]], Any]
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    status: int = 0  # once sent
    note: str = ""  # for the log

    def header(self, name: str) -> str:
        found = [value for key, value in self.scope["headers"] if key == name.encode()]
        return found[0].decode("latin-1") if len(found) == 1 else ""

    async def body(self, most: int) -> bytes:
        large = ApiError(413, f"the body is larger than {most} bytes", code="request_too_large")
        length = self.header("content-length")
        if length.isdecimal() and int(length) > most:
            raise large
        parts, size, more = [], 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Gone
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > most:
                raise large
        return b"".join(parts)

    async def gone(self) -> None:
        """Returns when the client has left."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        headers = {"x-request-id": self.id, "cache-control": "no-store", **headers}
        pairs = [(key.encode(), value.encode()) for key, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": pairs})

    async def reply(self, status: int, value: Any, **headers: str) -> None:
        content = json.dumps(value).encode()
        await self._start(status, {"content-type": "application/json", "content-length": str(len(content)), **headers})
        await self.send({"type": "http.response.body", "body": content})

    async def event(self, value: Any) -> None:
        """Sends a part of a stream."""
        if not self.status:
            await self._start(200, {"content-type": "text/event-stream; charset=utf-8"})
        text = value if isinstance(value, str) else json.dumps(value)
        await self.send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})

    async def fail(self, error: ApiError) -> None:
        """Says what is wrong: instead of an answer, or at the end of a stream that has begun."""
        self.note = f"{self.note} {error.code or ''}".strip()
        if self.status:
            await self.event(error.body())
            await self.send({"type": "http.response.body", "body": b""})
            return
        headers = {"retry-after": "1"} if error.status in (429, 503) else {}
        headers |= {"www-authenticate": "Bearer"} if error.status == 401 else {}
        await self.reply(error.status, error.body(), **headers)
