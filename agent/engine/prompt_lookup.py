"""Prompt lookup: what followed the last time the same tokens came up is likely to follow again.

After Saxena's prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding): answers that
repeat a part of their prompt, or themselves, are guessed without a second model. Here a match is
followed for as long as it holds, so that its length is known; and after one token that differed,
the old text is tried again one token further on, since a changed word rarely changes what follows.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_MATCH = 16  # tokens; a longer match says no more
RESUMABLE = 4  # a match of this many tokens is resumed after one that differed
GIVEN_MATCH = 4  # what a beginning that the caller predicted counts as
# Match lengths that are alike: 0 (resumed), 1-2, 3-4, 5-8, 9-15, 16.
_CLASSES = tuple(next(i for i, most in enumerate((0, 2, 4, 8, 15, 16)) if n <= most) for n in range(LONGEST_MATCH + 1))
_USUAL = (0.5, 0.4, 0.55, 0.75, 0.85, 0.95)  # chances before anything was seen
_USUAL_WEIGHT = 16.0  # looks that those count as
_ENGINE_WEIGHT = 6.0  # looks of this request that those of all others together count as
_FADING = 0.998


class Hits:
    """How often the guessed token was the one drawn, by the length of the match."""

    def __init__(self) -> None:
        self._tries = [_USUAL_WEIGHT] * len(_USUAL)
        self._hits = [_USUAL_WEIGHT * chance for chance in _USUAL]

    def record(self, matched: int, *, hit: bool) -> None:
        """Take one guess; older ones count a little less with each."""
        index = _CLASSES[matched]
        self._tries[index] = self._tries[index] * _FADING + 1
        self._hits[index] = self._hits[index] * _FADING + hit

    def chance(self, matched: int) -> float:
        """Return the share of guesses that were right, 0..1."""
        index = _CLASSES[matched]
        return self._hits[index] / self._tries[index]


class PromptLookup:
    """The text of one request so far, and the place in it that seems to be repeated now."""

    def __init__(self, prompt: Sequence[int], hits: Hits, predicted: Sequence[int] = ()) -> None:
        """``hits`` is shared by all requests; ``predicted`` is what the caller expects as the answer."""
        self._tokens = [*predicted, *prompt]
        self._begin = len(self._tokens)
        self._after: dict[tuple[int, int], int] = {}  # where a pair of tokens was last followed by something
        for end in range(2, len(self._tokens)):
            self._after[self._tokens[end - 2], self._tokens[end - 1]] = end
        self._engine_hits = hits
        self._tries = [0] * len(_USUAL)
        self._hits = [0] * len(_USUAL)
        self._at: int | None = None  # what was there may come next
        self._matched = 0
        if predicted:
            self._at, self._matched = 0, GIVEN_MATCH
        else:
            self._match(None)

    def follow(self, answer: Sequence[int]) -> None:
        """Take the tokens of the answer that are new since the last call."""
        for token in answer[len(self._tokens) - self._begin :]:
            self._push(token)

    def chances(self, most: int) -> list[float]:
        """Return, for each token of a draft, the chance that it comes, given those before it."""
        if self._at is None:
            return []
        return [self._chance(min(self._matched + ahead, LONGEST_MATCH)) for ahead in range(most)]

    def draft(self, length: int) -> list[int]:
        """Return the likely next tokens; a text that repeats itself is continued in its period."""
        if self._at is None:
            return []
        period = self._tokens[self._at : self._at + length]
        return [period[index % len(period)] for index in range(length)]

    def _chance(self, matched: int) -> float:
        index = _CLASSES[matched]
        known = self._engine_hits.chance(matched)
        return (self._hits[index] + _ENGINE_WEIGHT * known) / (self._tries[index] + _ENGINE_WEIGHT)

    def _push(self, token: int) -> None:
        resumed: int | None = None
        hit = False
        if self._at is not None:
            hit = self._tokens[self._at] == token
            self._engine_hits.record(self._matched, hit=hit)
            self._tries[_CLASSES[self._matched]] += 1
            self._hits[_CLASSES[self._matched]] += hit
            self._at += 1
            resumed = self._at if self._matched >= RESUMABLE else None
        self._tokens.append(token)
        if hit:
            self._matched = min(self._matched + 1, LONGEST_MATCH)
            self._remember()
        else:
            self._match(resumed)

    def _match(self, resumed: int | None) -> None:
        """Find where the last two tokens were before; without that, go on where a match was broken off."""
        tokens = self._tokens
        self._at, self._matched = resumed, 0
        if len(tokens) >= 2 and (found := self._after.get((tokens[-2], tokens[-1]))) is not None:
            self._at = found
            while (
                self._matched < min(found, LONGEST_MATCH)
                and tokens[found - 1 - self._matched] == tokens[-1 - self._matched]
            ):
                self._matched += 1
        self._remember()

    def _remember(self) -> None:
        if len(self._tokens) >= 2:
            self._after[self._tokens[-2], self._tokens[-1]] = len(self._tokens)
