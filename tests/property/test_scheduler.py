"""No order of arrivals, cancels and finishes loses, mixes or starves a request, or ends one twice.

To have one more kind of request in the company, add it to ``KINDS``: whatever the others do,
it must get what it gets alone.
"""

import contextlib
import re
from functools import lru_cache

import msgspec
from fakes.fake_drafting import FakeDrafting
from fakes.fake_runtime import FakeRuntime, expected_answer
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.engine import frames
from agent.engine.grammar import Grammars
from agent.engine.prefix_cache import agreeing
from agent.engine.runtime import RuntimeBroken
from agent.engine.scheduler import Scheduler
from agent.structure import FormatKind, OutputFormat
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


def broken(chunks):
    raise RuntimeBroken("llama_decode returned -3")


PATTERNS = ("[a-d]{2,5}", "(left|right) (hand|foot)", "z{9}[ab]*")  # a choice, forced runs, forced beginning
# What a request asks for beside its text.
KINDS = st.one_of(
    st.builds(dict, max_tokens=st.none() | st.integers(1, 20)),
    st.builds(dict, pattern=st.sampled_from(PATTERNS), max_tokens=st.none() | st.integers(1, 12)),
    st.builds(dict, pattern=st.sampled_from(PATTERNS), logprobs=st.just(True)),  # no run is taken in one piece
    st.builds(dict, temperature=st.just(0.9), seed=st.integers(0, 9), max_tokens=st.integers(1, 20)),
    st.builds(dict, max_tokens=st.integers(1, 20), min_tokens=st.integers(1, 9), stop=st.just(("ab", "z"))),
)
TEXTS = (
    st.text("xyzé", max_size=70)
    | st.builds(str.__add__, st.sampled_from(COMMON), st.text("xy", max_size=20))
    | st.builds("NaN".__add__, st.text("xy", max_size=3))
)


GRAMMARS = Grammars(FakeRuntime().vocabulary, FakeRuntime.vocabulary_size)  # compiled once for all schedulers


class Late:
    """A rule whose compilation is seen to last for some steps."""

    def __init__(self, compiled, steps):
        self.compiled, self.steps = compiled, steps

    def ready(self, wait_s=0.0):
        self.steps -= 1
        return self.steps < 0

    def constraint(self):
        return self.compiled.constraint()


class LateGrammars:
    def __init__(self, steps):
        self.steps = steps

    def begin(self, output, tools):
        compiled = GRAMMARS.begin(output, tools)
        assert compiled is None or compiled.ready(60)
        return compiled and Late(compiled, self.steps)


def request_of(request_id, text, deadline_s, scope, kind):
    """The request of a kind; ``pattern`` is what its answer must match."""
    kind = dict(kind)
    pattern = kind.pop("pattern", None)
    told = ask(request_id, text, None if deadline_s is None else deadline_s * 1000, scope, **kind)
    return msgspec.structs.replace(
        told, response_format=pattern and OutputFormat(kind=FormatKind.REGEX, source=pattern)
    )


def collected(steps):
    """Return (text, the end) of the only request in these steps."""
    text = ""
    for step in steps:
        text += "".join(part.text for part in (*step.pieces, *step.ended))
        for end in step.ended:
            return text, end
    raise AssertionError("it did not end")


@lru_cache(maxsize=4096)
def alone(asked):
    """What a request gets with the runtime to itself: text, reason, tokens generated."""
    if asked.response_format is None and asked.sampling == Sampling(max_tokens=asked.sampling.max_tokens):
        prompt = asked.messages[0].content.encode()
        text, reason = expected_answer(prompt, max_tokens=asked.sampling.max_tokens)
        return text, reason, len(text)
    scheduler = Scheduler(FakeRuntime(slots=1), waiting_line=0)
    scheduler._grammars = GRAMMARS
    scheduler.submit(asked)
    text, ended = collected(scheduler.step() for _ in range(200))
    if ended.finish_reason == "stop" and asked.response_format:
        assert re.fullmatch(asked.response_format.source, text)
    return text, ended.finish_reason, ended.output_tokens


