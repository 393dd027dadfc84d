"""Plans: figures that were worked out by hand elsewhere come out again, where they are right."""

from decimal import Decimal as D

import pytest

from agent.errors import InvalidRequest
from agent.escalation.prices import Price
from agent.report.plan import CLOUD, HYBRID, LOCAL, LocalCosts, Workload, make_plan

BIG = Price(input=D(3), output=D(15))
SMALL = Price(input=D("0.10"), output=D("0.30"))
SUPPORT = Workload(per_day=D(10_000), tokens_in=500, tokens_out=500)


def options(workload, at, **local):
    plan = make_plan(workload, at, LocalCosts(**local))
    return {one.name: one for one in plan.options}, plan


def test_a_support_bot_of_ten_thousand_requests_a_day():
    """$0.009 a request and $32,850 a year at $3 and $15; $0.0002 and $730 at $0.10 and $0.30."""
    found, plan = options(SUPPORT, BIG, price=SMALL)
    assert (found[CLOUD].per_request, found[CLOUD].per_year) == (D("0.009"), D(32_850))
    assert (found[LOCAL].per_request, found[LOCAL].per_year) == (D("0.0002"), D(730))
    assert plan.cheapest == LOCAL


def test_a_hybrid_that_serves_seven_of_ten_saves_66_and_not_67_percent():
    """Sorted for $0.0002, served for another: 0.7 x 0.0004 + 0.3 x 0.0092 = $0.00304, $11,096 a year."""
    hybrid = Workload(per_day=D(10_000), tokens_in=500, tokens_out=500, local_share=D("0.7"), router=D("0.0002"))
    found, _ = options(hybrid, BIG, price=SMALL)
    assert (found[HYBRID].per_request, found[HYBRID].per_year) == (D("0.00304"), D(11_096))
    assert round(found[HYBRID].saving_share, 3) == 0.662


def test_a_million_queries_of_five_hundred_tokens_against_one_rented_machine():
    """$547,500 a year at $3 a million tokens, $21,900 for $2.50 an hour: 25 times."""
    found, _ = options(Workload(per_day=D(1_000_000), tokens_in=500, tokens_out=0), BIG, per_hour=D("2.5"))
    assert (found[CLOUD].per_year, found[LOCAL].per_year) == (D(547_500), D(21_900))
    assert found[CLOUD].per_year / found[LOCAL].per_year == 25


def test_a_rented_machine_at_a_dollar_an_hour_is_24_a_day_and_720_a_month():
    found, _ = options(Workload(per_day=D(1_000_000), tokens_in=200, tokens_out=33), BIG, per_hour=D(1))
    assert (found[LOCAL].per_day, found[LOCAL].per_month) == (24, 720)


@pytest.mark.parametrize(("tokens_in", "tokens_out", "from_"), [(480, 120, 10_000), (96, 24, 50_000)])
def test_that_machine_pays_from_ten_to_fifty_thousand_requests_a_day(tokens_in, tokens_out, from_):
    """At $2.50 and $10; with longer requests earlier."""
    price = Price(input=D("2.5"), output=D(10))
    found, _ = options(Workload(per_day=D(1000), tokens_in=tokens_in, tokens_out=tokens_out), price, per_hour=D(1))
    assert found[LOCAL].break_even_per_day == from_
    assert found[LOCAL].saving < 0


def test_a_card_for_two_thousand_dollars_pays_for_itself_within_three_months():
    found, _ = options(SUPPORT, BIG, hardware=D(2000), watts=D(300), per_kwh=D("0.30"))
    assert 0 < found[LOCAL].payback_months < 3
    assert found[LOCAL].payback_months == D(2000) / ((D(90) - D("2.16")) * 30)


@pytest.mark.parametrize(
    ("dear", "cheap", "times"),
    [((D("2.5"), D(10)), (D("0.15"), D("0.6")), 16.7), ((D(3), D(15)), (D("0.25"), D("1.25")), 12.0)],
)
def test_the_distance_of_two_prices_is_10_to_17_times_not_33(dear, cheap, times):
    work = Workload(per_day=D(1), tokens_in=0, tokens_out=1_000_000)
    big, _ = options(work, Price(input=dear[0], output=dear[1]))
    little, _ = options(work, Price(input=cheap[0], output=cheap[1]))
    assert round(big[CLOUD].per_request / little[CLOUD].per_request, 1) == D(str(times))


def test_ten_million_tokens_a_day_differ_by_24_to_94_dollars_and_not_by_hundreds():
    """$2.50 and $10 beside $0.15 and $0.60: all read, or all written."""
    spans = []
    for tokens_in, tokens_out in ((10_000_000, 0), (0, 10_000_000)):
        work = Workload(per_day=D(1), tokens_in=tokens_in, tokens_out=tokens_out)
        found, _ = options(work, Price(input=D("2.5"), output=D(10)), price=Price(input=D("0.15"), output=D("0.6")))
        spans.append(found[CLOUD].per_day - found[LOCAL].per_day)
    assert spans == [D("23.5"), D(94)]


def test_a_machine_for_few_requests_is_dearer_than_the_cloud():
    found, plan = options(Workload(per_day=D(100), tokens_in=500, tokens_out=500), BIG, per_hour=D(1))
    assert plan.cheapest == CLOUD
    assert found[LOCAL].break_even_per_day > 2000
    cheaper = {one.what: one.cheapest for one in plan.variations}
    assert (cheaper["half of the requests"], cheaper["ten times the requests"]) == (CLOUD, CLOUD)


def test_a_local_model_that_costs_more_a_token_never_pays():
    found, _ = options(SUPPORT, SMALL, price=BIG)
    assert found[LOCAL].never
    assert found[LOCAL].break_even_per_day is None


def test_without_a_price_the_plan_is_unknown_and_not_free():
    work = Workload(per_day=D(10), tokens_in=5, tokens_out=5, local_share=D("0.5"))
    found, plan = options(work, None, per_hour=D(1))
    assert (found[CLOUD].per_request, found[HYBRID].per_request, found[LOCAL].saving) == (None, None, None)
    assert plan.cheapest is None
    assert found[LOCAL].per_day == 24


@pytest.mark.parametrize(
    ("field", "value"), [("per_day", D(0)), ("tokens_in", -1), ("local_share", D(2)), ("local_share", D("-0.1"))]
)
def test_a_workload_that_is_none_is_refused(field, value):
    work = {"per_day": D(1), "tokens_in": 1, "tokens_out": 1, field: value}
    with pytest.raises(InvalidRequest, match="out of range"):
        make_plan(Workload(**work), BIG, LocalCosts())
