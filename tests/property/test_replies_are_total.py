"""Whatever a target replies, there is one outcome, and its reason is fit for a log."""

import json
import typing

from fakes.cloud import completion
from fakes.escalation_values import record, row
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.escalation.replies import HttpReply, read_probe, read_reply
from agent.escalation.target import Delivered, Online, Outcome, ProbeOutcome
from agent.types import Handoff

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "message", "content", "error", "code", "outrider", "decision", "usage", "data"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
BODIES = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode())
HEADERS = st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "location"]), st.text(max_size=30))


@settings(max_examples=400, deadline=None)
@given(st.integers(200, 599), HEADERS, BODIES, st.sampled_from(Handoff))
def test_every_reply_has_an_outcome(status, headers, body, handoff):
    reply = HttpReply(status, headers, body)
    outcome = read_reply(reply, record(), row(handoff), now_ms=1_700_000_000_000)
    assert isinstance(outcome, typing.get_args(Outcome))
    assert outcome.left
    if not isinstance(outcome, Delivered):
        assert outcome.reason.isprintable()
    probed = read_probe(reply, now_ms=1_700_000_000_000)
    assert isinstance(probed, typing.get_args(ProbeOutcome))
    assert isinstance(probed, Online) or not probed.left


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_only_usable_text_is_delivered(text):
    raw = json.dumps(completion(text)).encode()
    outcome = read_reply(HttpReply(200, {}, raw), record(), row(), now_ms=0)
    assert isinstance(outcome, Delivered) == bool(text.strip())
