"""A model that answers tasks is replaced: what they promise is calibrated with the new one first, or nothing changes."""

import json
import os
import random
from types import SimpleNamespace

import msgspec
import pytest
from fakes.api_server import ADMIN, USER, Card, ScriptedEngine, served
from fakes.command_line import as_json, outrider

from agent import executable
from agent.label_likeness import ENCODER

LABELS = ("card", "hours", "refund")
OLD, NEW = "small", "newer"
DIGESTS = {OLD: "d" * 64, NEW: "f" * 64}


class TwoModels(ScriptedEngine):
    """Both find the label that a text contains; the new one errs in every ``errs_in``-th text."""

    def __init__(self):
        super().__init__()
        self.errs_in = 0

    def status(self):
        found = super().status()
        return found | {name: msgspec.structs.replace(found[OLD], model_digest=d) for name, d in DIGESTS.items()}

    async def make_ready(self, name):
        assert name in DIGESTS

    def retire(self, name):
        assert name in DIGESTS

    async def score(self, request, labels, *, messages=None, hidden=False):
        found = await super().score(request, labels, messages=messages)
        figures = list(found.logprobs)
        number = request.messages[-1].content.rpartition(" ")[2]
        if request.model == NEW and self.errs_in and number.isdigit() and int(number) % self.errs_in == 0:
            figures = figures[1:] + figures[:1]  # sure of another label
        digest = DIGESTS[request.model]
        return msgspec.structs.replace(found, logprobs=tuple(figures), model=request.model, model_digest=digest)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("promoted")
    with served(folder / "data", engine=TwoModels(), models=(Card(OLD), Card(NEW, sha256=DIGESTS[NEW]))) as server:
        address = {"pid": os.getpid(), "started": executable.started(os.getpid()), "url": server.url}
        (folder / "data" / "daemon.json").write_text(json.dumps(address))
        for name, token in (("token", USER), ("admin-token", ADMIN)):
            (folder / "data" / name).write_text(token)
        config = folder / "outrider.toml"
        config.write_text(f'data_dir = "{folder / "data"}"\n\n[engine]\nmodel = "{OLD}"\n')
        server.user, server.folder = SimpleNamespace(config=config), folder
        yield server


@pytest.fixture
def api(server):
    labels = [part for label in LABELS for part in ("--label", label)]
    outrider(server.user, "tasks", "new", "mail", *labels, "--accuracy", "0.9")
    yield server
    server.engine.errs_in, server.engine.embeds = 0, ENCODER
    server.post("/v1/aliases/promote", {"model": OLD, "force": True})
    for path in (server.folder / "tasks").glob("*"):
        path.unlink()
        server.call(server.tasks.forget(path.stem))


def written(api, seed, count=150):
    chance = random.Random(seed)
    rows = []
    for number in range(1, count + 1):
        label = chance.choice(LABELS)
        rows.append(json.dumps({"input": f"a {label} please {seed} {number}", "label": label}))
    path = api.folder / f"{seed}.jsonl"
    path.write_text("\n".join(rows))
    return str(path)


def answer(api, text="a card please"):
    with api.client() as client:
        found = client.post("/v1/classify", json={"task": "mail", "input": text}).json()
    return found["model"], found["outrider"]["guarantee"]


PROMISE = "accuracy 0.9 (pac 0.9)"


def test_a_promotion_calibrates_first_and_a_rollback_promises_again(api):
    api.engine.embeds = ""  # what the language model errs in, an encoder would mend
    as_json(api.user, "calibrate", "mail", written(api, 1))
    assert answer(api) == (OLD, PROMISE)
    api.engine.errs_in = 30
    told = as_json(api.user, "models", "promote", NEW, "--dry-run")["tasks"]
    assert answer(api) == (OLD, PROMISE)
    assert [(one["task"], one["promise"], one["before"]) for one in told] == [("mail", PROMISE, 1.0)]
    assert "at least 90.0% are right" in told[0]["after_sentence"]
    assert as_json(api.user, "models", "promote", NEW)["tasks"] == told
    assert answer(api) == (NEW, PROMISE)
    stored = api.get("/v1/tasks/mail").json()["calibration"]
    assert stored["key"]["model_digest"] == DIGESTS[NEW]
    assert stored["report"]["errors"] > 0  # it was really asked
    change = as_json(api.user, "models", "rollback")
    assert (change["renewed"], change["ended"]) == (["mail"], [])
    assert answer(api) == (OLD, PROMISE)


