"""What every runtime must do under the scheduler and the scorer: what a request may ask for holds on each."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
from fakes.runtimes import CONTEXT, EACH, SLOTS
from fakes.smollm2 import onnx_folder

from agent.engine import frames
from agent.engine.label_scores import LabelScorer
from agent.engine.scheduler import Scheduler
from agent.structure import FormatKind, OutputFormat
from agent.types import FailureKind, Message, Sampling

ASKED = "Name a city."
LABELS = ("card arrival", "card", "lost card", "refund")


def ask(number, text=ASKED, *, deadline_ms=None, output=None, **sampling):
    return frames.Generate(
        id=number,
        messages=(Message("user", text),),
        sampling=Sampling(**({"max_tokens": 12} | sampling)),
        deadline_ms=deadline_ms,
        response_format=output,
    )


class Answers:
    """Serves requests to their end; of each its text, tokens and last word."""

    def __init__(self, runtime, *asks, waiting_line=20, clock=None):
        more = {} if clock is None else {"clock": clock}
        self.scheduler = Scheduler(runtime, waiting_line=waiting_line, **more)
        self.text, self.tokens, self.ended = {}, {}, {}
        for one in asks:
            self.scheduler.submit(one)

    def step(self):
        step = self.scheduler.step()
        for part in (*step.pieces, *step.ended):
            self.text[part.id] = self.text.get(part.id, "") + part.text
            self.tokens[part.id] = self.tokens.get(part.id, ()) + part.tokens
        self.ended |= {end.id: end for end in step.ended}

    def all(self):
        while not self.scheduler.idle:
            self.step()
        return self

    def kind(self, number):
        return self.ended[number].failure and self.ended[number].failure.kind


def test_requests_are_answered_each_as_it_is_alone(runtime):
    texts = [ASKED, "Count: one, two, three,", "Say hello.", "What is the capital of France?", "Write a word."]
    alone = [Answers(runtime, ask(1, text)).all().text[1] for text in texts]
    together = Answers(runtime, *(ask(number, text) for number, text in enumerate(texts))).all()
    for number, text in enumerate(alone):
        end = together.ended[number]
        assert end.failure is None
        assert end.finish_reason in {"stop", "length"}
        assert b"".join(token.text_bytes for token in together.tokens[number]).decode() == together.text[number]
        assert together.text[number][:4] == text[:4]  # the figures of a quantized file drift with the batch


def test_the_line_is_bounded(runtime):
    answers = Answers(runtime, *(ask(number) for number in range(SLOTS + 3)), waiting_line=1).all()
    assert [answers.kind(number) for number in range(SLOTS + 3)].count(FailureKind.BUSY) == 2


def test_a_cancel_and_a_deadline_end_one_request_within_a_step(runtime):
    now = 0.0
    answers = Answers(
        runtime, ask(1, max_tokens=100), ask(2, deadline_ms=1000, max_tokens=100), ask(3), clock=lambda: now
    )
    answers.step()
    answers.scheduler.cancel(1)
    now = 1.5
    answers.step()
    assert (answers.kind(1), answers.kind(2)) == (FailureKind.CANCELLED, FailureKind.TIMEOUT)
    assert answers.all().kind(3) is None


def test_a_seed_repeats_and_another_does_not(runtime):
    texts = [Answers(runtime, ask(1, temperature=3.0, seed=seed)).all().text[1] for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_several_answers_to_one_prompt_compute_it_once(runtime):
    text = "A long beginning that all of these have in common, word for word. " * 2
    answers = Answers(runtime, *(ask(seed, text, temperature=3.0, seed=seed) for seed in range(3))).all()
    cached = [answers.ended[number].cached_tokens for number in range(3)]
    assert sorted(cached)[1] > answers.ended[0].prompt_tokens // 2


def test_a_stop_string_ends_the_answer_and_is_cut(runtime):
    whole = Answers(runtime, ask(1)).all().text[1]
    stop = whole[3:5]
    cut = Answers(runtime, ask(1, stop=(stop,))).all()
    assert cut.text[1] == whole[: whole.index(stop)]
    assert cut.ended[1].finish_reason == "stop"


def test_log_probabilities_are_those_without_bias_mask_and_temperature(runtime):
    plain = Answers(runtime, ask(1, max_tokens=1, logprobs=True, top_logprobs=5)).all().tokens[1][0]
    known = {other.id: other.logprob for other in plain.top}
    second = plain.top[1].id
    biased = ask(1, max_tokens=1, logit_bias=((second, 100.0),), temperature=0.2, logprobs=True)
    (token,) = Answers(runtime, biased).all().tokens[1]
    assert token.id == second
    assert token.logprob == pytest.approx(known[second], abs=0.01)
    digits = OutputFormat(kind=FormatKind.REGEX, source="[0-9]")
    (bound,) = Answers(runtime, ask(1, output=digits, logprobs=True)).all().tokens[1]
    assert bound.entropy == pytest.approx(plain.entropy, abs=0.05)
    assert bound.logprob < 0
    assert 0 <= bound.allowed_mass < 1


def test_a_rule_holds_whatever_the_model_wants(runtime):
    rule = OutputFormat(kind=FormatKind.REGEX, source="(red|green) [0-9]{2}")
    for seed in range(3):
        answers = Answers(runtime, ask(1, output=rule, temperature=2.0, seed=seed, max_tokens=40)).all()
        assert re.fullmatch("(red|green) [0-9]{2}", answers.text[1])


def test_what_is_too_long_or_unknown_is_refused_and_the_next_is_served(runtime):
    answers = Answers(
        runtime,
        ask(1, "word " * CONTEXT),
        ask(2, logit_bias=((runtime.vocabulary_size, 1.0),)),
        frames.Generate(id=3, messages=(), prompt=(-1,), sampling=Sampling()),
        ask(4),
    ).all()
    kinds = [answers.kind(number) for number in (1, 2, 3, 4)]
    assert kinds == [FailureKind.CONTEXT_OVERFLOW, FailureKind.REJECTED, FailureKind.REJECTED, None]


def test_an_answer_may_fill_the_context(runtime):
    answers = Answers(runtime, ask(1, "word", max_tokens=None)).all()
    assert answers.ended[1].failure is None
    assert answers.ended[1].prompt_tokens + answers.ended[1].output_tokens <= CONTEXT


def test_label_scores_do_not_drift(runtime):
    def scored(scorer, *labels, text=ASKED, others=None):
        scorer.submit(frames.Score(id=1, messages=(Message("user", text),), labels=labels))
        while True:
            if others is not None:
                others.step()
            for one in scorer.step():
                assert one.failure is None
                return dict(zip(labels, one.logprobs, strict=True))

    whole = scored(LabelScorer(runtime, waiting_line=1), *LABELS)
    busy = Answers(runtime, *(ask(number, max_tokens=60) for number in range(SLOTS)))
    warm = LabelScorer(runtime, waiting_line=1)
    scored(warm, "x", text=ASKED + " Another one.")
    for found in (
        scored(LabelScorer(runtime, waiting_line=1), *reversed(LABELS), others=busy),
        scored(warm, *LABELS),
        {label: scored(LabelScorer(runtime, waiting_line=1), label)[label] for label in LABELS},
    ):
        assert all(abs(found[label] - whole[label]) <= 0.01 for label in LABELS)
    assert all(math.isfinite(figure) and figure < 0 for figure in whole.values())


def test_a_hidden_state_is_of_the_prompt_alone_and_changes_no_score(runtime):
    def scored(scorer, *labels, text=ASKED, hidden=True):
        scorer.submit(frames.Score(id=1, messages=(Message("user", text),), labels=labels, hidden=hidden))
        while not (found := scorer.step()):
            pass
        assert found[0].failure is None
        return found[0].logprobs, np.frombuffer(found[0].hidden, "<f4")

    warm = LabelScorer(runtime, waiting_line=1)
    _, other = scored(warm, text="Something else.")
    figures, state = scored(LabelScorer(runtime, waiting_line=1), *LABELS)
    assert state.shape == (runtime.hidden_width,)
    assert np.isfinite(state).all()
    assert not np.allclose(state, other)
    for labels in ((), LABELS[:1], LABELS):
        again, same = scored(warm, *labels)
        assert np.abs(same - state).max() <= 0.01 * np.abs(state).max()
        assert again == pytest.approx(figures[: len(labels)], abs=0.01)
    plain, none = scored(LabelScorer(runtime, waiting_line=1), *LABELS, hidden=False)
    assert (plain, none.size) == (pytest.approx(figures, abs=0.01), 0)


def test_a_row_can_be_read_again_until_the_next_decode(runtime):
    from agent.engine.runtime import Chunk

    tokens = runtime.prompt_tokens([Message("user", ASKED)])
    (row,) = runtime.decode([Chunk(0, 0, tokens, wants_row=True)])
    before = row.copy()
    runtime.share(0, 1, 0, len(tokens))
    runtime.save(0, 0, len(tokens))
    assert np.array_equal(row, before)


@pytest.mark.parametrize("name", EACH)
def test_it_can_be_unloaded_and_loaded_again(name):
    """In a process of its own: what a native library does on a second life may end the process."""
    if (kind := name.rpartition(" ")[2]) in {"int4", "int8"}:
        onnx_folder(kind)  # skipped here, loudly, and not in the child
    script = f"""
import sys; sys.path[:0] = {[p for p in sys.path if p]!r}
from fakes.runtimes import LOADERS
from agent.types import Message
for life in range(2):
    runtime = LOADERS[{name!r}]()
    runtime.scoring(10)
    print(len(runtime.prompt_tokens([Message("user", "hello")])))
    runtime.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second
