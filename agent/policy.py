"""From the configuration and the tasks to what routing goes by, and to what holds when bytes are about to leave."""

from __future__ import annotations

from collections.abc import Sequence

from agent.egress_settings import KeySettings
from agent.errors import ConfigError, TaskNotFound
from agent.records import RequestRecord
from agent.routing import Policy, TargetRule
from agent.rules import Rulebook
from agent.settings import Settings
from agent.strictness import stricter
from agent.task_folder import TaskFolder
from agent.types import EgressPolicy, InferenceRequest


def routing_policy(settings: Settings, rules: Rulebook) -> Policy:
    """Return the policy of a configuration. ``rules`` are its own, compiled."""
    targets = tuple(
        TargetRule(one.name, one.egress, one.handoff, one.fingerprint, one.images.egress, one.max_input_tokens)
        for one in settings.targets
    )
    return Policy(threshold=settings.confidence.threshold, targets=targets, ceiling=settings.egress.policy, rules=rules)


class PresentPolicy:
    """What a request's task and its caller's key say now of what may leave."""

    def __init__(self, tasks: TaskFolder, keys: Sequence[KeySettings]) -> None:
        self._tasks = tasks
        self._keys = {key.name: key.egress for key in keys}

    def told(self, record: RequestRecord) -> EgressPolicy | None:
        """Return the stricter of the two; None where there is neither."""
        request = record.request
        if request is None:
            return None
        of_key = self._keys.get(request.key or "")
        of_task = self._of_task(request)
        return of_task if of_key is None else stricter(of_key, of_task)

    def _of_task(self, request: InferenceRequest) -> EgressPolicy | None:
        if request.task is None:
            return None
        try:
            return self._tasks.get(request.task).egress
        except TaskNotFound:
            return None  # its rows keep the policy that they were accepted under
        except ConfigError:
            return EgressPolicy.APPROVE  # what its file says is not known: a person decides
