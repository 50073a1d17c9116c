"""Which lists of messages are a conversation that a model can learn from or answer, and what is wrong with the others?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from data_pipeline.marks import OWN, Message

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")  # the names that templates and data sets have for it
MAX_DEPTH = 64  # levels of what a message or a tool holds


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as chat templates take them: role, content, and what else came with them (tool_calls, reasoning_content, ...)."""

    messages: tuple[Message, ...]
    learned: tuple[bool, ...]  # of each message: an assistant's that is learned
    tools: tuple[Message, ...] = ()
    form: str = "messages"  # of the row it came from

    def contents(self) -> tuple[str, ...]:
        return tuple(message.get("content", "") for message in self.messages)


class BadConversation(ValueError):
    """What is wrong: `reason` in a few words that are the same for all of a kind, and the message."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def read_conversation(
    raw: Any, tools: Any = None, form: str = "messages", where: str = "messages", learn_from: int = 0
) -> Conversation:
    """Checks a list of messages out of JSON; raises BadConversation. Assistant messages from `learn_from` on are learned,
    unless their own `train` (true or false) or `weight` (1 or 0) says otherwise."""
    if not isinstance(raw, list | tuple):
        raise BadConversation("wrong type", f"{where} is {kind_of(raw)}, expected a list of messages")
    if not raw:
        raise BadConversation("no messages", f"{where} is empty")
    messages, learned = [], []
    for number, entry in enumerate(raw):
        here = f"{where}[{number}]"
        if not isinstance(entry, dict):
            raise BadConversation("wrong type", f"{here} is {kind_of(entry)}, expected an object with role and content")
        message, train = _read_message(entry, here)
        _check_order(message["role"], [m["role"] for m in messages], here)
        messages.append(message)
        learned.append(message["role"] == "assistant" and number >= learn_from and train)
    read = Conversation(tuple(messages), tuple(learned), _read_tools(tools), form)
    _check_text(read)
    return read


def _read_message(entry: Message, here: str) -> tuple[Message, bool]:
    role = entry.get("role")
    if role not in ROLES:
        what = f"has the role {role!r}" if "role" in entry else "has no role"
        raise BadConversation("unknown role", f"{here} {what}, expected one of {', '.join(ROLES)}")
    message = {key: value for key, value in entry.items() if value is not None and key not in ("train", "weight")}
    content = _read_content(entry.get("content"), here, may_lack=role == "assistant" and bool(entry.get("tool_calls")))
    if content is not None:
        message["content"] = content
    if role in ("user", "assistant") and not (content or "").strip() and not message.get("tool_calls"):
        raise BadConversation("empty message", f"{here} ({role}) is empty")
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise BadConversation("wrong type", f"{here}: the reasoning is {kind_of(reasoning)}, expected text")
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    train = entry.get("train", entry.get("weight", True))
    if train not in (0, 1):  # True and False are among them
        raise BadConversation("wrong type", f"{here}: train is {train!r}, expected true or false (weight: 0 or 1)")
    if "tool_calls" in message and not _are_calls(message["tool_calls"]):
        raise BadConversation("wrong type", f'{here}: tool_calls is no list of {{"function": {{"name", "arguments"}}}}')
    return message, bool(train)


def _read_content(content: Any, here: str, may_lack: bool) -> str | None:
    """Returns text; a list of {"type": "text"} parts is joined."""
    if content is None and may_lack:
        return None
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise BadConversation(
                    "wrong type", f"{here}.content holds a part of type {kind!r}; only text parts are read"
                )
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadConversation("wrong type", f"{here}.content is {kind_of(content)}, expected text")
    return content


def _are_calls(calls: Any) -> bool:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return False
    functions = [call.get("function", call) for call in calls]
    return all(isinstance(f, dict) and isinstance(f.get("name"), str) for f in functions)


def _check_order(role: str, before: list[str], here: str) -> None:
    said = [r for r in before if r not in ("system", "developer")]
    if role == "assistant" and not said:
        raise BadConversation(
            "starts with assistant", f"{here}: the conversation starts with the assistant, expected the user"
        )
    if role == "tool" and (not said or said[-1] == "user"):
        raise BadConversation(
            "tool without call", f"{here}: a tool answers, but no assistant has called it just before"
        )
    if role in ("user", "assistant") and before and before[-1] == role:
        raise BadConversation("two turns in a row", f"{here}: a second {role} message in a row; join the two")


def _read_tools(tools: Any) -> tuple[Message, ...]:
    if isinstance(tools, str) and tools.strip():  # some data sets keep them as JSON in a text
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise BadConversation("wrong type", "tools is text that is not valid JSON") from None
    if not tools:
        return ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, dict) for tool in tools):
        raise BadConversation("wrong type", f"tools is {kind_of(tools)}, expected a list of objects")
    return tuple(tools)


def _is_deep(value: Any, levels: int = MAX_DEPTH) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return levels == 0 or any(_is_deep(part, levels - 1) for part in inner)


def _check_text(read: Conversation) -> None:
    if _is_deep(read.messages) or _is_deep(read.tools):
        raise BadConversation("nested too deep", f"{read.form}: nested in more than {MAX_DEPTH} levels")
    whole = json.dumps([read.messages, read.tools], ensure_ascii=False)
    try:
        whole.encode()
    except UnicodeEncodeError:
        raise BadConversation("lone surrogate", f"{read.form}: holds a lone surrogate, which is no character") from None
    if found := OWN.search(whole):
        raise BadConversation("no character", f"{read.form}: holds U+{ord(found[0]):04X}, which is no character")


def kind_of(value: Any) -> str:
    """What a value out of JSON is called in messages."""
    return {type(None): "null", str: "text"}.get(type(value), type(value).__name__)
