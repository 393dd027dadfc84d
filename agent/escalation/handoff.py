"""What a target is asked, and how its answer is read: fresh, refine, verify. Pure.

The draft travels as the assistant's turn, the instruction as one more user turn after it.
A request without a whole local answer (the model crashed, or was not asked) has no draft:
it is handed over fresh.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agent.errors import BodyGone
from agent.types import Escalation, Handoff, InferenceRequest, Message, RequestRecord

REFINE = (
    "The answer above is a draft by a small model and may be wrong or incomplete. "
    "Write the best answer to the conversation before it. Reply with that answer only; do not mention the draft."
)
VERIFY = (
    "The answer above is a draft by a small model. Judge whether it is right. "
    "Begin your reply with one line that holds only the word RIGHT or the word WRONG. "
    "If it is WRONG, write the right answer from the second line on, and nothing else."
)
VERDICT_TOKENS = 16  # room for the line with the verdict, on top of what the caller allows for the answer
VERDICTS = {"RIGHT": "right", "WRONG": "wrong"}


class Judged(msgspec.Struct, frozen=True):
    """A reply to VERIFY. ``text`` is the draft when it was right, else the target's own answer."""

    verdict: str
    text: str


def draft(record: RequestRecord) -> str | None:
    """Return the whole local answer, if there is one."""
    generation = record.generation
    if generation is None or generation.failure is not None or not generation.text.strip():
        return None
    return generation.text


def effective(record: RequestRecord, row: Escalation) -> Handoff:
    """Return the handoff that is possible for this record."""
    return row.handoff if draft(record) is not None else Handoff.FRESH


def chat_body(record: RequestRecord, row: Escalation, model: str) -> bytes:
    """Return the JSON body of the chat completion: exactly the bytes that would leave.

    Raises BodyGone when the request's retention has passed.
    """
    request = record.request
    if request is None:
        raise BodyGone(f"the text of request {record.id} is no longer stored; there is nothing to send")
    handoff = effective(record, row)
    body: dict[str, Any] = {"model": model, "messages": _messages(request, draft(record), handoff)}
    return msgspec.json.encode(body | _sampling(request, handoff))


def _messages(request: InferenceRequest, text: str | None, handoff: Handoff) -> list[Message]:
    if text is None or handoff is Handoff.FRESH:
        return list(request.messages)
    instruction = REFINE if handoff is Handoff.REFINE else VERIFY
    return [*request.messages, Message("assistant", text), Message("user", instruction)]


def _sampling(request: InferenceRequest, handoff: Handoff) -> dict[str, Any]:
    sampling = request.sampling
    verify = handoff is Handoff.VERIFY
    fields: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.top_p != 1.0:
        fields["top_p"] = sampling.top_p
    if sampling.max_tokens is not None:
        fields["max_tokens"] = sampling.max_tokens + (VERDICT_TOKENS if verify else 0)
    if sampling.stop and not verify:  # a stop string could cut the verdict off; read_verdict applies it instead
        fields["stop"] = sampling.stop
    # top_k, min_p and repetition_penalty are not of the OpenAI API, logit_bias speaks of our vocabulary.
    if sampling.frequency_penalty:
        fields["frequency_penalty"] = sampling.frequency_penalty
    if sampling.presence_penalty:
        fields["presence_penalty"] = sampling.presence_penalty
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    return fields


def read_verdict(reply: str, record: RequestRecord) -> Judged | None:
    """Read a reply to VERIFY; None when it has no verdict, or is WRONG without an answer."""
    first, _, rest = reply.strip().partition("\n")
    verdict = VERDICTS.get(first.strip(" \t\r*_`#.:!\"'").upper())
    if verdict == "right":
        return Judged(verdict, draft(record) or "")
    answer = _cut(rest.strip(), record.request.sampling.stop if record.request else ())
    return Judged(verdict, answer) if verdict and answer else None


def _cut(text: str, stops: tuple[str, ...]) -> str:
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)].rstrip() if ends else text
