"""From a price book to what storage keeps of each send: an amount, and the price that it was made of."""

from __future__ import annotations

from agent.escalation.prices import Price, PriceBook, nanodollars
from agent.storage.costs import Charge, Charging


def charging(book: PriceBook) -> Charging:
    """Return what says what tokens cost at a target; None where its price is unknown."""

    def charge(target: str, input_tokens: int, output_tokens: int) -> Charge | None:
        price = book.target(target)
        if price is None:
            return None
        return Charge(nanodollars(price.cost(input_tokens, output_tokens)), in_words(price))

    return charge


def in_words(price: Price) -> str:
    """Return a price with its date: ``$3 in, $15 out per million tokens (target main, 2026-11-01)``."""
    when = price.as_of.isoformat() if price.as_of else "no date"
    return f"${price.input} in, ${price.output} out per million tokens ({price.origin}, {when})"
