"""``outrider serve``: the daemon in the foreground."""

from __future__ import annotations

import click

from agent.cli.invocation import Invocation, pass_invocation


@click.command()
@click.option("--host", help="Address to listen on (server.host).")
@click.option("--port", type=click.IntRange(0, 65535), help="TCP port, 0 takes a free one (server.port).")
@click.option("--model", help="Default model (engine.model).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON errors on stderr; the log stays text.")
@pass_invocation
def serve(invocation: Invocation, host: str | None, port: int | None, model: str | None, as_json: bool) -> int:
    """Run the daemon until it is told to stop.

    Stops in order on SIGTERM and Ctrl-C; SIGHUP reads the targets again. The log goes to stderr.

    Example:  outrider serve --port 8484
    """
    loaded = invocation.load(server__host=host, server__port=port, engine__model=model)
    from agent.daemon import run

    return run(loaded)
