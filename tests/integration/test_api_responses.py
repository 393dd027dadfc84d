"""The Responses API over real HTTP with the real openai client."""

import json
import time

import httpx2
import openai
import pytest
from fakes.api_server import MODEL, TLS, USER, ScriptedEngine, served, target_at
from fakes.cloud import cloud_in_thread

from agent.structure import CallPiece, ToolCall
from agent.types import Delta, Generation, Token

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None}


class CallingEngine(ScriptedEngine):
    """Calls a tool where there is one to call and no result yet."""

    async def generate(self, request):
        if not (request.tools and request.tools.callable) or request.messages[-1].role == "tool":
            async for event in super().generate(request):
                yield event
            return
        self.asked.append(request)
        yield Delta("Let me look.", (Token(1, b"x", -0.01, -5.0, 0.1),))
        yield Delta("", calls=(CallPiece(index=0, id="call_1", name="weather"),))
        yield Delta("", calls=(CallPiece(index=0, arguments='{"city": '),))
        yield Delta("", calls=(CallPiece(index=0, arguments='"Rome"}'),))
        yield Generation(
            text="Let me look.",
            tokens=(Token(1, b"x", -0.01, -5.0, 0.1),),
            tool_calls=(ToolCall(id="call_1", name="weather", arguments='{"city": "Rome"}'),),
            finish_reason="tool_calls",
            model=MODEL,
        )


@pytest.fixture(scope="module")
def cloud():
    with cloud_in_thread() as server:
        yield server


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """No target: what is not sure waits for a person."""
    with served(tmp_path_factory.mktemp("api") / "data", engine=CallingEngine()) as server:
        yield server


@pytest.fixture(scope="module")
def joined(tmp_path_factory, cloud):
    with served(tmp_path_factory.mktemp("joined") / "data", targets=(target_at(cloud.base_url),)) as server:
        yield server


def client_of(api):
    http = httpx2.Client(trust_env=False, verify=TLS)
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key=USER, max_retries=0, http_client=http)


def polled(client, response, until=("completed", "failed", "cancelled", "incomplete")):
    deadline = time.monotonic() + 30
    while response.status not in until and time.monotonic() < deadline:
        time.sleep(0.01)
        response = client.responses.retrieve(response.id)
    return response


# --- create ---------------------------------------------------------------------------


def test_fields_come_back_as_the_client_knows_them(api):
    with client_of(api) as client:
        response = client.responses.create(
            model=MODEL, input="hello there", instructions="be short", max_output_tokens=20, temperature=0.5,
            top_p=0.9, metadata={"a": "b"}, user="ann", reasoning={"effort": "low"}, truncation="disabled",
            tool_choice="auto", parallel_tool_calls=False, include=["message.output_text.logprobs"], top_logprobs=2,
        )  # fmt: skip
    assert response.id.startswith("resp_")
    assert (response.object, response.status, response.background) == ("response", "completed", False)
    assert response.output_text == "echo: hello there"
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert len(message.content[0].logprobs[0].top_logprobs) == 2
    assert (response.usage.input_tokens, response.usage.input_tokens_details.cached_tokens) == (7, 3)
    assert response.usage.total_tokens == 10
    assert (response.instructions, response.max_output_tokens, response.temperature) == ("be short", 20, 0.5)
    assert (response.metadata, response.reasoning.effort, response.text.format.type) == ({"a": "b"}, "low", "text")
    assert response.outrider["decision"] == "answered"
    asked = api.engine.asked[-1]
    assert [(m.role, m.content) for m in asked.messages] == [("system", "be short"), ("user", "hello there")]
    assert (asked.sampling.max_tokens, asked.sampling.top_p, asked.thinking.effort) == (20, 0.9, "low")


def test_items_become_messages(api):
    with client_of(api) as client:
        response = client.responses.create(
            model=MODEL,
            input=[
                {"role": "developer", "content": "rules"},
                {"role": "user", "content": [{"type": "input_text", "text": "first"}]},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                 "content": [{"type": "output_text", "text": "answer", "annotations": [], "logprobs": []}]},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            ],
        )  # fmt: skip
        listed = client.responses.input_items.list(response.id, order="asc", limit=2)
        assert [item.type for item in listed.data] == ["message", "message"]
        assert listed.data[1].content[0].text == "first"
        assert [item.type for item in listed] == [
            "message", "message", "reasoning", "message", "function_call", "function_call_output",
        ]  # fmt: skip
    told = api.engine.asked[-1].messages
    assert [(m.role, m.content) for m in told] == [
        ("system", "rules"), ("user", "first"), ("assistant", "answer"), ("tool", "sunny"),
    ]  # fmt: skip
    assert told[2].tool_calls[0].id == told[3].tool_call_id == "c1"


