"""A request that names a task: ``metadata.task``, or ``task`` of ``/v1/classify``.

The task says what the caller left out (model, policies), and alone says what its answers are
made with (labels, schema, prompt): a calibration holds for that and for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent.api.fields import Fields
from agent.api.structure_request import parse_structure
from agent.errors import InvalidRequest
from agent.models.aliases import DEFAULT
from agent.settings import RoutingSettings
from agent.strictness import stricter
from agent.structure import FormatKind, OutputFormat, Tools
from agent.tasks import TaskKind, TaskSpec
from agent.types import InferenceRequest, Message, RequestKind

SYSTEM_ROLES = ("system", "developer")


def task_name(body: Mapping[str, Any]) -> str | None:
    """Return the task that a body names. Raises InvalidRequest for two, or for what is no name."""
    metadata = body.get("metadata")
    found = {"task": body.get("task"), "metadata.task": metadata.get("task") if isinstance(metadata, dict) else None}
    given = {param: name for param, name in found.items() if name is not None}
    for param, name in given.items():
        if not isinstance(name, str) or not name:
            raise InvalidRequest(f"{param} must be the name of a task", param=param, code="invalid_type")
    if len(set(given.values())) > 1:
        raise InvalidRequest("task and metadata.task differ: keep one", param="task", code="contradiction")
    return next(iter(given.values()), None)


def with_model(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the body of a request of a task with a model, if it names none."""
    return body if body.get("model") else {**body, "model": DEFAULT}


def with_policies(routing: RoutingSettings, spec: TaskSpec) -> RoutingSettings:
    """Return the defaults for a request of this task."""
    if spec.on_low_confidence is None:
        return routing
    return msgspec.structs.replace(routing, on_low_confidence=spec.on_low_confidence)


def as_task(request: InferenceRequest, spec: TaskSpec, *, names_model: bool) -> InferenceRequest:
    """Return the request as the task has it. Raises InvalidRequest where the two contradict each other."""
    egress = request.egress
    if spec.egress is not None:
        egress = stricter(spec.egress, egress)
    request = msgspec.structs.replace(
        request,
        task=spec.name,
        model=request.model if names_model or not spec.model else spec.model,
        egress=egress,
    )
    if spec.kind is TaskKind.LABELS:
        return _choice(request, spec)
    if request.kind is RequestKind.CLASSIFY:
        raise _contradiction(
            spec, "has no labels to choose from: ask with /v1/chat/completions and metadata.task", "task"
        )
    if request.kind is RequestKind.COMPLETION:
        if spec.kind is not TaskKind.TEXT or spec.prompt:
            raise _contradiction(spec, "needs a chat: ask with /v1/chat/completions", "metadata.task")
        return request
    if spec.max_tokens is not None and request.sampling.max_tokens is None:
        sampling = msgspec.structs.replace(request.sampling, max_tokens=spec.max_tokens)
        request = msgspec.structs.replace(request, sampling=sampling)
    if spec.kind is TaskKind.TOOL:
        request = _with_tools(request, spec)
    if spec.kind is TaskKind.EXTRACT:
        if request.response_format is not None:
            raise _contradiction(spec, "has a schema of its own: leave response_format out", "response_format")
        source = msgspec.json.encode(spec.schema).decode()
        told = OutputFormat(kind=FormatKind.JSON_SCHEMA, source=source, name=spec.name.replace(".", "_"))
        request = msgspec.structs.replace(request, response_format=told)
    if not spec.instruction:
        return request
    return msgspec.structs.replace(request, messages=_told(request.messages, spec))


def _with_tools(request: InferenceRequest, spec: TaskSpec) -> InferenceRequest:
    """Return the request with the task's tools; with its own where the task has none."""
    known = tools_of(spec.tools) if spec.tools else None
    if request.tools is None and known is not None:
        return msgspec.structs.replace(request, tools=known)
    if request.tools is None or not request.tools.callable:
        raise _contradiction(spec, "is of kind tool: the request must bring its tools", "tools")
    if known is not None and request.tools.functions != known.functions:
        raise _contradiction(spec, "has tools of its own: leave tools out", "tools")
    return request


def tools_of(listed: Sequence[Any]) -> Tools | None:
    """Return tools as a request's body has them. Raises InvalidRequest."""
    return parse_structure(Fields({"tools": list(listed)}))[1]


def _told(messages: tuple[Message, ...], spec: TaskSpec) -> tuple[Message, ...]:
    """Put the task's prompt before the messages of the caller, who must not have one of another text."""
    told = Message("system", spec.instruction)
    first = messages[0] if messages else None
    if first is None or first.role not in SYSTEM_ROLES:
        return (told, *messages)
    if first.content != spec.instruction:
        raise _contradiction(spec, "has a prompt of its own: leave the system message out", "messages")
    return (told, *messages[1:])


def _choice(request: InferenceRequest, spec: TaskSpec) -> InferenceRequest:
    """Return the request as a choice of the task's labels, for what its last message says."""
    if request.kind is RequestKind.COMPLETION:
        raise _contradiction(spec, "is a choice of labels: ask with /v1/classify or a chat", "metadata.task")
    if request.kind is RequestKind.CHAT:
        if request.tools or request.response_format:
            raise _contradiction(spec, "answers with a label: leave tools and response_format out", "tools")
        if request.sampling.drawn > 1:
            raise _contradiction(spec, "has one answer: leave n out", "n")
        if any(message.role not in SYSTEM_ROLES for message in request.messages[:-1]):
            raise _contradiction(spec, "sorts one text: send one user message", "messages")
        _told(request.messages, spec)
    last = request.messages[-1]
    if last.role != "user" or last.parts:
        raise _contradiction(spec, "sorts the text of a user message, which must come last", "messages")
    if not last.content.strip():
        raise InvalidRequest("the text to sort is empty", param="input", code="invalid_value")
    return msgspec.structs.replace(
        request, kind=RequestKind.CLASSIFY, labels=spec.names, messages=spec.messages(last.content)
    )


def _contradiction(spec: TaskSpec, why: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"task {spec.name} {why}", param=param, code="contradiction")
