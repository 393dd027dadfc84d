"""Continuous batching: one step decodes one token of every running request together.

Requests wait in line for a slot, take what is cached of their prompt, are prefilled in pieces
beside those that already decode, and leave their slot the moment they end. What the rule of an
answer forces is taken without a draw, as the tokenizer spells it, and goes through the model in
one piece with the choice before it. All of it happens in one thread, between two decodes, so a
cancel or a deadline takes effect within one step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import cached_property

import msgspec
import numpy as np

from agent.engine import frames, thinking
from agent.engine.grammar import COMPILE_LIMIT_S, Grammars, RuleBroken, RuleRejected
from agent.engine.prefix_cache import SHORTEST_TOKENS, PrefixCache, agreeing
from agent.engine.runtime import Chunk, PromptRejected, PromptTooLong, Row, Runtime
from agent.engine.sampling import Mask, NoDistribution, Observer, Sampler
from agent.engine.sequence import Sequence
from agent.engine.thinking import Thoughts
from agent.types import Failure, FailureKind, Token, TopToken

# Prompt tokens in one step while others decode: they wait for this piece before their next token.
PREFILL_BESIDE_DECODING = 64


class Scheduler:
    """Shares the slots of a runtime between requests. Used by one thread."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        waiting_line: int,
        thinking_budget: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``thinking_budget`` is the most tokens of thought of a request that names none."""
        self._runtime = runtime
        self._thinking_budget = thinking_budget
        self._observer = Observer(runtime.vocabulary_size)
        self._grammars = Grammars(runtime.vocabulary, runtime.vocabulary_size)
        self.prefixes = PrefixCache(runtime)
        self._waiting_line = waiting_line
        self._clock = clock
        self._free = list(reversed(range(runtime.slots)))
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self._ended: list[frames.Ended] = []

    @property
    def idle(self) -> bool:
        """True when a step would bring nothing."""
        return not (self._running or self._waiting or self._ended)

    def submit(self, ask: frames.Generate) -> None:
        """Take a request. What is wrong with it comes out of the next step."""
        if len(self._running) + len(self._waiting) >= self._runtime.slots + self._waiting_line:
            self._refuse(ask.id, FailureKind.BUSY, "the waiting line is full")
            return
        try:
            rule = self._grammars.begin(ask.response_format, ask.tools)
            prompt, thoughts = self._prompt(ask, ruled=rule is not None)
        except RuleRejected as error:
            self._refuse(ask.id, FailureKind.REJECTED, str(error), _ruled_by(ask))
            return
        except PromptRejected as error:
            self._refuse(ask.id, FailureKind.REJECTED, str(error), error.param or frames.prompt_param(ask))
            return
        except PromptTooLong as error:
            self._refuse(ask.id, FailureKind.CONTEXT_OVERFLOW, str(error), frames.prompt_param(ask))
            return
        size = self._runtime.vocabulary_size
        if unknown := [token for token, _ in ask.sampling.logit_bias if not 0 <= token < size]:
            message = f"token {unknown[0]} is not in the vocabulary of {size} tokens"
            self._refuse(ask.id, FailureKind.REJECTED, message, "logit_bias")
            return
        room = self._runtime.context_tokens - len(prompt)
        limit = room if ask.sampling.max_tokens is None else min(room, ask.sampling.max_tokens)
        deadline = None if ask.deadline_ms is None else self._clock() + ask.deadline_ms / 1000
        counted: list[int] = []
        if ask.sampling.repetition_penalty != 1:
            # An end token of the prompt's turns must not make the end of the answer less likely.
            counted = [token for token in set(prompt) if not self._runtime.ends(token)]
        sampler = Sampler(ask.sampling, counted)
        sequence = Sequence(ask.id, prompt, ask.sampling, sampler, limit, deadline)
        sequence.rule, sequence.rule_by = rule, self._clock() + COMPILE_LIMIT_S
        sequence.rule_param = _ruled_by(ask)
        sequence.scope = ask.scope
        sequence.thoughts = thoughts
        self._waiting.append(sequence)

    def _prompt(self, ask: frames.Generate, *, ruled: bool) -> tuple[list[int], Thoughts | None]:
        if ask.prompt is None:
            budget = thinking.budget_of(ask.thinking, self._thinking_budget, self._runtime.thinking)
            prompt = self._runtime.prompt_tokens(ask.messages, ask.tools, thinking=budget != 0)
            return prompt, thinking.begin(self._runtime, prompt, budget, ruled=ruled)
        if ask.suffix:
            return self._runtime.gap_tokens(ask.prompt, ask.suffix), None
        return self._runtime.text_tokens(ask.prompt), None

    def cancel(self, request_id: int) -> None:
        """End a request at the next step. Unknown ids are ignored: it may just have ended."""
        for sequence in (*self._running, *self._waiting):
            if sequence.id == request_id:
                sequence.cancelled = True

    def step(self) -> frames.Step:
        """Drop what is over, admit, decode once; return what came of it."""
        self._drop_overdue()
        self._admit()
        pieces: list[frames.Piece] = []
        chunks, sequences = self._plan()
        if chunks:
            rows = iter(self._runtime.decode(chunks))
            for chunk, sequence in zip(chunks, sequences, strict=True):
                sequence.decoded += len(chunk.tokens)
                if chunk.wants_row and (piece := self._advance(sequence, next(rows))):
                    pieces.append(piece)
        ended, self._ended = self._ended, []
        return frames.Step(tuple(pieces), tuple(ended))

    def _admit(self) -> None:
        """Give slots to those that wait, in order of arrival, as long as their whole answers fit the memory.

        One whose rule still compiles is passed over.
        """
        reserved = sum(sequence.reserve for sequence in self._running)
        for sequence in tuple(self._waiting):
            if not self._free:
                return
            if not self._has_rule(sequence):
                continue
            if reserved + sequence.reserve > self._runtime.cells:
                return
            self._waiting.remove(sequence)
            sequence.slot = self._free.pop()
            self._running.append(sequence)
            reserved += sequence.reserve

    def _has_rule(self, sequence: Sequence) -> bool:
        """Return whether the sequence may begin; refuse it when its rule turns out to be impossible."""
        if sequence.rule is None:
            return True
        # With nothing else to do, wait for it here instead of spinning.
        if not sequence.rule.ready(0.0 if self._running else 0.01):
            if self._clock() > sequence.rule_by:
                self._reject(sequence, f"it takes more than {COMPILE_LIMIT_S:g} s to compile: make it simpler")
            return False
        try:
            sequence.rule_in_force, sequence.rule = sequence.rule.constraint(), None
            sequence.unsaid = self._forced_run(sequence)
        except (RuleRejected, RuleBroken) as error:
            self._reject(sequence, str(error))
            return False
        return True

    def _reject(self, sequence: Sequence, message: str) -> None:
        self._end(sequence, failure=Failure(FailureKind.REJECTED, message, sequence.rule_param))

    def _drop_overdue(self) -> None:
        now = self._clock()
        for sequence in (*self._running, *self._waiting):
            if sequence.cancelled:
                self._end(sequence, failure=Failure(FailureKind.CANCELLED, "cancelled"))
            elif sequence.deadline is not None and now >= sequence.deadline:
                self._end(sequence, failure=Failure(FailureKind.TIMEOUT, "the deadline passed"))

    def _plan(self) -> tuple[list[Chunk], list[Sequence]]:
        """Choose the chunks of this step: every decoding request, then prompts in order of arrival."""
        decoding = [sequence for sequence in self._running if not sequence.prompt_left]
        prefilling = [sequence for sequence in self._running if sequence.prompt_left]
        room = self._runtime.batch_tokens - len(decoding)
        if decoding and len(self._running) > 1:
            room = min(room, PREFILL_BESIDE_DECODING)
        sequences = list(decoding)
        chunks = []
        for sequence in decoding:
            chunks.append(sequence.next_chunk(1 + room))
            room -= len(chunks[-1].tokens) - 1
        for sequence in prefilling:
            if room <= 0:
                break
            if not sequence.decoded:
                if self._computed_by_another(sequence, prefilling):
                    continue
                self._take_cached(sequence)
            chunk = sequence.next_chunk(room)
            room -= len(chunk.tokens)
            chunks.append(chunk)
            sequences.append(sequence)
        return chunks, sequences

    def _computed_by_another(self, sequence: Sequence, prefilling: list[Sequence]) -> bool:
        """Return whether somebody ahead is computing more of this prompt than is cached: worth the wait."""
        known = max(self.prefixes.reach(sequence.prompt, sequence.scope), SHORTEST_TOKENS - 1)
        named = self.prefixes.named(sequence.prompt)
        for other in prefilling[: prefilling.index(sequence)]:
            common = agreeing(other.prompt, sequence.prompt, 0)
            if (common if other.scope == sequence.scope else min(common, named)) > known:
                return True
        return False

    def _take_cached(self, sequence: Sequence) -> None:
        # The last token of the prompt is always computed: its row gives the first of the answer.
        sequence.decoded = sequence.cached = self.prefixes.enter(sequence.slot, sequence.prompt[:-1], sequence.scope)

    def _keep(self, sequence: Sequence) -> None:
        """Cache what the slot holds, for others and for the next turn of the same conversation."""
        held = (sequence.prompt + sequence.answer)[: sequence.decoded]
        self.prefixes.store(sequence.slot, held, sequence.scope)

    def _advance(self, sequence: Sequence, row: Row) -> frames.Piece | None:
        """Draw the next token of a sequence and see whether that ends it."""
        try:
            self._observer.read(row)
        except NoDistribution:
            failure = Failure(FailureKind.CRASH, "the model computed no numbers (NaN); its file may be damaged")
            self._end(sequence, failure=failure, keep=False)
            return None
        if not sequence.begun:
            sequence.begun = True
            self._keep(sequence)
        try:
            said, finish_reason = self._next_tokens(sequence)
        except RuleBroken as error:
            self._reject(sequence, f"the answer cannot go on within it: {error}")
            return None
        text = ""
        tokens: tuple[Token, ...] = ()
        for token in said:
            more, final = sequence.text.push(token)
            text, tokens = text + more, tokens + final
            if sequence.text.stopped:
                finish_reason = "stop"
                break
        if finish_reason:
            self._end(sequence, text, tokens, finish_reason=finish_reason)
            return None
        thought = sequence.thoughts.told() if sequence.thoughts else ""
        return frames.Piece(sequence.id, text, tokens, thought) if text or thought else None

    def _next_tokens(self, sequence: Sequence) -> tuple[list[Token], str | None]:
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
                if sequence.sampling.logprobs and not constraint:
                    sequence.end = self._describe(sequence, chosen, allowed)
                return said, "stop"
            chosen = sequence.sampler.draw(self._observer, self._going_on)
        said.append(self._describe(sequence, chosen, allowed))
        self._take(sequence, chosen)
        said += self._forced_run(sequence)
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
            said += self._forced_run(sequence)
        if finish_reason := sequence.finish_reason:
            said += thoughts.held()
        return said, finish_reason

    def _forced_run(self, sequence: Sequence) -> list[Token]:
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

    def _end(
        self,
        sequence: Sequence,
        text: str = "",
        tokens: tuple[Token, ...] = (),
        *,
        finish_reason: str | None = None,
        failure: Failure | None = None,
        keep: bool = True,
    ) -> None:
        if sequence.slot >= 0:
            if keep:
                self._keep(sequence)
            self.prefixes.leave(sequence.slot)
            self._running.remove(sequence)
            self._runtime.clear(sequence.slot)
            self._free.append(sequence.slot)
        else:
            self._waiting.remove(sequence)
        rest, rest_tokens = sequence.text.flush()
        self._ended.append(
            frames.Ended(
                sequence.id,
                text=text + rest,
                tokens=tokens + rest_tokens,
                finish_reason=finish_reason,
                prompt_tokens=len(sequence.prompt),
                cached_tokens=sequence.cached,
                output_tokens=sequence.generated,
                failure=failure,
                incomplete=sequence.incomplete,
                end=sequence.end,
                thought=sequence.thoughts.rest() if sequence.thoughts else "",
                thought_tokens=sequence.thoughts.tokens if sequence.thoughts else 0,
            )
        )

    def _refuse(self, request_id: int, kind: FailureKind, message: str, param: str = "messages") -> None:
        self._ended.append(frames.Ended(request_id, failure=Failure(kind, message, param)))


def _ruled_by(ask: frames.Generate) -> str:
    return "tools" if ask.tools else "response_format"
