"""The child that makes a model: ``<executable> quantize-worker``.

Standard input holds one ``Job`` as a line and then stays open: when it closes, whoever asked
has gone, and the child ends at once. Standard output carries an event a line. What is written
lies in the job's folder, so an end at any moment leaves nothing that looks finished. It waits
while the device is strained, between two steps of its own and, suspended, in programs it runs.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Sequence

import msgspec
import psutil

from agent.errors import OutriderError
from agent.models.recipes import RECIPES
from agent.models.recipes.job import Event, Job, Progress, failed
from agent.strain import LOOK_EVERY_S, hold_children_while_strained, wait_while_strained

_NICENESS = 10  # answering goes before


def main(arguments: Sequence[str]) -> int:
    """Do one job. Returns the exit status."""
    del arguments
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    # Native libraries and converters may print; events have a descriptor of their own.
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(_NICENESS)

    def send(event: Event) -> None:
        os.write(events, msgspec.json.encode(event) + b"\n")

    latest = Progress(step="starting", done=0, total=0)

    def paused(reason: str) -> None:
        send(msgspec.structs.replace(latest, step=f"paused: {reason}"))

    def tell(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        send(progress)
        wait_while_strained(paused)

    def hold_programs() -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            hold_children_while_strained(paused)

    threading.Thread(target=hold_programs, daemon=True).start()
    module, _, attribute = RECIPES[job.recipe].partition(":")
    try:
        send(getattr(importlib.import_module(module), attribute)(job, tell))
    except OutriderError as error:
        send(failed(error))
    return 0


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    for child in psutil.Process().children(recursive=True):  # one that is suspended cannot see that it should end
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(1)
