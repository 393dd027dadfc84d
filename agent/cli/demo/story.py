"""What the demo does and says. Every step checks itself and raises DemoFailed where it is not as told."""

from __future__ import annotations

import hashlib
import json
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.cli.demo.messages import KINDS, TASK, TAUGHT, Message
from agent.cli.demo.own_daemon import Api, DemoFailed, OwnDaemon
from agent.cli.demo.way_out import WayOut
from agent.cli.output import printable
from agent.confidence.binomial import interval
from agent.settings import ConfidenceSettings

ACCURACY, HELD_BACK = 0.9, 0.5
QUESTIONS = (
    ("What is the capital of Japan?", "Tokyo."),
    ("What is 17 times 23?", "17 times 23 is 391."),
)  # for the model that writes, and what the stand-in says to them
CONSOLE = Console(width=min(110, Console().width) if sys.stdout.isatty() else 110, highlight=False)


class Sorted(NamedTuple):
    """A message or question, and the daemon's answer to it."""

    text: str
    kind: str | None  # known to the demo alone; None of a question to the model that writes
    egress: str | None
    id: str
    answer: str
    confidence: float | None
    labels: list[tuple[str, float]]  # by falling probability
    decision: str
    reason: str
    milliseconds: float

    @property
    def is_held(self) -> bool:
        return self.decision == "queued"

    @property
    def is_right(self) -> bool:
        return self.answer == self.kind


