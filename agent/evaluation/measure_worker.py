"""The child that reads texts with one or two models: ``<executable> measure-worker``.

It takes one ``Order`` as JSON on stdin and writes one ``Event`` as JSON a line. It locks itself
in before it loads a model, as an engine worker does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import msgspec

from agent.compute import DraftingMode
from agent.evaluation.window import Window
from agent.models.quality import TextFigures
from agent.strain import wait_while_strained
from agent.types import ModelFile

EXIT_BROKEN = 1
CONTEXT_TOKENS = 512  # of the context that serves; the texts are read in one of their own


class Text(msgspec.Struct, frozen=True):
    """A text under a name to show."""

    name: str
    text: str
    done: tuple[Window, ...] = ()  # of it, read before


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Read these texts."""

    model: ModelFile
    reference: ModelFile | None
    texts: tuple[Text, ...]
    threads: int
    confine: bool


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Tokens of all texts that are read."""

    done: int
    total: int
    text: str


class Read(msgspec.Struct, frozen=True, tag="read"):
    """A part of a text is done."""

    text: int  # which one, from 0
    window: Window


class Paused(msgspec.Struct, frozen=True, tag="paused"):
    """Nothing goes on at the moment."""

    reason: str


class Result(msgspec.Struct, frozen=True, tag="result"):
    """The end, when all went well."""

    texts: tuple[TextFigures, ...]
    remark: str = ""  # why there is no comparison


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The end, when it did not."""

    message: str


Event = Progress | Read | Paused | Result | Failed


def main(argv: Sequence[str]) -> int:
    """Run the worker. Returns the exit code."""
    if argv:
        sys.stderr.write("measure-worker takes no arguments\n")
        return EXIT_BROKEN
    output = os.dup(1)
    os.dup2(2, 1)  # what the native library prints is no event

    def send(event: Event) -> None:
        os.write(output, msgspec.json.encode(event) + b"\n")

    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    try:
        send(_measure(order, send))
    except _Unmeasurable as error:
        send(Failed(str(error)))
        return EXIT_BROKEN
    return 0


class _Unmeasurable(Exception):
    pass


def _measure(order: Order, send: Callable[[Event], None]) -> Result:
    from agent.engine import confinement, frames
    from agent.engine.runtime import ModelUnloadable, Runtime, runtime_of
    from agent.evaluation.predictions import NoCommonVocabulary, predict

    files = [file for file in (order.model, order.reference) if file]
    try:
        load_model = {file.format: runtime_of(file.format) for file in files}
        if order.confine:
            confinement.confine()
    except ModelUnloadable as error:
        raise _Unmeasurable(str(error)) from error

    def loaded(file: ModelFile) -> Runtime:
        load = frames.Load(
            model=file,
            context_tokens=CONTEXT_TOKENS,
            parallel=1,
            waiting_line=0,
            threads=order.threads,
            confine=order.confine,
            drafting=DraftingMode.OFF,
        )
        try:
            return load_model[file.format](load)
        except ModelUnloadable as error:
            raise _Unmeasurable(f"model {file.name} cannot be loaded: {error}") from error

    model = loaded(order.model)
    reference = loaded(order.reference) if order.reference else None
    figures = []
    remark = ""
    for number, text in enumerate(order.texts):

        def keep(window: Window, number: int = number) -> None:
            send(Read(number, window))

        def tell(done: int, total: int, name: str = text.name) -> None:
            send(Progress(done, total, name))
            wait_while_strained(lambda reason: send(Paused(reason)))

        try:
            try:
                figures.append(predict(text.name, text.text, model, reference, tell, done=text.done, keep=keep))
            except NoCommonVocabulary:
                remark = f"{order.model.name} and {order.reference.name if order.reference else ''} cut text into different tokens"
                reference = None
                figures.append(predict(text.name, text.text, model, None, tell, done=text.done, keep=keep))
        except ValueError as error:
            raise _Unmeasurable(str(error)) from error
    return Result(tuple(figures), remark)
