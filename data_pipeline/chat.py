"""How does a conversation become ids, in training and when a model answers alike, and which of them did the assistant say?

    chat = open_chat(tokenizer)                                  # its own template, or ChatML where it has none
    ids = chat.prompt([{"role": "user", "content": "你好"}])     # for a model to go on from; any of chat.stop_ids ends it

To learn from a conversation, it is rendered a second time with marks around what the assistant says, which must not change
a character of the rest. An answer begins after the text that asks for one and ends with the token that ends a turn. So
nothing is assumed about a template: not that it writes turn by turn what it writes for the whole (Qwen3's takes away earlier
reasoning, Phi's puts an end after the last turn), nor that it has `{% generation %}`.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from data_pipeline.built_in_templates import BUILT_IN, built_in_template
from data_pipeline.chat_template import Template, TemplateError
from data_pipeline.config import ChatConfig
from data_pipeline.conversation import BadConversation, Conversation, read_conversation
from data_pipeline.marks import Marked, Message, mark_answer, mark_next, quote, strings_in, take_out
from data_pipeline.records import Rendered
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.tokenizer import Tokenizer

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
SPACE = re.compile(r"\s+")
PROBE: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


class Chat:
    """A chat template that runs for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, source: str, where: str, now: Callable[[], datetime] = datetime.now):
        self.tokenizer, self.source, self.where = tokenizer, source, where
        self.template = Template(source, where, tokenizer.special_texts, now)
        self.stops = {name for name, number in tokenizer.special_names.items() if number in tokenizer.stop_ids}
        self.ways = ("generation",) * bool(GENERATION.search(source)) + ("around", "behind")
        self.ask, self.lead, self.ending = self._probe()
        ends = [match[0].strip() for match in tokenizer.name_pattern.finditer(self.ending)]
        self.stop_ids = tuple(
            dict.fromkeys((*tokenizer.stop_ids, *(tokenizer.special_names[name] for name in ends[-1:])))
        )

    def prompt(self, messages: Any, tools: Any = None, add_bos: bool = False, **variables: Any) -> list[int]:
        """Returns the ids for the model to answer `messages` (checked here); `variables` go to the template.

        Raises UserError for messages that are no conversation or that the template refuses.
        """
        try:
            read = read_conversation(messages, tools)
            rendered = self.render(read, add_generation_prompt=True, **variables)
        except BadConversation as error:
            raise UserError(str(error)) from None
        except TemplateError as error:
            raise UserError(f"{self.where} refuses the messages: {error}") from None
        return encode_rendered(rendered, self.tokenizer, add_bos)[0]

    def render(self, chat: Conversation, add_generation_prompt: bool = False, **variables: Any) -> Rendered:
        """Writes a conversation; with `add_generation_prompt` nothing is learned, and the text asks for an answer.

        Raises TemplateError for what the template refuses, and where it changes what the assistant says beyond recognition.
        """
        messages = list(chat.messages)
        variables |= {
            "tools": list(chat.tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            text = self.template.run(messages, **variables)
        except TemplateError:  # many take no message without content, as one with calls may be
            messages = [{"content": "", **message} for message in messages]
            text = self.template.run(messages, **variables)
        learns = any(chat.learned) and not add_generation_prompt
        names = self.tokenizer.name_pattern
        if not learns and not any(map(names.search, strings_in([*messages, *chat.tools]))):
            return Rendered(text)
        variables["tools"] = quote(variables["tools"], names)
        for way in self.ways if learns else ("none",):
            try:
                marked = take_out(
                    self.template.run(_mark(quote(messages, names), way), way == "generation", **variables)
                )
            except TemplateError:  # the marks disturb it
                continue
            if marked.text == text and (
                not learns or len(marked.ends) == sum(m["role"] == "assistant" for m in messages)
            ):
                return self._place(chat, marked, way) if learns else Rendered(text, (), marked.literal)
        raise TemplateError(
            "it changes or leaves out what the assistant says, so what is to be learned cannot be told apart"
        )

    def _place(self, chat: Conversation, marked: Marked, way: str) -> Rendered:
        """Finds what is learned of each answer."""
        text, learned, left_out, before, ended = marked.text, [], 0, 0, True
        answers = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
        for number, index in enumerate(answers):
            message = chat.messages[index]
            start, stop, ended = self._span(marked, message, before, number, way)
            before = stop
            # where the text that asks for an answer opens its reasoning, the answer was said to do so
            shown = "" if start is None else SPACE.sub("", text[max(start - len(self.ask), 0) : stop])
            said = [SPACE.sub("", message.get(name, "")) for name in ("reasoning_content", "content")]
            if start is None or not all(part in shown for part in said):
                left_out += chat.learned[index]
            elif chat.learned[index]:
                learned.append((start, stop))
        if not learned:
            raise TemplateError("it shows none of the answers that are to be learned whole")
        if answers[-1] == len(chat.messages) - 1 and not ended:  # no token ends the last turn
            end_text = self.tokenizer.special_texts.get("eos_token", "")
            if learned[-1][1] == before:
                learned[-1] = (learned[-1][0], before + len(end_text))
            text = text[:before] + end_text
        return Rendered(text, tuple(learned), marked.literal, left_out)

    def _span(
        self, marked: Marked, message: Message, before: int, number: int, way: str
    ) -> tuple[int | None, int, bool]:
        """Returns (where an answer begins, where its turn is over, whether a token ends it); None: nothing shows where."""
        begin, end = marked.begins.get(number), marked.ends[number]
        content, calls = message.get("content", ""), bool(message.get("tool_calls"))
        if way == "generation" and begin is not None:
            asked = marked.text.endswith(self.ask, before, begin)  # some blocks hold it too
            start = begin + len(self.ask) * (not asked and marked.text.startswith(self.ask, begin))
            if re.search(f"(?:{self.tokenizer.name_pattern.pattern})\\s*$", marked.text[begin:end]):
                return start, end, True
            return start, *self._end_of_turn(marked, end)
        start = self._start(marked, before, begin, end, content)
        if calls:
            return start, *self._end_of_calls(marked, end)
        behind = content[len(content.rstrip()) :]
        return start, *self._end_of_turn(marked, end + len(behind) * marked.text.startswith(behind, end))

    def _start(self, marked: Marked, before: int, begin: int | None, end: int, content: str) -> int | None:
        """Returns where an answer begins: after the text that asks for one, or where the mark stands."""
        at = marked.text.rfind(self.ask, before, end if begin is None else begin) if self.ask else -1
        if at >= 0 and not marked.is_literal(at, at + len(self.ask)):
            return at + len(self.ask)
        if begin is None:
            return None
        ahead = self.lead + content[: len(content) - len(content.lstrip())]
        return begin - len(ahead) * marked.text.endswith(ahead, 0, begin)

    def _end_of_turn(self, marked: Marked, end: int) -> tuple[int, bool]:
        """Returns (where the turn that says something up to `end` is over, whether a token ends it)."""
        names = self.tokenizer.name_pattern
        has_name = bool(names.search(self.ending))
        if self.ending and marked.text.startswith(self.ending, end):
            return end + len(self.ending), has_name
        behind = SPACE.match(marked.text, end)
        match = names.match(marked.text, behind.end() if behind else end)
        if match and (has_name or match[0].strip() in self.stops):
            return match.end(), True
        return end, False

    def _end_of_calls(self, marked: Marked, end: int) -> tuple[int, bool]:
        """The same behind tool calls, whose arguments and signs are up to the template: before the next message begins."""
        limit = min((at for at in marked.nexts if at >= end), default=len(marked.text))
        for match in self.tokenizer.name_pattern.finditer(marked.text, end, limit):
            is_end = match[0].strip() in self.stops or self.ending.strip().endswith(match[0].strip())
            if is_end and not marked.is_literal(*match.span()):
                return match.end(), True
        at = marked.text.find(self.ending, end, limit) if self.ending else -1
        if at < 0:
            raise TemplateError("nothing shows where it ends the turn of a tool call")
        return at + len(self.ending), False

    def _probe(self) -> tuple[str, str, str]:
        """Returns (text that asks for an answer, text between it and the answer, text from the answer to the end of its turn)."""
        run, names = self.template.run, self.tokenizer.name_pattern
        given: dict[str, Any] = {"tools": None, "documents": None}
        system: list[Message] = [{"role": "system", "content": "?"}]
        for first in ([], system):  # a template may want a system message
            try:
                told = run([*first, PROBE[0]], add_generation_prompt=False, **given)
                asked = run([*first, PROBE[0]], add_generation_prompt=True, **given)
                answered = take_out(
                    run([*first, PROBE[0], mark_answer(PROBE[1], 0)], add_generation_prompt=False, **given)
                )
                begin, end = answered.begins[0], answered.ends[0]
                break
            except (TemplateError, KeyError):
                continue
        else:
            return "", "", ""
        same = next((i for i, (a, b) in enumerate(zip(told, asked)) if a != b), min(len(told), len(asked)))
        ask = asked[same:]
        lead = answered.text[len(asked) : begin] if answered.text.startswith(asked) and not ask else ""
        tail = answered.text[end:]
        matches = list(names.finditer(tail))
        last = next((m for m in matches if m[0].strip() in self.stops), matches[0] if matches else None)
        return ask, lead, tail[: last.end()] if last else tail


def open_chat(tokenizer: Tokenizer, config: ChatConfig | None = None) -> Chat:
    """Returns the chat of a tokenizer. With the `config` of a data section, its template and its fixed date hold."""
    source, where = template_source(tokenizer, config)
    if not tokenizer.stop_ids:
        raise ConfigError(
            "the tokenizer has no end token (eos), which answers end with; name it in its tokenizer_config.json"
        )
    return Chat(tokenizer, source, where) if config is None else Chat(
        tokenizer, source, where, lambda: datetime.fromisoformat(config.date)
    )  # fmt: skip


def open_trained_chat(tokenizer: Tokenizer, workdir: str) -> Chat:
    """Returns the chat of a run's tokenizer; raises UserError where the run learned no conversations and has no template."""
    if not tokenizer.template:
        raise UserError(
            f"{workdir}: its tokenizer has no chat template, as the model was not trained on conversations. Fine-tune it on "
            "rows with messages (docs/finetuning.md), or continue text: python -m lm.generate --prompt=TEXT"
        )
    return open_chat(tokenizer)


def template_source(tokenizer: Tokenizer, config: ChatConfig | None = None) -> tuple[str, str]:
    """Returns (source, where it is from) of the template in use."""
    name = config.template if config else ""
    if name in BUILT_IN or not (name or tokenizer.template):
        has_im_end = "<|im_end|>" in tokenizer.special_names
        name = name or "chatml"
        return built_in_template(name, has_im_end, tokenizer.adds_bos), f"the built-in template {name!r}"
    if not name:
        return tokenizer.template, "the tokenizer's chat template"
    try:
        return Path(name).expanduser().read_bytes().decode(), name
    except OSError as error:
        raise ConfigError(f"config.data.chat.template: {name}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config.data.chat.template: {name}: not UTF-8 at byte {error.start}") from None


def encode_rendered(rendered: Rendered, tokenizer: Tokenizer, add_bos: bool) -> tuple[list[int], list[bool]]:
    """Returns (ids, whether each is learned). There is at most one begin token in front, and with `add_bos` there is one.

    No token stands across the edge of an answer, since none can when the model writes it.
    """
    said = set(rendered.learned)
    edges = sorted({0, *itertools.chain.from_iterable(said), len(rendered.text)})
    spaced = set(tokenizer.special_names.values()) if tokenizer.spaces_names else set()
    ids: list[int] = []
    learned: list[bool] = []
    literal = rendered.literal
    for begin, end in itertools.pairwise(edges):
        inside = literal[bisect.bisect_left(literal, (begin, 0)) : bisect.bisect_left(literal, (end, 0))]
        behind = "" if ids and ids[-1] in spaced else rendered.text[begin - 1 : begin]
        part = tokenizer.encode_template(rendered.text[begin:end], [(a - begin, b - begin) for a, b in inside], behind)
        ids += part
        learned += [(begin, end) in said] * len(part)
    bos = tokenizer.special.bos
    while bos >= 0 and ids[:2] == [bos, bos]:
        del ids[0], learned[0]
    if add_bos and ids[:1] != [bos]:
        ids, learned = [bos, *ids], [False, *learned]
    return ids, learned


def _mark(messages: list[Message], way: str) -> list[Message]:
    """Marks answers "around" or only "behind", and what comes after tool calls."""
    if way in ("none", "generation"):
        return messages
    marked: list[Message] = []
    answers = 0
    for before, message in zip([{}, *messages], messages):
        if message["role"] == "assistant":
            marked.append(mark_answer(message, answers, with_begin=way == "around"))
            answers += 1
        else:
            marked.append(mark_next(message) if before.get("tool_calls") else message)
    return marked