class Story:
    """The steps in their order."""

    def __init__(self, daemon: OwnDaemon, way_out: WayOut, messages: Sequence[Message], *, is_own_target: bool) -> None:
        self._daemon = daemon
        self._way_out = way_out
        self._messages = messages
        self._target = daemon.target.name
        self._is_canned = not is_own_target
        self._whose = "real HTTP, canned answers" if self._is_canned else "your own"

    def tell(self) -> dict[str, Any]:
        """Tell it all, and return what it was worth."""
        say("[bold]Outrider[/]: a device in the field sorts what comes in, knows how sure it is, and asks only where")
        say("it is not, when there is a line and only what may leave.")
        self._show_no_line()
        with self._daemon.running() as api:
            self._teach()
            found = self._sort(api)
            written = self._ask(api)
            held = [one for one in (*found, *written) if one.is_held]
            before = api.waiting()
            expect(before == len(held), f"{len(held)} were queued, the queue says {before}")
            self._daemon.kill()
        step(
            5,
            f"Waiting: [bold]{before}[/]. Now [bold]kill -9[/] for the daemon (pid {self._daemon.pid}), and a new start.",
        )
        with self._daemon.running() as api:
            after = api.waiting()
            say(f"Pid {self._daemon.pid}. Waiting: [bold]{after}[/]. What was acknowledged was on disk, encrypted.")
            expect(after == before, f"{before} were waiting before the kill, {after} after it")
            self._show_late_answers(api, held)
            self._show_what_left(api.egress(), [*found, *written])
        expect(self._daemon.is_gone(), "a process of the demo is still running")
        worth = self._sum_up(found)
        say("")
        say("The daemon is stopped, nothing is left running, its temporary data is deleted.")
        say("Your turn:  outrider serve     and beside it:  outrider tasks new")
        return {**worth, "held_and_asked": len(held), "left_the_device": len(self._way_out.received)}

    def _show_no_line(self) -> None:
        step(
            1,
            f"No line. The only target, [bold]{self._target}[/] ({self._whose}), is at {self._daemon.target.base_url}:",
        )
        try:
            socket.create_connection(("127.0.0.1", self._way_out.server_port), timeout=2).close()
        except OSError as error:
            say(f"connect: [bold]{escape(str(error))}[/]")
            return
        raise DemoFailed("the target can be reached, though it should not")

    def _teach(self) -> None:
        count = len(TAUGHT.read_text(encoding="utf-8").splitlines())
        step(2, f"A task is taught and certified on this device, by {count} labelled messages that come with it.")
        began = time.monotonic()
        labels = [part for name, text in KINDS.items() for part in ("--label", f"{name}={text}")]
        self._daemon.command("tasks", "new", TASK, *labels, "--accuracy", str(ACCURACY))
        say(f"[dim]$ outrider tasks new {TASK} --label injury --label leak ... --accuracy {ACCURACY}[/]")
        taught = self._daemon.command(
            "tasks", "teach", TASK, str(TAUGHT), "--hold-back", str(HELD_BACK), "--features", "embedding"
        )
        say(f"[dim]$ outrider tasks teach {TASK} {TAUGHT.name} --hold-back {HELD_BACK} --features embedding[/]")
        say(escape(taught.strip().splitlines()[-1]))
        certified = json.loads(self._daemon.command("calibrate", TASK, str(TAUGHT), "--json"))["calibration"]
        say(f"[dim]$ outrider calibrate {TASK} {TAUGHT.name}[/]")
        say(f"[bold]{escape(certified['sentence'])}[/]")
        say(
            f"{time.monotonic() - began:.1f} s in all. The other half of the messages certified; none of these is among the forty."
        )
        expect(certified["threshold"] is not None, "the task was not certified")

    def _sort(self, api: Api) -> list[Sorted]:
        found = [self._sorted(api, message) for message in self._messages]
        times = [one.milliseconds for one in found]
        step(
            3,
            f"Forty messages come in. Each is sorted in {statistics.median(times):.0f} ms (slowest {max(times):.0f}), offline:",
        )
        table = Table(box=box.SIMPLE, show_edge=False)
        for heading in ("message", "kind", "sure", "else", "", "ms", "decision"):
            table.add_column(heading, justify="right" if heading in {"sure", "", "ms"} else "left", no_wrap=True)
        for one in found:
            (_, first), (second, rest) = one.labels[:2]
            style = "" if one.decision == "answered" else "bold"
            told = {"answered": "served", "queued": "held"}.get(one.decision, one.decision)
            columns = (
                shortened(one.text),
                one.answer,
                f"{first:.2f}",
                second,
                f"{rest:.2f}",
                f"{one.milliseconds:.0f}",
            )
            table.add_row(*map(escape, (*columns, told)), style=style)
        CONSOLE.print(table)
        held, stays = [one for one in found if one.is_held], [one for one in found if one.egress and not one.is_held]
        expect(bool(held), "no doubtful message was held")
        expect(any(one.decision != "answered" for one in stays), "no doubtful message had to stay here")
        doubtful = min(held, key=lambda one: one.labels[0][1])
        say(f"The most doubtful of those held, with the probability of every kind: {escape(repr(doubtful.text))}")
        say("  ".join(f"{label} {probability:.2f}" for label, probability in doubtful.labels))
        say(
            "[bold]uncertain (egress_never)[/]: names a patient and was sent with [bold]egress: never[/]. No row is made of it."
        )
        return found

    def _sorted(self, api: Api, message: Message) -> Sorted:
        body: dict[str, Any] = {"task": TASK, "input": message.text}
        if message.egress:
            body["outrider"] = {"egress": message.egress}
        began = time.perf_counter()
        told = api.post("/v1/classify", body)
        spent = (time.perf_counter() - began) * 1000
        labels = sorted(((one["label"], one["probability"]) for one in told["labels"]), key=lambda one: -one[1])
        about = told["outrider"]
        return Sorted(
            message.text, message.kind, message.egress, about["request_id"], told["label"], about["confidence"],
            labels, about["decision"], about["reason"], spent,
        )  # fmt: skip

    def _ask(self, api: Api) -> list[Sorted]:
        threshold = ConfidenceSettings().threshold
        step(
            4, f"The same daemon writes. Without a task its confidence is uncalibrated, the threshold {threshold:.2f}:"
        )
        found = []
        for question, _ in QUESTIONS:
            messages = [{"role": "user", "content": question}]
            began = time.perf_counter()
            told = api.post("/v1/chat/completions", {"model": "default", "messages": messages, "max_tokens": 60})
            spent = (time.perf_counter() - began) * 1000
            about, text = told["outrider"], told["choices"][0]["message"]["content"] or ""
            one = Sorted(
                question, None, None, about["request_id"], text, about["confidence"],
                [], about["decision"], about["reason"], spent,
            )  # fmt: skip
            found.append(one)
            sure = "no signal" if one.confidence is None else f"{one.confidence:.2f}"
            say(f"{question} [dim]->[/] {escape(shortened(text))}  [dim]{sure}, {one.decision}[/]")
        return found

    def _show_late_answers(self, api: Api, held: Sequence[Sorted]) -> None:
        step(6, f"The line is back. Nobody presses a button: the daemon finds out and asks [bold]{self._target}[/].")
        self._way_out.open()
        seconds, records = api.until_settled([one.id for one in held])
        unresolved = [record for record in records if record["state"] != "resolved"]
        # What a target of the user's own says to a choice may be none of its labels: that is shown, and no fault.
        hopeless = unresolved if self._is_canned or len(unresolved) == len(records) else []
        expect(not hopeless, f"{len(hopeless)} got no answer from {self._target}: {failure_of(hopeless)}")
        table = Table(box=box.SIMPLE, show_edge=False)
        for heading in ("held", "draft", "late answer", ""):
            table.add_column(heading, no_wrap=True)
        for one, record in zip(held, records, strict=True):
            answer = record["cloud_answer"]
            late = str(answer["text"]) if answer else f"(none: {failure_of([record])})"
            changed = late.strip() != one.answer.strip()
            cells = (
                shortened(one.text),
                shortened(one.answer, 34),
                shortened(late, 34),
                "changed" if changed else "the same",
            )
            table.add_row(*map(escape, cells), style="bold" if changed else "")
        CONSOLE.print(table)
        say(f"Drained after {seconds:.1f} s. Draft and late answer are both kept with the request.")

    def _show_what_left(self, egress: dict[str, Any], found: Sequence[Sorted]) -> None:
        """Print the bytes as they left; the daemon's log of them must agree with what arrived."""
        received, totals = self._way_out.received, egress["totals"]
        logged = sorted(row["body_sha256"] for row in egress["data"])
        arrived = sorted(hashlib.sha256(body).hexdigest() for body in received)
        expect(logged == arrived, "the log of what left does not agree with what arrived")
        sent = {row["request_id"] for row in egress["data"]}
        for one in found:
            if one.id not in sent:
                text = json.dumps(one.text, ensure_ascii=False).strip('"').encode()
                expect(not any(text in body for body in received), f"{one.text!r} left the device, and no log says so")
        step(7, "What left. The first row as it went over the wire (a log keeps the SHA-256 of each):")
        CONSOLE.print(received[0].decode(), markup=False, style="dim", soft_wrap=True)
        stayed = sum(one.id not in sent for one in found)
        say(
            f"[bold]left the device: {totals['rows']} rows, {totals['bytes']} bytes; never left: {stayed} of {len(found)}[/]"
        )

    def _sum_up(self, found: Sequence[Sorted]) -> dict[str, Any]:
        served = [one for one in found if one.decision == "answered"]
        right = sum(one.is_right for one in served)
        drafts = sum(one.is_right for one in found)
        low, high = interval(right, len(served))
        step(8, "What it was worth, against the kinds that the authors of the forty gave them:")
        say(f"served on this device: [bold]{len(served)} of {len(found)} ({len(served) / len(found):.0%})[/]")
        say(
            f"of these right: [bold]{right} of {len(served)} ({right / max(1, len(served)):.0%}, 95 % interval {low:.0%} to {high:.0%})[/]"
        )
        say(
            f"promised: at least {ACCURACY:.0%} with probability 90 %. All {len(found)} drafts, had none been held: {drafts} right."
        )
        say(
            "The late answers are not counted: "
            + ("a canned answer says nothing of quality." if self._is_canned else "nobody checked them.")
        )
        return {
            "messages": len(found),
            "served": len(served),
            "right": right,
            "right_low": low,
            "right_high": high,
            "drafts_right": drafts,
            "median_ms": statistics.median(one.milliseconds for one in found),
        }


def failure_of(records: Sequence[dict[str, Any]]) -> str:
    """Return why a row was not answered."""
    row = (records[0].get("escalation") or {}) if records else {}
    return str(row.get("last_error") or row.get("reason") or "no reason is known")


def shortened(text: str, width: int = 42) -> str:
    """Return text on one line, cut where it is longer."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def say(text: str) -> None:
    """Print a line."""
    CONSOLE.print(f"   {text}" if text else "", soft_wrap=True)


def step(number: int, text: str) -> None:
    """Print the heading of a step."""
    CONSOLE.print(f"\n[bold cyan]{number}.[/] {text}", soft_wrap=True)


def expect(holds: bool, otherwise: str) -> None:
    """Raise DemoFailed with ``otherwise`` unless ``holds``."""
    if not holds:
        raise DemoFailed(otherwise)
