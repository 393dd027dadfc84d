"""Tasks whose answers are written: taught, calibrated and answered by the command line, the API and storage together."""

import json
import math
import os
import random
from types import SimpleNamespace

import pytest
from fakes.api_server import ADMIN, MODEL, USER, ScriptedEngine, served
from fakes.command_line import as_json, outrider

from agent import executable
from agent.structure import ToolCall
from agent.types import Generation, Token

SURE, UNSURE = "table please hello 44 or 45 x9x9", "table please hello maybe 44 or 45 x9x9"


class CopyingEngine(ScriptedEngine):
    """Copies the number from a text; a text with "maybe" makes it doubt, and two times in three it then copies another one.

    Without demonstrations it writes a sentence around it. Answers JSON or a call where they are asked for.
    """

    def __init__(self):
        super().__init__()
        self.model_digest = "d" * 64
        self.right_drawn = True

    async def generate(self, request):
        self.asked.append(request)
        said = request.messages[-1].content
        number = next((word for word in said.split() if word.isdigit()), "0")
        doubtful = "maybe" in said
        if doubtful and int(number) % 3:
            number = f"{int(number) + 1}"
        if request.sampling.temperature and not self.right_drawn:
            number = "5"
        logprob = math.log(0.3 if doubtful else 0.98)
        shown = any(message.role == "assistant" for message in request.messages)
        pieces, calls, text = [number], (), number
        if request.tools:
            arguments = json.dumps({"people": int(number)})
            calls = (ToolCall(id="c", name="book", arguments=arguments),)
            pieces, text = ['<tool_call>\n{"name": "', "book", '", "arguments": ', arguments, "}\n</tool_call>"], ""
        elif request.response_format:
            pieces = ['{"people": ', number, ', "name": ', "null", "}"]
            text = "".join(pieces)
        elif not shown:
            text = f"It is {number}"
            pieces = ["It is ", number]
        tokens = tuple(
            Token(n, piece.encode(), logprob, math.log(1 - math.exp(logprob)), 0.2, forced=piece[:1] in "{<,}")
            for n, piece in enumerate(pieces)
        )
        yield Generation(
            text=text,
            tool_calls=calls,
            finish_reason="tool_calls" if calls else "stop",
            tokens=tokens,
            model=MODEL,
            model_digest=self.model_digest,
            runtime="scripted",
            end=None if calls or request.response_format else Token(99, b"", logprob / 2, -3.0, 0.1),
        )


def drawn(count, seed, *, answer=str):
    chance = random.Random(seed)
    found = []
    for place in range(count):
        number = chance.randrange(1, 90)
        doubt = "maybe " if chance.random() < 0.5 else ""
        words = " ".join(chance.sample(["please", "we", "are", "come", "at", "table", "for", "hello"], 3))
        found.append({"input": f"{words} {doubt}{number} or {number + 1} x{seed}x{place}", "answer": answer(number)})
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    with served(folder / "data", engine=CopyingEngine()) as server:
        address = {"pid": os.getpid(), "started": executable.started(os.getpid()), "url": server.url}
        (folder / "data" / "daemon.json").write_text(json.dumps(address))
        for name, token in (("token", USER), ("admin-token", ADMIN)):
            (folder / "data" / name).write_text(token)
        config = folder / "outrider.toml"
        config.write_text(f'data_dir = "{folder / "data"}"\n')
        server.user = SimpleNamespace(config=config)
        server.folder = folder
        yield server


@pytest.fixture
def api(server):
    yield server
    server.engine.model_digest, server.engine.right_drawn = "d" * 64, True
    server.engine.asked.clear()
    for path in (server.folder / "tasks").glob("*"):
        path.unlink()
        server.call(server.tasks.forget(path.stem))


def written(api, name, rows):
    path = api.folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ask(api, text, **fields):
    return api.chat(text, metadata={"task": "people"}, **fields).json()


