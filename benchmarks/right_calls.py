"""Whether a call is right, as the sets of BFCL say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.confidence import checks
from agent.types import Generation


def call_is_right(generation: Generation, wanted: list[dict[str, dict[str, list[Any]]]]) -> bool:
    """Whether the one call has a value that the set allows for each argument; "" allows leaving it out."""
    if len(generation.tool_calls) != 1 or len(wanted) != 1:
        return False
    call = generation.tool_calls[0]
    ((name, allowed),) = wanted[0].items()
    given = checks.json_of(call.arguments)
    if call.name != name.replace(".", "_") or not isinstance(given, dict) or not given.keys() <= allowed.keys():
        return False
    return all(_is_among(given[key], values) if key in given else "" in values for key, values in allowed.items())


def _is_among(value: Any, allowed: Sequence[Any]) -> bool:
    if isinstance(value, str):
        return any(isinstance(one, str) and checks.normalised(one) == checks.normalised(value) for one in allowed)
    return any(one == value and isinstance(one, bool) == isinstance(value, bool) for one in allowed)
