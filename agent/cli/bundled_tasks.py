"""Tasks in a bundle: what they are, what they were taught, what they promise. Never the examples, which are users' texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agent.errors import InvalidRequest, ModelRejected, OutriderError, TaskNotFound, WrongState

if TYPE_CHECKING:
    from agent.cli.client import DaemonClient
    from agent.cli.invocation import Invocation
    from agent.task_folder import TaskFolder
    from agent.tasks import TaskSpec


def bundled(invocation: Invocation, names: Sequence[str]) -> tuple[bytes, ...]:
    """Return tasks as a bundle carries them. Raises TaskNotFound, InvalidRequest, DaemonUnreachable."""
    from agent.cli.client import DaemonClient
    from agent.task_folder import folder_beside

    folder = folder_beside(invocation.loaded.path)
    specs = [folder.get(name) for name in dict.fromkeys(names)]
    if not specs:
        return ()
    with DaemonClient(invocation.settings) as client:
        return tuple(_one(client, spec) for spec in specs)


def _one(client: DaemonClient, spec: TaskSpec) -> bytes:
    told = client.get(f"/v1/tasks/{spec.name}")
    if told["digest"] != spec.digest:
        raise WrongState(f"the daemon knows another task {spec.name}: does it run with the same --config?")
    if told.get("appraiser"):
        raise InvalidRequest(
            f"task {spec.name} writes its answers, and what was taught of them holds texts of users: it is not carried; "
            "teach and calibrate it on the other device"
        )
    current = bool(told["calibration"] and told["calibration"]["current"])
    head = client.get(f"/v1/tasks/{spec.name}/head") if told["head"] and told["head"]["current"] else None
    calibration = client.get(f"/v1/tasks/{spec.name}/calibration") if current else None
    found = {"task": spec, "head": head, "calibration": calibration}
    return msgspec.json.encode(found, order="sorted")


def require_daemon(invocation: Invocation) -> None:
    """Raise DaemonUnreachable: heads and calibrations lie in the daemon's encrypted database."""
    from agent.cli.client import DaemonClient

    with DaemonClient(invocation.settings):
        pass


def take_in(invocation: Invocation, bodies: Sequence[bytes], *, replace: bool) -> list[str]:
    """Hand tasks to the daemon; return their names. The models are in already.

    Raises WrongState for another task of the same name, or one that is calibrated here, unless
    ``replace``; ModelRejected for what is no task.
    """
    from agent.cli.client import DaemonClient
    from agent.task_folder import folder_beside

    folder = folder_beside(invocation.loaded.path)
    with DaemonClient(invocation.settings) as client:
        found = [_decoded(body) for body in bodies]
        for spec, _, _ in found:
            if fault := _in_the_way(client, folder, spec):
                if not replace:
                    raise WrongState(f"the models are in, the tasks are not: {fault}; --force takes that of the bundle")
                client.delete(f"/v1/tasks/{spec.name}")
        for spec, head, calibration in found:
            if spec.name not in folder.names():
                client.post("/v1/tasks", msgspec.to_builtins(spec), admin=True)
            for what, body in (("head", head), ("calibration", calibration)):
                if body is not None:
                    client.put(f"/v1/tasks/{spec.name}/{what}", body)
    return [spec.name for spec, _, _ in found]


def _decoded(body: bytes) -> tuple[TaskSpec, dict[str, Any] | None, dict[str, Any] | None]:
    from agent.tasks import TaskSpec, check_task

    try:
        tree = msgspec.json.decode(body)
        spec = msgspec.convert(tree["task"], TaskSpec)
        check_task(spec, "a task of the bundle")
        return spec, tree["head"], tree["calibration"]
    except (msgspec.MsgspecError, KeyError, TypeError, OutriderError) as error:
        raise ModelRejected(
            f"the models are in, the tasks are not: the bundle holds what is no task: {error}"
        ) from error


def _in_the_way(client: DaemonClient, folder: TaskFolder, spec: TaskSpec) -> str:
    try:
        there = folder.get(spec.name)
    except TaskNotFound:
        return ""
    if there.digest != spec.digest:
        return f"another task {spec.name} is here"
    told = client.get(f"/v1/tasks/{spec.name}")
    return f"task {spec.name} is taught or calibrated here" if told["head"] or told["calibration"] else ""
