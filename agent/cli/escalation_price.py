"""What one escalation of a task costs, by the price book and by how long its examples are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from agent.errors import InvalidRequest

if TYPE_CHECKING:
    from agent.evaluation.examples import Example
    from agent.settings import Settings
    from agent.tasks import TaskSpec

BYTES_PER_TOKEN = 4  # about, of English by the vocabularies in use


def by_the_book(settings: Settings, spec: TaskSpec, examples: Sequence[Example]) -> tuple[float, str]:
    """Return the price in dollars, and how it was found.

    Raises InvalidRequest where no target has a price, or nothing tells how long an answer is.
    """
    from agent.escalation.charging import in_words
    from agent.escalation.prices import PriceBook, written

    if not settings.targets:
        raise InvalidRequest("--budget: there is no target to pay; say --price (of one escalation)")
    # A request goes to the first target that takes it: the dearest of them is what a budget must bear.
    book = PriceBook(settings.targets, settings.prices)
    prices = [book.target(target.name) for target in settings.targets]
    unknown = [target.name for target, price in zip(settings.targets, prices, strict=True) if price is None]
    if unknown:
        raise InvalidRequest(
            f"--budget: what target {unknown[0]} costs is not known; put its price into the configuration "
            "(input_price and output_price of the target, or [[prices]] of its model), or say --price (of one escalation)"
        )
    if not examples:
        raise InvalidRequest("--budget: there are no examples to tell how long a request is; say --price")
    tokens_in = _mean([sum(_tokens(message.content) for message in spec.messages(one.input)) for one in examples])
    said = list(spec.labels) or [str(one.answer) for one in examples if one.answer is not None]
    tokens_out = _mean([_tokens(text) for text in said]) if said else spec.max_tokens
    if tokens_out is None:
        raise InvalidRequest("--budget: nothing tells how long an answer is (max_tokens of the task); say --price")
    cost, price = max(
        ((price.cost(tokens_in, tokens_out), price) for price in prices if price is not None), key=lambda one: one[0]
    )
    if cost <= Decimal(0):
        raise InvalidRequest(f"--budget: {price.origin} costs nothing, so a budget limits nothing; use --escalate")
    return float(cost), (
        f"one escalation costs about {written(cost)}: {tokens_in} tokens in and {tokens_out} out ({BYTES_PER_TOKEN} bytes "
        f"a token) at {in_words(price)}; --price says otherwise"
    )


def _tokens(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN)


def _mean(counts: Sequence[int]) -> int:
    return max(1, math.ceil(sum(counts) / len(counts)))
