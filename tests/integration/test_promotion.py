"""What ``default`` stands for changes while requests run, and none of them fails."""

import asyncio
import hashlib
import threading
import time

import pytest
from fakes import fake_worker
from fakes.command_line import as_json, outrider
from fakes.daemon_process import DaemonProcess
from fakes.gguf import gguf

from agent.engine.supervisor import EnginePool, Patience
from agent.errors import EngineFailed, InvalidRequest, WrongState
from agent.models.aliases import Aliases
from agent.models.artifact import StoredFile, StoredModel
from agent.models.store import open_store
from agent.settings import EngineSettings
from agent.types import Generation, InferenceRequest, Message, ModelFile, ModelFormat

DEMO = "smollm2-135m-instruct"


def put_candidate(daemon):
    data = gguf()
    file = StoredFile(name="c.gguf", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    path = daemon.folder / "c.gguf"
    path.write_bytes(data)
    model = StoredModel(
        name="candidate",
        title="Candidate",
        format=ModelFormat.GGUF,
        files=(file,),
        licence="MIT",
        source="file",
        context_tokens=1024,
    )
    open_store(daemon.data).add(model, {file.name: path})


def ask(client, model="default", text="hello"):
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return client.post("/v1/chat/completions", json=body)


def test_a_promotion_under_load_fails_no_request(tmp_path):
    daemon = DaemonProcess(tmp_path / "device")
    put_candidate(daemon)
    daemon.start()
    answers, stop = [], threading.Event()

    def load(text):
        with daemon.client() as client:
            while not stop.is_set():
                answers.append(ask(client, text=text))

    threads = [threading.Thread(target=load, args=(text,)) for text in ("hello", "slow", "hello again")]
    for thread in threads:
        thread.start()
    try:
        changes = [
            as_json(daemon, "models", *words)
            for words in (("promote", "candidate", "--as", "default"), ("rollback",), ("promote", "candidate"))
        ]
        seen = len(answers)
        until = time.monotonic() + 30
        while len(answers) < seen + 6 and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [(change["before"], change["model"]) for change in changes] == [
        (DEMO, "candidate"),
        ("candidate", DEMO),
        (DEMO, "candidate"),
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["model"] for answer in answers} == {DEMO, "candidate"}
    with daemon.client() as client:
        assert ask(client).json()["model"] == "candidate"
        assert ask(client, DEMO).json()["model"] == DEMO  # who names a model gets that one
        names = {one["name"]: one["model"] for one in client.get("/v1/aliases").json()["data"]}
        assert names == {"default": "candidate"}
        assert client.get("/readyz").json()["ready"]
        assert client.post("/v1/aliases/promote", json={"model": DEMO}).status_code == 403
    outrider(daemon, "models", "promote", "nothing", code=2)
    assert daemon.stop() == 0
    daemon.start()
    with daemon.client() as client:
        assert ask(client).json()["model"] == "candidate"
    assert daemon.stop() == 0
    assert as_json(daemon, "models", "rollback")["model"] == DEMO


async def generate(pool, model):
    request = InferenceRequest(id="r", model=model, messages=(Message("user", "slow"),), received_at_ms=0)
    async for event in pool.generate(request):
        if isinstance(event, Generation):
            return event
    return None


async def test_a_retired_worker_ends_what_it_has_and_leaves():
    def resolve(name):
        return ModelFile(name=name, path="/none", sha256=name * 64, context_tokens=2048)

    pool = EnginePool(
        EngineSettings(), resolve, worker_command=fake_worker.COMMAND, patience=Patience(linger_s=0, leave_s=5)
    )
    try:
        await pool.make_ready("a")
        answer = asyncio.create_task(generate(pool, "a"))
        while not pool.status()["a"].active:
            await asyncio.sleep(0.005)
        pool.retire("a")
        assert (await answer).failure is None
        while "a" in pool.status():
            await asyncio.sleep(0.005)
        assert (await generate(pool, "a")).failure is None
    finally:
        await pool.stop(0)


async def test_a_candidate_that_cannot_be_loaded_is_refused():
    def resolve(name):
        return ModelFile(name=name, path="/none", sha256=name * 64, context_tokens=2048)

    pool = EnginePool(
        EngineSettings(),
        resolve,
        worker_command=[*fake_worker.COMMAND, "--fail-load"],
        patience=Patience(backoff_base_s=0.01),
    )
    with pytest.raises(EngineFailed, match="cannot be loaded"):
        await pool.make_ready("b")
    assert "b" not in pool.status()
    await pool.stop(0)


def test_aliases_remember_what_they_stood_for(tmp_path):
    aliases = Aliases(tmp_path / "models", "a")
    assert aliases.target("default") == "a"
    assert aliases.target("b") == "b"
    with pytest.raises(WrongState, match="nothing is known"):
        aliases.roll_back("default")
    assert [aliases.promote("default", model) for model in ("b", "c", "c")] == ["a", "b", "c"]
    assert aliases.promote("fast", "a") is None
    assert aliases.all() == {"default": "c", "fast": "a"}
    assert [aliases.roll_back("default") for _ in range(2)] == ["c", "b"]
    assert aliases.target("default") == "a"
    with pytest.raises(InvalidRequest, match="is no name"):
        aliases.promote("../x", "a")


def test_a_model_that_the_daemon_has_loaded_is_removed_by_force_only(tmp_path):
    daemon = DaemonProcess(tmp_path / "device")
    put_candidate(daemon)
    daemon.start()
    with daemon.client() as client:
        assert ask(client, model="candidate").status_code == 200
        refused = outrider(daemon, "models", "rm", "candidate", code=WrongState.exit_code)
        assert "the running daemon has it loaded" in refused.stderr
        assert outrider(daemon, "models", "gc", "--all").stdout.startswith("0 B")
        outrider(daemon, "models", "rm", "candidate", "--force")
        assert ask(client).status_code == 200
        assert ask(client, model="candidate").status_code == 404
    assert daemon.stop() == 0, daemon.log()