def test_a_text_is_taught_behind_demonstrations_and_certified(api):
    outrider(api.user, "tasks", "new", "people", "--kind", "text", "--prompt", "How many?", "--accuracy", "0.9")
    path = written(api, "all.jsonl", drawn(320, 1))
    told = as_json(api.user, "tasks", "teach", "people", path, "--hold-back", "0.6")
    assert told["compared"][0]["right"] == 0  # a sentence is not the number
    assert told["demonstrations"] == 4
    assert told["auroc"] > 0.7
    assert told["samples"] == 0
    assert ask(api, SURE)["outrider"]["guarantee"] == "none"
    calibration = as_json(api.user, "calibrate", "people", path)["calibration"]
    assert calibration["key"]["estimator"] == f"taught_answer@1:{told['appraiser']}"
    assert calibration["report"]["examples"] == told["held_back"]
    sure, unsure = ask(api, SURE), ask(api, UNSURE)
    assert (sure["choices"][0]["message"]["content"], sure["outrider"]["decision"]) == ("44", "answered")
    assert sure["outrider"]["guarantee"] == "accuracy 0.9 (pac 0.9)"
    assert unsure["outrider"]["decision"] == "queued"
    assert unsure["outrider"]["confidence"] < sure["outrider"]["confidence"]
    asked = api.engine.asked[-1].messages
    assert [message.role for message in asked] == ["system", *["user", "assistant"] * 4, "user"]
    kept = api.get(f"/v1/requests/{unsure['outrider']['request_id']}").json()
    assert "x1x" not in json.dumps(kept)  # a target would get the request without demonstrations
    api.call(api.tasks.load())  # as the next life of the daemon does
    assert ask(api, SURE)["outrider"]["guarantee"] == "accuracy 0.9 (pac 0.9)"
    shown = outrider(api.user, "tasks", "show", "people").stdout
    assert "AUROC" in shown


@pytest.fixture
def certified(api, made=[]):  # noqa: B006 - taught once for the tests of this file
    outrider(api.user, "tasks", "new", "people", "--kind", "text", "--prompt", "How many?", "--accuracy", "0.9")
    path = written(api, "all.jsonl", drawn(320, 1))
    if not made:
        outrider(api.user, "tasks", "teach", "people", path, "--hold-back", "0.6")
        outrider(api.user, "calibrate", "people", path)
        found = api.get("/v1/tasks/people").json()["calibration"]
        made += [api.get("/v1/tasks/people/appraiser").json(), found]
    else:
        with api.client(ADMIN) as client:
            assert client.put("/v1/tasks/people/appraiser", json=made[0]).status_code == 200
            body = {key: value for key, value in made[1].items() if key not in {"current", "changed"}}
            assert client.put("/v1/tasks/people/calibration", json=body).status_code == 200, body
    assert ask(api, SURE)["outrider"]["calibrated"]
    return api


@pytest.mark.parametrize(
    "change", ["model", "encoder", "prompt", "taught again", "temperature", "stop", "penalty", "format"]
)
def test_what_voids_the_promise_of_a_written_answer(certified, change):
    fields = {
        "temperature": {"temperature": 0.7},
        "stop": {"stop": "."},
        "penalty": {"frequency_penalty": 0.5},
        "format": {"response_format": {"type": "json_object"}},
    }.get(change, {})
    if change == "model":
        certified.engine.model_digest = "f" * 64
    elif change == "encoder":
        certified.engine.encoder_digest = "f" * 64
    elif change == "prompt":
        file = certified.folder / "tasks" / "people.toml"
        file.write_text(file.read_text().replace("How many?", "How many people?"))
    elif change == "taught again":
        outrider(certified.user, "tasks", "teach", "people", written(certified, "b.jsonl", drawn(90, 2)))
    try:
        told = ask(certified, SURE, **fields)["outrider"]
    finally:
        certified.engine.encoder_digest = "e" * 64
    assert (told["calibrated"], told["guarantee"]) == (False, "none")


def test_a_limit_that_an_answer_does_not_reach_voids_nothing(certified):
    assert ask(certified, SURE, max_tokens=500)["outrider"]["calibrated"]


@pytest.mark.parametrize(("says", "fault"), [("As an AI I cannot tell 7", "refusal"), ("2 + 2 = 5", "calculation")])
def test_what_cannot_be_right_is_not_served(certified, monkeypatch, says, fault):
    generate = certified.engine.generate

    async def other(request):
        async for event in generate(request):
            yield Generation(**{name: getattr(event, name) for name in event.__struct_fields__} | {"text": says})

    monkeypatch.setattr(certified.engine, "generate", other)
    told = ask(certified, SURE)["outrider"]
    assert told["decision"] == "queued"
    assert fault in told["fault"]


def test_samples_are_drawn_in_the_grey_zone_only(api):
    outrider(api.user, "tasks", "new", "people", "--kind", "text", "--prompt", "How many?")
    file = api.folder / "tasks" / "people.toml"
    file.write_text(file.read_text() + "samples = 3\n")
    file.write_text(file.read_text() + "[target]\naccuracy = 0.7\n")
    rows = drawn(120, 1)
    # Drawn answers agree where the likeliest is right: they tell what the tokens do not.
    generate = api.engine.generate

    async def telling(request):
        said = request.messages[-1].content
        number = next(word for word in said.split() if word.isdigit())
        api.engine.right_drawn = not int(number) % 3 or "maybe" not in said
        async for event in generate(request):
            yield event

    api.engine.generate = telling
    try:
        result = outrider(api.user, "tasks", "teach", "people", written(api, "s.jsonl", rows), "--json")
        told = json.loads(result.stdout)
        assert told["samples"] == 3, result.stderr
        api.engine.asked.clear()
        ask(api, SURE)
        sure = len(api.engine.asked)
        api.engine.asked.clear()
        even = ask(api, UNSURE.replace("44 or 45", "45 or 46"))["outrider"]["confidence"]
        assert (sure, len(api.engine.asked), api.engine.asked[-1].sampling.n) == (1, 2, 3)
        assert even > ask(api, UNSURE)["outrider"]["confidence"] + 0.2
    finally:
        del api.engine.generate


