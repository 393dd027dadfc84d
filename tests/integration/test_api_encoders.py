"""Embeddings, ranks and labels over HTTP: the real API, a real worker process, encoders that can be told by hand."""

import base64
import math

import numpy as np
import openai
import pytest
from fakes import plain_encoders as plain
from fakes.api_server import USER, Card, served

from agent.engine.supervisor import EnginePool
from agent.errors import ModelNotFound
from agent.settings import EngineSettings


def several(folder):
    return plain.classifier(folder, problem_type="multi_label_classification")


MODELS = {
    "plain": plain.embedder, "labels": plain.classifier, "several": several, "ranks": plain.reranker, "tags": plain.tagger,
}  # fmt: skip
TASKS = {
    "plain": ("embed",), "labels": ("classify",), "several": ("classify",), "ranks": ("rerank",), "tags": ("tag",),
}  # fmt: skip


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    for name, make in MODELS.items():
        make(folder / name)

    def resolve(name):
        if name not in MODELS:
            raise ModelNotFound(name)
        return plain.model_file(folder / name, name, context_tokens=64)

    cards = [Card(name, tasks=tasks) for name, tasks in TASKS.items()] + [Card("small")]
    engine = EnginePool(EngineSettings(threads=1), resolve)
    with served(tmp_path_factory.mktemp("data"), engine=engine, models=cards) as api:
        yield api


@pytest.fixture(scope="module")
def client(api):
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=USER, max_retries=0) as client:
        yield client


def length(vector):
    return math.sqrt(sum(number * number for number in vector))


def test_the_openai_client_gets_vectors(client):
    found = client.embeddings.create(model="plain", input="good")  # asks for base64 by itself
    assert found.model == "plain"
    assert length(found.data[0].embedding) == pytest.approx(1)
    assert found.usage.prompt_tokens == found.usage.total_tokens == 3


def test_numbers_and_base64_are_the_same_numbers(client):
    texts = ["good", "bad bad", "good"]
    written = client.embeddings.create(model="plain", input=texts, encoding_format="base64")
    numbers = client.embeddings.create(model="plain", input=texts, encoding_format="float")
    assert [one.index for one in numbers.data] == [0, 1, 2]
    for one, other in zip(written.data, numbers.data, strict=True):
        assert np.frombuffer(base64.b64decode(one.embedding), "<f4").tolist() == other.embedding
    assert numbers.data[0].embedding == numbers.data[2].embedding != numbers.data[1].embedding


def test_tokens_are_taken_as_texts_are(client):
    good, bad = plain.ID["good"], plain.ID["bad"]
    text = client.embeddings.create(model="plain", input=["good bad"]).data[0].embedding
    assert client.embeddings.create(model="plain", input=[good, bad]).data[0].embedding == text
    several = client.embeddings.create(model="plain", input=[[good, bad], [bad]])
    assert several.data[0].embedding == text
    assert len(several.data) == 2


def test_dimensions_shorten_the_vector(client):
    found = client.embeddings.create(model="plain", input="good bad", dimensions=2).data[0].embedding
    assert len(found) == 2
    assert length(found) == pytest.approx(1)
    with pytest.raises(openai.BadRequestError, match="4 dimensions at most") as caught:
        client.embeddings.create(model="plain", input="good", dimensions=5)
    assert caught.value.param == "dimensions"


def test_a_text_above_the_limit_is_refused_unless_its_beginning_will_do(client):
    with pytest.raises(openai.BadRequestError, match="input 1 has 102 tokens, the model reads 64") as caught:
        client.embeddings.create(model="plain", input=["good", "good " * 100])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input[1]"
    found = client.embeddings.create(model="plain", input="good " * 100, extra_body={"truncate": True})
    assert found.usage.prompt_tokens == 64


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["good", ""]}, "input[1]"),
        ({"input": ["good", 3]}, "input[1]"),
        ({"input": ["good", None]}, "input[1]"),
        ({"input": [3, "good"]}, "input"),
        ({"input": [[3], []]}, "input[1]"),
        ({"input": [3, -1]}, "input"),
        ({"input": [3, True]}, "input"),
        ({"input": [[10]]}, "input[0]"),
        ({"input": {"text": "good"}}, "input"),
        ({"input": None}, "input"),
        ({"input": ["good"] * 10_000}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"truncate": 1}, "truncate"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"temperature": 1}, "temperature"),
        ({"model": None}, "model"),
        ({"model": "small"}, "model"),
        ({"model": "labels"}, "model"),
    ],
)
def test_what_is_wrong_is_named(api, changes, param):
    with api.client() as http:
        answer = http.post("/v1/embeddings", json={"model": "plain", "input": "good", **changes})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param, answer.json()


