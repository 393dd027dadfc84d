"""``outrider evaluate`` against a real daemon's API and a cloud on loopback."""

import json
from decimal import Decimal
from xml.etree import ElementTree as ET

import msgspec
import pytest
from click.testing import CliRunner
from fakes.api_server import USER, served, target_at
from fakes.cloud import cloud_in_thread, ok

from agent.cli.evaluate import GATE_FAILED, evaluate
from agent.cli.invocation import Invocation
from agent.configuration import LoadedSettings
from agent.settings import Settings
from agent.tasks import TaskSpec
from agent.types import EgressPolicy

MAIL = TaskSpec(name="mail", labels={"refund": "", "hours": ""})


class Here(Invocation):
    """What the global options would give."""

    def __init__(self, folder, targets):
        self.loaded = LoadedSettings(
            Settings(data_dir=str(folder / "data"), targets=targets), {}, folder / "outrider.toml"
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    with cloud_in_thread() as cloud:
        cloud.default = ok("refund")
        target = msgspec.structs.replace(target_at(cloud.base_url), input_price=Decimal(3), output_price=Decimal(15))
        with served(folder / "data", targets=(target,)) as api:
            api.tasks.book.folder.put(MAIL)
            api.cloud, api.folder = cloud, folder
            api.here = Here(folder, (target,))
            yield api


@pytest.fixture
def run(place, monkeypatch):
    from agent.cli import client as client_module

    class Client:
        def __init__(self, settings):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def get(self, path, **query):
            return self._json(place.get(path))

        def post(self, path, body, timeout_s=30, **_):
            return self._json(place.post(path, {k: v for k, v in body.items() if v is not None}, token=USER))

        @staticmethod
        def _json(response):
            if response.status_code >= 400:
                client_module._raise_for(response)
            return response.json()

    monkeypatch.setattr(client_module, "DaemonClient", Client)

    def go(rows, *options, here=None, said=None):
        path = place.folder / "data.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return CliRunner().invoke(
            evaluate, ["mail", str(path), *options], obj=here or place.here, input=said, standalone_mode=False
        )

    return go


def rows(count=12):
    kinds = [("a refund please", "refund"), ("your hours please", "hours"), ("unsure refunds of", "refund")]
    return [
        {"input": f"{text} {n}", "label": label, "tag": "hard" if n % 4 == 3 else "frequent"}
        for n in range(count)
        for text, label in [kinds[n % 3]]
    ]


def test_local_answers_gates_and_the_verdict(run, place):
    before = place.get("/v1/requests").json()["data"]
    found = run(rows(), "--gate", "accuracy>=0.99", "--json")
    assert found.return_value == 0, found.output
    told = json.loads(found.stdout)
    first = told["variants"][0]
    assert first["scores"]["accuracy"]["value"] == 1.0
    assert set(first["scores"]["by_tag"]) == {"hard", "frequent"}
    assert told["go"]
    assert place.get("/v1/requests").json()["data"] == before  # nothing of it is stored
    assert run(rows(), "--gate", "p95_ms<=0").return_value == GATE_FAILED


def test_the_cloud_is_asked_only_when_told_and_costs_what_it_counts(run, place):
    sent = len(place.cloud.chats)
    found = run(rows(), "--cloud", "--json", said="n\n")
    assert (found.return_value, len(place.cloud.chats)) == (1, sent)
    svg = place.folder / "picture.svg"
    found = run(rows(), "--cloud", "--yes", "--svg", str(svg), "--volume", "100")
    assert found.return_value == 0, found.output
    assert len(place.cloud.chats) == sent + 12
    for text in ("cloud-model cloud", "small hybrid", "GO: small hybrid", "monthly cost", "knee:"):
        assert text in found.output, found.output
    assert "$0.000066 a request ($0.000021 in, $0.000045 out)" in found.output
    ET.fromstring(svg.read_text())
    report = place.get("/v1/report").json()
    assert report["paid"]["dollars"] == str(Decimal("0.000066") * 12)
    assert report["total"]["outcomes"]["resolved"] == 0  # they are no traffic
    assert report["labels"] == []
    assert any("evaluations" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("target", "task", "says"),
    [(EgressPolicy.NEVER, None, "no target"), (EgressPolicy.ALLOW, EgressPolicy.NEVER, "may not leave"),
     (EgressPolicy.APPROVE, None, "wait for a person")],
)  # fmt: skip
def test_policy_comes_before_the_wish(run, place, target, task, says):
    put = msgspec.structs.replace(MAIL, egress=task)
    place.tasks.book.folder.put(put, replace=True)
    try:
        here = Here(place.folder, (target_at(place.cloud.base_url, target),))
        found = run(rows(), "--cloud", "--yes", here=here)
        assert says in str(found.exception)
    finally:
        place.tasks.book.folder.put(MAIL, replace=True)


def test_without_labels_or_answers_there_is_nothing_to_say(run):
    free = [{"input": row["input"]} for row in rows()]
    assert "nothing to compare with" in str(run(free).exception)
    answered = [{**row, "cloud": "refund"} for row in free]
    found = run(answered)
    assert "agreement" in found.output
    assert "NO-GO" in found.output


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--gate", "niceness>=1"], "known are"), (["--gate", "rare:accuracy>=1"], "known are frequent, hard"),
     (["--model", "nowhere"], "nowhere")],
)  # fmt: skip
def test_a_wrong_wish_is_named(run, options, says):
    assert says in str(run(rows(), *options).exception)
