"""No order of arrivals, cancels and finishes loses a request, mixes two, or ends one twice."""

from fakes.fake_drafting import FakeDrafting
from fakes.fake_runtime import FakeRuntime, expected_answer
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.engine import frames
from agent.engine.scheduler import Scheduler
from agent.types import FailureKind, Message, Sampling

COMMON = ["x" * 40, "x" * 36 + "y" * 8, "y" * 33]  # beginnings that several prompts share


NAMED = COMMON[1]


def ask(request_id, text, deadline_ms=None, scope="", **sampling):
    return frames.Generate(
        id=request_id,
        messages=(Message("user", text),),
        sampling=Sampling(**sampling),
        deadline_ms=deadline_ms,
        scope=scope,
    )


def in_common(one, other):
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class Line(RuleBasedStateMachine):
    @initialize(
        slots=st.integers(1, 4),
        batch=st.integers(4, 32),
        waiting=st.integers(0, 3),
        saved=st.sampled_from([0, 50, 90, 400]),
        cells=st.none() | st.integers(64, 200),
        drafting=st.none() | st.builds(FakeDrafting, st.randoms(use_true_random=False), st.floats(0, 1)),
    )
    def begin(self, slots, batch, waiting, saved, cells, drafting):
        self.now = 0.0
        self.runtime = FakeRuntime(slots=slots, batch_tokens=batch, saved_tokens=saved, cells=cells)
        self.room = slots + waiting
        self.scheduler = Scheduler(self.runtime, waiting_line=waiting, drafting=drafting, clock=lambda: self.now)
        if saved >= len(NAMED):
            self.scheduler.prefixes.name(list(NAMED.encode()))
        self.asked = {}
        self.scopes = {}
        self.open = set()
        self.refused = set()
        self.cancelled = set()
        self.deadlines = {}
        self.texts = {}
        self.tokens = {}

    @rule(
        text=st.text("xyzé", max_size=70) | st.builds(str.__add__, st.sampled_from(COMMON), st.text("xy", max_size=20)),
        max_tokens=st.none() | st.integers(1, 20),
        deadline=st.none() | st.integers(0, 30),
        scope=st.sampled_from(["", "", "a", "b"]),
    )
    def arrive(self, text, max_tokens, deadline, scope):
        request_id = len(self.asked) + 1
        self.scopes[request_id] = scope
        self.asked[request_id] = (text, max_tokens)
        self.texts[request_id] = ""
        self.tokens[request_id] = []
        if deadline is not None:
            self.deadlines[request_id] = self.now + deadline
        if (
            sum(1 for n in self.open if n not in self.refused) >= self.room
            or not 0 < len(text.encode()) < self.runtime.context_tokens
        ):
            self.refused.add(request_id)
        self.open.add(request_id)
        self.scheduler.submit(
            ask(request_id, text, None if deadline is None else deadline * 1000, scope, max_tokens=max_tokens)
        )

    @rule(pick=st.integers(0, 100))
    def cancel(self, pick):
        request_id = pick % (len(self.asked) + 3)
        self.scheduler.cancel(request_id)
        if request_id in self.open:
            self.cancelled.add(request_id)

    @rule(passes=st.integers(0, 5))
    def step(self, passes):
        self.now += passes
        self.take(self.scheduler.step())

    def take(self, step):
        for piece in step.pieces:
            assert piece.id in self.open
            assert piece.text
            self.texts[piece.id] += piece.text
            self.tokens[piece.id] += piece.tokens
        for ended in step.ended:
            assert ended.id in self.open, "ended twice, or never asked"
            self.open.remove(ended.id)
            self.texts[ended.id] += ended.text
            self.tokens[ended.id] += ended.tokens
            self.check(ended)

    def check(self, ended):
        prompt, max_tokens = self.asked[ended.id]
        answer, reason = expected_answer(prompt.encode(), max_tokens=max_tokens) if prompt else ("", None)
        got = self.texts[ended.id]
        if ended.failure is None:
            assert (got, ended.finish_reason) == (answer, reason)
            assert b"".join(token.text_bytes for token in self.tokens[ended.id]).decode() == answer
            assert ended.output_tokens == len(answer)
            assert 0 <= ended.cached_tokens < ended.prompt_tokens
            assert ended.cached_tokens <= self.may_find(ended.id)
            assert ended.id not in self.refused
        else:
            assert ended.finish_reason is None
            assert answer.startswith(got)
            match ended.failure.kind:
                case FailureKind.CANCELLED:
                    assert ended.id in self.cancelled
                case FailureKind.TIMEOUT:
                    assert self.now >= self.deadlines[ended.id]
                case FailureKind.BUSY | FailureKind.REJECTED | FailureKind.CONTEXT_OVERFLOW:
                    assert ended.id in self.refused
                    assert got == ""
                case kind:
                    raise AssertionError(kind)

    def may_find(self, request_id):
        """How much of a prompt others of its scope have asked, with their answers, or is named."""
        prompt, scope = self.asked[request_id][0].encode(), self.scopes[request_id]
        known = [NAMED.encode()]
        for other, (text, _) in self.asked.items():
            if other != request_id and self.scopes[other] == scope and text:
                known.append(text.encode() + expected_answer(text.encode())[0].encode())
        return max((in_common(prompt, one) for one in known), default=0)

    @invariant()
    def a_slot_holds_at_most_one_request(self):
        if hasattr(self, "scheduler"):
            assert sum(1 for content in self.runtime.content if content) <= len(self.open)

    @invariant()
    def the_books_of_the_cache_are_right(self):
        if not hasattr(self, "scheduler"):
            return
        cache, kept = self.scheduler.prefixes, 0
        unseen = [(cache._root, [])]
        while unseen:
            run, before = unseen.pop()
            content = before + run.tokens
            kept += len(run.tokens)
            assert run is cache._root or run.saved.data == run.tokens
            assert (run.start, run.end) == (len(before), len(content))
            for slot in run.slots:
                assert self.runtime.content[slot][: run.end] == content
            unseen += [(child, content) for child in run.children.values()]
        assert kept == cache.tokens

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2000):
            if self.scheduler.idle:
                break
            self.take(self.scheduler.step())
        assert not self.open, "a request was lost"
        assert not any(self.runtime.content), "a slot was not cleared"
        assert self.scheduler.prefixes.tokens <= self.runtime.saved_tokens
        self.scheduler.prefixes.shrink(0)
        assert self.scheduler.prefixes.tokens == 0, "a slot that is gone still holds a run"