def test_ten_thousand_texts_are_told_how_many_go_at_once(api):
    with api.client() as http:
        answer = http.post("/v1/embeddings", json={"model": "plain", "input": ["good"] * 10_000})
    assert answer.json()["error"]["message"] == "input must have at most 2048 items: send several requests"


def test_as_many_texts_as_one_call_may_have(client):
    found = client.embeddings.create(model="plain", input=[f"good {'bad ' * (n % 40)}" for n in range(2048)])
    assert len(found.data) == 2048
    assert found.data[0].embedding == found.data[40].embedding


def test_an_unknown_model_is_not_replaced_by_another(client):
    with pytest.raises(openai.NotFoundError, match="did you mean plain"):
        client.embeddings.create(model="plane", input="good")


def test_nothing_of_it_is_stored(api, client):
    before = api.call(api.storage.journal.counts())
    client.embeddings.create(model="plain", input="good")
    with api.client() as http:
        http.post("/v1/rerank", json={"model": "ranks", "query": "good", "documents": ["bad"]})
    assert api.call(api.storage.journal.counts()) == before


def test_documents_come_in_the_order_of_their_relevance(api):
    body = {"model": "ranks", "query": "Paris", "documents": ["bad", "good", {"text": "good good"}, "and"]}
    with api.client() as http:
        found = http.post("/v1/rerank", json=body).raise_for_status().json()
        few = http.post("/v1/rerank", json={**body, "top_n": 1, "return_documents": True}).json()
    assert [one["index"] for one in found["results"]] == [2, 1, 3, 0]
    assert found["results"][0]["relevance_score"] == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-6)
    assert few["results"][0]["document"] == {"text": "good good"}
    assert len(few["results"]) == 1


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["good", ""]}, "documents[1]"),
        ({"documents": [{"title": "good"}]}, "documents[0]"),
        ({"documents": ["good", "good " * 100]}, "documents[1]"),
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"model": "plain"}, "model"),
        ({"rank": 1}, "rank"),
    ],
)
def test_what_is_wrong_with_a_rank_is_named(api, changes, param):
    body = {"model": "ranks", "query": "good", "documents": ["good"], **changes}
    with api.client() as http:
        answer = http.post("/v1/rerank", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param, answer.json()


def classified(api, **body):
    with api.client() as http:
        return http.post("/v1/classify", json={"model": "labels", "input": "good", **body})


def test_a_classifier_chooses_one_of_its_own_labels(api):
    found = classified(api).raise_for_status().json()
    assert found["label"] == "positive"
    assert [one["label"] for one in found["labels"]] == plain.LABELS
    assert found["probability"] == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-5)
    assert found["mass"] == pytest.approx(1)
    assert found["outrider"]["decision"] == "answered"
    assert found["outrider"]["confidence"] == pytest.approx(1 - math.exp(-2), rel=1e-4)


def test_or_of_those_that_are_given(api):
    found = classified(api, labels=plain.LABELS[::-1]).json()
    assert [one["label"] for one in found["labels"]] == plain.LABELS[::-1]
    refused = classified(api, labels=["positive", "neutral"])
    assert refused.status_code == 400
    assert "does not know the label 'neutral'; its labels are negative, positive" in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "labels"


def test_an_unsure_label_is_no_sure_one(api):
    found = classified(api, input="good bad", outrider={"on_low_confidence": "abstain"}).json()
    assert found["outrider"]["decision"] == "uncertain"


def sigmoid(number):
    return 1 / (1 + math.exp(-number))


def test_labels_that_do_not_exclude_each_other_are_each_by_itself(api):
    found = classified(api, model="several", input="good good").raise_for_status().json()
    assert found["several"] is True
    assert (found["label"], found["chosen"]) == ("positive", ["positive"])
    of = {one["label"]: one["probability"] for one in found["labels"]}
    assert of == pytest.approx({"positive": sigmoid(2), "negative": sigmoid(-2)}, rel=1e-5)
    assert found["outrider"]["confidence"] == pytest.approx(sigmoid(2) ** 2, rel=1e-5)
    assert found["out_of_scope"] == pytest.approx(sigmoid(2) * sigmoid(-2), rel=1e-5)
    neither = classified(api, model="several", input="bad", labels=["positive", "negative"])
    assert [one["label"] for one in neither.json()["labels"]] == ["positive", "negative"]
    assert neither.json()["chosen"] == ["negative"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"labels": ["positive", "neutral"]}, "labels"),
        ({"outrider": {"route_mode": "cloud_only"}}, "outrider.route_mode"),
        ({"input": "good " * 100}, "input[0]"),
    ],
)
def test_what_is_wrong_with_several_labels_is_named(api, changes, param):
    answer = classified(api, model="several", **changes)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param, answer.json()


