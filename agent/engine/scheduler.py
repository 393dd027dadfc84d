"""Continuous batching: one step decodes one token of every running request together.

Requests wait in line for a slot, take what is cached of their prompt, are prefilled in pieces
beside those that already decode, and leave their slot the moment they end. What the rule of an
answer forces is taken without a draw, as the tokenizer spells it, and goes through the model in
one piece with the choice before it. Guessed tokens go along with a row for each, and stay as far
as what is drawn from those rows, one after another as ever, is the guess. Where few are at work,
who take the likeliest token, a step is a run of decodes (``run_ahead``). All of it happens in one
thread, between two steps; a run ends when somebody comes or cancels.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from agent.engine import frames, thinking
from agent.engine.answer_tokens import AnswerTokens
from agent.engine.drafting import Drafting
from agent.engine.grammar import COMPILE_LIMIT_S, CompilersBusy, Grammars, RuleBroken, RuleRejected
from agent.engine.prefill_pace import TILE_TOKENS, PrefillPace
from agent.engine.prefix_cache import SHORTEST_TOKENS, PrefixCache, agreeing
from agent.engine.run_ahead import RunAhead
from agent.engine.runtime import Chunk, PromptRejected, PromptTooLong, Row, Runtime
from agent.engine.sampling import NoDistribution, Sampler
from agent.engine.sequence import Sequence
from agent.engine.thinking import Thoughts
from agent.types import Failure, FailureKind, Token

# Of a prediction, for each token of the context: more is not read.
PREDICTION_CHARACTERS = 8


class Scheduler:
    """Shares the slots of a runtime between requests. Used by one thread."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        waiting_line: int,
        thinking_budget: int = 0,
        drafting: Drafting | None = None,
        interrupted: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``thinking_budget`` is the most tokens of thought of a request that names none.

        Without ``drafting`` no token is guessed. ``interrupted()``: a request, a cancel or other
        work waits for the end of the step. ``clock`` gives seconds.
        """
        self._runtime = runtime
        self._thinking_budget = thinking_budget
        self._tokens = AnswerTokens(runtime)
        self._grammars = Grammars(runtime.vocabulary, runtime.vocabulary_size)
        self.prefixes = PrefixCache(runtime)
        self._pace = PrefillPace()
        self._waiting_line = waiting_line
        self._drafting = drafting if runtime.drafted_tokens else None
        self._ahead = RunAhead(runtime, interrupted=interrupted)
        # What turns out to be wrong has to be cut off again; a draft model has its own order of guesses.
        self._may_run_ahead = runtime.drafted_tokens > 0 and not (drafting and drafting.by_model)
        self._clock = clock
        self.held_s = 0.0  # for how long the first tokens of the latest step had been there at its end
        self._free = list(reversed(range(runtime.slots)))
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self._ended: list[frames.Ended] = []

    @property
    def idle(self) -> bool:
        """True when a step would bring nothing."""
        return not (self._running or self._waiting or self._ended)

    @property
    def steady(self) -> bool:
        """True when the next step decodes what the last one did: no prompt is to be computed."""
        return not (self._waiting and self._free) and not any(sequence.prompt_left for sequence in self._running)

    def submit(self, ask: frames.Generate) -> None:
        """Take a request. What is wrong with it comes out of the next step."""
        under_way = sum(not sequence.cancelled for sequence in (*self._running, *self._waiting))
        if under_way >= self._runtime.slots + self._waiting_line:
            self._refuse(ask.id, FailureKind.BUSY, "the waiting line is full")
            return
        try:
            rule = self._grammars.begin(ask.response_format, ask.tools)
            prompt, thoughts = self._prompt(ask, ruled=rule is not None)
        except CompilersBusy as error:
            self._refuse(ask.id, FailureKind.BUSY, str(error), _ruled_by(ask))
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
        if self._drafting and ask.prediction:
            most = self._runtime.context_tokens
            sequence.predicted = self._runtime.label_tokens(ask.prediction[: most * PREDICTION_CHARACTERS])[:most]
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
        if self._waiting:
            self._admit()
        self.held_s = 0.0
        chunks, sequences = self._plan()
        pieces = self._decode(chunks, sequences) if chunks else []
        ended, self._ended = self._ended, []
        return frames.Step(tuple(pieces), tuple(ended))

    def _decode(self, chunks: list[Chunk], sequences: list[Sequence]) -> list[frames.Piece]:
        began = self._clock()
        rows = self._runtime.decode(chunks)
        spent = self._clock() - began
        self._pace.observe(chunks, spent)
        if self._drafting:
            self._drafting.observe(chunks, spent)
        for chunk, sequence in zip(chunks, sequences, strict=True):
            sequence.decoded += len(chunk.tokens) - chunk.drafted
        pieces: list[frames.Piece] = []
        if more := self._ahead.count(chunks, sequences, spent) if self.steady and self._may_run_ahead else 0:
            taken, read = self._ahead.run(chunks, rows, more)
            self.held_s = self._clock() - began - spent
            for sequence, guesses, own in zip(sequences, taken, read, strict=True):
                pieces += self._verify(sequence, guesses, own)
            return pieces
        for chunk, sequence in zip(chunks, sequences, strict=True):
            if chunk.wants_row:
                own, rows = rows[: 1 + chunk.drafted], rows[1 + chunk.drafted :]
                guessed = list(chunk.tokens[len(chunk.tokens) - chunk.drafted :])
                pieces += self._verify(sequence, guessed, own, drafted=chunk.drafted)
        return pieces

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
            sequence.unsaid = self._tokens.forced_run(sequence)
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
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for sequence in self._running:
            (prefilling if sequence.prompt_left else decoding).append(sequence)
        room = self._pace.room(len(decoding), len(prefilling), self._runtime.batch_tokens - len(decoding))
        sequences = list(decoding)
        chunks = []
        for sequence, draft in zip(decoding, self._drafts(decoding, prefilling), strict=True):
            chunks.append(sequence.next_chunk(1 + room, draft))
            room -= len(chunks[-1].tokens) - 1
        for sequence in prefilling:
            if room <= 0:
                break
            if not sequence.decoded:
                if self._computed_by_another(sequence, prefilling):
                    continue
                self._take_cached(sequence)
            if len(chunks) > len(decoding) and room < min(TILE_TOKENS, sequence.prompt_left):
                break  # the tiles of attention at the border of two prompts are computed for both
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

    def _drafts(self, decoding: list[Sequence], prefilling: list[Sequence]) -> list[list[int]]:
        """Guess tokens for those that decode, while nobody waits for the room to compute a prompt."""
        room = self._runtime.batch_tokens - sum(sequence.left for sequence in decoding)
        if not self._drafting or prefilling or room <= 0:
            return [[] for _ in decoding]
        return self._drafting.drafts(decoding, min(room, self._runtime.drafted_tokens))

    def _verify(
        self, sequence: Sequence, guessed: list[int], rows: list[Row], *, drafted: int = 0
    ) -> list[frames.Piece]:
        """Draw from one row after another for as long as the answer is as guessed; forget the rest of it.

        The slot holds the guesses beyond ``sequence.decoded``; ``drafted`` of them, all or none, count
        as drafted ones. Without a guess there is a single row.
        """
        pieces = []
        begin, start, agreed = sequence.generated, sequence.decoded, 0
        sequence.rejected += drafted
        while True:
            if piece := self._advance(sequence, rows[agreed]):
                pieces.append(piece)
            if sequence.over:
                return pieces
            more = agreeing(guessed, sequence.answer, begin) - agreed
            agreed += more
            if drafted:
                sequence.accepted += more
                sequence.rejected -= more
            sequence.decoded = start + agreed
            if agreed < sequence.generated - begin:
                break
        if agreed < len(guessed):
            self._runtime.cut(sequence.slot, sequence.decoded)
        return pieces

    def _advance(self, sequence: Sequence, row: Row) -> frames.Piece | None:
        """Draw the next token of a sequence and see whether that ends it."""
        try:
            self._tokens.read(row)
        except NoDistribution:
            failure = Failure(FailureKind.CRASH, "the model computed no numbers (NaN); its file may be damaged")
            self._end(sequence, failure=failure, keep=False)
            return None
        if not sequence.begun:
            sequence.begun = True
            self._keep(sequence)
        try:
            said, finish_reason = self._tokens.following(sequence)
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
            if self._drafting:
                self._drafting.forget(sequence)
            self.prefixes.leave(sequence.slot)
            self._running.remove(sequence)
            self._runtime.clear(sequence.slot)
            self._free.append(sequence.slot)
        else:
            self._waiting.remove(sequence)
        sequence.over = True
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
                accepted_tokens=sequence.accepted,
                rejected_tokens=sequence.rejected,
            )
        )

    def _refuse(self, request_id: int, kind: FailureKind, message: str, param: str = "messages") -> None:
        self._ended.append(frames.Ended(request_id, failure=Failure(kind, message, param)))


def _ruled_by(ask: frames.Generate) -> str:
    return "tools" if ask.tools else "response_format"