Line.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLine = Line.TestCase


def answers(scheduler):
    ended = {}
    while not scheduler.idle:
        for one in scheduler.step().ended:
            ended[one.id] = one
    return ended


def test_a_cancel_takes_effect_at_the_next_step():
    scheduler = Scheduler(FakeRuntime(), waiting_line=1)
    scheduler.submit(ask(1, "x"))
    scheduler.step()
    scheduler.cancel(1)
    (ended,) = scheduler.step().ended
    assert ended.failure.kind is FailureKind.CANCELLED
    assert scheduler.idle


def test_a_deadline_ends_a_request_that_waits_as_well_as_one_that_runs():
    now = 0.0
    scheduler = Scheduler(FakeRuntime(slots=1), waiting_line=1, clock=lambda: now)
    scheduler.submit(ask(1, "x", 1000))
    scheduler.submit(ask(2, "y", 1000))
    scheduler.step()
    now = 1.0
    assert {ended.id: ended.failure.kind for ended in scheduler.step().ended} == {
        1: FailureKind.TIMEOUT,
        2: FailureKind.TIMEOUT,
    }


def test_a_long_prompt_does_not_hold_up_those_who_decode():
    runtime = FakeRuntime(slots=2, batch_tokens=8)
    scheduler = Scheduler(runtime, waiting_line=0)
    scheduler.submit(ask(1, "y", max_tokens=30))
    scheduler.step()
    scheduler.submit(ask(2, "x" * 60))
    step = scheduler.step()
    assert [piece.id for piece in step.pieces] == [1]


def test_logits_that_are_no_numbers_fail_that_request_only():
    scheduler = Scheduler(FakeRuntime(), waiting_line=1)
    scheduler.submit(ask(1, "NaN"))
    scheduler.submit(ask(2, "xx"))
    ended = answers(scheduler)
    assert ended[1].failure.kind is FailureKind.CRASH
    assert (ended[2].failure, ended[2].text) is not None
    assert ended[2].failure is None


def test_a_stop_string_ends_the_answer_across_tokens():
    whole, _ = expected_answer(b"good day")
    assert len(whole) > 4
    scheduler = Scheduler(FakeRuntime(), waiting_line=1)
    scheduler.submit(ask(1, "good day", stop=(whole[2:5],)))
    text = ""
    while not scheduler.idle:
        step = scheduler.step()
        text += "".join(piece.text for piece in step.pieces) + "".join(ended.text for ended in step.ended)
        finish = [ended.finish_reason for ended in step.ended]
    assert text == whole[: whole.index(whole[2:5])]
    assert finish == ["stop"]


def test_alternatives_carry_their_text():
    scheduler = Scheduler(FakeRuntime(), waiting_line=1)
    scheduler.submit(ask(1, "hello", max_tokens=1, top_logprobs=2))
    (ended,) = answers(scheduler).values()
    (token,) = ended.tokens
    assert token.top[0].id == token.id
    assert token.top[1].text_bytes == b"z"
    assert token.top[1].logprob == token.runner_up_logprob