class Line(RuleBasedStateMachine):
    @initialize(
        slots=st.integers(1, 4),
        batch=st.integers(4, 32),
        waiting=st.integers(0, 3),
        saved=st.sampled_from([0, 50, 90, 400]),
        cells=st.none() | st.integers(64, 200),
        late=st.sampled_from([0, 3]),
        drafting=st.none() | st.builds(FakeDrafting, st.randoms(use_true_random=False), st.floats(0, 1)),
        hurried=st.booleans(),
    )
    def begin(self, **shape):
        self.now = 0.0
        self.shape = shape
        self.asked = {}
        self.new_worker()

    def new_worker(self):
        """Nothing of the one before is left: its requests were failed by the daemon."""
        slots, batch, waiting, saved, cells, late, drafting, hurried = (
            self.shape[name] for name in ("slots", "batch", "waiting", "saved", "cells", "late", "drafting", "hurried")
        )
        self.runtime = FakeRuntime(slots=slots, batch_tokens=batch, saved_tokens=saved, cells=cells)
        self.room = slots + waiting
        given = {"drafting": drafting, "interrupted": lambda: hurried, "clock": lambda: self.now}
        self.scheduler = Scheduler(self.runtime, waiting_line=waiting, **given)
        self.scheduler._grammars = LateGrammars(late)
        if saved >= len(NAMED):
            self.scheduler.prefixes.name(list(NAMED.encode()))
        self.open = set()
        self.refused = set()
        self.cancelled = set()
        self.deadlines = {}
        self.texts = {}
        self.tokens = {}

    @rule(
        text=TEXTS,
        kind=KINDS,
        deadline=st.none() | st.integers(0, 30),
        scope=st.sampled_from(["", "", "a", "b"]),
        copies=st.sampled_from([1, 1, 1, 3]),
    )
    def arrive(self, text, kind, deadline, scope, copies):
        """One request, or several answers to one: the same with other seeds."""
        for copy in range(copies):
            request_id = len(self.asked) + 1
            if "seed" in kind:
                kind = kind | {"seed": kind["seed"] + copy}
            self.asked[request_id] = asked = request_of(request_id, text, deadline, scope, kind)
            self.texts[request_id] = ""
            self.tokens[request_id] = []
            if deadline is not None:
                self.deadlines[request_id] = self.now + deadline
            if (
                len(self.open - self.refused - self.cancelled) >= self.room
                or not 0 < len(text.encode()) < self.runtime.context_tokens
            ):
                self.refused.add(request_id)
            self.open.add(request_id)
            self.scheduler.submit(asked)

    @rule(pick=st.integers(0, 100))
    def cancel(self, pick):
        request_id = pick % (len(self.asked) + 3)
        self.scheduler.cancel(request_id)
        if request_id in self.open:
            self.cancelled.add(request_id)

    @rule(passes=st.integers(0, 5))
    def step(self, passes):
        self.now += passes
        self.take_step()

    @precondition(lambda self: any(not seq.cancelled for seq in self.scheduler._running))
    @rule()
    def break_down(self):
        """A fault of the native layer comes out of the step: the worker ends, and another begins."""
        decode, self.runtime.decode = self.runtime.decode, broken
        with contextlib.suppress(RuntimeBroken):
            self.take(self.scheduler.step())
            assert not self.scheduler._running, "a fault was hidden"
        self.runtime.decode = decode
        if self.scheduler._running:
            self.new_worker()

    def take_step(self):
        before = {seq.id: (seq.decoded, seq.begun) for seq in self.scheduler._running}
        computed = self.runtime.computed
        waited = [seq.id for seq in self.scheduler._waiting]
        self.take(self.scheduler.step())
        assert not self.open & self.cancelled, "a cancel takes one step"
        assert not any(self.now >= self.deadlines.get(n, self.now + 1) for n in self.open), "so does a deadline"
        running = {seq.id: seq for seq in self.scheduler._running}
        # Nobody who decodes is passed over, and the first of the others' prompts goes on too.
        for request_id, (decoded, begun) in before.items():
            assert request_id not in running or not begun or running[request_id].decoded > decoded, "starved"
        full = self.runtime.computed - computed == self.runtime.batch_tokens  # of what rules force
        first = next((n for n, (_, begun) in before.items() if not begun), None)
        assert first not in running or full or running[first].decoded > before[first][0], "starved"
        # Slots are given in order of arrival; only one whose rule is not compiled yet is passed over.
        admitted = [n for n in waited if n in running]
        for left in self.scheduler._waiting:
            assert left.rule is not None or not admitted or max(admitted) < left.id, "overtaken"

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
        asked, got = self.asked[ended.id], self.texts[ended.id]
        text = asked.messages[0].content
        if ended.failure is None:
            answer, reason, generated = alone(msgspec.structs.replace(asked, id=0, deadline_ms=None, scope=""))
            assert (got, ended.finish_reason, ended.output_tokens) == (answer, reason, generated)
            if not asked.sampling.stop:
                assert b"".join(token.text_bytes for token in self.tokens[ended.id]).decode() == answer
            assert 0 <= ended.cached_tokens < ended.prompt_tokens
            assert ended.cached_tokens <= self.may_find(ended.id)
            assert ended.id not in self.refused
            return
        assert ended.finish_reason is None
        match ended.failure.kind:
            case FailureKind.CANCELLED:
                assert ended.id in self.cancelled
            case FailureKind.TIMEOUT:
                assert self.now >= self.deadlines[ended.id]
            case FailureKind.REJECTED if "to compile" in ended.failure.message:
                assert asked.response_format
                assert self.shape["late"]
            case FailureKind.BUSY | FailureKind.REJECTED | FailureKind.CONTEXT_OVERFLOW:
                assert ended.id in self.refused
                assert got == ""
            case FailureKind.CRASH:
                assert text.startswith("NaN")
                assert ended.id not in self.refused
            case kind:
                raise AssertionError(kind)
        if got:
            answer, _, _ = alone(msgspec.structs.replace(asked, id=0, deadline_ms=None, scope=""))
            assert answer.startswith(got)

    def may_find(self, request_id):
        """How much of a prompt others of its scope have asked, with their answers, or is named."""
        prompt, scope = self.asked[request_id].messages[0].content.encode(), self.asked[request_id].scope
        known = [NAMED.encode()]
        for other, asked in self.asked.items():
            text = asked.messages[0].content
            if other != request_id and asked.scope == scope and text and other in self.texts:
                # What it answers is at most what its slot holds.
                known.append(text.encode() + self.texts[other].encode())
                known.append(text.encode() + expected_answer(text.encode())[0].encode())
        return max(agreeing(prompt, one, 0) for one in known)

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
            self.take_step()
        assert not self.open, "a request was lost"
        assert not any(self.runtime.content), "a slot was not cleared"
        assert self.scheduler.prefixes.tokens <= self.runtime.saved_tokens
        self.scheduler.prefixes.shrink(0)
        assert self.scheduler.prefixes.tokens == 0, "a slot that is gone still holds a run"


Line.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
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
