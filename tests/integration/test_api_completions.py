"""Completions over real HTTP with the real openai client: shapes, echo, streams, the queue, errors."""

import openai
import pytest
from fakes import cloud as cloud_module
from fakes.api_server import MODEL, USER, served, target_at
from fakes.cloud import cloud_in_thread


@pytest.fixture(scope="module")
def client(api):
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=USER, max_retries=0) as client:
        yield client


def test_a_completion(api, client):
    answer = client.completions.create(
        model=MODEL, prompt="once upon", max_tokens=5, temperature=0.5, seed=3, stop=["\n"], logprobs=2
    )
    choice = answer.choices[0]
    assert (answer.object, choice.text, choice.finish_reason) == ("text_completion", "echo: once upon", "stop")
    assert choice.logprobs.tokens == ["echo:", " once", " upon"]
    assert choice.logprobs.text_offset == [0, 5, 10]
    assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.top_logprobs) == 3
    assert answer.outrider["decision"] == "answered"
    asked = api.engine.asked[-1]
    assert (asked.kind, asked.prompt, asked.echo) == ("completion", "once upon", False)
    assert (asked.sampling.max_tokens, asked.sampling.seed, asked.sampling.stop) == (5, 3, ("\n",))
    record = api.get(f"/v1/requests/{answer.outrider['request_id']}").json()
    assert record["request"]["kind"] == "completion"


def test_an_echo_has_the_prompts_own_figures_and_stays_here(api, client):
    answer = client.completions.create(model=MODEL, prompt="a b c", max_tokens=1, logprobs=1, echo=True, seed=1)
    choice = answer.choices[0]
    assert choice.text == "a b cecho: a b c"
    lists = choice.logprobs
    assert lists.tokens[:3] == ["a", " b", " c"]
    assert lists.token_logprobs[:3] == [None, -1.0, -2.0]
    assert lists.top_logprobs[0] is None
    assert lists.top_logprobs[1] == {" likelier": -0.25, " b": -1.0}
    assert lists.text_offset[:4] == [0, 1, 3, 5]
    assert api.engine.asked[-1].route_mode == "local_only"


@pytest.mark.parametrize("prompt", [list(b"a b c"), [list(b"a b c")], ["a b c"]])
def test_prompts_as_evaluation_harnesses_send_them(client, prompt):
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=0, logprobs=1, echo=True)
    assert answer.choices[0].text.startswith("a b c")


