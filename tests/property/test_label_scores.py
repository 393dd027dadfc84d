"""Whatever is asked, in whatever order, every label gets the same score as by itself."""

import itertools
import math

import pytest
from fakes.fake_runtime import FakeRuntime, expected_logprob
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.engine import frames
from agent.engine.label_scores import LabelScorer, LabelTree
from agent.types import FailureKind, Message

LABELS = st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=12, unique=True)
PROMPTS = st.text("xyz", min_size=1, max_size=30)
counter = itertools.count(1)


def score(labels, prompt="xyz", **changes):
    return frames.Score(id=next(counter), messages=(Message("user", prompt),), labels=tuple(labels), **changes)


def run(scorer):
    ended = {}
    while not scorer.idle:
        for one in scorer.step():
            assert one.id not in ended
            ended[one.id] = one
    return ended


def scorer_of(runtime=None, **changes):
    return LabelScorer(runtime or FakeRuntime(), **({"waiting_line": 20} | changes))


def one(scorer, ask):
    scorer.submit(ask)
    return run(scorer)[ask.id]


@given(prompts=st.lists(st.tuples(PROMPTS, LABELS), min_size=1, max_size=6), seed=st.randoms())
@example(prompts=[("x", ["a", "ab", "abc", "b"])], seed=None)
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_each_label_alone_in_any_order_and_company(prompts, seed):
    scorer = scorer_of()
    for prompt, labels in prompts:
        shuffled = list(labels)
        if seed is not None:
            seed.shuffle(shuffled)
        got = one(scorer, score(shuffled, prompt))
        assert got.failure is None
        for label, figure in zip(shuffled, got.logprobs, strict=True):
            assert figure == pytest.approx(expected_logprob(prompt.encode(), label.encode()), abs=1e-4)
        assert got.label_tokens == tuple(len(label) for label in shuffled)
        assert shuffled[got.best] == max(labels, key=lambda label: expected_logprob(prompt.encode(), label.encode()))
        begins = [a for a in labels if not any(a != b and a.startswith(b) for b in labels)]
        mass = sum(math.exp(expected_logprob(prompt.encode(), label.encode())) for label in begins)
        assert got.mass == pytest.approx(mass, rel=1e-3)
        assert got.prompt_tokens == len(prompt)


@given(labels=LABELS, prompt=PROMPTS, offsets=st.lists(st.floats(-20, 20), min_size=12, max_size=12))
@settings(max_examples=150, deadline=None)
def test_the_best_label_is_found_without_scoring_them_all(labels, prompt, offsets):
    offsets = tuple(offsets[: len(labels)])
    whole = one(scorer_of(), score(labels, prompt, offsets=offsets))
    only = one(scorer_of(), score(labels, prompt, offsets=offsets, best_only=True))
    totals = [figure + offset for figure, offset in zip(whole.logprobs, offsets, strict=True)]
    assert totals[only.best] == max(totals) == totals[whole.best]
    for figure, exact in zip(only.logprobs, whole.logprobs, strict=True):
        assert figure is None or figure == exact


def test_the_best_alone_decodes_less():
    labels = ["a", "b" * 7, "c" * 7, "d" * 7]
    decoded = {}
    for best_only in (False, True):
        runtime = FakeRuntime()
        scored = one(scorer_of(runtime), score(labels, offsets=(60.0, 0.0, 0.0, 0.0), best_only=best_only))
        assert scored.best == 0
        decoded[best_only] = runtime.scoring_context.decoded
    assert decoded[True] < decoded[False]


def test_a_prefix_that_the_last_request_had_is_not_decoded_again():
    scorer = scorer_of()
    cold = one(scorer, score(["a", "bc"], "zzzzzzzzyx"))
    other = one(scorer, score(["a", "bc"], "zzzzzzzzxy"))
    warm = one(scorer, score(["a", "bc"], "zzzzzzzzyx"))
    assert (cold.cached_tokens, other.cached_tokens, warm.cached_tokens) == (0, 8, 8)
    assert warm.logprobs == cold.logprobs


def test_cancel_deadline_and_a_full_line_end_one_request_each():
    now = 0.0
    scorer = scorer_of(FakeRuntime(slots=1), waiting_line=2, clock=lambda: now)
    asks = [
        score(["abc", "b"], "x" * 30),
        score(["a", "b"], "y", deadline_ms=1000),
        score(["a", "b"], "z"),
        score(["a"]),
    ]
    for ask in asks:
        scorer.submit(ask)
    scorer.step()
    scorer.cancel(asks[0].id)
    now = 2.0
    ended = run(scorer)
    assert ended[asks[0].id].failure.kind is FailureKind.CANCELLED
    assert ended[asks[1].id].failure.kind is FailureKind.TIMEOUT
    assert ended[asks[2].id].failure is None


def test_what_cannot_be_scored_is_refused_and_harms_nobody():
    scorer = scorer_of()
    for ask, kind in (
        (score([]), FailureKind.REJECTED),
        (score([""]), FailureKind.REJECTED),
        (score(["a"], "x" * 64), FailureKind.CONTEXT_OVERFLOW),
        (score(["a" * 20], "x" * 60), FailureKind.CONTEXT_OVERFLOW),
        (score(["a"], "NaN"), FailureKind.CRASH),
        (frames.Score(id=next(counter), prompt=(999,), labels=("a",)), FailureKind.REJECTED),
    ):
        assert one(scorer, ask).failure.kind is kind
    assert one(scorer, score(["a"])).failure is None


def test_an_echo_tells_what_each_token_of_the_prompt_had():
    ask = frames.Score(id=next(counter), prompt="xyzzyxyzzyxyz", echo=True, top_logprobs=2)
    got = one(scorer_of(), ask)
    assert b"".join(token.text_bytes for token in got.prompt) == b"xyzzyxyzzyxyz"
    text = b"xyzzyxyzzyxyz"
    for at in range(1, len(text)):
        assert got.prompt[at].logprob == pytest.approx(expected_logprob(text[:at], text[at : at + 1]), abs=1e-4)
        assert len(got.prompt[at].top) == 2


def test_a_tree_with_more_tips_than_branches_comes_in_groups():
    tree = LabelTree([tuple(text.encode()) for text in ("ab", "ac", "bb", "cc", "dd", "ee", "ff")])
    groups = list(tree.groups(2))
    assert [path for group in groups for path, _ in group] == [tuple(text.encode()) for text in "abcdef"]
    assert all(max(branch for _, branches in group for branch in branches) < 2 for group in groups)
