"""A taught task on a real worker process: vectors for teaching and for answering are the same ones."""

import base64
from array import array

import msgspec
import pytest
from fakes import plain_encoders as plain
from fakes.api_server import ADMIN, Card, served

from agent.confidence.fit_order import Order
from agent.confidence.fitting import fit
from agent.confidence.heads import Head
from agent.engine.supervisor import EnginePool
from agent.errors import ModelNotFound
from agent.label_likeness import ENCODER
from agent.settings import EngineSettings

GOOD, BAD = ["good", "good good", "the good", "a good"], ["bad", "bad bad", "the bad", "a bad"]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    plain.embedder(folder)

    def resolve(name):
        if name != ENCODER:
            raise ModelNotFound(f"model {name} is not installed")
        return plain.model_file(folder, name, context_tokens=64)

    engine = EnginePool(EngineSettings(threads=1), resolve)
    with served(tmp_path_factory.mktemp("data"), engine=engine, models=[Card(ENCODER, tasks=("embed",))]) as api:
        yield api


def test_vectors_teach_and_answer_without_any_language_model(api):
    with api.client(ADMIN) as client:
        spec = client.post("/v1/tasks", json={"name": "mood", "labels": {"good": "", "bad": ""}}).json()
        asked = {"signal": "embedding", "inputs": GOOD + BAD}
        told = client.post("/v1/tasks/mood/signals", json=asked).json()
        raw = base64.b64decode(told["vectors"])
        assert len(array("f", raw)) == 8 * told["dimensions"]
        fitted = fit(Order(labels=2, answers=(1,) * 4 + (0,) * 4, embedding=raw))
        head = Head(
            task="mood", task_digest=spec["digest"], labels=("bad", "good"), feature=fitted.feature,
            embedding=fitted.embedding, temperature=fitted.temperature, encoder=told["model"],
            encoder_digest=told["model_digest"],
        )  # fmt: skip
        assert client.put("/v1/tasks/mood/head", json=msgspec.to_builtins(head)).status_code == 200
    with api.client() as client:
        found = [client.post("/v1/classify", json={"task": "mood", "input": text}).json() for text in ("good", "a bad")]
    assert [one["label"] for one in found] == ["good", "bad"]
    assert {one["model"] for one in found} == {ENCODER}
    assert found[0]["labels"][0]["logprob"] is None


def test_what_an_encoder_cannot_do_is_said(api):
    with api.client(ADMIN) as client:
        client.post("/v1/tasks", json={"name": "other", "labels": {"good": "", "bad": ""}})
        asked = {"signal": "scores", "inputs": ["good"]}
        assert client.post("/v1/tasks/other/signals", json=asked).json()["error"]["code"] == "model_not_found"
        for body, param in (
            ({"signal": "embedding", "inputs": [""]}, "inputs"),
            ({"signal": "embedding", "inputs": ["x"] * 257}, "inputs"),
            ({"inputs": ["x"]}, "signal"),
            ({"signal": "smell", "inputs": ["x"]}, "signal"),
            ({"signal": "embedding", "inputs": ["x"], "more": 1}, "more"),
        ):
            assert client.post("/v1/tasks/other/signals", json=body).json()["error"]["param"] == param
