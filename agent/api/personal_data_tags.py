"""``POST /v1/tag`` with the model ``pii``: the detectors that redact what leaves, without any weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.api.encoder_request import TagCall
from agent.errors import InvalidRequest
from agent.escalation.detectors import find
from agent.escalation.personal_data import Kind

PERSONAL_DATA = "pii"  # the name of a model that is none
LABELS = frozenset(Kind) - {Kind.NAME}


def personal_data(call: TagCall, terms: Sequence[str]) -> dict[str, Any]:
    """Return the object of the answer. Rules, not probabilities: the score of a piece is 1. Raises InvalidRequest."""
    if unknown := [label for label in call.labels if label not in LABELS]:
        reason = (
            f"labels: {PERSONAL_DATA} does not know {unknown[0][:100]!r}; its labels are {', '.join(sorted(LABELS))}"
        )
        raise InvalidRequest(reason, param="labels", code="invalid_value")
    data = []
    for index, text in enumerate(call.texts):
        spans = [
            {"label": kind.value, "text": text[start:end], "start": start, "end": end, "score": 1.0}
            for start, end, kind in find(text, terms=terms)
            if not call.labels or kind in call.labels
        ]
        data.append({"object": "tags", "index": index, "spans": spans})
    return {
        "object": "list", "data": data, "model": PERSONAL_DATA, "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }  # fmt: skip
