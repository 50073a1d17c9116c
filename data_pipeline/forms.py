"""Which form has a row of named fields, and what record does it give?

Told from the fields, in this order: conversations as {"messages"} or ShareGPT's {"conversations"}, {"prompt", "completion"} as
texts or as lists of messages, Alpaca's {"instruction", "output"}, {"prompt" or "question", "choices", "answer"}, and {"text"}. A
source's `form` overrides; with a `prompt_template` or `label_words` a row offers choices, or has a label.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from data_pipeline.choices import QUESTION, asks_labels, read_choices, read_labelled
from data_pipeline.config import SourceConfig
from data_pipeline.conversation import BadConversation, Conversation, Message, read_conversation
from data_pipeline.fields import read_field, read_text, template_fields
from data_pipeline.records import Bad, Record, is_encodable

# ShareGPT's names, and those that its descendants use.
SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bot": "assistant", "function_call": "assistant", "system": "system", "tool": "tool",
    "observation": "tool", "function_response": "tool",
}  # fmt: skip
CHAT_FIELDS = ("messages", "conversations", "instruction", "input", "output", "system", "tools")


def fields_of(config: SourceConfig) -> set[str]:
    """Names of the fields that a row can be read from."""
    named = (config.text_field, config.prompt_field, config.completion_field, config.group_field, config.label_field)
    asked = (config.pair_field, config.choices_field, config.answer_field, *template_fields(config.prompt_template))
    return {*named, *asked, *CHAT_FIELDS, QUESTION}


def record_from_fields(row: dict[str, Any], config: SourceConfig) -> Record | Bad:
    """Returns the record of one row, or what is wrong with it."""
    form = config.form if config.form != "auto" else find_form(row, config)
    if not form:
        wanted = f"'{config.text_field}' (or '{config.prompt_field}' and '{config.completion_field}', 'messages', 'conversations', 'question' and '{config.choices_field}', or 'instruction' and 'output')"
        have = ", ".join(repr(key) for key in list(row)[:8]) or "none"
        return Bad("missing field", f"no field {wanted}; the row has {have}")
    group = _name(row, config.group_field, "group") if config.group_field else ""
    label = _name(row, config.label_field, "label") if config.label_field else ""
    try:
        record = READERS[form](row, config)
    except BadConversation as error:
        return Bad(error.reason, str(error))
    for found in (group, label, record):
        if isinstance(found, Bad):
            return found
    return replace(record, group=group, label=label) if group or label else record


def _name(row: dict[str, Any], field: str, what: str) -> str | Bad:
    """The group or label of a row: a text, a number or true and false."""
    if field not in row:
        return Bad(f"missing {what}", f"no field {field!r}, which {what}_field names")
    value = row[field]
    if not isinstance(value, str | int | float) or value == "":
        return Bad(f"missing {what}", f"field {field!r}, which {what}_field names, is {json.dumps(value)[:40]}")
    name = str(value)
    if not is_encodable(name):
        return Bad("lone surrogate", f"field {field!r} holds a lone surrogate, which is no character")
    return name


def find_form(row: dict[str, Any], config: SourceConfig) -> str:
    """Returns a key of READERS, or "" where no form fits."""
    if asks_labels(config):
        return "choices" if config.choices_field in row else "label"
    if config.text_field != SourceConfig.text_field and config.text_field in row:
        return "text"  # a field that was named is meant
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if config.prompt_field in row and config.completion_field in row:
        return "prompt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if config.choices_field in row and config.answer_field in row and (config.prompt_field in row or QUESTION in row):
        return "choices"
    return "text" if config.text_field in row else ""


def form_of(record: Record) -> str:
    """Says in words which form a record came from."""
    if record.chat is not None:
        return record.chat.form
    if record.choices:
        return "multiple choice"
    return "text" if record.completion is None else "prompt and completion"


def _text(row: dict[str, Any], config: SourceConfig) -> Record | Bad:
    value = read_text(row, config)
    return value if isinstance(value, Bad) else Record(value)


def _prompt(row: dict[str, Any], config: SourceConfig) -> Record | Bad:
    prompt, completion = row.get(config.prompt_field), row.get(config.completion_field)
    if isinstance(prompt, list) or isinstance(completion, list):
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        after = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        if not isinstance(before, list) or not isinstance(after, list) or not after:
            name = config.completion_field if isinstance(before, list) else config.prompt_field
            raise BadConversation("wrong type", f"field {name!r} is neither text nor a list of messages")
        where = f"{config.prompt_field} + {config.completion_field}"
        chat = read_conversation([*before, *after], row.get("tools"), where, where, learn_from=len(before))
        return Record("", chat=_learned(chat))
    parts = [read_field(row, config.prompt_field, may_be_empty=True), read_field(row, config.completion_field)]
    bad = next((part for part in parts if isinstance(part, Bad)), None)
    return bad or Record(str(parts[0]), str(parts[1]))


def _messages(row: dict[str, Any], config: SourceConfig) -> Record | Bad:
    return Record("", chat=_learned(read_conversation(row.get("messages"), row.get("tools"))))


def _sharegpt(row: dict[str, Any], config: SourceConfig) -> Record | Bad:
    turns = row.get("conversations")
    if not isinstance(turns, list):
        raise BadConversation("wrong type", "conversations is not a list of turns")
    messages: list[Any] = _system(row)
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or "role" in turn:
            messages.append(turn)
            continue
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise BadConversation(
                "unknown role", f"conversations[{number}] is from {speaker!r}, expected one of {', '.join(SPEAKERS)}"
            )
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        messages.append({"role": SPEAKERS[speaker], "content": turn.get("value"), **rest})
    return Record("", chat=_learned(read_conversation(messages, row.get("tools"), "conversations", "conversations")))


def _alpaca(row: dict[str, Any], config: SourceConfig) -> Record | Bad:
    instruction, given = row.get("instruction"), row.get("input") or ""
    if not isinstance(instruction, str) or not isinstance(given, str):
        raise BadConversation("wrong type", "fields 'instruction' and 'input' must be text")
    messages: list[Any] = _system(row)
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadConversation("wrong type", "field 'history' is no list of [question, answer]")
    for question, answer in history:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    # the two fields go along for a template that sets them apart, as the built-in "alpaca" does
    user = {
        "role": "user",
        "content": "\n\n".join(filter(None, (instruction, given))),
        "instruction": instruction,
        "input": given,
    }
    messages += [user, {"role": "assistant", "content": row.get("output")}]
    return Record("", chat=_learned(read_conversation(messages, row.get("tools"), "instruction and output", "turns")))


READERS = {
    "text": _text, "prompt": _prompt, "messages": _messages, "sharegpt": _sharegpt, "alpaca": _alpaca,
    "choices": read_choices, "label": read_labelled,
}  # fmt: skip


def _system(row: dict[str, Any]) -> list[Message]:
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def _learned(chat: Conversation) -> Conversation:
    if not any(chat.learned):
        raise BadConversation("nothing to learn", f"{chat.form}: no assistant message that is to be learned")
    return chat
