"""Rules over the API and on the command line: what decided is in every answer, and nothing is sent to find out."""

import json

import pytest
from click.testing import CliRunner
from fakes.api_server import served, target_at
from fakes.cloud import cloud_in_thread

from agent.cli.main import cli
from agent.egress_settings import BudgetSettings
from agent.rule_settings import RuleSettings
from agent.settings import RoutingSettings
from agent.types import RouteMode

CONFIG = """
[[targets]]
name = "near"
base_url = "https://near.test/v1"
model = "m"
egress = "allow"
input_price = 1
output_price = 2

[[targets]]
name = "cloud"
base_url = "https://cloud.test/v1"
model = "m"
egress = "approve"

[[routing.rules]]
name = "payroll"
keywords = ["salary"]
mode = "local_only"

[[routing.rules]]
name = "german"
language = ["de"]
mode = "cloud_first"
targets = ["cloud"]

[[routing.rules]]
name = "doubtful"
confidence_below = 0.8
targets = ["near", "cloud"]
"""
LINES = [
    {"text": "What is the salary of Bob?"},
    {"text": "Wo ist mein Paket, und wann kommt es bei mir an?"},
    {"text": "hello", "confidence": 0.7},
    {"text": "hello", "failure": "timeout"},
    {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 100},
]


@pytest.fixture
def outrider(tmp_path):
    path = tmp_path / "outrider.toml"
    path.write_text(CONFIG)

    def run(*arguments, config=None, code=0):
        if config is not None:
            path.write_text(config)
        result = CliRunner().invoke(cli, ["--config", str(path), *arguments], prog_name="outrider")
        assert result.exit_code == code, result.stdout + result.stderr
        return result

    return run


def test_a_file_of_requests_is_tried_without_a_daemon(outrider, tmp_path):
    lines = tmp_path / "requests.jsonl"
    lines.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    found = json.loads(outrider("routes", "test", str(lines), "--json").stdout)
    told = [(one["rule"], one["mode"], one["target"], list(one["ends"].values())) for one in found["data"]]
    assert told == [
        ("payroll", "local_only", "near", ["answered", "served as uncertain"]),
        ("german", "cloud_first", "cloud", ["queued, waits for a person"]),
        ("doubtful", "local_first", "near", ["queued, sent at once"]),
        (None, "local_first", "near", ["refused with its error"]),
        ("doubtful", "local_first", "near", ["answered", "queued, sent at once"]),
    ]
    assert found["data"][4]["dollars_most"] == "0.000202"  # 2 tokens of 1 dollar a million, 100 of 2
    assert found["totals"]["unpriced"] == 1
    assert "from $0.000514 to $0.000716, 1 of unknown price" in outrider("routes", "test", str(lines)).stderr


@pytest.mark.parametrize("failure", ["strange", ["timeout"], 1])
def test_a_failure_that_there_is_not_is_named(outrider, tmp_path, failure):
    lines = tmp_path / "requests.jsonl"
    lines.write_text(json.dumps({"text": "hello", "failure": failure}))
    assert "failure one of crash, quarantined" in outrider("routes", "test", str(lines), code=2).stderr


def test_every_path_ends_and_a_rule_that_cannot_hold_is_named(outrider):
    told = outrider("routes", "check", "--paths")
    assert "every one ends" in told.stdout
    assert "note: rule german: whoever writes the text decides" in told.stderr
    wrong = outrider("routes", "check", config=CONFIG.replace('targets = ["cloud"]', 'targets = ["gone"]'), code=78)
    assert "WRONG: rule german: there is no target gone" in wrong.stderr
    refused = outrider("routes", "check", config=CONFIG + 'regex = "(a)\\\\1"\n', code=78)
    assert "rule doubtful: regex: a reference back" in refused.stderr


def test_what_decided_is_in_every_answer(tmp_path):
    rules = (
        RuleSettings(name="stays", keywords=("secret",), mode=RouteMode.LOCAL_ONLY),
        RuleSettings(name="doubtful", confidence_below=0.9, then="answer", task=(), keywords=("fine",)),
    )
    with cloud_in_thread() as cloud:
        options = {"targets": (target_at(cloud.base_url),), "routing": RoutingSettings(rules=rules)}
        with served(tmp_path / "data", **options) as api:
            kept = api.chat("unsure secret").json()["outrider"]
            assert (kept["decision"], kept["reason"]) == ("uncertain", "local_only")
            assert "rule stays holds before the local model" in kept["trace"]
            fine = api.chat("unsure fine").json()["outrider"]
            assert (fine["decision"], fine["rule"]) == ("answered", "doubtful")
            plain = api.chat("unsure").json()["outrider"]
            assert (plain["decision"], plain["rule"]) == ("queued", "threshold")


def test_a_budget_that_is_used_up_is_told(tmp_path):
    budgets = (BudgetSettings(name="closed", tokens_per_day=0),)
    with served(tmp_path / "data", budgets=budgets) as api:
        assert "budget closed is used up: 0 of 0 tokens of the day" in api.get("/readyz").json()["problems"]
        (standing,) = api.get("/v1/budget").json()["data"]
        assert (standing["budget"], standing["used_up"], standing["spent"]) == ("closed", True, "0")
