"""The figures of a prompt's own tokens, and of the token that would come next.

Questions about one text come one after the other, each with another ending: the figures of
the beginning that a prompt shares with the last one are taken from there.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import msgspec

from agent.engine.runtime import Node, Runtime, ScoringContext
from agent.engine.sampling import Observer
from agent.types import Token, TopToken


class PromptEcho:
    """Describes prompts in a scoring context. Used by one thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._observer = Observer(runtime.vocabulary_size)
        self._last: tuple[Token, ...] = ()
        self._last_top = 0

    def cached(self, prompt: Sequence[int], held: Sequence[int], top: int) -> int:
        """Return how many of a prompt's tokens need no computing, of those that the context holds."""
        if top != self._last_top:
            return 0
        agreeing = 0
        for token, other, told in zip(prompt, held, self._last, strict=False):
            if not token == other == told.id:
                break
            agreeing += 1
        return max(0, agreeing - 1)  # the row of the last one tells of the next

    def run(
        self, context: ScoringContext, prompt: Sequence[int], cached: int, top: int, held: list[int]
    ) -> Generator[None, None, tuple[tuple[Token, ...], Token]]:
        """Return the described prompt and the likeliest token after it; give way after every decode.

        ``held`` are the tokens in the context; those that are computed are added. Raises NoDistribution.
        """
        first = Token(prompt[0], self._runtime.piece(prompt[0]), 0.0, 0.0, 0.0)
        found = list(self._last[: cached + 1]) if cached else [first]
        for begin in range(cached, len(prompt), context.batch_tokens):
            batch = prompt[begin : begin + context.batch_tokens]
            rows = context.decode([Node(token, begin + at, None, wants_row=True) for at, token in enumerate(batch)])
            held += batch
            for row, following in zip(rows, [*prompt[begin + 1 :], None], strict=False):
                self._observer.read(row)
                found.append(self._describe(self._observer.likeliest if following is None else following, top))
            yield
        self._last, self._last_top = tuple(found[:-1]), top
        return self._last, found[-1]

    def _describe(self, token: int, top: int) -> Token:
        told, _ = self._observer.describe(token, self._runtime.piece(token), top)
        alternatives = tuple(TopToken(other.id, self._runtime.piece(other.id), other.logprob) for other in told.top)
        return msgspec.structs.replace(told, top=alternatives)
