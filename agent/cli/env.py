"""``outrider env``: the two variables that any OpenAI client reads."""

from __future__ import annotations

import shlex

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, notice


@click.command()
@click.option("--shell", type=click.Choice(["sh", "fish", "powershell"]), default="sh", show_default=True)
@json_option
@pass_invocation
def env(invocation: Invocation, shell: str, as_json: bool) -> None:
    """Print OPENAI_BASE_URL and OPENAI_API_KEY for any client.

    Example:  eval "$(outrider env)"
    """
    from agent.cli.client import find_daemon, read_token

    address = find_daemon(invocation.data_path)
    if address is None:
        notice("outrider: no daemon runs; these are the values that `outrider serve` will have")
    values = {
        "OPENAI_BASE_URL": (address.url if address else _configured_url(invocation)).rstrip("/") + "/v1",
        "OPENAI_API_KEY": read_token(invocation.data_path),
    }
    if as_json:
        emit_json(values)
        return
    for name, value in values.items():
        click.echo(_line(shell, name, value))


def _configured_url(invocation: Invocation) -> str:
    server = invocation.settings.server
    host = f"[{server.host}]" if ":" in server.host else server.host
    return f"{'https' if server.tls_cert else 'http'}://{host}:{server.port}"


def _line(shell: str, name: str, value: str) -> str:
    match shell:
        case "fish":
            return f"set -gx {name} {shlex.quote(value)}"
        case "powershell":
            return f"$env:{name} = '{value.replace(chr(39), chr(39) * 2)}'"
        case _:
            return f"export {name}={shlex.quote(value)}"
