"""What a step costs by its number of tokens, and what a guess must gain to be worth it."""

from __future__ import annotations

WORTHWHILE = 1.1  # times the speed without guesses
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
