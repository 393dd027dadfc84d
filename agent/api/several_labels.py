"""``POST /v1/classify`` where labels do not exclude each other: each has a probability of its own.

There is nothing to choose, so nothing is decided: the answer is never queued for a target, and
nothing of it is stored.
"""

from __future__ import annotations

import array
import math
from typing import Any

from starlette.responses import Response

from agent.api.deps import ApiDeps
from agent.api.wire import json_response
from agent.engine import frames
from agent.engine.cache_scope import encoder_scope
from agent.engine.worker_status import EncoderTraits
from agent.errors import InvalidRequest
from agent.refusal import refusal
from agent.types import InferenceRequest, RouteMode

FITS = 0.5  # probability from which on a label counts as chosen
_HERE = frozenset({RouteMode.LOCAL_ONLY, RouteMode.LOCAL_FIRST})


async def several_labels(deps: ApiDeps, request: InferenceRequest, encoder: EncoderTraits) -> Response:
    """Return the probability of each label, or of those that the request names. Raises InvalidRequest, or what failed."""
    if unknown := [label for label in request.labels if label not in encoder.labels]:
        reason = f"the model does not know the label {unknown[0]!r}; its labels are {', '.join(encoder.labels)}"
        raise InvalidRequest(reason, param="labels")
    if request.route_mode not in _HERE:
        reason = f"the labels of model {request.model} do not exclude each other: it answers here, or not at all"
        raise InvalidRequest(reason, param="outrider.route_mode", code="invalid_value")
    scope = encoder_scope(request.cache_salt, deps.settings.engine.share_prefixes)
    ask = frames.Encode(id=0, texts=(request.messages[-1].content,), scope=scope)
    left_ms = deps.settings.server.request_timeout_s * 1000
    if request.deadline_at_ms is not None:
        left_ms = min(left_ms, request.deadline_at_ms - deps.now_ms())
    encoded = await deps.engine.encode(request.model, ask, left_ms)
    if encoded.failure:
        raise refusal(encoded.failure)
    logprobs = dict(zip(encoder.labels, array.array("f", encoded.rows), strict=True))
    return json_response(_classification(request, logprobs, encoded.prompt_tokens))


def _classification(request: InferenceRequest, logprobs: dict[str, float], tokens: int) -> dict[str, Any]:
    """Return a ``classification`` object.

    ``label`` is the likeliest of the chosen, ``confidence`` the probability that each label is on
    the right side of 1/2 if they are independent; ``out_of_scope`` that none fits.
    """
    asked = request.labels or tuple(logprobs)
    of = {label: math.exp(logprobs[label]) for label in asked}
    chosen = sorted((label for label in asked if of[label] >= FITS), key=lambda label: (-of[label], label))
    sure = math.prod(max(probability, 1 - probability) for probability in of.values())
    return {
        "id": f"classify-{request.id}",
        "object": "classification",
        "created": request.received_at_ms // 1000,
        "model": request.model,
        "label": chosen[0] if chosen else None,
        "several": True,
        "chosen": chosen,
        "refusal": None,
        "probability": of[chosen[0]] if chosen else None,
        "margin": None,
        "mass": None,
        "out_of_scope": math.prod(1 - probability for probability in of.values()),
        "labels": [
            {"label": label, "probability": of[label], "logprob": logprobs[label], "tokens": None} for label in asked
        ],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        "outrider": {
            "request_id": request.id,
            "confidence": sure,
            "calibrated": False,
            "decision": "answered",
            "reason": "labels_not_exclusive",
            "source": "local",
            "state": "answered",
        },
    }
