"""Whether a target's answer is what the request asked for: its schema, its expression, its tools' parameters.

A target promises little: many take a schema as advice. What does not validate is not a usable
answer; the local draft stays. The work is done in a short child process (schema_validator).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from asyncio.subprocess import DEVNULL, PIPE

import msgspec

from agent import executable
from agent.records import CloudAnswer
from agent.structure import FormatKind
from agent.types import InferenceRequest

CHECK_S = 10.0  # of one reply; a usual one takes 0.2 s, nearly all of it the start of the child
_ANY_OBJECT = '{"type": "object"}'


def documents(answer: CloudAnswer, request: InferenceRequest) -> list[tuple[str, str]]:
    """Return the JSON texts of an answer, each behind the schema that it must satisfy."""
    output = request.response_format
    if answer.tool_calls:
        functions = request.tools.functions if request.tools else ()
        parameters = {function.name: function.parameters or _ANY_OBJECT for function in functions}
        return [(parameters.get(call.name, _ANY_OBJECT), call.arguments) for call in answer.tool_calls]
    match output.kind if output else None:
        case FormatKind.JSON_SCHEMA if output:
            return [(output.source, answer.text)]
        case FormatKind.REGEX if output:
            return [(json.dumps({"type": "string", "pattern": f"^(?:{output.source})$"}), json.dumps(answer.text))]
        case _:
            return []


async def fault(answer: CloudAnswer, request: InferenceRequest, *, limit_s: float = CHECK_S) -> str | None:
    """Return what makes the answer unusable, without any text of it; None: it is what was asked for."""
    pairs = documents(answer, request)
    if not pairs:
        return None
    try:
        child = await asyncio.create_subprocess_exec(
            *executable.command("check-schema"), stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
    except OSError as error:
        return f"it cannot be checked: no process ({error.strerror})"
    try:
        async with asyncio.timeout(limit_s):
            told, _ = await child.communicate(msgspec.msgpack.encode(pairs))
    except TimeoutError:
        return f"it cannot be checked within {limit_s:g} s"
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode:
        return f"it cannot be checked: the child ended with status {child.returncode}"
    return msgspec.json.decode(told, type=str | None)
