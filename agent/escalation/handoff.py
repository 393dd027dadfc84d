"""What a target is asked, and how its answer is read: fresh, refine, verify. Pure.

The draft travels as the assistant's turn, the instruction as one more user turn after it.
A request without a whole local answer (the model crashed, or was not asked) has no draft:
it is handed over fresh. So is one with tools, whose draft may be a call that nobody has run,
and one to verify whose answer must have a format that a verdict would break.

``response_format`` and tools go along as the OpenAI API has them. An enum, an expression or a
grammar is told to the target in words, since that API has no parameter for them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from agent.errors import BodyGone
from agent.records import Escalation, RequestRecord
from agent.structure import FormatKind, OutputFormat, Tools
from agent.types import Handoff, InferenceRequest, Message, RequestKind

REFINE = (
    "The answer above is a draft by a small model and may be wrong or incomplete. "
    "Write the best answer to the conversation before it. Reply with that answer only; do not mention the draft."
)
VERIFY = (
    "The answer above is a draft by a small model. Judge whether it is right. "
    "Begin your reply with one line that holds only the word RIGHT or the word WRONG. "
    "If it is WRONG, write the right answer from the second line on, and nothing else."
)
CONTINUE = "Continue the text that the user sends, from where it ends. Reply with the continuation only; do not repeat the text."
CHOOSE = "Reply with exactly one of these labels and nothing else:\n"
ENUM = "Reply with exactly one of these strings and nothing else: "
REGEX = "Reply with a text that matches this regular expression as a whole, and nothing else: "
GRAMMAR = "Reply with a text that this grammar derives, and nothing else:\n"
VERDICT_TOKENS = 16  # room for the line with the verdict, on top of what the caller allows for the answer
VERDICTS = {"RIGHT": "right", "WRONG": "wrong"}


_WRAPPING = " \t\r\n*_`#.:!\"'"


class Judged(msgspec.Struct, frozen=True):
    """A reply to VERIFY. ``text`` is the draft when it was right, else the target's own answer."""

    verdict: str
    text: str


def draft(record: RequestRecord) -> str | None:
    """Return the whole local answer, if there is one that may go along: not beside what a person wrote."""
    generation = record.generation
    if generation is None or generation.failure is not None or record.edited or not generation.text.strip():
        return None
    return generation.text


def with_last_text(record: RequestRecord | None, text: str) -> tuple[Message, ...]:
    """Return the messages that would leave with another text in the last one of the user, and with text alone. Raises BodyGone."""
    request = record.request if record else None
    if record is None or request is None:
        raise BodyGone("the text of the request is no longer stored; there is nothing to edit")
    messages = record.edited or request.messages
    last = max((at for at, one in enumerate(messages) if one.role == "user"), default=len(messages) - 1)
    changed = (*messages[:last], msgspec.structs.replace(messages[last], content=text), *messages[last + 1 :])
    return tuple(msgspec.structs.replace(one, parts="") for one in changed if one.content or not one.parts)


def effective(record: RequestRecord, row: Escalation) -> Handoff:
    """Return the handoff that is possible for this record."""
    request = record.request
    if draft(record) is None or (request is not None and request.tools is not None):
        return Handoff.FRESH
    if row.handoff is Handoff.VERIFY and request is not None and request.response_format is not None:
        return Handoff.FRESH
    return row.handoff


def most_output(record: RequestRecord, row: Escalation, ceiling: int) -> int | None:
    """Return the ``max_tokens`` that goes along; None: there is none. ``ceiling`` 0: the request's own alone."""
    asked = record.request.sampling.max_tokens if record.request else None
    most = ceiling or None if asked is None else min(asked, ceiling or asked)
    return most if most is None else most + (VERDICT_TOKENS if effective(record, row) is Handoff.VERIFY else 0)


def chat_body(record: RequestRecord, row: Escalation, model: str, *, ceiling: int = 0) -> bytes:
    """Return the JSON body of the chat completion: exactly the bytes that would leave.

    ``ceiling``: most tokens of an answer, whatever the request says; 0: as it says.
    Raises BodyGone when the request's retention has passed.
    """
    request = record.request
    if request is None:
        raise BodyGone(f"the text of request {record.id} is no longer stored; there is nothing to send")
    if record.edited:
        request = msgspec.structs.replace(request, messages=record.edited)
    handoff = effective(record, row)
    messages = [_message(message) for message in _messages(request, draft(record), handoff)]
    body: dict[str, Any] = {"model": model, "messages": messages}
    if request.thinking is not None and request.thinking.effort is not None:
        body["reasoning_effort"] = request.thinking.effort
    most = most_output(record, row, ceiling)
    return msgspec.json.encode(body | _sampling(request, handoff, most) | _structure(request))


