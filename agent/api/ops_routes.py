"""Health, readiness, metrics, reload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import ApiDeps, deps_of, need_admin
from agent.api.wire import json_response
from agent.compute import DeviceUse
from agent.engine.supervisor import WorkerState
from agent.models.aliases import DEFAULT
from agent.telemetry import METRICS, sample

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

ABLE = {WorkerState.READY, WorkerState.IDLE}  # an idle model is loaded by the next request


async def healthz(request: Request) -> Response:
    """``GET /healthz``: the process answers. Needs no token and reveals nothing."""
    return json_response({"status": "ok"})


async def readyz(request: Request) -> Response:
    """``GET /readyz``: 200 when the default model can answer, else 503; always what is wrong and why."""
    deps = deps_of(request)
    workers = deps.engine.status()
    default = workers.get(deps.aliases.target(DEFAULT))
    ready = default is not None and default.state in ABLE
    targets = deps.dispatcher.status()
    body: dict[str, Any] = {
        "ready": ready,
        "version": deps.version,
        "problems": [*_problems(deps), *await _used_up(deps)],
        "models": [{"name": name, **msgspec.to_builtins(status)} for name, status in sorted(workers.items())],
        "targets": [msgspec.to_builtins(target) for target in targets],
        "queue": await deps.storage.outbox.counts(),
    }
    return json_response(body, 200 if ready else 503)


def _problems(deps: ApiDeps) -> Iterator[str]:
    workers = deps.engine.status()
    name = deps.aliases.target(DEFAULT)
    if name not in workers:
        yield f"model {name} is not loaded yet"
    for model, status in sorted(workers.items()):
        if status.state not in ABLE:
            yield f"model {model} is {status.state}" + (f": {status.last_error}" if status.last_error else "")
    for target in deps.dispatcher.status():
        if target.state not in {"unknown", "online"}:
            yield f"target {target.name} is {target.state}" + (f": {target.reason}" if target.reason else "")


async def _used_up(deps: ApiDeps) -> list[str]:
    """Name the budgets in which nothing has room any more: rows wait for their next day or month."""
    ceilings = deps.dispatcher.budget.ceilings
    standings = await deps.storage.outbox.standings(ceilings, deps.now_ms()) if ceilings else ()
    return [
        f"budget {one.budget} is used up: {one.spent:f} of {one.ceiling:f} {one.unit} of the {one.period}"
        for one in standings
        if one.used_up
    ]


async def metrics(request: Request) -> Response:
    """``GET /metrics`` in the Prometheus text format. Counters only: nothing is counted row by row."""
    deps = deps_of(request)
    outbox = deps.storage.outbox
    lines = METRICS.lines()
    lines += _gauge("requests", "state", await deps.storage.journal.counts())
    counts = await outbox.counts()
    lines += _gauge("queue_rows", "state", {state: count["rows"] for state, count in counts.items()})
    lines += _gauge("queue_bytes", "state", {state: count["bytes"] for state, count in counts.items()})
    oldest_ms = await outbox.oldest_ms()
    age_s = 0.0 if oldest_ms is None else max(0, deps.now_ms() - oldest_ms) / 1000
    lines += ["# TYPE outrider_queue_oldest_seconds gauge", sample("outrider_queue_oldest_seconds", {}, age_s)]
    workers = deps.engine.status()
    lines += _gauge(
        "worker_ready", "model", {name: int(one.state == WorkerState.READY) for name, one in workers.items()}
    )
    lines.append("# TYPE outrider_worker_runtime gauge")
    lines += [
        sample("outrider_worker_runtime", {"model": name, "runtime": one.runtime}, 1)
        for name, one in workers.items()
        if one.runtime
    ]
    lines += _gauge("worker_crashes", "model", {name: one.crashes for name, one in workers.items()})
    lines += _gauge("worker_active", "model", {name: one.active for name, one in workers.items()})
    lines += _gauge("worker_waiting", "model", {name: one.waiting for name, one in workers.items()})
    threads = {name: one.threads for name, one in workers.items() if one.threads}
    lines += _gauge("worker_threads_decode", "model", {name: one.decode for name, one in threads.items()})
    lines += _gauge("worker_threads_prefill", "model", {name: one.prefill for name, one in threads.items()})
    lines += _devices({name: one.device for name, one in workers.items() if one.device})
    lines += _gauge(
        "target_online", "target", {one.name: int(one.state == "online") for one in deps.dispatcher.status()}
    )
    return Response("\n".join(lines) + "\n", media_type=METRICS_TYPE)


def _gauge(name: str, label: str, values: dict[str, int]) -> list[str]:
    full = f"outrider_{name}"
    return [f"# TYPE {full} gauge", *(sample(full, {label: key}, value) for key, value in values.items())]


def _devices(used: Mapping[str, DeviceUse]) -> list[str]:
    """Return where each model runs, which is 1, and where it was refused, which is 0."""
    lines = ["# TYPE outrider_worker_device gauge"]
    for model, use in used.items():
        for one in (use.used, *use.refused):
            labels = {"model": model, "kind": str(one.kind), "provider": one.provider}
            lines.append(sample("outrider_worker_device", labels, int(one is use.used)))
    return lines


async def reload(request: Request) -> Response:
    """``POST /v1/admin/reload``: read the configuration again and take over its targets."""
    need_admin(request)
    deps = deps_of(request)
    settings = await deps.reload_targets()
    return json_response({"targets": [target.name for target in settings.targets], "egress": settings.egress.policy})


ROUTES = [
    Route("/healthz", healthz, methods=["GET"]),
    Route("/readyz", readyz, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
    Route("/v1/admin/reload", reload, methods=["POST"]),
]