def test_several_prompts_are_answered_in_their_order_and_stay_here(api, client):
    answer = client.completions.create(model=MODEL, prompt=["a b", "unsure c", "d"], logprobs=0)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "echo: a b"),
        (1, "echo: unsure c"),
        (2, "echo: d"),
    ]
    assert [choice.logprobs.tokens[1] for choice in answer.choices] == [" a", " unsure", " d"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (21, 8)
    requests = answer.outrider["requests"]
    assert [one["decision"] for one in requests] == ["answered", "uncertain", "answered"]
    assert requests[1]["reason"] == "local_only"
    records = [api.get(f"/v1/requests/{one['request_id']}").json() for one in requests]
    assert [record["request"]["prompt"] for record in records] == ["a b", "unsure c", "d"]


def test_one_prompt_that_fails_ends_the_others_and_is_named(api):
    error = api.post("/v1/completions", {"model": MODEL, "prompt": ["hang", "overflow"]}).json()["error"]
    assert (error["param"], error["message"]) == ("prompt[1]", "of prompt 1: scripted overflow: shorten it")
    assert api.engine.cancelled.acquire(timeout=20)


def test_an_idempotency_key_names_one_prompt(api):
    with api.client() as client:
        body = {"model": MODEL, "prompt": ["a", "b"]}
        error = client.post("/v1/completions", json=body, headers={"idempotency-key": "k"}).json()["error"]
    assert error["param"] == "idempotency-key"


def test_n_best_of_and_suffix_reach_the_engine(api, client):
    client.completions.create(model=MODEL, prompt="", suffix="end", n=2, best_of=3)
    asked = api.engine.asked[-1]
    assert (asked.suffix, asked.sampling.n, asked.sampling.best_of) == ("end", 2, 3)
    assert asked.route_mode == "local_only"


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_has_a_place_in_the_lists_and_no_text(client, stream):
    answer = client.completions.create(model=MODEL, prompt="ending", logprobs=0, stream=stream)
    choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
    assert "".join(choice.text for choice in choices) == "echo: ending"
    assert [token for choice in choices for token in choice.logprobs.tokens] == ["echo:", " ending", ""]
    assert (choices[-1].logprobs.token_logprobs[-1], choices[-1].logprobs.text_offset[-1]) == (-0.5, 12)


def test_a_stream_puts_the_same_text_together(client):
    whole, lists, last = "", [], None
    for chunk in client.completions.create(
        model=MODEL, prompt="once upon", stream=True, logprobs=0, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            whole += choice.text
            lists += choice.logprobs.text_offset if choice.logprobs else []
            last = chunk if choice.finish_reason else last
        usage = chunk.usage
    assert whole == "echo: once upon"
    assert lists == [0, 5, 10]
    assert last.outrider["decision"] == "answered"
    assert usage.prompt_tokens == 7


def test_a_streamed_echo_is_the_same_as_a_whole_one(client):
    given = {"model": MODEL, "prompt": "a b", "echo": True, "logprobs": 1}
    (whole,) = client.completions.create(**given).choices
    choices = [choice for chunk in client.completions.create(**given, stream=True) for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == whole.text
    assert choices[0].logprobs == whole.logprobs


def test_unsure_goes_to_a_target_as_a_chat(tmp_path):
    with cloud_in_thread() as cloud, served(tmp_path / "data", targets=(target_at(cloud.base_url),)) as api:
        cloud.script(cloud_module.ok(" a time."))
        with openai.OpenAI(base_url=f"{api.url}/v1", api_key=USER, max_retries=0) as client:
            answer = client.completions.create(
                model=MODEL, prompt="unsure upon", extra_body={"outrider": {"on_low_confidence": "wait"}}
            )
        assert (answer.choices[0].text, answer.outrider["source"]) == (" a time.", "main")
        first, second = cloud.chats[0].json["messages"]
        assert first["role"] == "system"
        assert second == {"role": "user", "content": "unsure upon"}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": None}, "missing_required_parameter", "prompt"),
        ({"prompt": ""}, "invalid_value", "prompt"),
        ({"prompt": []}, "invalid_value", "prompt"),
        ({"prompt": ["a", ""]}, "invalid_value", "prompt[1]"),
        ({"prompt": ["a", [1, "b"]]}, "invalid_type", "prompt[1]"),
        ({"prompt": ["a"] * 2049}, "invalid_value", "prompt"),
        ({"prompt": ["a", "b"], "stream": True}, "invalid_value", "stream"),
        ({"prompt": ["a", "b"], "outrider": {"route_mode": "cloud_first"}}, "contradiction", "outrider.route_mode"),
        ({"prompt": ["a", "overflow b"]}, "context_length_exceeded", "prompt[1]"),
        ({"prompt": "overflow b"}, "context_length_exceeded", "prompt"),
        ({"prompt": [1, "b"]}, "invalid_type", "prompt"),
        ({"prompt": [1, True]}, "invalid_type", "prompt"),
        ({"prompt": [-1]}, "invalid_value", "prompt"),
        ({"prompt": [[[1]]]}, "invalid_type", "prompt"),
        ({"max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"logprobs": True}, "invalid_type", "logprobs"),
        ({"logprobs": 21}, "invalid_value", "logprobs"),
        ({"suffix": 1}, "invalid_type", "suffix"),
        ({"suffix": "end", "echo": True}, "invalid_value", "echo"),
        ({"n": 17}, "invalid_value", "n"),
        ({"n": 3, "best_of": 2}, "invalid_value", "best_of"),
        ({"n": 2, "best_of": 3, "stream": True}, "invalid_value", "best_of"),
        ({"messages": []}, "unknown_parameter", "messages"),
        ({"echo": True, "outrider": {"route_mode": "cloud_only"}}, "contradiction", "outrider.route_mode"),
        ({"model": "absent"}, "model_not_found", "model"),
    ],
)
def test_what_is_wrong_is_named(api, fields, code, param):
    error = api.post("/v1/completions", {"model": MODEL, "prompt": "x", **fields}).json()["error"]
    assert (error["code"], error["param"]) == (code, param)