def test_a_promotion_that_would_end_a_promise_is_refused_unless_forced(api):
    api.engine.embeds = ""  # what the language model errs in, an encoder would mend
    as_json(api.user, "calibrate", "mail", written(api, 2))
    api.engine.errs_in = 2
    refused = outrider(api.user, "models", "promote", NEW, code=65)
    assert "nothing was changed" in refused.stderr
    assert "mail (accuracy 0.9 (pac 0.9))" in refused.stderr
    assert answer(api) == (OLD, PROMISE)
    unaware = api.post("/v1/aliases/promote", {"model": NEW})  # whoever asks the daemon itself
    assert (unaware.status_code, unaware.json()["error"]["code"]) == (422, "not_certified")
    assert answer(api) == (OLD, PROMISE)
    assert as_json(api.user, "models", "promote", NEW, "--force")["before"] == OLD
    model, guarantee = answer(api)
    assert (model, guarantee) in {(NEW, "none"), (NEW, f"{PROMISE}: nothing is served")}


def test_a_head_of_label_scores_is_taught_anew(api):
    outrider(api.user, "tasks", "teach", "mail", written(api, 3, 60), "--features", "scores")
    as_json(api.user, "calibrate", "mail", written(api, 4))
    before = api.get("/v1/tasks/mail").json()
    assert before["head"]["feature"] == "scores"
    assert answer(api) == (OLD, PROMISE)
    api.engine.errs_in = 40
    as_json(api.user, "models", "promote", NEW)
    after = api.get("/v1/tasks/mail").json()
    assert after["head"]["id"] != before["head"]["id"]
    assert answer(api) == (NEW, PROMISE)


def test_examples_are_kept_only_where_another_model_would_need_them(api):
    assert api.get("/v1/tasks/mail/examples").status_code == 403
    outrider(api.user, "tasks", "teach", "mail", written(api, 5, 60), "--features", "embedding")
    as_json(api.user, "calibrate", "mail", written(api, 6))
    with api.client(ADMIN) as client:
        kept = client.get("/v1/tasks/mail/examples").json()
    assert (kept["teach"], kept["calibrate"]) == ([], [])
    assert as_json(api.user, "models", "promote", NEW)["tasks"] == []  # the encoder answers, as before
    assert answer(api)[1] == PROMISE


def test_without_kept_examples_a_promotion_is_refused(api):
    as_json(api.user, "calibrate", "mail", written(api, 7), "--no-keep-examples")
    refused = outrider(api.user, "models", "promote", NEW, code=65)
    assert "its examples are not kept" in refused.stderr
    assert answer(api) == (OLD, PROMISE)


def test_a_calibration_with_another_model_is_not_taken(api):
    as_json(api.user, "calibrate", "mail", written(api, 8))
    stored = api.call(calibration_of(api))
    told = api.post("/v1/aliases/promote", {"model": NEW, "tasks": [{"calibration": msgspec.to_builtins(stored)}]})
    assert told.status_code == 409
    assert "was not made with newer" in told.json()["error"]["message"]
    assert answer(api) == (OLD, PROMISE)


async def calibration_of(api):
    return api.tasks.book.calibration("mail")


def test_without_a_daemon_tasks_are_not_forgotten(tmp_path):
    config = tmp_path / "outrider.toml"
    config.write_text(f'data_dir = "{tmp_path / "data"}"\n')
    user = SimpleNamespace(config=config)
    outrider(user, "tasks", "new", "mail", "--label", "a", "--label", "b")
    outrider(user, "tasks", "new", "other", "--label", "a", "--label", "b", "--model", "smollm2-135m-instruct")
    encoder = outrider(user, "models", "promote", "minilm-l6-v2-int8", code=2)
    assert "writes no text" in encoder.stderr
    config.write_text(config.read_text() + '[engine]\nmodel = "qwen3-0.6b"\n')
    candidate = "smollm2-135m-instruct"
    refused = outrider(user, "models", "promote", candidate, code=2)
    assert "the tasks mail answer by default" in refused.stderr
    assert as_json(user, "models", "promote", candidate, "--force")["model"] == candidate
