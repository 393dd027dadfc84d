"""How many tokens of an answer are guessed and verified in one step.

A step over several tokens costs less than as many steps, since the weights are read once; but a
guess that is wrong is paid for nothing. Both sides are known without a trial: the chance of a
guess from looking on while tokens are drawn, the cost of one more token from the engine's own
step times. What brings the most tokens per second is done, and nothing where that is less than
``WORTHWHILE`` times as many as without: a busy or full engine stops to guess by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent.engine.prompt_lookup import Hits, PromptLookup
from agent.engine.runtime import Chunk
from agent.engine.sequence import Sequence as Request

WORTHWHILE = 1.1
USUAL_SLOPE = 0.6  # cost of a further token in a step, of a step of one token; before it is measured
_USUAL_WEIGHT = 8.0  # squared tokens of spread that this counts as
_FADING = 0.97  # of past steps, with each further one: what was measured long ago is tried again
_SHORTEST_S = 1e-6  # less is no measurement
_OUTLIER = 3.0  # a step this many times longer than expected was interrupted by something


class StepCosts:
    """The seconds of a step as a straight line over its tokens, fitted to past steps."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._tokens = 1.0  # mean
        self._seconds = 1.0  # mean
        self._spread = 0.0  # of the tokens, squared
        self._common = 0.0  # of tokens and seconds

    def observe(self, tokens: int, seconds: float) -> None:
        """Take a step that decoded ``tokens``, at least 1, in ``seconds``."""
        if seconds < _SHORTEST_S:
            return
        if self._weight > 4:
            seconds = min(seconds, _OUTLIER * self.seconds(tokens))
        elif not self._weight:
            self._seconds = seconds
            self._tokens = tokens
        self._weight = self._weight * _FADING + 1
        share = 1 / self._weight
        off_tokens, off_seconds = tokens - self._tokens, seconds - self._seconds
        self._tokens += share * off_tokens
        self._seconds += share * off_seconds
        self._spread = self._spread * _FADING + (1 - share) * off_tokens * off_tokens
        self._common = self._common * _FADING + (1 - share) * off_tokens * off_seconds

    @property
    def slope(self) -> float:
        """Seconds of one more token in a step, above 0."""
        usual = USUAL_SLOPE * self._seconds / (1 - USUAL_SLOPE + USUAL_SLOPE * self._tokens)
        fitted = (self._common + _USUAL_WEIGHT * usual) / (self._spread + _USUAL_WEIGHT)
        return min(max(fitted, 0.05 * usual), self._seconds / self._tokens)

    def seconds(self, tokens: int) -> float:
        """Return the seconds that a step over ``tokens`` takes."""
        slope = self.slope
        return max(self._seconds + slope * (tokens - self._tokens), slope * tokens)


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

    def __init__(self) -> None:
        self.costs = StepCosts()
        self._hits = Hits()
        self._lookups: dict[int, PromptLookup] = {}

    def drafts(self, requests: Sequence[Request], room: int) -> list[list[int]]:
        """Return the guessed next tokens of each request, at most ``room`` together.

        Each of the requests decodes in the coming step all of its tokens that are known.
        """
        lookups = [self._followed(request) for request in requests]
        chances = [
            # The last token of an answer comes from a row: it is never decoded itself.
            lookup.chances(min(room, request.limit - request.generated - 1))
            for request, lookup in zip(requests, lookups, strict=True)
        ]
        lengths = draft_lengths(chances, self.costs, room)
        return [lookup.draft(length) for lookup, length in zip(lookups, lengths, strict=True)]

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
