"""Chat templates come with model files: they run in a sandbox, with limits of time, memory and size.

They see what those of transformers see: ``messages``, ``tools``, ``bos_token``, ``eos_token``,
``add_generation_prompt``, ``enable_thinking``, ``raise_exception``, ``strftime_now``, ``tojson``.
"""

from __future__ import annotations

import datetime as dt
import json
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from agent.engine.call_markup import OPEN, described, tool_object
from agent.engine.runtime import PromptRejected
from agent.structure import Tools
from agent.types import Message, ThinkingMarks

RENDER_LIMIT_S = 2.0
RENDER_BYTES = 256 << 20  # memory beyond that of the process
OUTPUT_FACTOR = 4  # a prompt is at most this many times its messages, plus the next
OUTPUT_SLACK_CHARS = 100_000
MULTIPLY_LIMIT = 1_000_000
_PROBE = "system-message"
_SIZES = Path("/proc/self/statm")  # in pages; the first is the whole address space


class _Slow(BaseException):
    """Raised by the timer; not an Exception, so that no template machinery catches it."""


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse products that would fill the memory, such as ``"a" * 10 ** 9``."""
        if operator == "**" or any(not isinstance(side, int | float) for side in (left, right)):
            sizes = [side if isinstance(side, int) else len(side) for side in (left, right) if _is_sized(side)]
            if operator == "**" or (len(sizes) == 2 and sizes[0] * sizes[1] > MULTIPLY_LIMIT):
                raise jinja2.exceptions.SecurityError("the product is too large")
        return super().call_binop(context, operator, left, right)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``: marks the assistant's text for training; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012 - the base class has it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Turns messages into the text that one model expects."""

    def __init__(
        self, source: str, *, bos: str, eos: str, system_prompt: str | None, thinking: ThinkingMarks | None = None
    ) -> None:
        """``system_prompt`` is put before messages that have none; None or "" puts nothing.

        ``thinking`` are the marks of a model that thinks; None: as the template itself tells.

        Raises PromptRejected when the source is no valid template.
        """
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation])
        environment.globals.update(raise_exception=_refuse, strftime_now=_now)
        environment.filters["tojson"] = _to_json
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._system_prompt = system_prompt
        self.thinking = thinking or marks_in(source)
        # Its own way to show tools is used where it is ours too; else they are described in a message.
        self._knows_tools = OPEN in source and "tools" in source
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise PromptRejected(f"the chat template is not valid: {error}") from error

    def render(self, messages: Sequence[Message], tools: Tools | None = None, *, thinking: bool = False) -> str:
        """Return the prompt. Only in the main thread. Raises PromptRejected.

        Without ``thinking`` it does not end inside of thoughts.
        """
        if self._system_prompt and not any(message.role == "system" for message in messages):
            messages = [Message("system", self._system_prompt), *messages]
        functions = tools.callable if tools else ()
        if not self._knows_tools:
            messages, functions = described(messages, functions), ()
        if any(message.role == "system" for message in messages) and not self._takes_system:
            messages = _merged(messages)
        values = [_value(message) for message in messages]
        shown = [tool_object(function) for function in functions]
        size = sum(_size(message) for message in messages) + len(json.dumps(shown))
        limit = OUTPUT_SLACK_CHARS + OUTPUT_FACTOR * size
        try:
            with _memory_limit(RENDER_BYTES), _time_limit(RENDER_LIMIT_S):
                text = self._text(values, shown, limit, thinking=thinking)
        except _Slow:
            raise PromptRejected(f"the chat template took more than {RENDER_LIMIT_S:g} s") from None
        except Exception as error:
            # The text of the error may quote a message, so its kind has to do.
            raise PromptRejected(f"the chat template refuses these messages ({type(error).__name__})") from error
        if len(text) > limit:
            raise PromptRejected("the chat template makes too much text of these messages")
        if self.thinking and not thinking and text.rstrip().endswith(self.thinking.open):
            text = f"{text.rstrip()}\n\n{self.thinking.close}\n\n"
        return text

    @cached_property
    def _takes_system(self) -> bool:
        """Whether a system message comes out: some templates refuse it, some leave it out without a word."""
        probe = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "?"}]
        try:
            with _memory_limit(RENDER_BYTES), _time_limit(RENDER_LIMIT_S):
                return _PROBE in self._text(probe, [], OUTPUT_SLACK_CHARS, thinking=False)
        except _Slow:
            return True
        except Exception:
            return False

    def _text(self, values: list[dict[str, Any]], tools: list[dict[str, object]], limit: int, *, thinking: bool) -> str:
        parts: list[str] = []
        size = 0
        for part in self._template.generate(
            messages=values,
            add_generation_prompt=True,
            tools=tools or None,
            documents=None,
            enable_thinking=thinking,
            **self._tokens,
        ):
            parts.append(part)
            size += len(part)
            if size > limit:
                break
        return "".join(parts)


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Put the text of system messages before that of the next user message."""
    found: list[Message] = []
    held: list[str] = []
    for message in messages:
        if message.role == "system":
            held.append(message.content)
        elif message.role == "user" and held:
            found.append(Message("user", "\n\n".join([*held, message.content])))
            held.clear()
        else:
            found.append(message)
    if held:
        found.append(Message("user", "\n\n".join(held)))
    return found


def marks_in(source: str) -> ThinkingMarks | None:
    """Return the marks around thoughts that a template speaks of; None: its model does not think."""
    marks = ThinkingMarks(switchable="enable_thinking" in source)
    return marks if marks.close in source else None


def _size(message: Message) -> int:
    return len(message.content) + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)


def _value(message: Message) -> dict[str, Any]:
    """Return a message as templates expect it: the arguments of calls as objects."""
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        value["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments or "{}")},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        value["tool_call_id"] = message.tool_call_id
    return value


@contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    """Let allocations fail (MemoryError) that take the process ``more`` bytes beyond what it has. Linux only."""
    if not _SIZES.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(_SIZES.read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(soft, limit), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def expire(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise _Slow

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _is_sized(value: object) -> bool:
    return isinstance(value, int) or hasattr(value, "__len__")


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return dt.datetime.now().astimezone().strftime(form)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
