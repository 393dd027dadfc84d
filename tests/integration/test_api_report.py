"""The report over HTTP: what a cloud counted is what the report says it was paid."""

from datetime import date
from decimal import Decimal

import msgspec
import pytest
from click.testing import CliRunner
from fakes.api_server import served, target_at
from fakes.cloud import cloud_in_thread

from agent.settings import ArmSettings, ExperimentSettings
from agent.types import RouteMode

EXPERIMENT = ExperimentSettings(
    name="routes",
    arms=(
        ArmSettings(name="local", route_mode=RouteMode.LOCAL_ONLY),
        ArmSettings(name="hybrid", route_mode=RouteMode.LOCAL_FIRST),
    ),
)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with cloud_in_thread() as cloud:
        target = msgspec.structs.replace(
            target_at(cloud.base_url), input_price=Decimal(3), output_price=Decimal(15), price_as_of=date(2026, 11, 1)
        )
        folder = tmp_path_factory.mktemp("report") / "data"
        with served(folder, targets=(target,), experiments=(EXPERIMENT,)) as api:
            api.cloud = cloud
            for number in range(12):
                user = f"user{number % 6}"
                api.chat("sure", user=user)
                answer = api.chat("unsure", user=user).json()["outrider"]
                if answer["decision"] == "queued":
                    api.settled(answer["request_id"])
            yield api


def test_the_report_is_what_the_cloud_counted(api):
    found = api.get("/v1/report").json()
    sends = len(api.cloud.chats)
    assert sends > 0
    assert found["paid"]["dollars"] == found["total"]["cost"]["dollars"]
    assert Decimal(found["paid"]["dollars"]) == sends * (7 * 3 + 3 * 15) / Decimal(1_000_000)
    assert found["prices"] == [
        {"target": "main", "price": "$3 in, $15 out per million tokens (target main, 2026-11-01)"}
    ]
    total = found["total"]
    assert (total["outcomes"]["served_locally"], total["outcomes"]["resolved"]) == (12, sends)
    assert {(one["model"], one["by"]) for one in total["handled"]} == {("small", "local"), ("cloud-model", "main")}
    assert {(one["kind"], one["by"]) for one in total["latency"]} == {("chat", "local"), ("chat", "main")}


def test_each_arm_has_its_own_figures(api):
    found = api.get("/v1/report?by=arm").json()
    arms = {one["name"]: one for one in found["groups"]}
    assert set(arms) == {"routes/hybrid", "routes/local"}
    local = arms["routes/local"]
    assert (local["sends"], local["outcomes"]["resolved"], local["cost"]["dollars"]) == (0, 0, "0")
    assert local["outcomes"]["uncertain"] * 2 == local["requests"]
    assert arms["routes/hybrid"]["outcomes"]["resolved"] == len(api.cloud.chats)
    assert [one["name"] for one in found["differences"]] == ["routes/local"]


def test_a_user_keeps_the_arm(api):
    lines = api.get("/v1/report/requests").json()["data"]
    arms = {line["arm"] for line in lines}
    with api.client() as client:
        body = {"model": "small", "messages": [{"role": "user", "content": "sure"}], "user": "user0"}
        again = [client.post("/v1/chat/completions", json=body).json()["outrider"]["request_id"] for _ in range(3)]
    lines = {line["id"]: line for line in api.get("/v1/report/requests?limit=1000").json()["data"]}
    assert len({lines[one]["arm"] for one in again} | arms) == len(arms) == 2


def test_a_line_says_who_answered_and_what_it_cost(api):
    lines = api.get("/v1/report/requests?limit=1000").json()["data"]
    late = [line for line in lines if line["answered_by"] == "main"]
    assert {line["model"] for line in late} == {"cloud-model"}
    assert {Decimal(line["cost_dollars"]) for line in late} == {Decimal("0.000066")}
    assert {Decimal(line["cost_dollars"]) for line in lines if line["answered_by"] == "local"} == {0}
    page = api.get("/v1/report/requests?limit=2").json()
    assert page["has_more"]
    rest = api.get(f"/v1/report/requests?limit=1000&after={page['data'][-1]['id']}").json()
    assert [*page["data"], *rest["data"]] == lines


@pytest.mark.parametrize("query", ["by=weather", "since_ms=5&until_ms=5", "since=1", "limit=3"])
def test_a_wrong_question_is_named(api, query):
    assert api.get(f"/v1/report?{query}").status_code == 400


def test_the_report_reads_well(api, monkeypatch, tmp_path):
    from agent.cli import client as client_module
    from agent.cli.invocation import Invocation
    from agent.cli.report import report

    class Client:
        def __init__(self, settings):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def get(self, path, **query):
            given = "&".join(f"{name}={value}" for name, value in query.items() if value is not None)
            return api.get(f"{path}?{given}").json()

    monkeypatch.setattr(client_module, "DaemonClient", Client)
    told = CliRunner().invoke(report, ["--by", "arm"], obj=Invocation(None, tmp_path))
    assert told.exit_code == 0, told.output
    for text in ("local share", "saving", "quality change", "routes/local beside routes/hybrid", "n="):
        assert text in told.output
