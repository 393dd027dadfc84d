"""From a stored record to a ``response`` of the Responses API.

| record | response |
|---|---|
| running | ``in_progress``; of a background call that was just accepted: ``queued`` |
| queued, its row waits | ``queued``; the draft is its output, unless the caller deferred |
| resolved | ``completed`` with the late answer |
| answered | ``completed``, or ``incomplete`` where it was cut at ``max_output_tokens`` |
| unresolved | ``failed``; the draft stays as its output |
| failed, cancelled | ``failed``, ``cancelled`` |
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from agent.api.answer import LOCAL, Answer, answer_of, draft_of, failure_of, outrider_object, usage
from agent.api.chat_answer import logprob_content
from agent.api.response_request import PREFIX
from agent.errors import Busy, OutriderError, RequestError
from agent.records import RequestRecord, RequestState
from agent.structure import FormatKind, OutputFormat, ToolChoice, Tools
from agent.types import InferenceRequest, OnLowConfidence

Item = dict[str, Any]


class Stand(NamedTuple):
    """Where a response stands."""

    status: str
    answer: Answer
    error: OutriderError | None = None


def response_object(record: RequestRecord) -> dict[str, Any]:
    """Return a record as a ``response``."""
    return response_of(record, stand_of(record))


def stand_of(record: RequestRecord) -> Stand:
    """Return what its owner is told of a record now."""
    nothing = Answer(text=None, model=record.model)
    request = record.request
    match record.state:
        case RequestState.RUNNING:
            return Stand("in_progress", nothing)
        case RequestState.QUEUED:
            deferred = request is not None and request.on_low_confidence is OnLowConfidence.DEFER
            return Stand("queued", nothing if deferred else draft_of(record) or nothing)
        case RequestState.CANCELLED:
            return Stand("cancelled", draft_of(record) or nothing)
        case RequestState.UNRESOLVED | RequestState.FAILED:
            return Stand("failed", draft_of(record) or nothing, failure_of(record))
    answer = answer_of(record, request.on_low_confidence if request else OnLowConfidence.DRAFT)
    return Stand("incomplete" if answer.finish_reason == "length" else "completed", answer)


def response_of(record: RequestRecord, stand: Stand, output: list[Item] | None = None) -> dict[str, Any]:
    """Return the ``response`` of a record that stands so. ``output`` replaces the items made of the answer."""
    request, answer = record.request, stand.answer
    ended = stand.status in {"completed", "incomplete", "failed", "cancelled"}
    found: dict[str, Any] = {
        "id": PREFIX + record.id,
        "object": "response",
        "created_at": record.received_at_ms // 1000,
        "completed_at": (record.settled_at_ms or 0) // 1000 if stand.status == "completed" else None,
        "status": stand.status,
        "background": stand.status == "queued" or bool(request and request.background),
        "error": _error(stand.error) if stand.error else None,
        "incomplete_details": {"reason": "max_output_tokens"} if stand.status == "incomplete" else None,
        "model": answer.model,
        "output": list(items_of(record, answer)) if output is None else output,
        "usage": _usage(answer) if ended or answer.text is not None else None,
    }
    if request is not None:
        found |= _asked(request)
    found["outrider"] = outrider_object(record, answer)
    return found


def _asked(request: InferenceRequest) -> dict[str, Any]:
    """Return the parameters of the call, as a response repeats them."""
    call, sampling, thinking = request.response, request.sampling, request.thinking
    effort = thinking.effort if thinking else None
    return {
        "instructions": call.instructions if call else None,
        "max_output_tokens": sampling.max_tokens,
        "metadata": request.metadata,
        "parallel_tool_calls": request.tools.parallel if request.tools else True,
        "previous_response_id": PREFIX + call.previous_id if call and call.previous_id else None,
        "reasoning": {"effort": effort, "summary": None},
        "service_tier": "default",
        "store": call.store if call else True,
        "temperature": sampling.temperature,
        "text": {"format": _format(request.response_format), "verbosity": "medium"},
        "tool_choice": _tool_choice(request.tools),
        "tools": _tools(request.tools),
        "top_logprobs": sampling.top_logprobs,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "user": request.user,
        "safety_identifier": request.safety_identifier,
    }


def items_of(record: RequestRecord, answer: Answer) -> Iterator[Item]:
    """Yield the items of an answer: its reasoning, its message, the calls that it asks for."""
    name = item_name(record.id, late=answer.source not in {LOCAL, None})
    if answer.thoughts:
        yield reasoning_item(name, answer.thoughts)
    if answer.refusal:
        yield message_item(name, [{"type": "refusal", "refusal": answer.refusal}])
    elif answer.text is not None and (answer.text or not answer.tool_calls):
        wants = record.request is not None and record.request.sampling.logprobs and answer.source == LOCAL
        status = "incomplete" if answer.finish_reason == "length" else "completed"
        logprobs = logprob_content(answer.tokens)["content"] if wants else []
        yield message_item(name, [text_part(answer.text, logprobs)], status)
    for index, call in enumerate(answer.tool_calls):
        yield call_item(name, index, call.id, call.name, call.arguments)


def item_name(request_id: str, *, late: bool) -> str:
    """Return what the ids of an answer's items end in: the late answer has items of its own."""
    return f"{request_id}_late" if late else request_id