def _messages(request: InferenceRequest, text: str | None, handoff: Handoff) -> list[Message]:
    told = list(request.messages)
    words = _in_words(request.response_format)
    if request.kind is RequestKind.COMPLETION:
        told.insert(0, Message("system", CONTINUE))
    choose = CHOOSE + "\n".join(sorted(request.labels)) if request.labels else ""
    if text is None or handoff is Handoff.FRESH:
        return [*told, *([Message("user", choose)] if choose else []), *words]
    instruction = REFINE if handoff is Handoff.REFINE else VERIFY
    if choose:
        instruction += "\n" + ("The answer is one of these labels:\n" + choose.removeprefix(CHOOSE))
    return [*told, Message("assistant", text), Message("user", instruction), *words]


def _message(message: Message) -> dict[str, Any]:
    content = json.loads(message.parts) if message.parts else message.content
    found: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        found["name"] = message.name
    if message.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        found["content"] = message.content or None
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    return found


def _in_words(output: OutputFormat | None) -> list[Message]:
    match output.kind if output else None:
        case FormatKind.ENUM:
            text = ENUM
        case FormatKind.REGEX:
            text = REGEX
        case FormatKind.GRAMMAR:
            text = GRAMMAR
        case _:
            return []
    return [Message("system", text + (output.source if output else ""))]


def _structure(request: InferenceRequest) -> dict[str, Any]:
    """Return the parameters that say what the answer must look like."""
    found: dict[str, Any] = {}
    output = request.response_format
    if output is not None and output.kind is FormatKind.JSON_OBJECT:
        found["response_format"] = {"type": "json_object"}
    if output is not None and output.kind is FormatKind.JSON_SCHEMA:
        schema: dict[str, Any] = {"name": output.name or "answer", "schema": json.loads(output.source)}
        if output.description:
            schema["description"] = output.description
        if output.strict is not None:
            schema["strict"] = output.strict
        found["response_format"] = {"type": "json_schema", "json_schema": schema}
    return found | (_tools(request.tools) if request.tools else {})


def _tools(tools: Tools) -> dict[str, Any]:
    functions = []
    for function in tools.functions:
        given: dict[str, Any] = {"name": function.name}
        if function.description:
            given["description"] = function.description
        if function.parameters:
            given["parameters"] = json.loads(function.parameters)
        if function.strict is not None:
            given["strict"] = function.strict
        functions.append({"type": "function", "function": given})
    choice: str | dict[str, Any] = tools.choice.value
    if tools.only is not None:
        choice = {"type": "function", "function": {"name": tools.only}}
    found: dict[str, Any] = {"tools": functions, "tool_choice": choice}
    return found if tools.parallel else found | {"parallel_tool_calls": False}


def _sampling(request: InferenceRequest, handoff: Handoff, most: int | None) -> dict[str, Any]:
    sampling = request.sampling
    verify = handoff is Handoff.VERIFY
    fields: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.top_p != 1.0:
        fields["top_p"] = sampling.top_p
    if most is not None:
        fields["max_tokens"] = most
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
    verdict = VERDICTS.get(first.strip(_WRAPPING).upper())
    if verdict == "right":
        return Judged(verdict, draft(record) or "")
    answer = _cut(rest.strip(), record.request.sampling.stop if record.request else ())
    return Judged(verdict, answer) if verdict and answer else None


def read_label(reply: str, labels: Sequence[str]) -> str | None:
    """Read which label a reply names, whatever its case and wrapping; None when it names none, or two."""
    told = reply.strip().strip(_WRAPPING)
    if told in labels:
        return told
    folded = [label for label in labels if label.strip(_WRAPPING).casefold() == told.casefold()]
    return folded[0] if len(folded) == 1 else None


def _cut(text: str, stops: tuple[str, ...]) -> str:
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)].rstrip() if ends else text
