"""One request on its way through the scheduler."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from agent.engine.cache_scope import EVERYBODY
from agent.engine.grammar import Compiling, Constraint
from agent.engine.runtime import Chunk
from agent.engine.sampling import Sampler
from agent.engine.text_stream import TextStream
from agent.engine.thinking import Thoughts
from agent.types import Sampling, Token


class Sequence:
    """Prompt tokens, then one token of the answer after another, or a run of them that a rule forces."""

    def __init__(
        self,
        request_id: int,
        prompt: list[int],
        sampling: Sampling,
        sampler: Sampler,
        limit: int,
        deadline: float | None,
    ) -> None:
        """``limit`` is the most tokens to generate; ``deadline`` is on the scheduler's clock."""
        self.id = request_id
        self.prompt = prompt
        self.sampling = sampling
        self.limit = limit
        self.deadline = deadline
        self.sampler = sampler
        self.text = TextStream(sampling.stop)
        self.slot = -1
        self.decoded = 0  # tokens that the slot holds
        self.answer: list[int] = []  # all tokens generated, the last ones not decoded yet
        self.unsaid: list[Token] = []  # the answer's first tokens, forced before the prompt was decoded
        self.end: Token | None = None  # by which the model ended, where no rule ended the answer
        self.begun = False  # the prompt is decoded
        self.cached = 0  # prompt tokens that were not computed for this request
        self.cancelled = False
        self.rule: Compiling | None = None  # what the answer must look like, until it is compiled
        self.rule_by = 0.0  # when it must be, on the scheduler's clock
        self.rule_param = ""  # the parameter that the rule came from
        self.rule_in_force: Constraint | None = None  # for the answer; thoughts are free
        self.thoughts: Thoughts | None = None
        self.predicted: list[int] = []  # what the caller expects as the answer
        self.accepted = 0  # guessed tokens that became a part of the answer
        self.rejected = 0  # guessed tokens that were computed for nothing
        self.over = False
        self.scope = EVERYBODY  # who may find what is cached of it

    @property
    def generated(self) -> int:
        return len(self.answer)

    @property
    def thinking(self) -> bool:
        """Whether the answer has not begun yet."""
        return self.thoughts is not None and not self.thoughts.over

    @property
    def constraint(self) -> Constraint | None:
        """What the next token must obey."""
        return None if self.thinking else self.rule_in_force

    @property
    def incomplete(self) -> bool:
        """Whether the answer, as it is, breaks its rule."""
        return self.rule_in_force is not None and (self.thinking or not self.rule_in_force.satisfied)

    @property
    def takes_likeliest(self) -> bool:
        """Whether the next tokens are the likeliest ones, as far as is known before their rows are read."""
        return self.begun and self.rule_in_force is None and self.sampler.takes_likeliest

    @property
    def reserve(self) -> int:
        """Most tokens that the slot will hold."""
        return len(self.prompt) + self.limit

    @property
    def prompt_left(self) -> int:
        return max(0, len(self.prompt) - self.decoded)

    @property
    def left(self) -> int:
        """Tokens that are known and not decoded yet."""
        return len(self.prompt) + len(self.answer) - self.decoded

    @property
    def finish_reason(self) -> str | None:
        """Why the answer is over, if it is."""
        if self.constraint is not None and self.constraint.complete:
            return "stop"
        return "length" if self.generated >= self.limit else None

    def next_chunk(self, room: int, draft: Tokens[int] = ()) -> Chunk:
        """Return what to decode next, at most ``room`` tokens, and then those of a draft.

        The draft is left out where the room does not suffice for all tokens that are known.
        """
        tokens = self.prompt[self.decoded : self.decoded + room]
        room -= len(tokens)
        begin = max(0, self.decoded - len(self.prompt))
        tokens += self.answer[begin : begin + room]
        wants_row = len(tokens) == self.left
        guessed = draft if wants_row else ()
        return Chunk(self.slot, self.decoded, [*tokens, *guessed], wants_row, drafted=len(guessed))
