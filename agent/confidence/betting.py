"""A test that may be looked at after every answer: is the error above alpha?

A gambler starts with 1 and bets on each checked answer that the error is above alpha. Of an
answer that is wrong (x = 1) or right (x = 0) the wealth is multiplied by ``1 + bet (x - alpha)``
with a bet in [0, 1/alpha) that depends on earlier answers alone. While the error is at most
alpha the wealth is a non-negative supermartingale, so it reaches 1 / delta with probability at most
delta, however long one looks (Ville's inequality). Formulas: Waudby-Smith and Ramdas, "Estimating
means of bounded random variables by betting" (JRSS B 2024, arXiv 2010.16686), section 3 for the
wealth, appendix B.2 for this bet (approximate growth rate, aGRAPA); for the risk of a deployed
model: arXiv 2506.16416. Pure.

It holds for answers that were drawn to be checked by chance alone, whatever their content.
"""

from __future__ import annotations

import math

import msgspec

_BOLDEST = 0.5  # of the largest bet that cannot lose all


class Wealth(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of the stake, and what the next bet depends on."""

    log: float = 0.0  # of the wealth, nats
    most: float = 0.0  # the highest that it was
    checked: int = 0
    wrong: int = 0

    def bet(self, alpha: float) -> float:
        """Return the next bet, in [0, 1/alpha): from the mean and variance so far, with half an error at alpha as a start."""
        mean = (self.wrong + alpha) / (self.checked + 1)
        variance = max(mean * (1 - mean), 1e-6)
        edge = mean - alpha
        return min(max(0.0, edge / (variance + edge * edge)), _BOLDEST / alpha)

    def after(self, *, wrong: bool, alpha: float) -> Wealth:
        """Return the wealth after one more checked answer."""
        log = self.log + math.log1p(self.bet(alpha) * (float(wrong) - alpha))
        return Wealth(log=log, most=max(self.most, log), checked=self.checked + 1, wrong=self.wrong + wrong)

    def alarms(self, delta: float) -> bool:
        """Whether the error was shown to be above alpha at level delta, now or before."""
        return self.most >= -math.log(delta)
