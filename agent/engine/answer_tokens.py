"""The next tokens of an answer: drawn from a row, or forced by the rule that it must keep to."""

from __future__ import annotations

from functools import cached_property

import msgspec
import numpy as np

from agent.engine.grammar import RuleBroken
from agent.engine.runtime import Row, Runtime
from agent.engine.sampling import Mask, Observer
from agent.engine.sequence import Sequence
from agent.engine.thinking import Thoughts
from agent.types import Token, TopToken


class AnswerTokens:
    """Takes the tokens of all answers of a runtime, one row at a time."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._observer = Observer(runtime.vocabulary_size)

    def read(self, row: Row) -> None:
        """Look at the row that the next token is drawn from. Raises NoDistribution."""
        self._observer.read(row)

    def following(self, sequence: Sequence) -> tuple[list[Token], str | None]:
        """Take a token, by the row that was read, and those that are forced after it; tell how the answer ends with them.

        Raises RuleBroken.
        """
        said, sequence.unsaid = sequence.unsaid, []
        if finish_reason := sequence.finish_reason:
            return said, finish_reason
        if sequence.thoughts and sequence.thinking:
            return self._next_thought(sequence, sequence.thoughts)
        constraint, allowed = sequence.constraint, None
        if constraint and sequence.sampling.logprobs and (forced := constraint.forced_tokens()):
            chosen = forced[0]  # each has a row of its own: its log-probability was asked for
        else:
            allowed = constraint.allowed() if constraint else None
            chosen = sequence.sampler.draw(self._observer, allowed)
        if self._runtime.ends(chosen):
            if constraint or sequence.generated >= sequence.sampling.min_tokens:
                if not constraint:
                    sequence.end = self._describe(sequence, chosen, allowed)
                return said, "stop"
            chosen = sequence.sampler.draw(self._observer, self._going_on)
        said.append(self._describe(sequence, chosen, allowed))
        self._take(sequence, chosen)
        said += self.forced_run(sequence)
        return said, sequence.finish_reason

    def _next_thought(self, sequence: Sequence, thoughts: Thoughts) -> tuple[list[Token], str | None]:
        """Take a token before the answer, or end the thoughts; the same result as of an answer's token."""
        said: list[Token] = []
        chosen = None if thoughts.used_up else sequence.sampler.draw(self._observer)
        if chosen is not None and self._runtime.ends(chosen) and not thoughts.inside:
            if sequence.generated >= sequence.sampling.min_tokens:
                return thoughts.held(), "stop"
            chosen = sequence.sampler.draw(self._observer, self._going_on)
        if chosen is None or self._runtime.ends(chosen):  # the answer goes on, whatever the thoughts
            thoughts.close(self._put(sequence, thoughts.closing))
        else:
            token = self._describe(sequence, chosen, None)
            self._take(sequence, chosen)
            said = thoughts.read(token, self._runtime.written(chosen))
            if thoughts.over and sequence.rule_in_force:
                thoughts.spaced(self._put(sequence, thoughts.spacing))
        if thoughts.over:
            said += self.forced_run(sequence)
        if finish_reason := sequence.finish_reason:
            said += thoughts.held()
        return said, finish_reason

    def forced_run(self, sequence: Sequence) -> list[Token]:
        """Take all tokens that the rule forces now: they are decoded in one piece. Raises RuleBroken."""
        constraint = sequence.constraint
        if constraint is None or sequence.sampling.logprobs:
            return []
        run = constraint.forced_tokens()[: sequence.limit - sequence.generated]
        for token in run:
            self._take(sequence, token)
        return [Token(token, self._runtime.piece(token), 0.0, 0.0, 0.0, forced=True) for token in run]

    def _put(self, sequence: Sequence, tokens: list[int]) -> int:
        """Add tokens that are of no answer, as far as there is room; return how many."""
        fitting = tokens[: sequence.limit - sequence.generated]
        for token in fitting:
            sequence.sampler.accept(token)
            sequence.answer.append(token)
        return len(fitting)

    def _take(self, sequence: Sequence, token: int) -> None:
        if sequence.constraint and not sequence.constraint.accept(token):
            raise RuleBroken(sequence.constraint.error)
        sequence.sampler.accept(token)
        sequence.answer.append(token)

    @cached_property
    def _going_on(self) -> Mask:
        """The tokens that end no answer."""
        return np.array([not self._runtime.ends(token) for token in range(self._runtime.vocabulary_size)])

    def _describe(self, sequence: Sequence, chosen: int, allowed: Mask | None) -> Token:
        observer, constraint = self._observer, sequence.constraint
        # Before ``describe``, which uses the observer's figures up.
        mass = 1.0 if allowed is None else observer.mass(allowed)
        forced = constraint.forced_bytes() if constraint else b""
        nulls = [] if constraint is None or allowed is None else constraint.nulls(allowed, forced)
        null_mass = observer.mass_of(nulls) if nulls else None
        token, best = observer.describe(chosen, self._runtime.piece(chosen), sequence.sampling.top_logprobs)
        if best:
            top = tuple(TopToken(other.id, self._runtime.piece(other.id), other.logprob) for other in token.top)
            token = msgspec.structs.replace(token, top=top)
        if constraint is None:
            return token
        if forced.startswith(token.text_bytes):
            return msgspec.structs.replace(token, forced=True, allowed_mass=mass)
        return msgspec.structs.replace(token, allowed_mass=mass, forced_bytes=len(forced), null_mass=null_mass)
