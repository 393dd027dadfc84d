"""What the daemon says of the inputs of examples, asked for in pieces with the progress on stderr."""

from __future__ import annotations

import base64
import json
import time
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from agent.cli.output import notice
from agent.errors import WrongState

if TYPE_CHECKING:
    from agent.cli.client import DaemonClient
    from agent.evaluation.examples import Example

PIECE = 64  # inputs in one call
LONGEST_PIECE = 1 << 20  # characters in one call
MOST_KEPT = 5 << 20  # characters of examples that the daemon keeps
PATIENCE_S = 600.0
TELL_EVERY_S = 5.0


class Vectors:
    """The vectors of some texts, as float32, and what made them."""

    def __init__(self) -> None:
        self.raw = b""
        self.dimensions = 0
        self.model = self.model_digest = self.runtime = ""

    @property
    def rows(self) -> list[array[float]]:
        """One vector an input."""
        numbers = array("f", self.raw)
        return [numbers[start : start + self.dimensions] for start in range(0, len(numbers), self.dimensions or 1)]


def pieces(inputs: Sequence[Any], most: int = PIECE) -> list[Sequence[Any]]:
    """Cut inputs into calls that are not too large."""
    found: list[list[Any]] = [[]]
    size = 0
    for asked in inputs:
        long = len(asked if isinstance(asked, str) else json.dumps(asked))
        if found[-1] and (len(found[-1]) == most or size + long > LONGEST_PIECE):
            found.append([])
            size = 0
        found[-1].append(asked)
        size += long
    return list(found)


def vectors(client: DaemonClient, task: str, inputs: Sequence[str]) -> Vectors:
    """Return the encoder's vectors."""
    found = Vectors()
    for piece in _told(pieces(inputs), len(inputs), "vectors"):
        body = {"signal": "embedding", "inputs": list(piece)}
        told = client.post(f"/v1/tasks/{task}/signals", body, timeout_s=PATIENCE_S)
        _check_same(found.model_digest, told["model_digest"])
        found.model, found.model_digest, found.runtime = told["model"], told["model_digest"], told["runtime"]
        found.dimensions = told["dimensions"]
        found.raw += base64.b64decode(told["vectors"])
    return found


def rows(
    client: DaemonClient,
    task: str,
    signal: str,
    inputs: Sequence[str | dict[str, Any]],
    digest: str,
    model: str | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each input: signal "scores", "answer" or "draft", of the task's model or of another one.

    An input is a text, or an object with it and how it is asked about. Raises WrongState when the task or its model
    changes.
    """
    found: list[dict[str, Any]] = []
    for piece in _told(pieces(inputs, PIECE // 4), len(inputs), "answers"):
        body = {"signal": signal, "inputs": list(piece), "model": model}
        told = client.post(f"/v1/tasks/{task}/signals", body, timeout_s=PATIENCE_S)
        if told["task_digest"] != digest:
            raise WrongState(
                f"the daemon knows another task {task} than this command: does it run with the same --config?"
            )
        found += told["rows"]
    digests = {row.get("model_digest") or row["key"]["model_digest"] for row in found}
    if len(digests) > 1:
        raise WrongState("the model was replaced meanwhile: begin again")
    return found


def keep_examples(client: DaemonClient, task: str, use: str, examples: Sequence[Example]) -> None:
    """Have the daemon keep examples, encrypted, for another model than today's; none drops those of before."""
    rows = [{"input": one.input, "answer": one.answer} for one in examples]
    if any(one.others or one.tools or one.verdict is not None for one in examples):
        rows = []  # more than an input and its answer: brought again for another model
    elif sum(len(one.input) for one in examples) > MOST_KEPT:
        notice(f"the examples are too large to be kept: for another model, {use} with them again")
        rows = []
    client.put(f"/v1/tasks/{task}/examples", {"use": use, "examples": rows})


def _check_same(before: str, now: str) -> None:
    if before and before != now:
        raise WrongState("the encoder was replaced meanwhile: begin again")


def _told(parts: Sequence[Sequence[Any]], total: int, what: str) -> Any:
    """Yield the parts; tell now and then how many inputs are done. Waits while the battery is low or the device hot."""
    from agent.strain import wait_while_strained

    done, told_at = 0, time.monotonic()
    for part in parts:
        wait_while_strained(lambda reason: notice(f"paused: {reason}"))
        yield part
        done += len(part)
        if time.monotonic() - told_at > TELL_EVERY_S:
            click.echo(f"{what}: {done} of {total}", err=True)
            told_at = time.monotonic()
