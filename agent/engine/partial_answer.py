"""The answer to one request while it comes in, piece by piece."""

from __future__ import annotations

import time

from agent.engine import frames
from agent.engine.call_markup import CallReader
from agent.structure import CallPiece, Tools
from agent.types import Delta, Failure, Generation, Token


class PartialAnswer:
    """What one request has received so far; survives the worker."""

    def __init__(self, started: float, tools: Tools | None) -> None:
        """``started`` is on the monotonic clock, seconds."""
        self.started = started
        self.reader = CallReader() if tools and tools.callable else None
        self.texts: list[str] = []
        self.tokens: list[Token] = []
        self.thoughts: list[str] = []
        self.prompt: tuple[Token, ...] = ()  # of an echo
        self.first_token_ms: float | None = None

    def add(self, text: str, tokens: tuple[Token, ...], thought: str = "") -> Delta:
        if self.first_token_ms is None:
            self.first_token_ms = (time.monotonic() - self.started) * 1000
        text, calls = self.reader.feed(text) if self.reader else (text, ())
        return self._delta(text, tokens, calls, thought)

    def last(self, text: str, tokens: tuple[Token, ...], thought: str = "") -> Delta | None:
        """Add what came with the end, and what the reader held back."""
        delta = self.add(text, tokens, thought) if text or tokens or thought else None
        held, calls = self.reader.finish() if self.reader else ("", ())
        if not held and not calls:
            return delta
        rest = self._delta(held, (), calls)
        return rest if delta is None else Delta(delta.text + held, tokens, calls=delta.calls + calls, thought=thought)

    def finish_reason(self, told: str | None) -> str | None:
        return "tool_calls" if told == "stop" and self.reader and self.reader.calls else told

    def generation(self, ended: frames.Ended | None, failure: Failure | None) -> Generation:
        """Return what there is of the answer; the model is not named in it."""
        return Generation(
            text="".join(self.texts),
            thoughts="".join(self.thoughts),
            finish_reason=self.finish_reason(ended.finish_reason) if ended and not failure else None,
            tokens=tuple(self.tokens),
            tool_calls=self.reader.calls if self.reader else (),
            incomplete=bool(ended and ended.incomplete),
            prompt_tokens=ended.prompt_tokens if ended else 0,
            cached_tokens=ended.cached_tokens if ended else 0,
            output_tokens=ended.output_tokens if ended else len(self.tokens),
            thought_tokens=ended.thought_tokens if ended else 0,
            accepted_tokens=ended.accepted_tokens if ended else 0,
            rejected_tokens=ended.rejected_tokens if ended else 0,
            first_token_ms=self.first_token_ms,
            duration_ms=(time.monotonic() - self.started) * 1000,
            end=ended.end if ended else None,
            prompt_logprobs=self.prompt,
            failure=failure,
        )

    def _delta(self, text: str, tokens: tuple[Token, ...], calls: tuple[CallPiece, ...], thought: str = "") -> Delta:
        self.thoughts.append(thought)
        self.texts.append(text)
        self.tokens += tokens
        return Delta(text, tokens, calls=calls, thought=thought)
