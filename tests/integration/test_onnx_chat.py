"""The openai client against an ONNX model in a real, locked-in worker: the same contract as with llama.cpp."""

import json
import threading

import openai
import pytest
from fakes import runtimes, smollm2, tiny_onnx
from fakes.api_server import USER, Card, served

from agent.engine.supervisor import EnginePool
from agent.errors import ModelNotFound
from agent.settings import EngineSettings
from agent.types import ModelFile, ModelFormat

ASK = [{"role": "user", "content": "What is the capital of France?"}]
LABELS = ["card arrival", "card", "lost card", "refund"]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "find", "parameters": SCHEMA}}


def model_file(name, folder):
    return ModelFile(
        name=name,
        path=str(folder),
        format=ModelFormat.ONNX_GENERATION,
        sha256="e" * 64,
        context_tokens=4096,
        chat_template=smollm2.TEMPLATE,
    )


@pytest.fixture(scope="module", params=["tiny", pytest.param("int4", marks=pytest.mark.model)])
def model(request, tmp_path_factory):
    folder = runtimes.tiny_folder() if request.param == "tiny" else smollm2.onnx_folder(request.param)
    broken = tiny_onnx.write(tmp_path_factory.mktemp("broken"))
    (broken / "tokenizer.json").unlink()

    def resolve(name):
        if name not in {request.param, "broken"}:
            raise ModelNotFound(name)
        return model_file(name, broken if name == "broken" else folder)

    engine = EnginePool(EngineSettings(threads=1, parallel=3, context_tokens=512, model=request.param), resolve)
    cards = [Card(request.param), Card("broken")]
    with served(tmp_path_factory.mktemp("data"), engine=engine, models=cards) as api:
        api.name = request.param
        yield api


@pytest.fixture(scope="module")
def client(model):
    with openai.OpenAI(base_url=f"{model.url}/v1", api_key=USER, max_retries=0) as client:
        yield client


@pytest.fixture
def ask(client, model):
    def ask(messages=ASK, **given):
        return client.chat.completions.create(model=model.name, messages=messages, **({"max_tokens": 30} | given))

    return ask


def test_a_chat_is_the_same_whole_and_streamed_with_log_probabilities(ask, model):
    whole = ask(logprobs=True, top_logprobs=2)  # from here on the prompt is cached
    choice = whole.choices[0]
    assert choice.finish_reason in {"stop", "length"}
    assert choice.message.content
    if model.name != "tiny":
        assert "Paris" in choice.message.content
    text, tokens, verdict = "", [], None
    for chunk in ask(stream=True, logprobs=True, top_logprobs=2):
        verdict = chunk.model_extra.get("outrider") or verdict
        for part in chunk.choices:
            text += part.delta.content or ""
            tokens += part.logprobs.content if part.logprobs else []
    assert text == choice.message.content
    assert [token.token for token in tokens] == [token.token for token in choice.logprobs.content]
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)
    assert 0 <= verdict["confidence"] <= 1
    assert verdict["decision"] == whole.model_extra["outrider"]["decision"]


def test_a_schema_holds_and_its_fields_are_judged(ask):
    given = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    answer = ask(response_format=given, max_tokens=60, temperature=1.0, seed=5)
    found = json.loads(answer.choices[0].message.content)
    assert isinstance(found["city"], str)
    assert isinstance(found["big"], bool)
    assert set(answer.model_extra["outrider"]["fields"][0]) == {"/city", "/big"}


def test_a_tool_is_called(ask):
    choice = ask(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=80).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city", "big"}


def test_several_answers_and_a_stop_string(ask):
    several = ask(n=2, temperature=2.0, seed=4, max_tokens=12).choices
    assert several[0].message.content != several[1].message.content
    whole = ask(max_tokens=12).choices[0].message.content
    stop = whole[4:6]
    cut = ask(max_tokens=12, stop=[stop]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]


def test_labels_are_scored_the_same_cold_cached_and_beside_others(model, ask):
    def scored(labels, text="My new card has not come."):
        with model.client() as http:
            found = http.post("/v1/classify", json={"model": model.name, "input": text, "labels": labels}).json()
        return {one["label"]: one["logprob"] for one in found["labels"]}

    cold = scored(LABELS)
    scored(LABELS, "Another text.")
    busy = [threading.Thread(target=ask, kwargs={"max_tokens": 60}) for _ in range(3)]
    for thread in busy:
        thread.start()
    beside = scored(LABELS)
    for thread in busy:
        thread.join()
    for found in (beside, scored(LABELS)):
        assert found == pytest.approx(cold, abs=0.01)


def test_what_is_too_long_or_cannot_be_had_is_refused_and_the_worker_lives(ask, client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        ask([{"role": "user", "content": "word " * 600}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="cannot fill a gap"):
        client.completions.create(model=model.name, prompt="a", suffix="b", max_tokens=4)
    assert ask(max_tokens=2).choices[0].message.content


def test_the_runtime_is_named_and_what_it_does_not_do(client, model):
    told = client.models.retrieve(model.name).model_extra["outrider"]
    assert told["runtime"].startswith("onnxruntime 1.")
    assert told["quantization"] == {"tiny": "float32"}.get(model.name, model.name)
    assert "LoRA adapters" in told["absent"]
    assert told["capabilities"]["suffix"] is False
    with model.client() as http:
        (worker,) = [one for one in http.get("/readyz").json()["models"] if one["name"] == model.name]
        assert worker["runtime"] == told["runtime"]
        assert "seccomp" in worker["confinement"]
        assert worker["crashes"] == 0
        line = f'outrider_worker_runtime{{model="{model.name}",runtime="{told["runtime"]}"}} 1'
        assert line in http.get("/metrics").text.splitlines()


def test_a_model_that_cannot_be_loaded_says_why(client):
    with pytest.raises(openai.APIStatusError, match=r"tokenizer\.json is missing"):
        client.chat.completions.create(model="broken", messages=ASK, timeout=30)
