"""What one escalation costs by the price book, and what is said where it cannot be known."""

from datetime import date
from decimal import Decimal

import pytest

from agent.cli.escalation_price import by_the_book
from agent.errors import InvalidRequest
from agent.evaluation.examples import Example
from agent.settings import PriceSettings, Settings, TargetSettings
from agent.tasks import task_of
from agent.types import EgressPolicy

MAIL = task_of({"name": "mail", "labels": {"refund": "", "card lost": ""}, "prompt": "x" * 400}, "task mail")
EXAMPLES = [Example(1, "y" * 40, "refund"), Example(2, "y" * 80, "card lost")]


def settings(*prices, **of_target):
    target = TargetSettings(
        name="main", base_url="https://a.example/v1", model="big", egress=EgressPolicy.ALLOW, **of_target
    )
    return Settings(targets=(target,), prices=prices)


def test_tokens_of_prompt_input_and_answer_at_the_price_of_the_target():
    book = PriceSettings(name="big", input=Decimal(3), output=Decimal(15), as_of=date(2026, 11, 1))
    cost, how = by_the_book(settings(book), MAIL, EXAMPLES)
    assert cost == pytest.approx((115 * 3 + 3 * 15) / 1e6)  # 400 and (40 + 80) / 2 bytes; "refund", "card lost"
    assert "115 tokens in and 3 out" in how
    assert "2026-11-01" in how
    own = settings(book, input_price=Decimal(6), output_price=Decimal(30))
    assert by_the_book(own, MAIL, EXAMPLES)[0] == pytest.approx(2 * cost)


@pytest.mark.parametrize(
    ("found", "task", "examples", "says"),
    [
        (Settings(), MAIL, EXAMPLES, "no target"),
        (settings(), MAIL, EXAMPLES, "what target main costs is not known"),
        (settings(input_price=Decimal(0), output_price=Decimal(0)), MAIL, EXAMPLES, "limits nothing"),
        (settings(input_price=Decimal(1), output_price=Decimal(1)), MAIL, [], "no examples"),
        (
            settings(input_price=Decimal(1), output_price=Decimal(1)),
            task_of({"name": "t", "kind": "text"}, "task t"),
            [Example(1, "y", None)],
            "how long an answer is",
        ),
    ],
)
def test_what_nobody_knows_is_asked_for(found, task, examples, says):
    with pytest.raises(InvalidRequest, match=says):
        by_the_book(found, task, examples)
