"""The embedded encoder in its locked-in worker, through the daemon's own road and the openai client."""

import numpy as np
import openai
import pytest
from fakes.api_server import USER, Card, served

from agent.engine.supervisor import EnginePool
from agent.models.store import open_store
from agent.settings import EngineSettings

NAME = "minilm-l6-v2-int8"
TEXTS = ["A cat sits on the mat.", "A kitten is lying on a rug.", "Shares fell on Monday.", "Eine Katze."]
# From the F32 weights with sentence-transformers on torch: every 48th number of each vector.
EXACT = [
    [0.1265, 0.0541, -0.021, 0.0137, 0.0277, -0.1027, -0.0371, -0.0921],
    [0.0278, 0.0487, 0.0693, 0.0193, -0.0238, 0.0188, -0.0232, -0.1052],
    [0.0144, 0.0625, -0.0291, 0.1173, -0.1149, 0.099, -0.0594, -0.0435],
    [0.0031, -0.0311, 0.0443, -0.0115, -0.0669, -0.0121, -0.024, -0.0827],
]
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("store"))
    engine = EnginePool(EngineSettings(threads=1), store.resolve)
    with (
        served(tmp_path_factory.mktemp("data"), engine=engine, models=[Card(NAME, tasks=("embed",))]) as api,
        openai.OpenAI(base_url=f"{api.url}/v1", api_key=USER, max_retries=0) as client,
    ):
        yield client


def vectors(client, texts, **more):
    found = client.embeddings.create(model=NAME, input=texts, **more)
    return np.array([one.embedding for one in found.data])


def test_the_vectors_are_those_of_the_exact_weights(client):
    found = vectors(client, TEXTS)
    assert found.shape == (4, 384)
    assert found[:, ::48] == pytest.approx(np.array(EXACT), abs=0.01)


def test_what_is_alike_is_near(client):
    found = vectors(client, TEXTS)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    likeness = found @ found.T
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2]


def test_a_vector_does_not_depend_on_its_neighbours(client):
    alone = vectors(client, TEXTS[0], extra_body={"cache_salt": "alone"})
    beside = vectors(client, [*TEXTS, TEXTS[0] * 20], extra_body={"cache_salt": "beside"})
    assert (alone[0] * beside[0]).sum() == pytest.approx(1, abs=1e-4)


def test_half_of_the_numbers_still_tell_what_is_alike(client):
    found = vectors(client, TEXTS, dimensions=192)
    likeness = found @ found.T
    assert likeness[0, 1] > likeness[0, 2] + 0.3


def test_the_limit_of_the_model_is_told(client):
    with pytest.raises(openai.BadRequestError, match="the model reads 256"):
        vectors(client, "word " * 400)
    assert vectors(client, "word " * 400, extra_body={"truncate": True}).shape == (1, 384)
