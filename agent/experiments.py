"""Which way of answering a request takes part in a comparison of. Pure.

The arm is drawn by a hash of the experiment's name and the request's key: the same key has the
same arm for ever, whatever daemon, order or time, and the arms of two experiments are
independent. A request is in an experiment only if it could be in each of its arms: what its
caller, its task or a policy has decided stays as it is, and would make the arms differ by more
than their treatment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from agent.settings import ArmSettings, ExperimentSettings
from agent.types import EgressPolicy, InferenceRequest, RouteMode

EVALUATION = "evaluation"  # the arm of requests that measure: they are paid for, and are no traffic
EVALUATION_METADATA = "outrider.evaluation"  # says in a request that it is one of those
_STEPS = 1 << 64


def assigned(
    request: InferenceRequest,
    experiments: Sequence[ExperimentSettings],
    *,
    names_route: bool,
    names_model: bool,
    may_leave: bool,
) -> InferenceRequest:
    """Return the request as the arm of its first experiment has it; unchanged where it is in none.

    ``names_route`` and ``names_model``: its caller has chosen. ``may_leave``: some target may be asked.
    """
    if request.metadata.get(EVALUATION_METADATA):
        return msgspec.structs.replace(request, arm=EVALUATION)
    for experiment in experiments:
        if experiment.task and experiment.task != request.task:
            continue
        key = _key(request, experiment.key)
        if key is None or not _fits(request, experiment, names_route, names_model, may_leave):
            continue
        arm = arm_of(experiment, key)
        return msgspec.structs.replace(
            request,
            arm=f"{experiment.name}/{arm.name}",
            route_mode=arm.route_mode or request.route_mode,
            model=arm.model or request.model,
        )
    return request


def arm_of(experiment: ExperimentSettings, key: str) -> ArmSettings:
    """Return the arm that this key has."""
    digest = hashlib.sha256(f"{experiment.name}\n{key}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / _STEPS * sum(arm.share for arm in experiment.arms)
    for arm in experiment.arms:
        place -= arm.share
        if place < 0:
            return arm
    return experiment.arms[-1]  # what rounding left over


def _key(request: InferenceRequest, name: str) -> str | None:
    found = request.user if name == "user" else request.metadata.get(name.removeprefix("metadata."))
    return found or None


def _fits(
    request: InferenceRequest, experiment: ExperimentSettings, names_route: bool, names_model: bool, may_leave: bool
) -> bool:
    modes = {arm.route_mode for arm in experiment.arms} - {None}
    if modes and (names_route or request.has_media):
        return False
    if any(arm.model for arm in experiment.arms) and names_model:
        return False
    leaves = bool(modes - {RouteMode.LOCAL_ONLY})
    return not leaves or (may_leave and request.egress is not EgressPolicy.NEVER)
