"""``/v1/erase``: remove what is kept of one person."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.batch_runner import BatchRunner
from agent.api.deps import ApiDeps, deps_of, need_admin
from agent.api.fields import Fields
from agent.api.wire import json_response, read_json
from agent.storage.subject_erasure import Erased

LONGEST_SUBJECT = 512
MOST_BODY_BYTES = 1 << 14


async def erase(request: Request) -> Response:
    """``POST /v1/erase`` with ``subject``; ``"dry_run": true`` only counts.

    A subject is what requests said as ``user``, ``safety_identifier`` or ``metadata.subject``.
    """
    need_admin(request)
    deps = deps_of(request)
    fields = Fields(await read_json(request, MOST_BODY_BYTES))
    subject = fields.text("subject", LONGEST_SUBJECT)
    is_dry = fields.flag("dry_run") or False
    fields.finish()
    if not subject:
        raise fields.missing("subject")
    if is_dry:
        return json_response(erased_object(await deps.storage.subjects.count(subject), dry_run=True))
    batches: BatchRunner = request.app.state.batches
    async with batches.paused():
        return json_response(erased_object(await _erased(deps, subject), dry_run=False))


async def _erased(deps: ApiDeps, subject: str) -> Erased:
    for request_id in await deps.storage.subjects.running(subject):
        await deps.background.cancel(request_id)
    erased = await deps.storage.subjects.erase(subject, now_ms=deps.now_ms())
    for task in erased.untaught:
        deps.tasks.book.forget(task)
    return erased


def erased_object(erased: Erased, *, dry_run: bool) -> dict[str, Any]:
    """Return the counts as the API shows them; never the person's name."""
    return {"object": "outrider.erasure", "dry_run": dry_run, **msgspec.to_builtins(erased)}


ROUTES = [Route("/v1/erase", erase, methods=["POST"])]
