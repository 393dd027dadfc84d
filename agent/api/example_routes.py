"""``/v1/tasks/{name}/examples``: what a task was taught and calibrated with, kept so that both can be done again."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.deps import deps_of, need_admin
from agent.api.fields import Fields
from agent.api.wire import json_response, query, read_json
from agent.task_memory import ExampleUse, StoredExample

MOST_EXAMPLES = 20_000
MOST_BODY_BYTES = 32 << 20


async def show_examples(request: Request) -> Response:
    """``GET /v1/tasks/{name}/examples``: by use, as they were handed in."""
    need_admin(request)
    query(request)
    deps = deps_of(request)
    name = deps.tasks.book.spec(request.path_params["name"]).name
    found = {use.value: await deps.tasks.examples(name, use) for use in ExampleUse}
    told = {use: [{"input": one.input, "answer": one.answer} for one in examples] for use, examples in found.items()}
    return json_response({"object": "outrider.task_examples", "task": name, **told})


async def put_examples(request: Request) -> Response:
    """``PUT /v1/tasks/{name}/examples`` with ``use`` and ``examples``: in place of earlier ones; none drops those."""
    need_admin(request)
    deps = deps_of(request)
    name = deps.tasks.book.spec(request.path_params["name"]).name
    fields = Fields(await read_json(request, MOST_BODY_BYTES))
    use = fields.choice("use", ExampleUse)
    rows = fields.array("examples", MOST_EXAMPLES)
    fields.finish()
    if use is None:
        raise fields.missing("use")
    if rows is None:
        raise fields.missing("examples")
    found = []
    for number, row in enumerate(rows):
        one = Fields(row if isinstance(row, dict) else {}, f"examples[{number}].")
        text, answer = one.text("input", MOST_BODY_BYTES), one.text("answer", MOST_BODY_BYTES)
        one.finish()
        if not text:
            raise one.missing("input")
        found.append(StoredExample(text, answer))
    await deps.tasks.keep_examples(name, use, found)
    return json_response({"object": "outrider.task_examples", "task": name, "use": use, "examples": len(found)})


ROUTES = [
    Route("/v1/tasks/{name}/examples", show_examples, methods=["GET"]),
    Route("/v1/tasks/{name}/examples", put_examples, methods=["PUT"]),
]
