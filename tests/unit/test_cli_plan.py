"""``outrider report --plan`` on the command line: exact amounts, and each missing or odd figure named."""

import json

import pytest
from click.testing import CliRunner

from agent.cli.main import cli

SUPPORT = ["--volume", "10000", "--tokens-in", "500", "--tokens-out", "500"]
PRICED = ["--price-in", "3", "--price-out", "15"]
CONFIG = '[[prices]]\nname = "big"\ninput = 3\noutput = 15\nas_of = 2026-11-01\n'


def plan(tmp_path, *options, config=""):
    path = tmp_path / "outrider.toml"
    path.write_text(config)
    return CliRunner().invoke(cli, ["--config", str(path), "report", "--plan", *options], standalone_mode=False)


def test_a_plan_reads_as_it_was_worked_out(tmp_path):
    hybrid = ["--local-share", "0.7", "--router-cost", "0.0002", "--local-price-in", "0.1", "--local-price-out", "0.3"]
    found = plan(tmp_path, *SUPPORT, *PRICED, *hybrid)
    for text in ("$0.009 a request", "$32,850.00 a year", "$730.00 a year", "$11,096.00 a year", "(66.2%)"):
        assert text in found.output
    told = json.loads(plan(tmp_path, *SUPPORT, *PRICED, *hybrid, "--json").output)
    assert [one["per_request"] for one in told["options"]] == ["0.009", "0.0002", "0.00304"]


def test_the_price_book_is_used_with_its_date(tmp_path):
    found = plan(tmp_path, *SUPPORT, "--price-of", "big", "--per-hour", "1", config=CONFIG)
    assert "(prices big, 2026-11-01)" in found.output
    assert "2,667 requests a day" in found.output
    assert "counted as free" not in found.output


def test_a_local_machine_that_nothing_was_said_of_is_told_to_be_free(tmp_path):
    found = plan(tmp_path, *SUPPORT, *PRICED, "--lifetime-months", "12")
    assert "Cheapest: local only" in found.output
    assert "the local machine is counted as free (--per-hour" in found.output


def test_no_price_is_unknown(tmp_path):
    found = plan(tmp_path, *SUPPORT, "--local-share", "0.5")
    assert found.output.count("unknown a request") == 2
    assert "Cheapest: unknown" in found.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (SUPPORT[:4], "--tokens-out"),
        ([*SUPPORT, "--price-in", "3"], "go together"),
        ([*SUPPORT, *PRICED, "--watts", "10"], "go together"),
        ([*SUPPORT, "--price-of", "cheap"], "known are big"),
        ([*SUPPORT, *PRICED, "--price-of", "big"], "both given"),
        ([*SUPPORT, *PRICED, "--local-share", "70"], "--local-share"),
        ([*SUPPORT[2:], "--volume", "nan"], "nan"),
        ([*SUPPORT[2:], "--volume", "0"], "--volume"),
    ],
)
def test_what_is_missing_or_odd_is_named(tmp_path, options, says):
    found = plan(tmp_path, *options, config=CONFIG)
    assert found.exception is not None
    assert says in str(found.exception) or says in getattr(found.exception, "message", "")


def test_an_option_of_a_plan_without_one_is_refused(tmp_path):
    path = tmp_path / "outrider.toml"
    path.write_text("")
    found = CliRunner().invoke(cli, ["--config", str(path), "report", "--volume", "5"], standalone_mode=False)
    assert "--volume needs --plan" in str(found.exception)
