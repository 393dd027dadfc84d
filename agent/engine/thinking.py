"""Models that think before they answer: their thoughts are kept apart, counted, and ended when a budget is used up.

Thoughts stand between two marks, ``<think>`` and ``</think>`` unless the manifest says others.
Some templates open them in the prompt, other models open them themselves. The marks may be
one token each or several; they are found in the bytes, whatever the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import msgspec

from agent.engine.runtime import PromptRejected, PromptTooLong, Runtime
from agent.engine.text_stream import TextStream
from agent.types import Thinking, ThinkingMarks, Token

AFTER = "\n\n"  # between thoughts and answer
_TAIL = 16  # tokens at the end of a prompt in which an opening mark is looked for


class _State(Enum):
    LOOKING = "looking"  # the answer may begin with an opening mark
    INSIDE = "inside"
    CLOSED = "closed"  # the thoughts are over, the answer has not begun
    OVER = "over"


class Thoughts:
    """The thoughts of one answer. Tokens go in one by one until ``over``."""

    def __init__(
        self, marks: ThinkingMarks, budget: int, *, inside: bool, closing: list[int], spacing: list[int], ruled: bool
    ) -> None:
        """``closing`` are the tokens that end thoughts by force; ``spacing`` come before an answer that has a rule."""
        self._open, self._close = marks.open.encode(), marks.close.encode()
        self._budget = budget
        self._state = _State.INSIDE if inside else _State.LOOKING
        self.closing = closing
        self._spacing = spacing
        self._ruled = ruled
        self._text = TextStream([marks.close])
        self._tail = b""  # last bytes of the thoughts
        self._blank = ""  # space that is told only when a thought follows
        self._told: list[str] = []
        self._begun = False  # some thought was told
        self._lead: list[tuple[Token, bytes]] = []  # what may still become an opening mark
        self.tokens = 0  # all that are not of the answer, marks included
        self._inside_tokens = 0

    @property
    def inside(self) -> bool:
        return self._state is _State.INSIDE

    @property
    def over(self) -> bool:
        """Whether the next token is one of the answer."""
        return self._state is _State.OVER

    @property
    def used_up(self) -> bool:
        """Whether the thoughts must be ended now."""
        return self.inside and self._inside_tokens >= self._budget

    def read(self, token: Token, written: bytes) -> list[Token]:
        """Take the next token and its bytes, control tokens written out; return those that turn out to be of the answer."""
        match self._state:
            case _State.LOOKING:
                return self._look(token, written)
            case _State.INSIDE:
                self.tokens += 1
                self._inside_tokens += 1
                return self._think(token, written)
            case _:
                return self._after(token, token.text_bytes)

    def close(self, tokens: int) -> None:
        """So many of the closing tokens were put after the thoughts."""
        self.tokens += tokens
        self._tell(self._text.flush()[0])
        self._state = _State.OVER if self._ruled else _State.CLOSED

    @property
    def spacing(self) -> list[int]:
        """Tokens to put before an answer whose rule admits no space, once thoughts are over."""
        return self._spacing if self._ruled and b"\n" not in self._tail else []

    def spaced(self, tokens: int) -> None:
        """So many of them were put there."""
        self.tokens += tokens

    def told(self) -> str:
        """Return the text of thoughts that is new since the last call."""
        text = "".join(self._told)
        self._told.clear()
        return text

    def rest(self) -> str:
        """Return, when all is over, the text of thoughts that was not told yet."""
        if self.inside:
            self._tell(self._text.flush()[0])
        return self.told()

    def held(self) -> list[Token]:
        """Return, when all is over, tokens that never became a mark: they are of the answer."""
        held, self._lead = [token for token, _ in self._lead], []
        return held

    def _look(self, token: Token, written: bytes) -> list[Token]:
        self._lead.append((token, written))
        text = b"".join(part for _, part in self._lead).lstrip()
        if text != self._open and self._open.startswith(text):
            return []  # not whole yet
        lead, self._lead = self._lead, []
        if not text.startswith(self._open):
            self._state = _State.OVER
            return [one for one, _ in lead]
        self._state = _State.INSIDE
        self.tokens += len(lead)
        return self._think(token, text.removeprefix(self._open))

    def _think(self, token: Token, written: bytes) -> list[Token]:
        self._tail = self._tail[-len(self._close) :] + written
        self._tell(self._text.push(msgspec.structs.replace(token, text_bytes=written))[0])
        if not self._text.stopped:
            return []
        self._tail = self._tail.partition(self._close)[2]
        self._state = _State.OVER if self._ruled else _State.CLOSED
        # A token may hold the end of the mark and the beginning of the answer.
        return [] if self._ruled or not self._tail.strip() else self._after(token, self._tail)

    def _after(self, token: Token, written: bytes) -> list[Token]:
        text = written.lstrip()
        if written and not text:
            self.tokens += 1
            return []
        self._state = _State.OVER
        return [msgspec.structs.replace(token, text_bytes=text)]

    def _tell(self, text: str) -> None:
        text = self._blank + text
        if not self._begun:
            text = text.lstrip()
        told = text.rstrip()
        self._blank = text[len(told) :]
        if told:
            self._begun = True
            self._told.append(told)


def budget_of(asked: Thinking | None, default: int, marks: ThinkingMarks | None) -> int | None:
    """Return the most tokens of thought; None: as many as there is room for. ``default``: where nothing is asked.

    Raises PromptRejected where thoughts are asked of a model that has none.
    """
    if marks is None and asked is not None and asked.enabled:
        raise PromptRejected("this model does not think before it answers: leave it out", asked.param)
    if asked is None:
        return default
    if asked.budget_tokens is not None:
        return asked.budget_tokens
    if asked.enabled is None:
        return default
    return (default or None) if asked.enabled else 0


def begin(runtime: Runtime, prompt: list[int], budget: int | None, *, ruled: bool) -> Thoughts | None:
    """Return the thoughts of an answer to this prompt, which may grow by an opening mark; None: there will be none.

    ``ruled``: the answer has a format or tools; it follows the thoughts, so a model that can
    be told to think is made to begin with them. Raises PromptTooLong.
    """
    marks = runtime.thinking
    if marks is None:
        return None
    inside = _ends_with(runtime, prompt, marks.open)
    if ruled and not inside:
        if not marks.switchable or budget == 0:
            return None
        opening = runtime.markup_tokens(marks.open + "\n")
        if len(prompt) + len(opening) + 1 > runtime.context_tokens:
            raise PromptTooLong(f"the prompt has {len(prompt)} tokens, the context has {runtime.context_tokens}")
        prompt += opening
        inside = True
    return Thoughts(
        marks,
        runtime.context_tokens if budget is None else budget,
        inside=inside,
        closing=runtime.markup_tokens(f"\n{marks.close}{AFTER}"),
        spacing=runtime.markup_tokens(AFTER),
        ruled=ruled,
    )


def _ends_with(runtime: Runtime, prompt: Sequence[int], mark: str) -> bool:
    return b"".join(map(runtime.written, prompt[-_TAIL:])).rstrip().endswith(mark.encode())
