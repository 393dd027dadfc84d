"""``outrider chat``: a conversation, line by line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import click

from agent.cli.ask import answer_options, patience_s, print_stream, request_body, summary, text_of
from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json_line, notice
from agent.errors import OutriderError

HELP = "/reset forgets the conversation, /quit leaves (also Ctrl-D); Ctrl-C stops an answer"


@click.command()
@answer_options
@json_option
@pass_invocation
def chat(invocation: Invocation, /, as_json: bool, **options: Any) -> None:
    """Talk with the local model, turn by turn.

    Reads one turn per line; the whole conversation goes along with each. With --json each answer
    is one JSON line.

    Example:  outrider chat --system "Answer in one sentence."
    """
    from agent.cli.client import DaemonClient

    opening = [{"role": "system", "content": options["system"]}] if options["system"] else []
    messages = list(opening)
    with DaemonClient(invocation.settings) as client:
        if sys.stdin.isatty():
            notice(f"{options['model'] or 'the default model'} at {client.url}; {HELP}")
        for line in _turns():
            if line == "/quit":
                return
            if line == "/reset":
                messages = list(opening)
                notice("forgotten")
                continue
            if line.startswith("/"):
                notice(HELP)
                continue
            asked = [*messages, {"role": "user", "content": line}]
            body = request_body(asked, options)
            try:
                if as_json:
                    answer = client.answer(body, patience_s(invocation, options))
                    emit_json_line(answer)
                else:
                    answer = print_stream(client, body, patience_s(invocation, options))
                    notice(f"  [{summary(answer)}]")
            except KeyboardInterrupt:
                notice("\n  [stopped; this turn is forgotten]")
                continue
            except OutriderError as error:
                # One refused turn (too long, busy) must not end the conversation at a keyboard.
                if not sys.stdin.isatty():
                    raise
                notice(f"  [{error}]")
                continue
            if text := text_of(answer):
                messages = [*asked, {"role": "assistant", "content": text}]


def _turns() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    with contextlib.suppress(ImportError):  # the package leaves it out: it is under the GPL
        import readline  # noqa: F401  # gives input() editing and history

    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if line:
            yield line
