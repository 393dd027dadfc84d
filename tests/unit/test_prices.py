"""The price book: exact, and unknown where nobody wrote a price down."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from agent import configuration
from agent.errors import ConfigError
from agent.escalation.prices import PriceBook, dollars, nanodollars, written

TARGET = '[[targets]]\nname = "cloud"\nbase_url = "https://x/v1"\nmodel = "big-1"\negress = "allow"\n'
PRICES = '[[prices]]\nname = "big-1"\ninput = 0.15\noutput = 0.6\nas_of = 2026-11-01\n'


def book(tmp_path: Path, text: str) -> PriceBook:
    path = tmp_path / "outrider.toml"
    path.write_text(text)
    settings = configuration.load(path, environ={"HOME": str(tmp_path)}).settings
    return PriceBook(settings.targets, settings.prices)


def test_a_target_costs_what_its_model_costs_unless_it_has_prices_of_its_own(tmp_path):
    prices = book(tmp_path, PRICES + TARGET)
    assert prices.cost("cloud", 1_000_000, 500_000) == Decimal("0.45")
    assert prices.target("cloud").as_of == date(2026, 11, 1)
    own = book(tmp_path, PRICES + TARGET + "input_price = 3\noutput_price = 0.000001\n")
    assert own.cost("cloud", 7, 1) == Decimal("0.000021000001")
    assert own.target("cloud").origin == "target cloud"


def test_the_sum_of_many_small_costs_is_the_cost_of_the_sum(tmp_path):
    prices = book(tmp_path, PRICES + TARGET)
    assert sum(prices.cost("cloud", 1, 1) for _ in range(1000)) == prices.cost("cloud", 1000, 1000)


def test_what_nobody_wrote_down_is_unknown_and_not_nothing(tmp_path):
    prices = book(tmp_path, TARGET)
    assert prices.cost("cloud", 1, 1) is None
    assert prices.cost("elsewhere", 1, 1) is None
    assert prices.cost(None, 1, 1) is None
    assert prices.model("big-1") is None
    assert book(tmp_path, TARGET + "input_price = 0\noutput_price = 0").cost("cloud", 10**9, 10**9) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TARGET + "input_price = 3\n", "go together"),
        (TARGET + "input_price = -1\noutput_price = 1\n", "is no price"),
        (TARGET + "input_price = nan\noutput_price = 1\n", "is no price"),
        (PRICES.replace("0.15", "inf"), "is no price"),
        (PRICES + PRICES, "used twice"),
        (PRICES.replace("as_of", "asof"), "did you mean as_of"),
    ],
)
def test_a_price_that_is_none_is_refused_by_name(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        book(tmp_path, text)


def test_what_is_stored_is_never_less_than_what_it_costs():
    assert nanodollars(Decimal("0.00000000000001")) == 1
    assert dollars(nanodollars(Decimal("0.15"))) == Decimal("0.15")
    assert nanodollars(Decimal(0)) == 0


@pytest.mark.parametrize(
    ("amount", "text"),
    [(None, "unknown"), ("0", "$0.00"), ("1234.5", "$1,234.50"), ("0.5", "$0.50"), ("0.00012", "$0.00012")],
)
def test_amounts_are_readable(amount, text):
    assert written(None if amount is None else Decimal(amount)) == text
