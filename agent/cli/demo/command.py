"""``outrider demo``: the whole road, with a device that is offline at first. Nothing of it stays."""

from __future__ import annotations

import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from agent.cli.invocation import json_option
from agent.cli.output import emit_json


@click.command()
@json_option
def demo(as_json: bool) -> int:
    """Sort forty field messages offline, hold the doubtful ones, and ask when the line is back.

    A real daemon on a data directory of its own, which is deleted at the end. Its only target is
    yours, where one is configured with egress "allow"; else a stand-in with canned answers. About
    half a minute.

    Example:  outrider demo
    """
    from agent.cli.demo.messages import field_messages
    from agent.cli.demo.own_daemon import OwnDaemon
    from agent.cli.demo.story import CONSOLE, QUESTIONS, Story
    from agent.cli.demo.targets import own_target, target_for
    from agent.cli.demo.way_out import WayOut, relay, stand_in

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    messages = field_messages()
    with tempfile.TemporaryDirectory(prefix="outrider-demo-") as folder, ExitStack() as stack:
        own = own_target()
        canned = {message.text: message.kind for message in messages} | dict(QUESTIONS)
        way_out = WayOut(relay(own.base_url, own.ca_file, own.timeout_s) if own else stand_in(canned))
        stack.callback(way_out.server_close)
        daemon = OwnDaemon(Path(folder), target_for(own, way_out.url))
        CONSOLE.stderr = as_json
        told = Story(daemon, way_out, messages, is_own_target=own is not None).tell()
    if as_json:
        emit_json(told)
    return 0
