"""What do requests and answers look like as JSON? OpenAI's, as its Python client writes and reads them.

A parameter that would change the answer and is not done here is refused by name; those that do not are passed over.
"""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import dataclass
from typing import Any

from lm.sampling import Sampling
from lm.serve.errors import ApiError

TAKEN = {
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed", "stop",
    "stream", "stream_options",
}  # fmt: skip
IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "prediction",
}  # fmt: skip
NEUTRAL: dict[str, tuple[Any, ...]] = {  # not done here -> the values, besides null, that ask for nothing
    "n": (1,), "best_of": (1,), "logprobs": (False,), "top_logprobs": (), "echo": (False,), "suffix": ("",),
    "frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "repetition_penalty": (1, 1.0), "logit_bias": ({},),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "reasoning_effort": (),
    "verbosity": (), "web_search_options": (),
}  # fmt: skip
MAX_STOPS, MAX_STOP_CHARS = 4, 256


@dataclass(frozen=True)
class Ask:
    """What a request wants; `text` is its messages, or its prompt as text or ids."""

    model: str
    text: Any
    most: int | None  # tokens to draw
    sampling: Sampling
    seed: int
    stops: tuple[str, ...]
    stream: bool
    usage: bool  # at the end of a stream too


def read_ask(body: bytes, chat: bool) -> Ask:
    """Reads the body of a request; raises ApiError for what is wrong with it or not done here."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ApiError(400, "the body must be a JSON object")
    given = {key: value for key, value in raw.items() if value is not None and key not in IGNORED}
    for key, value in given.items():
        neutral = NEUTRAL.get(key)
        if neutral is not None:
            if not any(type(value) is type(one) and value == one for one in neutral):
                raise ApiError(400, f"{key} is not supported here", key, "unsupported_parameter")
        elif key not in TAKEN or key in (("prompt",) if chat else ("messages", "max_completion_tokens")):
            raise ApiError(400, f"unknown parameter {key[:64]!r}", key[:64], "unknown_parameter")
    if not isinstance(given.get("model"), str):
        raise ApiError(400, "model must be given, as text; GET /v1/models names it", "model")
    stream, options = given.get("stream", False), given.get("stream_options", {})
    if not isinstance(stream, bool):
        raise ApiError(400, "stream must be true or false", "stream")
    if options and not (stream and isinstance(options, dict) and isinstance(options.get("include_usage", False), bool)):
        raise ApiError(400, "stream_options is an object with include_usage, and goes with stream", "stream_options")
    names = [key for key in ("max_tokens", "max_completion_tokens") if key in given]
    if len(names) == 2:
        raise ApiError(400, "give one of max_tokens and max_completion_tokens", names[0])
    most = _number(given, names[0], 1, 2**31, True) if names else None
    return Ask(
        given["model"],
        _read_text(given, "messages" if chat else "prompt"),
        None if most is None else int(most),
        Sampling(
            temperature=_number(given, "temperature", 0, 2, default=1.0),
            top_k=int(_number(given, "top_k", 0, 2**31 - 1, True, default=0)),
            top_p=_number(given, "top_p", 0, 1, default=1.0) or 1e-9,  # 0: the likeliest alone
        ),
        int(_number(given, "seed", -(2**63), 2**64, True, default=secrets.randbits(32))) & 0xFFFFFFFF,
        _read_stops(given.get("stop", [])),
        stream,
        bool(options and options.get("include_usage")),
    )


def _number(given: dict[str, Any], key: str, low: float, high: float, whole: bool = False, default: Any = None) -> Any:
    value = given.get(key, default)
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not low <= value <= high or not math.isfinite(value):
        raise ApiError(400, f"{key} must be a {'whole ' * whole}number from {low} to {high}", key)
    return value


def _read_text(given: dict[str, Any], key: str) -> Any:
    value = given.get(key)
    if value is None:
        raise ApiError(400, f"{key} must be given", key)
    if key == "messages":
        return value  # data_pipeline.conversation looks at it
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise ApiError(400, "prompt holds a lone surrogate, which is no character", key)
    elif not (isinstance(value, list) and all(type(number) is int for number in value)):
        raise ApiError(400, "prompt must be one text or one list of token ids", key)
    if not value:
        raise ApiError(400, "prompt is empty; write at least one character", key)
    return value


def _read_stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    right = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not right or not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise ApiError(400, f"stop must be up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters", "stop")
    return tuple(stops)


@dataclass(frozen=True)
class Reply:
    """Writes one answer, whole or in chunks."""

    chat: bool
    id: str
    model: str
    created: int  # seconds since 1970

    def _object(self, kind: str, choices: list[dict[str, Any]], **rest: Any) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **rest,
        }  # fmt: skip

    def whole(self, text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return self._object("chat.completion" if self.chat else "text_completion", [choice], usage=usage)

    def chunk(self, text: str, finish: str = "", first: bool = False, **usage: Any) -> dict[str, Any]:
        """A part of a stream; `usage` is null in all of them but the last where the client asked for it."""
        delta = {**({"role": "assistant"} if first else {}), **({"content": text} if text or first else {})}
        said = {"delta": delta} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish or None}
        return self._object("chat.completion.chunk" if self.chat else "text_completion", [choice], **usage)

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        return self._object("chat.completion.chunk" if self.chat else "text_completion", [], usage=usage)


def usage_of(prompt: int, drawn: int) -> dict[str, int]:
    """Counts tokens: of the prompt as the model got it, and all that the model drew, one that ends the answer included."""
    return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}