def text_part(text: str, logprobs: list[dict[str, Any]]) -> Item:
    """Return the part of a message that is its text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def message_item(name: str, content: list[Item], status: str = "completed") -> Item:
    """Return the item of a message."""
    return {"id": f"msg_{name}", "type": "message", "role": "assistant", "status": status, "content": content}


def reasoning_item(name: str, thoughts: str, status: str = "completed") -> Item:
    """Return the item of what a model thought before its answer."""
    content = [{"type": "reasoning_text", "text": thoughts}] if thoughts else []
    return {"id": f"rs_{name}", "type": "reasoning", "summary": [], "content": content, "status": status}


def call_item(name: str, index: int, call_id: str, function: str, arguments: str, status: str = "completed") -> Item:
    """Return the item of a call that the model asks for."""
    return {
        "id": f"fc_{name}_{index}",
        "type": "function_call",
        "call_id": call_id,
        "name": function,
        "arguments": arguments,
        "status": status,
    }


def _error(error: OutriderError) -> dict[str, Any]:
    code = "server_error"
    if isinstance(error, Busy):
        code = "rate_limit_exceeded"
    elif isinstance(error, RequestError):
        code = "invalid_prompt"
    return {"code": code, "message": str(error)}


def _usage(answer: Answer) -> dict[str, Any]:
    told = usage(answer)
    return {
        "input_tokens": told["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": answer.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": told["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": answer.thought_tokens},
        "total_tokens": told["total_tokens"],
    }


def _format(output: OutputFormat | None) -> dict[str, Any]:
    match output.kind if output else None:
        case FormatKind.JSON_SCHEMA if output is not None:
            found = {"type": "json_schema", "name": output.name, "schema": json.loads(output.source)}
            return found | {"description": output.description or None, "strict": output.strict}
        case FormatKind.ENUM if output is not None:
            return {"type": "enum", "values": json.loads(output.source)}
        case FormatKind.REGEX | FormatKind.GRAMMAR if output is not None:
            return {"type": output.kind.value, output.kind.value: output.source}
        case kind:
            return {"type": kind.value if kind else "text"}


def _tool_choice(tools: Tools | None) -> str | dict[str, Any]:
    if tools is not None and tools.only is not None:
        return {"type": "function", "name": tools.only}
    return (tools.choice if tools else ToolChoice.AUTO).value


def _tools(tools: Tools | None) -> list[dict[str, Any]]:
    return [
        {
            "type": "function",
            "name": function.name,
            "description": function.description or None,
            "parameters": json.loads(function.parameters) if function.parameters else None,
            "strict": function.strict,
        }
        for function in (tools.functions if tools else ())
    ]
