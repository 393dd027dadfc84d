"""A text that is of a forbidden kind: refused before anything is made of it, or held before it leaves."""

import time
from array import array

import pytest
from fakes.api_server import served, target_at
from fakes.cloud import cloud_in_thread

from agent.confidence.heads import Feature, Head, Layer
from agent.moderation import MOST_PIECES, PIECE_CHARACTERS
from agent.tasks import TaskSpec
from agent.text_settings import ModerationAction, ModerationSettings

LABELS = ("fine", "insult", "threat")


def taught(api):
    """Put in a task and a head: the words "idiot" and "knife" weigh more than all others."""
    spec = TaskSpec(name="gate", labels=dict.fromkeys(LABELS, ""))
    api.tasks.book.folder.put(spec)
    idiot, knife = api.call(api.engine.embed(api.engine.embeds, ["idiot", "knife"])).vectors
    rows = [[0.0] * len(idiot), [40 * one for one in idiot], [40 * one for one in knife]]
    weights = array("f", [number for row in rows for number in row]).tobytes()
    head = Head(
        task="gate", task_digest=spec.digest, labels=LABELS, feature=Feature.EMBEDDING, encoder=api.engine.embeds,
        encoder_digest=api.engine.encoder_digest, embedding=Layer(weights=weights, bias=(6.0, 0.0, 0.0)),
    )  # fmt: skip
    api.call(api.tasks.teach(head))
    return api


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    with served(tmp_path_factory.mktemp("m") / "data", moderation=ModerationSettings(task="gate")) as api:
        yield taught(api)


@pytest.fixture(scope="module")
def holding(tmp_path_factory):
    """What is not sure would go to the target at once."""
    settings = ModerationSettings(task="gate", action=ModerationAction.HOLD)
    with (
        cloud_in_thread() as cloud,
        served(tmp_path_factory.mktemp("m") / "data", targets=(target_at(cloud.base_url),), moderation=settings) as api,
    ):
        api.cloud = cloud
        yield taught(api)


def ask(api, *texts, path="/v1/chat/completions", **fields):
    messages = [{"role": "user", "content": text} for text in texts]
    with api.client() as client:
        return client.post(path, json={"model": "small", "messages": messages, **fields})


def test_a_forbidden_text_is_refused_and_nothing_of_it_is_kept(strict):
    before = strict.call(strict.storage.journal.counts())
    asked = len(strict.engine.asked)
    for answer in (
        ask(strict, "you idiot"),
        ask(strict, "you idiot", stream=True),
        ask(strict, "you idiot", "and now?"),
        ask(strict, "hello " * 300 + "idiot"),
    ):
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("content_filter", "messages")
        assert "refused by the task gate: insult" in error["message"]
    with strict.client() as client:
        completion = client.post("/v1/completions", json={"model": "small", "prompt": "the knife"})
    assert "gate: threat" in completion.json()["error"]["message"]
    assert strict.call(strict.storage.journal.counts()) == before
    assert len(strict.engine.asked) == asked
    assert 'outrider_moderated_total{label="insult",outcome="refused"} 4' in strict.get("/metrics").text


def test_other_texts_pass_and_so_does_what_is_to_be_sorted(strict):
    assert strict.chat("hello there").status_code == 200
    sorted_one = ask(strict, "you idiot", path="/v1/classify", labels=["calm", "angry"])
    assert sorted_one.status_code == 200


@pytest.mark.parametrize("prompt", [[1, 2, 3], "word " * (MOST_PIECES * PIECE_CHARACTERS // 5 + 200)])
def test_what_nobody_can_read_does_not_pass(strict, prompt):
    with strict.client() as client:
        answer = client.post("/v1/completions", json={"model": "small", "prompt": prompt})
    assert answer.status_code == 400
    assert "unread (100%)" in answer.json()["error"]["message"]


def test_what_is_held_is_answered_here_and_leaves_only_when_somebody_looked(holding):
    answer = ask(holding, "unsure idiot").json()
    assert answer["choices"][0]["message"]["content"].startswith("echo:")
    (row,) = holding.get("/v1/queue").json()["data"]
    assert (row["state"], row["egress"]) == ("awaiting_approval", "approve")
    ask(holding, "unsure but polite")
    until = time.monotonic() + 20
    while len(holding.cloud.chats) < 1 and time.monotonic() < until:
        time.sleep(0.02)
    assert len(holding.cloud.chats) == 1
    assert b"polite" in holding.cloud.chats[0].body


def test_while_it_cannot_judge_nothing_is_answered(strict):
    strict.engine.encoder_digest = "f" * 64
    try:
        answer = strict.chat("hello there")
    finally:
        strict.engine.encoder_digest = "e" * 64
    assert answer.status_code == 503
    assert "task gate: it was taught with another model" in answer.json()["error"]["message"]
    path = strict.tasks.book.folder.path / "gate.toml"
    text = path.read_text()
    path.unlink()
    try:
        assert "there is no task 'gate'" in strict.chat("hello there").json()["error"]["message"]
        path.write_text(text.replace("fine", "good"))
        assert "task gate was not taught" in strict.chat("hello there").json()["error"]["message"]
    finally:
        path.write_text(text)
