"""A task goes with its model to another device: what it was taught and what it promises, never its examples."""

import json
import os
from types import SimpleNamespace

import pytest
from fakes.api_server import ADMIN, MODEL, USER, Card, ScriptedEngine, served
from fakes.bundles import add
from fakes.command_line import as_json, outrider
from fakes.gguf import gguf

from agent import executable
from agent.cli import bundled_tasks
from agent.errors import InvalidRequest
from agent.models.store import open_store
from agent.tasks import TaskKind, TaskSpec
from agent.types import ModelFormat

LABELS = ("card", "hours", "refund")


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundled")
    with device(folder / "one") as one, device(folder / "two") as two:
        yield one, two


class device:
    """A served API with the files that let the command line find it."""

    def __init__(self, folder):
        self._folder = folder
        self._serving = served(folder / "data", engine=ScriptedEngine(), models=(Card(MODEL),))

    def __enter__(self):
        folder = self._folder
        server = self._serving.__enter__()
        address = {"pid": os.getpid(), "started": executable.started(os.getpid()), "url": server.url}
        (folder / "data" / "daemon.json").write_text(json.dumps(address))
        for name, token in (("token", USER), ("admin-token", ADMIN)):
            (folder / "data" / name).write_text(token)
        config = folder / "outrider.toml"
        config.write_text(f'data_dir = "{folder / "data"}"\n\n[engine]\nmodel = "{MODEL}"\n')
        server.user, server.folder = SimpleNamespace(config=config), folder
        return server

    def __exit__(self, *error):
        return self._serving.__exit__(*error)


def answer(api):
    with api.client() as client:
        return client.post("/v1/classify", json={"task": "mail", "input": "a card please"}).json()["outrider"]


def test_a_certified_task_goes_along_without_its_examples(devices, tmp_path):
    one, two = devices
    add(open_store(one.folder / "data"), "weights", ModelFormat.GGUF, w_gguf=gguf())
    words = [part for label in LABELS for part in ("--label", label)]
    outrider(one.user, "tasks", "new", "mail", *words, "--accuracy", "0.9")
    rows = [{"input": f"a {label} please, secret words {n}", "label": label} for n in range(50) for label in LABELS]
    examples = tmp_path / "examples.jsonl"
    examples.write_text("\n".join(map(json.dumps, rows)))
    as_json(one.user, "calibrate", "mail", str(examples))
    file = tmp_path / "m.outrider"
    key = as_json(one.user, "bundle", "export", "weights", str(file), "--task", "mail")["key"]
    assert b"secret words" not in file.read_bytes()
    outrider(one.user, "bundle", "export", "weights", str(tmp_path / "x"), "--task", "nothing", code=2)

    bare = as_json(two.user, "bundle", "import", str(file), "--trust", key)
    assert bare["tasks"] == []
    assert bare["left"][0].startswith("calibrations/")
    taken = as_json(two.user, "bundle", "import", str(file), "--tasks")
    assert (taken["tasks"], taken["left"]) == (["mail"], [])
    there, here = answer(two), answer(one)
    assert there["guarantee"] == here["guarantee"] == "accuracy 0.9 (pac 0.9)"
    assert (
        two.get("/v1/tasks/mail").json()["calibration"]["id"] == one.get("/v1/tasks/mail").json()["calibration"]["id"]
    )
    refused = outrider(two.user, "bundle", "import", str(file), "--tasks", code=2)
    assert "task mail is taught or calibrated here" in refused.stderr
    as_json(two.user, "bundle", "import", str(file), "--tasks", "--force")
    outrider(two.user, "tasks", "rm", "mail", "--yes")
    outrider(two.user, "tasks", "new", "mail", "--label", "a", "--label", "b")
    refused = outrider(two.user, "bundle", "import", str(file), "--tasks", code=2)
    assert "another task mail is here" in refused.stderr
    assert len(two.get("/v1/tasks/mail").json()["labels"]) == 2


def test_a_task_that_keeps_texts_of_users_is_not_carried():
    spec = TaskSpec(name="letters", kind=TaskKind.TEXT)
    told = {"digest": spec.digest, "appraiser": {"id": "x"}, "head": None, "calibration": None}
    with pytest.raises(InvalidRequest, match="texts of users"):
        bundled_tasks._one(SimpleNamespace(get=lambda path: told), spec)
