"""What an answer of a target costs, as the configuration says it. Pure, exact: decimal dollars, never floats.

What nobody wrote down is unknown (None), never 0: a sum over unknown prices is not a sum. Where
money is stored it is in whole nanodollars (a billionth of a dollar), rounded up.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from decimal import ROUND_CEILING, Decimal

import msgspec

from agent.settings import PriceSettings, TargetSettings

_MILLION = 6  # as a power of ten


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """Dollars per million tokens."""

    input: Decimal
    output: Decimal
    as_of: date | None = None  # when it was looked up
    origin: str = ""  # where it was written down: "target NAME" or "prices MODEL"

    def cost(self, input_tokens: int, output_tokens: int) -> Decimal:
        """Return what this many tokens cost, in dollars, exactly."""
        return (self.input * input_tokens + self.output * output_tokens).scaleb(-_MILLION)


class PriceBook:
    """The prices of a configuration. Immutable; a reload makes a new one."""

    def __init__(self, targets: Iterable[TargetSettings] = (), prices: Iterable[PriceSettings] = ()) -> None:
        self._models = {
            one.name: Price(input=one.input, output=one.output, as_of=one.as_of, origin=f"prices {one.name}")
            for one in prices
        }
        self._targets = {one.name: self._own(one) or self._models.get(one.model) for one in targets}

    @staticmethod
    def _own(target: TargetSettings) -> Price | None:
        if target.input_price is None or target.output_price is None:
            return None
        return Price(
            input=target.input_price,
            output=target.output_price,
            as_of=target.price_as_of,
            origin=f"target {target.name}",
        )

    def target(self, name: str | None) -> Price | None:
        """Return what a target's answers cost: its own prices, else those of its model; None: unknown."""
        return self._targets.get(name) if name is not None else None

    def model(self, name: str) -> Price | None:
        """Return what a model costs wherever it is asked; None: unknown."""
        return self._models.get(name)

    def cost(self, target: str | None, input_tokens: int, output_tokens: int) -> Decimal | None:
        """Return what an answer of a target costs, in dollars; None: its price is unknown."""
        price = self.target(target)
        return None if price is None else price.cost(input_tokens, output_tokens)


def nanodollars(dollars: Decimal) -> int:
    """Return an amount as it is stored: whole nanodollars, rounded up."""
    return int(dollars.scaleb(9).to_integral_value(rounding=ROUND_CEILING))


def dollars(nanodollars: int) -> Decimal:
    """Return a stored amount in dollars."""
    return Decimal(nanodollars).scaleb(-9)


def written(amount: Decimal | None) -> str:
    """Return an amount for a reader: cents, and more digits where it is less than a dollar; "unknown" for None."""
    if amount is None:
        return "unknown"
    if amount == 0 or abs(amount) >= 1:
        return f"${amount:,.2f}"
    return f"${amount:.6f}".rstrip("0").ljust(5, "0")