def tagged(api, **body):
    with api.client() as http:
        return http.post("/v1/tag", json={"model": "tags", **body})


def test_pieces_of_texts_have_labels(api):
    texts = ["Anna Berta and Paris", "good", "Paris"]
    found = tagged(api, input=texts).raise_for_status().json()
    assert [[(one["label"], one["text"]) for one in data["spans"]] for data in found["data"]] == [
        [("PER", "Anna Berta"), ("LOC", "Paris")], [], [("LOC", "Paris")],
    ]  # fmt: skip
    first = found["data"][0]["spans"][0]
    assert (first["start"], first["end"]) == (0, 10)
    assert 0.99 < first["score"] <= 1
    assert found["usage"]["prompt_tokens"] == 6 + 3 + 3
    only = tagged(api, input=texts[0], labels=["LOC"], min_score=0.5).json()
    assert [one["label"] for one in only["data"][0]["spans"]] == ["LOC"]
    assert tagged(api, input=texts[0], min_score=1).json()["data"][0]["spans"] == []


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": None}, "input"),
        ({"input": ["good", ""]}, "input[1]"),
        ({"input": [3]}, "input"),
        ({"input": ["good"] * 10_000}, "input"),
        ({"input": ["good", "good " * 100]}, "input[1]"),
        ({"labels": []}, "labels"),
        ({"labels": ["ORG"]}, "labels"),
        ({"labels": [1]}, "labels[0]"),
        ({"min_score": 2}, "min_score"),
        ({"query": "x"}, "query"),
        ({"model": "plain"}, "model"),
        ({"model": "small"}, "model"),
    ],
)
def test_what_is_wrong_with_tags_is_named(api, changes, param):
    answer = tagged(api, **{"input": "good", **changes})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param, answer.json()


def test_personal_data_is_tagged_without_any_model(api):
    text = "Write to anna@example.org or call +49 30 901820."
    found = tagged(api, model="pii", input=text).raise_for_status().json()
    spans = found["data"][0]["spans"]
    assert [(one["label"], one["text"]) for one in spans] == [("EMAIL", "anna@example.org"), ("PHONE", "+49 30 901820")]
    assert text[spans[1]["start"] : spans[1]["end"]] == "+49 30 901820"
    only = tagged(api, model="pii", input=text, labels=["PHONE"]).json()
    assert [one["label"] for one in only["data"][0]["spans"]] == ["PHONE"]
    refused = tagged(api, model="pii", input=text, labels=["NAME"])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "labels"


def test_models_do_what_they_were_made_for(api):
    with api.client() as http:
        chat = http.post(
            "/v1/chat/completions", json={"model": "plain", "messages": [{"role": "user", "content": "x"}]}
        )
        assert chat.status_code == 400
        assert chat.json()["error"]["message"] == "model plain is made to embed, not to chat or complete"
        assert classified(api, model="tags", labels=["O", "B-PER"]).status_code == 400
        shown = {one["id"]: one["outrider"] for one in http.get("/v1/models").json()["data"]}
    assert shown["plain"]["capabilities"]["embeddings"]
    assert not shown["plain"]["capabilities"]["chat"]
    assert shown["plain"]["encoder"] == {
        "task": "embed", "width": 4, "labels": [], "several": False, "most_tokens": 64, "dimensions": [],
    }  # fmt: skip
    assert shown["plain"]["device"]["used"]["provider"] == "CPUExecutionProvider"
    assert shown["plain"]["device"]["used"]["reason"] == "the reference that other devices are measured by"
    line = 'outrider_worker_device{model="plain",kind="cpu",provider="CPUExecutionProvider"} 1'
    assert line in api.get("/metrics").text
    assert shown["ranks"]["capabilities"]["rerank"]
    assert shown["labels"]["capabilities"]["classify"]
    assert shown["small"]["encoder"] is None
