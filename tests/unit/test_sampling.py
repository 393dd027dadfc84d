import math

import numpy as np
import pytest

from agent.engine.sampling import NoDistribution, Observer, generator
from agent.types import Sampling


def softmax(row):
    exact = row.astype(np.float64)
    weights = np.exp(exact - exact.max())
    return weights / weights.sum()


@pytest.fixture
def row():
    return (np.random.default_rng(7).standard_normal(5000) * 4).astype(np.float32)


def observed(row):
    observer = Observer(len(row))
    observer.read(row)
    return observer


def test_figures_agree_with_an_exact_softmax(row):
    exact = softmax(row)
    token, best = observed(row).describe(17, b"x", 5)
    ranked = np.argsort(-exact)
    assert best == list(ranked[:5])
    assert token.logprob == pytest.approx(math.log(exact[17]), abs=1e-4)
    assert token.runner_up_logprob == pytest.approx(math.log(exact[ranked[0]]), abs=1e-4)
    assert token.entropy == pytest.approx(-(exact * np.log(exact)).sum(), abs=1e-3)
    assert [alternative.logprob for alternative in token.top] == pytest.approx(np.log(exact[ranked[:5]]), abs=1e-4)


def test_the_runner_up_of_the_best_token_is_the_second(row):
    exact = softmax(row)
    first, second = np.argsort(-exact)[:2]
    token, _ = observed(row).describe(int(first), b"", 0)
    assert token.runner_up_logprob == pytest.approx(math.log(exact[second]), abs=1e-4)


def test_a_certain_model_has_no_entropy_and_minus_infinity_is_a_probability_of_zero():
    row = np.full(100, -np.inf, np.float32)
    row[3] = 1.0
    token, _ = observed(row).describe(3, b"", 2)
    assert (token.logprob, token.entropy) == (0.0, 0.0)
    assert token.runner_up_logprob < -1000


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_rows_that_are_no_distribution_are_refused(value):
    with pytest.raises(NoDistribution):
        observed(np.full(10, value, np.float32))


def test_one_nan_is_enough_to_refuse_a_row(row):
    row[100] = np.nan
    with pytest.raises(NoDistribution):
        observed(row)


def test_greedy_takes_the_best(row):
    assert observed(row).draw(Sampling(), generator(Sampling())) == int(row.argmax())


def draws(row, sampling, count):
    rng = generator(sampling)
    observer = observed(row)
    return [observer.draw(sampling, rng) for _ in range(count)]


def test_the_same_seed_draws_the_same_and_another_does_not(row):
    sampling = Sampling(temperature=1.0, seed=5)
    assert draws(row, sampling, 50) == draws(row, sampling, 50)
    assert draws(row, sampling, 50) != draws(row, Sampling(temperature=1.0, seed=6), 50)
    assert draws(row, Sampling(temperature=1.0, seed=-1), 5) == draws(row, Sampling(temperature=1.0, seed=-1), 5)
    assert draws(row, Sampling(temperature=1.0), 50) != draws(row, Sampling(temperature=1.0), 50)


def test_draws_follow_the_distribution():
    row = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    counts = np.bincount(draws(row, Sampling(temperature=1.0, seed=1), 4000), minlength=3) / 4000
    assert counts == pytest.approx([0.5, 0.3, 0.2], abs=0.04)


def test_temperature_sharpens():
    row = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    counts = np.bincount(draws(row, Sampling(temperature=0.5, seed=1), 4000), minlength=3) / 4000
    assert counts == pytest.approx(np.array([0.25, 0.09, 0.04]) / 0.38, abs=0.04)


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999999])
def test_top_p_never_draws_outside_the_nucleus(row, top_p):
    exact = softmax(row)
    ranked = np.argsort(-exact, kind="stable")
    nucleus = set(ranked[: int(np.searchsorted(np.cumsum(exact[ranked]), top_p)) + 1])
    assert set(draws(row, Sampling(temperature=1.0, top_p=top_p, seed=3), 200)) <= nucleus


def test_top_p_reaches_beyond_the_small_pools():
    row = np.zeros(5000, np.float32)
    assert len(set(draws(row, Sampling(temperature=1.0, top_p=0.99, seed=3), 3000))) > 1500