def test_a_call_of_a_tool_and_its_result_by_the_id_of_the_response_before(api):
    with client_of(api) as client:
        asked = client.responses.create(model=MODEL, input="weather in Rome", tools=[TOOL], instructions="be kind")
        text, call = asked.output
        assert (text.content[0].text, call.type, call.name, call.call_id) == (
            "Let me look.", "function_call", "weather", "call_1",
        )  # fmt: skip
        assert json.loads(call.arguments) == {"city": "Rome"}
        result = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
        answer = client.responses.create(model=MODEL, input=[result], tools=[TOOL], previous_response_id=asked.id)
    assert answer.output_text == "echo: sunny"
    assert answer.previous_response_id == asked.id
    told = api.engine.asked[-1].messages
    # Instructions are not inherited.
    assert [m.role for m in told] == ["user", "assistant", "tool"]
    assert told[1].tool_calls[0].name == "weather"


def test_a_schema_stands_in_text_format(api):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with client_of(api) as client:
        response = client.responses.create(
            model=MODEL, input="hello", text={"format": {"type": "json_schema", "name": "thing", "schema": schema}}
        )
    assert response.text.format.name == "thing"
    assert json.loads(api.engine.asked[-1].response_format.source) == schema


def test_thoughts_are_an_item_of_their_own(api):
    with client_of(api) as client:
        response = client.responses.create(model=MODEL, input="ponder")
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == "Hm, well."
    assert response.usage.output_tokens_details.reasoning_tokens == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0].call_id"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"input": "x", "nonsense": 1}, "nonsense"),
        ({"input": "x", "background": True, "store": False}, "store"),
        ({"input": "x", "previous_response_id": "resp_none"}, "previous_response_id"),
        ({"input": "x", "include": ["code_interpreter_call.outputs"]}, "include"),
    ],
)
def test_what_is_wrong_is_named(api, fields, param):
    with api.client() as client:
        response = client.post("/v1/responses", json={"model": MODEL, **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_the_same_key_is_the_same_response(api):
    with client_of(api) as client:
        one, other = (
            client.responses.create(model=MODEL, input="once", extra_headers={"Idempotency-Key": "r-1"})
            for _ in range(2)
        )
    assert one.id == other.id


def test_store_false_keeps_nothing(api):
    with client_of(api) as client:
        response = client.responses.create(model=MODEL, input="a secret matter", store=False)
        assert response.output_text == "echo: a secret matter"
        with pytest.raises(openai.APIStatusError, match="410"):
            client.responses.retrieve(response.id)
    record = api.get(f"/v1/requests/{response.id.removeprefix('resp_')}").json()
    assert record["request"] is None
    assert record["generation"] is None


def test_store_false_keeps_nothing_of_a_stream_or_of_what_failed_or_was_left(api):
    with client_of(api) as client:
        *_, last = client.responses.create(model=MODEL, input="a secret matter", store=False, stream=True)
        ids = [last.response.id.removeprefix("resp_")]
        with pytest.raises(openai.APIStatusError, match="scripted overflow"):
            client.responses.create(model=MODEL, input="a secret overflow", store=False)
        with client.responses.create(model=MODEL, input="a secret hang", store=False, stream=True) as stream:
            next(iter(stream))
        assert api.engine.cancelled.acquire(timeout=10)
    ids += [api.get(f"/v1/requests?limit=1&state={state}").json()["data"][0]["id"] for state in ("failed", "cancelled")]
    for one in ids:
        record = api.settled(one)
        assert (record["request"], record["generation"]) == (None, None), record["state"]


@pytest.mark.parametrize("fields", [{"egress": "never"}, {"egress": "approve"}, {"route_mode": "local_only"}])
def test_what_goes_on_from_a_response_leaves_under_no_looser_policy(joined, cloud, fields):
    before = len(cloud.chats)
    with client_of(joined) as client:
        first = client.responses.create(model=MODEL, input="our secret plan", extra_body={"outrider": fields})
        second = client.responses.create(model=MODEL, input="unsure", previous_response_id=first.id)
        third = client.responses.create(model=MODEL, input="unsure", previous_response_id=second.id)
    for response in (second, third):
        record = joined.get(f"/v1/requests/{response.id.removeprefix('resp_')}").json()
        kept = fields.get("egress", "never")
        assert record["request"]["egress"] == kept
        assert (record["escalation"] or {}).get("state") == (None if kept == "never" else "awaiting_approval")
    assert len(cloud.chats) == before


def test_retrieve_and_delete(api):
    with client_of(api) as client:
        response = client.responses.create(model=MODEL, input="hello")
        assert client.responses.retrieve(response.id).output_text == "echo: hello"
        client.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
    assert api.get(f"/v1/requests/{response.id.removeprefix('resp_')}").status_code == 404


# --- streams --------------------------------------------------------------------------


def test_the_clients_own_stream(api):
    with client_of(api) as client, client.responses.stream(model=MODEL, input="ponder this") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds
    assert final.output_text == "echo: ponder this"
    assert [item.type for item in final.output] == ["reasoning", "message"]


def test_events_are_numbered_and_every_item_ends(api):
    with client_of(api) as client:
        events = [*client.responses.create(model=MODEL, input="in Rome", tools=[TOOL], stream=True)]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    kinds = [event.type for event in events]
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 2
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert pieces == ['{"city": ', '"Rome"}']
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in done] == [item.id for item in events[-1].response.output]


def test_an_error_after_the_beginning_is_an_event(api):
    with client_of(api) as client:
        events = [*client.responses.create(model=MODEL, input="explode now", stream=True)]
    assert events[-1].type == "error"
    assert events[-1].code == "internal_error"


# --- later ----------------------------------------------------------------------------


def test_a_background_response_is_polled(api):
    with client_of(api) as client:
        response = client.responses.create(model=MODEL, input="hello", background=True)
        assert (response.status, response.background, response.output) == ("queued", True, [])
        response = polled(client, response)
    assert (response.status, response.output_text) == ("completed", "echo: hello")


def test_a_background_response_is_cancelled(api):
    with client_of(api) as client:
        response = client.responses.create(model=MODEL, input="hang", background=True)
        assert api.engine.started.acquire(timeout=10)
        assert client.responses.retrieve(response.id).status == "in_progress"
        assert client.responses.cancel(response.id).status == "cancelled"
        assert client.responses.cancel(response.id).status == "cancelled"
        assert api.engine.cancelled.acquire(timeout=10)


def test_a_background_response_is_followed(api):
    api.engine.gate.clear()
    with client_of(api) as client:
        stream = client.responses.create(model=MODEL, input="gate", background=True, stream=True)
        events = iter(stream)
        first = next(events)
        assert first.type == "response.created"
        api.engine.gate.set()
        *_, last = events
        assert (last.type, last.response.output_text) == ("response.completed", "echo: gate")
        again = [*client.responses.retrieve(last.response.id, stream=True, starting_after=1)]
        assert again[0].sequence_number == 2
        assert again[-1].response.output_text == "echo: gate"


def test_an_escalated_response_is_queued_with_its_draft_until_the_late_answer_joins(joined, cloud):
    from fakes.cloud import ok, slow

    cloud.script(slow(0.2, ok()))
    with client_of(joined) as client:
        response = client.responses.create(model=MODEL, input="unsure one")
        assert (response.status, response.background, response.output_text) == ("queued", True, "echo: unsure one")
        late = polled(client, response)
    assert (late.status, late.output_text, late.model) == ("completed", "cloud: unsure one", "cloud-model")
    assert late.output[0].id != response.output[0].id
    assert late.outrider["source"] == "main"


def test_a_chat_that_was_escalated_is_found_as_a_response(joined):
    rid = joined.chat("unsure two").json()["outrider"]["request_id"]
    with client_of(joined) as client:
        late = polled(client, client.responses.retrieve(f"resp_{rid}"))
    assert late.output_text == "cloud: unsure two"


def test_a_conversation_goes_on_from_the_late_answer(joined):
    with client_of(joined) as client:
        one = polled(client, client.responses.create(model=MODEL, input="unsure three"))
        client.responses.create(model=MODEL, input="and then", previous_response_id=one.id)
    assert [m.content for m in joined.engine.asked[-1].messages] == ["unsure three", "cloud: unsure three", "and then"]


def test_cancelling_a_queued_response_cancels_its_row(api):
    with client_of(api) as client:
        response = client.responses.create(model=MODEL, input="unsure four")
        assert response.status == "queued"
        assert client.responses.cancel(response.id).status == "cancelled"
    assert api.settled(response.id.removeprefix("resp_"))["escalation"]["state"] == "cancelled"


def test_what_nobody_answered_has_failed_and_keeps_its_draft(joined, cloud):
    from fakes.cloud import status

    cloud.script(status(400))
    with client_of(joined) as client:
        response = polled(client, client.responses.create(model=MODEL, input="unsure five"))
    assert (response.status, response.error.code) == ("failed", "server_error")
    assert response.output_text == "echo: unsure five"


def test_a_stop_leaves_a_background_response_to_the_next_start(tmp_path):
    folder = tmp_path / "data"
    with served(folder) as first, client_of(first) as client:
        response = client.responses.create(model=MODEL, input="gate", background=True)
        assert first.engine.started.acquire(timeout=10)
    engine = ScriptedEngine()
    engine.gate.set()
    with served(folder, engine=engine) as second, client_of(second) as client:
        assert polled(client, client.responses.retrieve(response.id)).output_text == "echo: gate"
    assert len(engine.asked) == 1
