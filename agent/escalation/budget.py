"""What sends may cost: prices and ceilings of a configuration, and the most that one send can take. Pure.

A token covers at least a byte of what is sent (the vocabularies in use are made of bytes), so a body of
n bytes has at most n tokens; an answer has at most the ``max_tokens`` that goes along.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.egress_settings import BudgetSettings
from agent.escalation.prices import PriceBook, nanodollars
from agent.settings import PriceSettings, TargetSettings
from agent.storage.spending import Amount


class Budget:
    """The budgets and prices of one configuration. Immutable; a reload makes a new one."""

    def __init__(
        self,
        targets: Iterable[TargetSettings] = (),
        prices: Iterable[PriceSettings] = (),
        budgets: Iterable[BudgetSettings] = (),
    ) -> None:
        self._settings = (tuple(targets), tuple(prices), tuple(budgets))
        self.prices = PriceBook(self._settings[0], self._settings[1])
        self.ceilings = self._settings[2]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self._settings == other._settings

    def __hash__(self) -> int:
        return hash(self._settings)

    def amount(self, target: str, input_tokens: int, output_tokens: int) -> Amount:
        """Return what this many tokens take of a budget."""
        cost = self.prices.cost(target, input_tokens, output_tokens)
        return Amount(input_tokens + output_tokens, None if cost is None else nanodollars(cost))


NO_BUDGET = Budget()