SCHEMA = {
    "type": "object",
    "properties": {"people": {"type": "integer"}, "name": {"type": ["string", "null"]}},
    "required": ["people", "name"],
}


def test_each_field_of_an_extraction_has_a_confidence_of_its_own(api):
    schema = written(api, "schema.json", [SCHEMA])
    outrider(api.user, "tasks", "new", "people", "--kind", "extract", "--schema", schema, "--prompt", "Extract.")
    rows = drawn(160, 3, answer=lambda number: {"people": number, "name": "Ann" if number % 7 == 0 else None})
    told = as_json(api.user, "tasks", "teach", "people", written(api, "e.jsonl", rows))
    assert told["fields"]
    fields = ask(api, SURE)["outrider"]["fields"][0]
    doubtful = ask(api, UNSURE)["outrider"]["fields"][0]
    assert fields["/people"]["confidence"] > doubtful["/people"]["confidence"] + 0.2
    assert 0.5 < fields["/name"]["confidence"] < 1


def test_calls_of_tools_are_taught_by_what_they_decide(api):
    parameters = {"type": "object", "properties": {"people": {"type": "integer"}}, "required": ["people"]}
    tools = [{"type": "function", "function": {"name": "book", "parameters": parameters}}]
    path = api.folder / "tools.json"
    path.write_text(json.dumps(tools))
    outrider(api.user, "tasks", "new", "people", "--kind", "tool", "--tools", str(path))
    rows = drawn(240, 4, answer=lambda number: {"name": "book", "arguments": {"people": number}})
    path = written(api, "c.jsonl", rows)
    told = as_json(api.user, "tasks", "teach", "people", path, "--hold-back", "0.5")
    assert (told["demonstrations"], told["auroc"] > 0.7) == (0, True)
    outrider(api.user, "calibrate", "people", path, "--accuracy", "0.8")
    found = ask(api, SURE)
    assert found["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "book"
    assert found["outrider"]["guarantee"] == "accuracy 0.8 (pac 0.9)"
    other = [{**tools[0], "function": {**tools[0]["function"], "name": "other"}}]
    assert "tools of its own" in ask(api, "x 3", tools=other)["error"]["message"]


def test_examples_that_cannot_teach_are_named(api):
    outrider(api.user, "tasks", "new", "people", "--kind", "text", "--prompt", "How many?")
    few = written(api, "few.jsonl", drawn(12, 1))
    assert "at least 30 are needed" in outrider(api.user, "tasks", "teach", "people", few, code=65).stderr
    wrong = written(api, "wrong.jsonl", drawn(40, 1, answer=lambda number: "none"))
    told = outrider(api.user, "tasks", "teach", "people", wrong, code=65).stderr
    assert "0 of 40 answers" in told
    assert "cannot do this task" in told
    judged = [{**row, "answer": f"It is {row['answer']}", "right": n % 3 == 0} for n, row in enumerate(drawn(60, 5))]
    told = outrider(api.user, "tasks", "teach", "people", written(api, "judged.jsonl", judged), code=None).stderr
    assert "nobody judged" in told  # the doubtful ones that it answers in another way
    assert api.get("/v1/tasks/people").json()["calibration"] is None
    bad = written(api, "bad.jsonl", [*drawn(40, 1), {"input": "x", "answer": "y", "right": 3}])
    assert "line 41" in outrider(api.user, "tasks", "teach", "people", bad, code=65).stderr


def test_what_an_appraiser_must_be(certified):
    found = certified.get("/v1/tasks/people/appraiser").json()
    with certified.client(ADMIN) as client:
        for change, what in (
            ({"version": 0}, "has changed"),
            ({"samples": 99}, "at most 8 samples"),
            ({"answer": {**found["answer"], "weights": [1.0]}}, "not of one length"),
            ({"answer": {**found["answer"], "scales": [0.0] * len(found["answer"]["scales"])}}, "not of one length"),
            ({"demonstrations": {**found["demonstrations"], "answers": []}}, "not of one number"),
        ):
            error = client.put("/v1/tasks/people/appraiser", json={**found, **change}).json()["error"]
            assert what in error["message"], error
    with certified.client() as client:
        assert client.put("/v1/tasks/people/appraiser", json=found).status_code == 403
