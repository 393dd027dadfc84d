"""The mathematics of promises: against an independent library, and against what they promise."""

import math
import random

import mpmath
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.confidence import binomial, certify, maps
from agent.confidence.certify import Certificate, Ranked, Scored

EXACT = 1e-9
scores = st.floats(0, 1, allow_nan=False)
examples = st.lists(st.tuples(scores, st.booleans()), min_size=1, max_size=120)


def oracle_cdf(k, n, p):
    if k < 0:
        return 0.0
    return 1.0 if k >= n else float(mpmath.betainc(n - k, k + 1, 0, 1 - mpmath.mpf(p), regularized=True))


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0.0001, 0.9999))
@settings(max_examples=150, deadline=None)
def test_the_binomial_distribution_is_that_of_mpmath(n, part, p):
    k = int(part * n)
    assert binomial.cdf(k, n, p) == pytest.approx(oracle_cdf(k, n, p), abs=EXACT)


@pytest.mark.parametrize("n", [20_000])
def test_it_holds_for_the_most_examples_that_are_taken(n):
    for k in (0, 1, n // 21, n // 20, n // 19):
        assert binomial.cdf(k, n, 0.05) == pytest.approx(oracle_cdf(k, n, 0.05), abs=EXACT)


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_intervals_are_where_the_tails_are_as_small_as_they_say(n, part, level):
    k = int(part * n)
    low, high = binomial.interval(k, n, level)
    assert 0 <= low <= k / n <= high <= 1
    if k < n:
        assert oracle_cdf(k, n, high) == pytest.approx((1 - level) / 2, abs=EXACT)
    if k > 0:
        assert 1 - oracle_cdf(k - 1, n, low) == pytest.approx((1 - level) / 2, abs=EXACT)


@given(st.floats(0, 1), st.integers(1, 200), st.integers(1, 200))
@example(5e-324, 1, 1)
@settings(max_examples=60, deadline=None)
def test_the_beta_distribution_is_that_of_mpmath(x, a, b):
    assert binomial.beta_cdf(x, a, b) == pytest.approx(float(mpmath.betainc(a, b, 0, x, regularized=True)), abs=EXACT)


@pytest.mark.parametrize(("alpha", "delta", "count"), [(0.05, 0.1, 45), (0.05, 0.05, 59), (0.01, 0.05, 299)])
def test_how_many_clean_examples_carry_a_promise(alpha, delta, count):
    assert certify.clean_examples(alpha, delta) == count
    assert binomial.cdf(0, count, alpha) <= delta < binomial.cdf(0, count - 1, alpha)


@given(examples, st.sampled_from([0.02, 0.05, 0.2, 0.5]), st.sampled_from([0.05, 0.1, 0.4]), st.none() | scores)
@settings(max_examples=150, deadline=None)
def test_what_is_certified_passes_the_exact_test_and_parts_no_ties(pairs, alpha, delta, start):
    ranked = Ranked([Scored(*pair) for pair in pairs])
    found = certify.accuracy_pac(ranked, alpha=alpha, delta=delta, start_share=start)
    if found.score is None:
        return
    served = [right for score, right in pairs if score >= found.score]
    assert (len(served), served.count(False)) == (found.served, found.errors)
    assert oracle_cdf(found.errors, found.served, alpha) <= delta + EXACT


@given(examples, st.sampled_from([0.02, 0.1, 0.5]))
@settings(max_examples=100, deadline=None)
def test_rules_on_average_keep_their_inequality_and_serve_the_most(pairs, limit):
    ranked = Ranked([Scored(*pair) for pair in pairs])
    mean, share = certify.accuracy_mean(ranked, alpha=limit), certify.wrong_share(ranked, share=limit)
    if mean.score is not None:
        assert (mean.errors + 1) / (mean.served + 1) <= limit
        assert mean.served >= 3 / limit
    for threshold in {score for score, _ in pairs}:
        served = [right for score, right in pairs if score >= threshold]
        if (served.count(False) + 1) / (len(pairs) + 1) <= limit:
            assert share.score is not None
            assert share.served >= len(served)


@given(st.lists(st.none() | scores, min_size=1, max_size=200), st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_a_share_of_escalations_is_bounded_by_order_statistics(values, share):
    for certificate in Certificate:
        found = certify.escalated_share(values, share=share, certificate=certificate, delta=0.1)
        if found.score is None:
            continue
        below = sum(1 for one in values if one is None or one < found.score)
        silent = sum(1 for one in values if one is None)
        assert below <= max(silent, share * (len(values) + 1))
        if certificate is Certificate.PAC and below > silent:
            assert 1 - oracle_cdf(below, len(values), share) >= 0.9 - EXACT


def test_a_promise_is_broken_no_more_often_than_it_says():
    """A simulated model that is right with probability of its score; the true risk of every threshold is known."""
    chance = random.Random(5)
    alpha, delta, broken, served = 0.1, 0.1, 0, 0.0
    for _ in range(400):
        drawn = [chance.random() ** 0.2 for _ in range(200)]
        found = certify.accuracy_pac(
            Ranked([Scored(score, chance.random() < score) for score in drawn]), alpha=alpha, delta=delta
        )
        if found.score is None:
            continue
        # P(score > s) = 1 - s^5; the risk above s is the mean of 1 - score there.
        power = 5
        mass = 1 - found.score**power
        right = power / (power + 1) * (1 - found.score ** (power + 1)) / mass
        broken += 1 - right > alpha
        served += mass
    assert broken / 400 <= delta + 2 * math.sqrt(delta * (1 - delta) / 400)
    assert served / 400 > 0.2


def test_a_pilot_says_where_to_begin_and_more_examples_are_estimated():
    chance = random.Random(1)
    drawn = [(score := chance.random() ** 0.2, chance.random() < score) for _ in range(400)]
    pilot = [Scored(*pair) for pair in drawn]
    start = certify.start_share(pilot, 300, alpha=0.1, delta=0.1)
    assert 0 < start <= 1
    assert certify.start_share(pilot, 10, alpha=0.1, delta=0.1) is None
    few = Ranked(pilot[:30])
    assert certify.accuracy_pac(few, alpha=0.05, delta=0.05).score is None
    assert certify.examples_needed(few, alpha=0.3, delta=0.05) > 0
    wrong = Ranked([Scored(0.5, False)] * 50)
    assert certify.examples_needed(wrong, alpha=0.05, delta=0.05) is None


def test_the_number_of_examples_that_is_told_is_enough_more_often_than_not():
    def draw(chance, count):
        scores = [chance.random() for _ in range(count)]
        return Ranked([Scored(score, chance.random() < 0.55 + 0.6 * score) for score in scores])

    chance = random.Random(5)
    told = [certify.examples_needed(draw(chance, 100), alpha=0.05, delta=0.1) for _ in range(40)]
    typical = sorted(one or 10**6 for one in told)[len(told) // 2]
    assert 100 < typical < 5000
    kept = [certify.accuracy_pac(draw(chance, typical), alpha=0.05, delta=0.1).score is not None for _ in range(60)]
    assert sum(kept) / len(kept) > 0.6


@given(examples, st.sampled_from([maps.fit, maps.fit_temperature, maps.fit_platt, maps.fit_isotonic]))
@settings(max_examples=150, deadline=None)
def test_maps_are_monotone_and_within_bounds(pairs, fit):
    fitted = fit(pairs)
    told = [fitted.probability(score) for score in (0.0, *sorted(score for score, _ in pairs), 1.0)]
    assert told == sorted(told)
    assert all(0 <= one <= 1 for one in told)


def test_a_map_says_what_is_so():
    chance = random.Random(2)
    told = [chance.random() for _ in range(2000)]
    # The score is overconfident: its log-odds are twice what they should be.
    pairs = [(score, chance.random() < maps.sigmoid(maps.logit(score) / 2)) for score in told]
    assert maps.fit_temperature(pairs).slope == pytest.approx(0.5, abs=0.06)
    for fitted in (maps.fit_platt(pairs), maps.fit_isotonic(pairs), maps.fit(pairs)):
        assert fitted.probability(0.9) == pytest.approx(0.75, abs=0.06)
    kinds = [maps.fit(pairs[:size]).kind for size in (0, 20, 200)]
    assert kinds == [maps.MapKind.IDENTITY, maps.MapKind.TEMPERATURE, maps.MapKind.PLATT]
