"""A request that may be in an experiment: what its caller has chosen stays chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers

from agent import experiments
from agent.api.deps import ApiDeps
from agent.api.envelope import EXTENSION_HEADERS
from agent.models.aliases import DEFAULT
from agent.types import InferenceRequest


def in_experiment(
    deps: ApiDeps, request: InferenceRequest, body: Mapping[str, Any], headers: Headers
) -> InferenceRequest:
    """Return a checked request as its arm has it; unchanged where it is in no experiment."""
    extension = body.get("outrider") or {}
    return experiments.assigned(
        request,
        deps.settings.experiments,
        names_route=EXTENSION_HEADERS["route_mode"] in headers or extension.get("route_mode") is not None,
        names_model=body.get("model") not in {None, "", DEFAULT},
        may_leave=deps.pipeline.may_leave(),
    )
