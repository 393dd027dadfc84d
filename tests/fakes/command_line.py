"""The command line in the test's own process, as a user of one daemon."""

import json

from click.testing import CliRunner

from agent.cli.main import cli

TARGET = """
[[targets]]
name = "main"
base_url = "{url}"
model = "big"
egress = "{egress}"

[connectivity]
probe_cap_s = 1
"""


def outrider(daemon, *arguments, stdin="", code=0, **environment):
    """Run one command; ``code`` None takes any exit code."""
    environment["OUTRIDER_CONFIG"] = str(daemon.config)
    result = CliRunner().invoke(cli, list(arguments), input=stdin, env=environment, prog_name="outrider")
    assert code in {None, result.exit_code}, result.stdout + result.stderr
    return result


def as_json(daemon, *arguments, **more):
    """Return the value that a command prints with --json."""
    return json.loads(outrider(daemon, *arguments, "--json", **more).stdout)
