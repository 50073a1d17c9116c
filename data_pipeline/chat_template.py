"""How is a chat template, which is a program that came with somebody's model, run without being able to do harm?

Jinja2's immutable sandbox with the helpers that templates on Hugging Face's hub call: `raise_exception`, `strftime_now`,
`tojson`, `{% generation %}`, `break` and `continue`; blocks are trimmed as transformers trims them. A template sees plain
JSON values, reads no file and reaches nothing of Python. It can still waste time and memory, as any program can.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

from data_pipeline.schema import UserError

MAX_CHARS = 2**26  # of one rendered conversation
BEGIN, END = "\ufdd0", "\ufdd1"  # Unicode leaves them to programs, so that no text holds them; see data_pipeline.marks
_marking: ContextVar[bool] = ContextVar("marking", default=False)


class TemplateError(ValueError):
    """What a template says about a conversation that it does not take, or what is wrong with the template itself."""


class Template:
    """A compiled template; `variables` are what it can name besides the conversation, as `bos_token`."""

    def __init__(self, source: str, where: str, variables: dict[str, str], now: Callable[[], datetime]):
        import jinja2

        self.source, self.where, self.variables = source, where, variables
        try:
            self.program = _environment().from_string(source, {"strftime_now": lambda form: now().strftime(form)})
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{where}:{error.lineno}: the chat template is not valid Jinja: {error.message}") from None
        except (ArithmeticError, MemoryError, RecursionError, SyntaxError, ValueError) as error:
            raise UserError(f"{where}: the chat template cannot be compiled: {_say(error)}") from None

    def run(self, messages: list[dict[str, Any]], marking: bool = False, **variables: Any) -> str:
        """Returns the text; `marking` puts BEGIN and END around what `{% generation %}` blocks write."""
        import jinja2

        token, parts, size = _marking.set(marking), [], 0
        try:
            for part in self.program.generate(messages=messages, **(self.variables | variables)):
                size += len(part)
                if size > MAX_CHARS:
                    raise TemplateError(f"it writes more than {MAX_CHARS:,} characters")
                parts.append(part)
        except jinja2.exceptions.SecurityError as error:
            raise TemplateError(f"it does what no template may: {_say(error)}") from None
        except jinja2.TemplateError as error:
            raise TemplateError(_say(error)) from None
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise TemplateError(_say(error)) from None
        finally:
            _marking.reset(token)
        return "".join(parts)


def _say(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Makes the sandbox as transformers 5.24 does (utils/chat_template_utils.py), for which templates are written."""
    import jinja2
    from jinja2 import ext, nodes, sandbox, utils

    class Generation(ext.Extension):
        """`{% generation %} ... {% endgeneration %}`: what the assistant writes."""

        tags = {"generation"}  # noqa: RUF012  jinja2's own way

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Callable[[], str]) -> str:
            return f"{BEGIN}{caller()}{END}" if _marking.get() else caller()

    class Dict:
        """`dict(...)` and `dict.fromkeys`, without the class itself."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class Namespace(utils.Namespace):
        def __init__(*args: Any, **kwargs: Any):  # no `self`: a template may call an attribute so
            attributes = dict(*args[1:], **kwargs)
            for name in attributes:
                refuse_private(name)
            utils.Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            refuse_private(name)
            super().__setitem__(name, value)

    def refuse_private(name: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"it sets the attribute {name!r} of a namespace")

    def raise_exception(message: Any) -> None:
        raise jinja2.TemplateError(str(message))

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "namespace": Namespace, "dict": Dict()}
    return environment
