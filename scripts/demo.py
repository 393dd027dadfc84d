"""The main road on a real model, in about a minute: ``make demo``.

A real daemon with a data directory of its own, spoken to over its HTTP API. Its only target
cannot be reached at first. Exit code 0 when everything went as it says, 1 with the reason else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
import psutil
import tomlkit
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from way_out import WayOut, relay, stand_in

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agent import configuration, settings  # noqa: E402 - works without an installed package
from agent.errors import ConfigError  # noqa: E402
from agent.settings import TargetSettings  # noqa: E402
from agent.types import EgressPolicy, Handoff  # noqa: E402

MODEL = settings.EngineSettings().model
PATIENCE_S = 120.0
PROBE_CAP_S = 2.0  # 60 by default; the demo is impatient
THRESHOLD = settings.ConfidenceSettings().threshold


class Question(NamedTuple):
    """What is asked, and what the stand-in would say to it."""

    text: str
    canned: str = ""
    private: bool = False  # marked egress = never


QUESTIONS = (
    Question("What is the capital of Japan?", "Tokyo."),
    Question("What is the capital of England?", "London."),
    Question("What is the capital of Spain?", "Madrid."),
    Question("In which year did the Titanic sink?", "In 1912, in the night to the 15th of April."),
    Question("What is 17 times 23?", "17 times 23 is 391."),
    Question("Patient Rossi, born 3 May 1961, has a potassium of 6.1. What now?", private=True),
)

CONSOLE = Console(width=min(100, Console().width) if sys.stdout.isatty() else 100, highlight=False)


class DemoFailedError(Exception):
    """Something did not go as the demo says. One line."""


class Asked(NamedTuple):
    """A question and the daemon's answer to it."""

    question: Question
    id: str
    text: str
    confidence: float | None
    decision: str
    reason: str


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="outrider-demo-") as folder, contextlib.ExitStack() as stack:
            own = own_target()
            canned = {question.text: question.canned for question in QUESTIONS if question.canned}
            way_out = WayOut(relay(own.base_url, own.ca_file, own.timeout_s) if own else stand_in(canned))
            stack.callback(way_out.server_close)
            run(Daemon(Path(folder), target_for(own, way_out.url)), way_out, is_own=own is not None)
    except DemoFailedError as error:
        CONSOLE.print(f"[bold red]demo failed:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    say("   The daemon is stopped, nothing is left running, its temporary data is deleted.")
    say("Your turn:   .venv/bin/outrider serve")
    say("and beside:  .venv/bin/outrider ask --explain 'What is the capital of France?'")
    return 0


def run(daemon: Daemon, way_out: WayOut, *, is_own: bool) -> None:
    """Tell the story; every step checks itself."""
    name = daemon.target.name
    say("[bold]Outrider[/]: a small model on this machine answers, knows how sure it is,")
    say("and hands on what it is not sure of.")
    whose = "your own" if is_own else "real HTTP, canned answers"
    step(1, f"The daemon starts. Its only target, [bold]{name}[/] ({whose}), cannot be reached.")
    with daemon.running() as api:
        asked = [api.ask(question) for question in QUESTIONS]
        show_answers(asked)
        queued = [one for one in asked if one.decision == "queued"]
        step(2, f"Confidence of {THRESHOLD:.2f} or more: answered. Less: queued, the draft is returned at once.")
        say("   (No calibration yet: an unsure draft may be right, a sure answer may be wrong.)")
        say("   The last question is marked [bold]egress: never[/]: unsure too, but nothing of it is queued.")
        expect(len(queued) > 0, "no question was handed on")
        expect(not any(one.question.private for one in queued), "a private question was queued")
        before = api.waiting()
        expect(before == len(queued), f"{len(queued)} were queued, the queue says {before}")
        daemon.kill()
    step(3, f"Waiting: [bold]{before}[/]. Now [bold]kill -9[/] for the daemon (pid {daemon.pid}), and a new start.")
    with daemon.running() as api:
        after = api.waiting()
        say(f"   Pid {daemon.pid}. Waiting: [bold]{after}[/]. What was acknowledged was on disk, encrypted.")
        expect(after == before, f"{before} were waiting before the kill, {after} after it")
        step(4, f"The way to [bold]{name}[/] opens. Nobody presses a button: the daemon finds out.")
        way_out.open()
        seconds, records = api.until_settled([one.id for one in queued])
        show_late_answers(name, queued, records)
        unresolved = [record for record in records if record["state"] != "resolved"]
        expect(not unresolved, f"{len(unresolved)} got no answer from {name}: {failure_of(unresolved)}")
        say(f"   Drained after {seconds:.1f} s. Draft and late answer are both kept with the request.")
        show_what_left(api.egress(), way_out.received, asked)
    expect(daemon.is_gone(), "a process of the demo is still running")


def show_answers(asked: Sequence[Asked]) -> None:
    table = Table(box=box.SIMPLE, show_edge=False)
    for heading in ("question", "local answer", "confidence", "decision"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "confidence" else "left")
    for one in asked:
        score = "no signal" if one.confidence is None else f"{one.confidence:.2f}"
        decision = one.decision if one.decision == "answered" else f"{one.decision} ({one.reason})"
        table.add_row(one.question.text, escape(shortened(one.text)), score, decision)
    CONSOLE.print(table)


def show_late_answers(name: str, queued: Sequence[Asked], records: Sequence[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE, show_edge=False)
    for heading in ("question", "local draft", f"late answer, from {name}"):
        table.add_column(heading, overflow="fold")
    for one, record in zip(queued, records, strict=True):
        late = record["cloud_answer"]["text"] if record.get("cloud_answer") else f"({record['state']})"
        table.add_row(one.question.text, escape(shortened(one.text)), escape(shortened(late)))
    CONSOLE.print(table)


def show_what_left(egress: dict[str, Any], received: Sequence[bytes], asked: Sequence[Asked]) -> None:
    """Print the bytes as they left; the daemon's log of them must agree with what arrived."""
    totals = egress["totals"]
    logged = sorted(row["body_sha256"] for row in egress["data"])
    arrived = sorted(hashlib.sha256(body).hexdigest() for body in received)
    expect(logged == arrived, "the log of what left does not agree with what arrived")
    for one in asked:
        if one.question.private:
            expect(not any(one.question.text.encode() in body for body in received), "a private text left the device")
    step(5, "The bytes as they left, the first row (a log keeps the SHA-256 of each):")
    CONSOLE.print(received[0].decode(), markup=False, style="dim", soft_wrap=True)
    sent = {row["request_id"] for row in egress["data"]}
    stayed = sum(one.id not in sent for one in asked)
    say(f"   [bold]left the device: {totals['rows']} rows, {totals['bytes']} bytes; never left: {stayed}[/]")


class Daemon:
    """The real program in a child process, one life after the other on the same data."""

    def __init__(self, folder: Path, target: TargetSettings) -> None:
        self.target = target
        self.pid = 0
        self._folder = folder
        self._config = folder / "outrider.toml"
        self._process: subprocess.Popen[bytes] | None = None
        self._family: dict[int, psutil.Process] = {}
        document = {
            "data_dir": str(folder / "data"),
            "server": {"port": 0},
            "connectivity": {"probe_cap_s": PROBE_CAP_S},
            "targets": [{key: value for key, value in msgspec.to_builtins(target).items() if value != ""}],
        }
        self._config.write_text(tomlkit.dumps(document), encoding="utf-8")

    @contextlib.contextmanager
    def running(self) -> Iterator[Api]:
        """Start, wait until the model can answer, and stop at the end."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(configuration.ENV_PREFIX)}
        with (self._folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent", "serve"],
                cwd=ROOT,
                env={**kept, "OUTRIDER_CONFIG": str(self._config)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pid = self._process.pid
        try:
            with self._api() as client:
                yield Api(client)
        finally:
            self._stop()

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self._process is not None
        self._remember_family()
        self._process.kill()
        self._process.wait()

    def is_gone(self) -> bool:
        """Whether every process that was ever started here has ended."""
        _, alive = psutil.wait_procs(list(self._family.values()), timeout=5)
        return not alive

    @contextlib.contextmanager
    def _api(self) -> Iterator[httpx2.Client]:
        announced = self._folder / "data" / "daemon.json"
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            self._check_alive()
            try:
                found = json.loads(announced.read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):
                found = {}
            if found.get("pid") == self.pid:
                token = (self._folder / "data" / "token").read_text(encoding="utf-8").strip()
                headers = {"authorization": f"Bearer {token}"}
                with httpx2.Client(
                    base_url=found["url"], headers=headers, timeout=PATIENCE_S, trust_env=False
                ) as client:
                    while client.get("/readyz").status_code != 200:
                        self._check_alive()
                        if time.monotonic() > until:
                            raise DemoFailedError(f"the model does not load: {self._last_words()}")
                        time.sleep(0.05)
                    self._remember_family()
                    yield client
                    return
            time.sleep(0.05)
        raise DemoFailedError(f"the daemon does not start: {self._last_words()}")

    def _check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise DemoFailedError(f"the daemon ended with {self._process.returncode}: {self._last_words()}")

    def _remember_family(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.pid)
            self._family |= {process.pid: process for process in [parent, *parent.children(recursive=True)]}

    def _stop(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._remember_family()
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _last_words(self) -> str:
        return (self._folder / "daemon.log").read_text(encoding="utf-8", errors="replace")[-2000:].strip()


class Api:
    """The daemon's HTTP API, as any client sees it."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client

    def ask(self, question: Question) -> Asked:
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": question.text}],
            "temperature": 0,
            "max_tokens": 200,
        }
        if question.private:
            body["outrider"] = {"egress": "never"}
        answer = self._checked(self._client.post("/v1/chat/completions", json=body))
        verdict = answer["outrider"]
        text = answer["choices"][0]["message"]["content"] or ""
        return Asked(
            question, verdict["request_id"], text, verdict["confidence"], verdict["decision"], verdict["reason"]
        )

    def waiting(self) -> int:
        """Rows in the outbox that have not been answered."""
        counts = self._checked(self._client.get("/v1/queue"))["counts"]
        return sum(int(counts[state]["rows"]) for state in ("pending", "leased", "awaiting_approval"))

    def until_settled(self, ids: Sequence[str]) -> tuple[float, list[dict[str, Any]]]:
        """Wait until none is queued; return the seconds that took and the requests."""
        began = time.monotonic()
        while True:
            records = [self._checked(self._client.get(f"/v1/requests/{some_id}")) for some_id in ids]
            passed = time.monotonic() - began
            if all(record["state"] != "queued" for record in records) or passed > PATIENCE_S:
                return passed, records
            time.sleep(0.1)

    def egress(self) -> dict[str, Any]:
        return self._checked(self._client.get("/v1/egress"))

    @staticmethod
    def _checked(response: httpx2.Response) -> dict[str, Any]:
        if response.status_code not in {200, 202}:
            raise DemoFailedError(f"{response.request.url.path} gave {response.status_code}: {response.text}")
        found: dict[str, Any] = response.json()
        return found


def own_target() -> TargetSettings | None:
    """Return the user's target, when there is one that may be sent to without asking."""
    try:
        configured = configuration.load().settings.targets
    except ConfigError as error:
        say(f"Your configuration is left aside: {escape(str(error))}")
        return None
    for target in configured:
        if target.egress is EgressPolicy.ALLOW:
            return target
        say(f'Your target {target.name} has egress = "{target.egress}": the demo sends it nothing.')
    return None


def target_for(own: TargetSettings | None, url: str) -> TargetSettings:
    """Return the target of the demo: behind the way out, else as the user configured it."""
    if own is None:
        return TargetSettings(name="stand-in", base_url=url, model="stand-in", egress=EgressPolicy.ALLOW)
    key_file = str(Path(own.api_key_file).expanduser().absolute()) if own.api_key_file else ""
    return msgspec.structs.replace(own, base_url=url, ca_file="", api_key_file=key_file, handoff=Handoff.FRESH)


def failure_of(records: Sequence[dict[str, Any]]) -> str:
    row = (records[0].get("escalation") or {}) if records else {}
    return str(row.get("last_error") or row.get("reason") or "no reason is known")


def shortened(text: str, limit: int = 110) -> str:
    words = " ".join(text.split())
    return words if len(words) <= limit else words[: limit - 1].rstrip() + "…"


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DemoFailedError(otherwise)


def step(number: int, text: str) -> None:
    CONSOLE.print()
    say(f"[bold cyan]{number}.[/] {text}")


def say(text: str) -> None:
    CONSOLE.print(text)


if __name__ == "__main__":
    sys.exit(main())
