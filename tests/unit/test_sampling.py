import math

import numpy as np
import pytest

from agent.engine.sampling import NoDistribution, Observer, Sampler
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
    assert Sampler(Sampling()).draw(observed(row)) == int(row.argmax())


def draws(row, sampling, count):
    sampler = Sampler(sampling)
    observer = observed(row)
    return [sampler.draw(observer) for _ in range(count)]


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


def test_top_k_draws_from_the_best_k(row):
    best = set(np.argsort(-row)[:4])
    assert set(draws(row, Sampling(temperature=2.0, top_k=4, seed=3), 300)) == best
    assert set(draws(row, Sampling(temperature=2.0, top_k=1, seed=3), 20)) == {int(row.argmax())}


def test_min_p_leaves_out_what_is_unlikely_beside_the_best():
    row = np.log(np.array([0.5, 0.26, 0.24], np.float32))
    assert set(draws(row, Sampling(temperature=1.0, min_p=0.5, seed=1), 200)) == {0, 1}
    assert set(draws(row, Sampling(temperature=1.0, min_p=1.0, seed=1), 50)) == {0}


def test_top_k_and_top_p_act_together():
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    # Of the best two, 0.4 / 0.7 reaches 0.5 alone.
    assert set(draws(row, Sampling(temperature=1.0, top_k=2, top_p=0.5, seed=1), 100)) == {0}


def greedy(row, sampling, said=(), prompt=()):
    sampler = Sampler(sampling, prompt)
    for token in said:
        sampler.accept(token)
    return sampler.draw(observed(np.array(row, np.float32)))


def test_presence_counts_once_and_frequency_each_time():
    row = [3.0, 2.5, 0.0]
    assert greedy(row, Sampling(presence_penalty=0.4), said=[0, 0, 0]) == 0
    assert greedy(row, Sampling(presence_penalty=0.6), said=[0]) == 1
    assert greedy(row, Sampling(frequency_penalty=0.2), said=[0, 0]) == 0
    assert greedy(row, Sampling(frequency_penalty=0.2), said=[0, 0, 0]) == 1
    assert greedy(row, Sampling(presence_penalty=-2), said=[1]) == 1


def test_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_negative():
    assert greedy([3.0, 2.0], Sampling(repetition_penalty=1.4), said=[0]) == 0
    assert greedy([3.0, 2.0], Sampling(repetition_penalty=1.6), said=[0]) == 1
    assert greedy([-1.0, -1.5], Sampling(repetition_penalty=1.6), prompt=[0]) == 1
    assert greedy([-1.0, -1.5], Sampling(repetition_penalty=1.6)) == 0


def test_logit_bias_bans_and_forces():
    assert greedy([9.0, 2.0, 1.0], Sampling(logit_bias=((0, -100.0),))) == 1
    assert greedy([9.0, 2.0, 1.0], Sampling(logit_bias=((2, 100.0),))) == 2


def test_a_mask_rules_over_everything(row):
    mask = np.zeros(len(row), np.bool_)
    mask[[11, 12]] = True
    observer = observed(row)
    for sampling in (Sampling(), Sampling(temperature=2.0, top_k=1), Sampling(logit_bias=((5, 100.0),))):
        assert Sampler(sampling).draw(observer, mask) in {11, 12}
    assert observer.mass(mask) == pytest.approx(softmax(row)[[11, 12]].sum(), rel=1e-4)


def test_penalties_do_not_touch_the_figures(row):
    observer = observed(row)
    before, _ = observer.describe(17, b"", 0)
    observer.read(row)
    sampler = Sampler(Sampling(repetition_penalty=2.0, presence_penalty=2.0, logit_bias=((17, -100.0),)), [17])
    sampler.accept(17)
    sampler.draw(observer)
    assert observer.describe(17, b"", 0)[0] == before
