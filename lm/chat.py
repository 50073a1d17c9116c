"""How does a model talk with somebody: a conversation in the terminal, or one answer to a file of messages?

python -m lm.generate --workdir=runs/chat --chat --system="You are brief."
python -m lm.generate --workdir=runs/chat --messages=messages.json
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.config import UserError
from lm.generate import generate, visible
from lm.model.transformer import Model
from lm.params import Params
from lm.sampling import Sampling

Message = dict[str, Any]
HELP = """/reset          forgets the conversation, and keeps the system message
/system TEXT    sets the system message; without TEXT there is none
/help           this
/quit, Ctrl-D   ends the chat; Ctrl-C stops an answer
A message that begins with / is written with a space before it.
"""


@dataclass(frozen=True)
class Speaker:
    """A model that answers messages."""

    model: Model
    params: Params
    chat: Any  # data_pipeline.chat.Chat
    add_bos: bool
    sampling: Sampling
    max_new_tokens: int
    seed: int

    def answer(self, messages: Any, say: Callable[[str], None]) -> str:
        """Calls `say` with pieces of an answer as they come; returns what the reader should know about it, or nothing.

        Raises UserError for messages that the template refuses, and for more of them than the model has positions.
        """
        ids = self.chat.prompt(messages, add_bos=self.add_bos)
        places, most, note = (
            self.model.config.max_len,
            self.max_new_tokens,
            f"cut at --max_new_tokens={self.max_new_tokens}",
        )
        if self.model.config.position == "learned" and places - len(ids) < most:
            most, note = places - len(ids), f"cut where the {places} positions of this model end; /reset starts anew"
        if most < 1:
            raise UserError(
                f"with this message the conversation takes {len(ids)} tokens, which leaves no room for an answer in the "
                f"{places} positions of this model. Make it shorter (in a chat, /reset starts anew)"
            )
        stream = self.chat.tokenizer.stream(begins=True)
        (out,) = generate(
            self.model, self.params, [ids], max_new_tokens=most, stop_ids=self.chat.stop_ids, sampling=self.sampling,
            seed=self.seed + len(messages), on_token=lambda row, token: say(stream.push(token)),
        )  # fmt: skip
        say(stream.close())
        if len(ids) + len(out) > places:
            long = (
                f"the conversation is longer than the {places} tokens the model learned with, which may make it worse"
            )
            return long if len(out) < most else f"{note}; {long}"
        return "" if len(out) < most else note


def converse(
    speaker: Speaker, system: str, read: Callable[[str], str], write: Callable[[str], None], prompt: str = "> "
) -> None:
    """Talks until `read` raises EOFError. All of the conversation is given to the model each time, or the message refused."""
    turns: list[Message] = []
    while True:
        try:
            line = read(prompt)
        except EOFError:
            return write("\n" if prompt else "")
        except KeyboardInterrupt:
            write("\n[Ctrl-D or /quit ends the chat]\n")
            continue
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return None
        if command == "/reset":
            turns = []
            write("[a new conversation]\n")
        elif command == "/system":
            system = rest.strip()
            write(f"[{'the system message is set' if system else 'no system message'}; the conversation goes on]\n")
        elif command.startswith("/"):
            write(HELP if command == "/help" else f"[no command {visible(command)}]\n{HELP}")
        elif line.strip():
            turns += _reply(speaker, system, turns, line.strip(), write)


def _reply(
    speaker: Speaker, system: str, turns: list[Message], text: str, write: Callable[[str], None]
) -> list[Message]:
    """Writes the answer to `text`; returns the turns that the conversation has grown by."""
    user: Message = {"role": "user", "content": text}
    said: list[str] = []

    def say(piece: str) -> None:
        said.append(piece)
        write(visible(piece))

    try:
        note = speaker.answer([*([{"role": "system", "content": system}] if system else []), *turns, user], say)
    except UserError as error:
        write(f"error: {visible(str(error))}\n")
        return []
    except KeyboardInterrupt:
        note = "stopped"
    answer = "".join(said)
    if not answer.strip():
        note = f"{note}; " * bool(note) + "no answer: the message is left out of the conversation"
    write("\n" + f"[{note}]\n" * bool(note))
    return [user, {"role": "assistant", "content": answer}] if answer.strip() else []


def open_terminal() -> tuple[Callable[[str], str], Callable[[str], None], str]:
    """Returns how to read a line, how to write, and the prompt (none where lines come from a file or a pipe)."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # such bytes are refused with their message
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  editing and history of lines, where the system has it

    def write(text: str) -> None:
        print(text, end="", flush=True)

    return input, write, "> " if sys.stdin.isatty() else ""


def answer_file(speaker: Speaker, path: str) -> None:
    """Prints the answer to the messages in a JSON file, and nothing else on stdout."""
    try:
        messages = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"--messages: {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--messages: {path}: not valid JSON ({error})") from None
    shown = visible if sys.stdout.isatty() else str
    note = speaker.answer(
        messages.get("messages") if isinstance(messages, dict) else messages,
        lambda piece: print(shown(piece), end="", flush=True),
    )
    print()
    if note:
        print(note, file=sys.stderr)
