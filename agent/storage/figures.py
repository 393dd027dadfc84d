"""What is kept of an answer when its text goes: who made it, its tokens, its time, and the count of its label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime

from agent.experiments import EVALUATION
from agent.records import CloudAnswer
from agent.storage import rows
from agent.storage import statements as sql
from agent.storage.connection import Connection
from agent.types import Action, Generation, InferenceRequest, RequestKind

BYTES_PER_TOKEN = 4  # of English in the usual vocabularies, where nobody counted

Figures = Mapping[str, object]


def of_generation(request: InferenceRequest, generation: Generation) -> Figures:
    """Return the columns of a local answer. Where no language model ran, its tokens are estimated from the texts."""
    estimated = generation.prompt_tokens == 0
    return {
        "model": generation.model or request.model,
        "input_tokens": _tokens(*(one.content for one in request.messages)) if estimated else generation.prompt_tokens,
        "output_tokens": generation.output_tokens or _tokens(generation.text),
        "tokens_estimated": estimated,
        "duration_ms": generation.duration_ms,
    }


def of_answer(answer: CloudAnswer) -> Figures:
    """Return the columns of a target's answer."""
    return {
        "model": answer.model,
        "input_tokens": answer.prompt_tokens,
        "output_tokens": answer.output_tokens,
        "tokens_estimated": False,
        "duration_ms": None,  # its attempt has it
    }


def _tokens(*texts: str) -> int:
    return math.ceil(sum(len(text.encode(errors="replace")) for text in texts) / BYTES_PER_TOKEN)


def count_label(connection: Connection, request: InferenceRequest, label: str, action: Action, now_ms: int) -> None:
    """Count the label of an answer that is served. One that is not sure, or that only measures, is in no count."""
    if request.arm == EVALUATION:
        return
    if action is Action.ANSWERED and request.kind is RequestKind.CLASSIFY and request.task and label in request.labels:
        connection.execute(sql.LABEL_COUNT, {"day": _day(now_ms), "task": request.task, "label": label})


def count_late_label(connection: Connection, request_id: str, answer: CloudAnswer, now_ms: int) -> None:
    """Count the label that a target chose for a request that waited for it."""
    row = connection.execute(sql.REQUEST_GET, {"id": request_id}).fetchone()
    if row["task"] and row["kind"] == RequestKind.CLASSIFY and row["state"] == "queued":
        count_label(connection, rows.unpack_request(row["body"]), answer.text.strip(), Action.ANSWERED, now_ms)


def _day(now_ms: int) -> str:
    return datetime.fromtimestamp(now_ms / 1000, UTC).date().isoformat()
