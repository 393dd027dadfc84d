"""How many tokens of an answer are guessed and verified in one step.

A step over several tokens costs less than as many steps, since the weights are read once; but a
guess that is wrong is paid for nothing. Both sides are known without a trial: the chance of a
guess from looking on while tokens are drawn, the cost of one more token from the engine's own
step times. What brings the most tokens per second is done, and nothing where that is less than
``WORTHWHILE`` times as many as without: a busy or full engine stops to guess by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.compute import DraftingMode
from agent.engine.frames import Load
from agent.engine.model_guesses import ModelGuesses
from agent.engine.prompt_lookup import Hits, PromptLookup
from agent.engine.runtime import Chunk, Runtime
from agent.engine.sequence import Sequence as Request
from agent.engine.step_costs import WORTHWHILE, StepCosts


def draft_lengths(chances: Sequence[Sequence[float]], costs: StepCosts, room: int) -> list[int]:
    """Return how many tokens to guess for each of the requests that decode in one step.

    ``chances`` holds, for each request, the chance of each guessed token given those before it;
    ``room`` is the most tokens for all. All zero where guessing is not worth it.
    """
    lengths = [0] * len(chances)
    if not chances:
        return lengths
    tokens = len(chances)
    plain = tokens / costs.seconds(tokens)
    slope = costs.slope
    gained, seconds = float(tokens), costs.seconds(tokens)
    reach = [given[0] if given else 0.0 for given in chances]  # of the next guess of each to be accepted
    for _ in range(room):
        best = max(range(len(reach)), key=reach.__getitem__)
        # One more pays as long as it brings more per second than all before it do.
        if reach[best] <= slope * gained / seconds:
            break
        lengths[best] += 1
        gained += reach[best]
        seconds += slope
        given = chances[best]
        reach[best] *= given[lengths[best]] if lengths[best] < len(given) else 0.0
    if gained / seconds < WORTHWHILE * plain:
        return [0] * len(chances)
    return lengths


class Drafting:
    """Guesses for the requests of one scheduler."""

    def __init__(self, model: ModelGuesses | None = None) -> None:
        """``model`` guesses where nothing is repeated."""
        self.costs = StepCosts()
        self._model = model
        self._hits = Hits()
        self._lookups: dict[int, PromptLookup] = {}

    @property
    def by_model(self) -> bool:
        """Whether a draft model guesses."""
        return self._model is not None

    def drafts(self, requests: Sequence[Request], room: int) -> list[list[int]]:
        """Return the guessed next tokens of each request, at most ``room`` together.

        Each of the requests decodes in the coming step all of its tokens that are known.
        """
        lookups = [self._followed(request) for request in requests]
        if not self._model and not self._pays(lookups):
            return [[] for _ in requests]
        chances = [
            # The last token of an answer comes from a row: it is never decoded itself.
            lookup.chances(min(room, request.limit - request.generated - 1))
            for request, lookup in zip(requests, lookups, strict=True)
        ]
        lengths = draft_lengths(chances, self.costs, room)
        if self._model and not any(lengths):
            return self._model.drafts(requests, room, self.costs)
        return [lookup.draft(length) for lookup, length in zip(lookups, lengths, strict=True)]

    def _pays(self, lookups: Sequence[PromptLookup]) -> bool:
        """Return whether any first guess is worth its cost: mostly none is, which is known without looking further."""
        if not lookups:
            return False
        least = self.costs.slope * len(lookups) / self.costs.seconds(len(lookups))
        return any(chance > least for lookup in lookups for chance in lookup.chances(1))

    def observe(self, chunks: Sequence[Chunk], seconds: float) -> None:
        """Take the time of a step. Those with pieces of prompts or forced runs cost less a token: left out."""
        if all(chunk.wants_row and len(chunk.tokens) == 1 + chunk.drafted for chunk in chunks):
            self.costs.observe(sum(len(chunk.tokens) for chunk in chunks), seconds)

    def forget(self, request: Request) -> None:
        """Drop what is kept of a request that has ended."""
        self._lookups.pop(request.id, None)

    def _followed(self, request: Request) -> PromptLookup:
        lookup = self._lookups.get(request.id)
        if lookup is None:
            lookup = self._lookups[request.id] = PromptLookup(request.prompt, self._hits, request.predicted)
        lookup.follow(request.answer)
        return lookup


def drafting_of(load: Load, runtime: Runtime) -> Drafting | None:
    """Return what guesses for a loaded model. Raises ModelUnloadable for a draft model that cannot."""
    if load.drafting is DraftingMode.OFF:
        return None
    if load.model.draft is None:
        return Drafting()
    # The native library, which only a worker of such a model has loaded.
    from agent.engine.llama_cpp_draft import LlamaCppDraft

    return Drafting(ModelGuesses(LlamaCppDraft(load, threads=lambda: runtime.thread_choice.decode)))
