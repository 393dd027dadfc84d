"""A worker without weights: the frames of a real one, behaviour chosen by the prompt.

A word in the last user message decides (the first that matches, any case):

    crash     a few tokens, a line on stderr, then SIGSEGV
    hoard     takes memory until something ends it, 4 GiB at most
    garbage   bytes that are no frame
    stuck     never answers and never confirms a cancel
    hang      never answers, but confirms a cancel
    busy, overflow, reject       that failure
    nosignal  text without any token
    unsure    an answer with low log-probabilities
    slow      20 ms a token, 50 tokens
    (else)    "echo: <the message>", confident

Switches for what happens before: --hang-at-load --crash-at-load --crash-on-device --fail-load --silent --protocol N.
Start it as ``EnginePool(..., worker_command=fake_worker.COMMAND)``.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agent.compute import DeviceKind, DeviceVerdict
from agent.engine import frames
from agent.types import Failure, FailureKind, Token, TopToken

COMMAND = [sys.executable, str(Path(__file__).resolve())]
FAILURES = {
    "busy": (FailureKind.BUSY, "the waiting line is full"),
    "overflow": (FailureKind.CONTEXT_OVERFLOW, "the prompt has 9000 tokens, the context has 4096"),
    "reject": (FailureKind.REJECTED, "the chat template refuses these messages"),
}
DEVICE = DeviceVerdict(
    model_digest="d" * 64,
    kind=DeviceKind.NPU,
    provider="FakeNpu",
    version="1",
    driver="",
    processor="",
    device="Fake NPU",
    holds=False,
    reason="it is being tried",
)
_write_lock = threading.Lock()


def send(event: frames.Event) -> None:
    with _write_lock:
        os.write(1, frames.encode(event))


def token(text: str, logprob: float, top: int) -> Token:
    ident = sum(text.encode())
    alternatives = (TopToken(ident, text.encode(), logprob), *(TopToken(n, b"?", logprob - n) for n in range(1, top)))
    return Token(
        id=ident,
        text_bytes=text.encode(),
        logprob=logprob,
        runner_up_logprob=logprob - 4.0 if logprob > -1 else logprob - 0.1,
        entropy=-logprob,
        top=alternatives[:top],
    )


def words(text: str) -> list[str]:
    return [part if index == 0 else " " + part for index, part in enumerate(text.split(" "))]


def score(ask: frames.Score) -> frames.Scored:
    """The label that the text contains wins: by much, or hardly when it says "unsure"."""
    said = ask.messages[-1].content.lower()
    if ask.echo:
        text = ask.prompt if isinstance(ask.prompt, str) else bytes(ask.prompt or ()).decode()
        tokens = tuple(token(part, -0.5, ask.top_logprobs) for part in words(text))
        return frames.Scored(id=ask.id, prompt=tokens, prompt_tokens=len(tokens))
    for word, (kind, message) in FAILURES.items():
        if word in said:
            return frames.Scored(id=ask.id, failure=Failure(kind, message))
    step = 0.1 if "unsure" in said else 6.0
    figures = tuple(-10.0 + (step if label.lower() in said else 0.0) for label in ask.labels)
    return frames.Scored(
        id=ask.id,
        logprobs=figures,
        label_tokens=tuple(len(words(label)) for label in ask.labels),
        mass=min(1.0, sum(math.exp(figure) for figure in figures)),
        best=figures.index(max(figures)),
        prompt_tokens=len(words(said)),
    )


class Conversation(threading.Thread):
    def __init__(self, ask: frames.Generate) -> None:
        super().__init__(daemon=True)
        self.ask = ask
        self.cancelled = threading.Event()
        said = [message.content for message in ask.messages if message.role == "user"]
        self.text = said[-1] if said else ""

    def run(self) -> None:
        said = self.text.lower()
        for word, (kind, message) in FAILURES.items():
            if word in said:
                self.end(failure=Failure(kind, message))
                return
        if "crash" in said:
            self.say(["This", " answer", " will", " not"], -0.05, 0.0)
            os.write(2, b"fake_worker.c:42: GGML_ASSERT(answer != NULL) failed\n")
            os.kill(os.getpid(), signal.SIGSEGV)
        elif "hoard" in said:
            hoard = [b"\1" * (1 << 20) for _ in range(4096)]
            self.end(failure=Failure(FailureKind.CRASH, f"nothing ended this worker at {len(hoard)} MiB"))
        elif "garbage" in said:
            os.write(1, b"HTTP/1.1 200 OK\r\n\r\nnot a frame at all")
        elif "stuck" in said:
            threading.Event().wait()
        elif "hang" in said:
            self.cancelled.wait()
            self.end(failure=Failure(FailureKind.CANCELLED, "cancelled"))
        elif "nosignal" in said:
            send(frames.Step(pieces=(frames.Piece(self.ask.id, "no signal here", ()),)))
            self.end(finish_reason="stop")
        else:
            slow = "slow" in said
            text = " ".join(f"w{n}" for n in range(50)) if slow else f"echo: {self.text}"
            self.say(words(text), -2.5 if "unsure" in said else -0.01, 0.02 if slow else 0.0)

    def say(self, parts: list[str], logprob: float, pause_s: float) -> None:
        limit = self.ask.sampling.max_tokens
        kept = parts[:limit]
        for part in kept:
            if self.cancelled.is_set():
                self.end(failure=Failure(FailureKind.CANCELLED, "cancelled"))
                return
            tokens = (token(part, logprob, self.ask.sampling.top_logprobs),)
            send(frames.Step(pieces=(frames.Piece(self.ask.id, part, tokens),)))
            if pause_s:
                time.sleep(pause_s)
        if "crash" not in self.text.lower():
            self.end(finish_reason="length" if len(kept) < len(parts) else "stop", output_tokens=len(kept))

    def end(self, *, finish_reason: str | None = None, output_tokens: int = 0, failure: Failure | None = None) -> None:
        prompt_tokens = sum(len(words(message.content)) for message in self.ask.messages)
        ended = frames.Ended(
            self.ask.id,
            finish_reason=finish_reason,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            failure=failure,
        )
        send(frames.Step(ended=(ended,)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hang-at-load", action="store_true")
    parser.add_argument("--crash-at-load", action="store_true")
    parser.add_argument("--crash-on-device", action="store_true")
    parser.add_argument("--fail-load", action="store_true")
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("--protocol", type=int, default=frames.PROTOCOL)
    options, _ = parser.parse_known_args()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    if not options.silent:
        send(frames.Hello(options.protocol, os.getpid()))
    reader = frames.command_reader()
    running: dict[int, Conversation] = {}
    while data := os.read(0, 65536):
        for command in reader.feed(data):
            match command:
                case frames.Load():
                    if options.crash_at_load:
                        os.write(2, b"fake_worker.c:7: cannot allocate 99 GiB\n")
                        os.kill(os.getpid(), signal.SIGABRT)
                    if options.crash_on_device and not command.verdicts:
                        send(frames.Trying(DEVICE))
                        os.kill(os.getpid(), signal.SIGSEGV)
                    if options.fail_load:
                        send(frames.LoadFailed("the file is not a model"))
                    elif not options.hang_at_load:
                        send(
                            frames.Ready(
                                runtime="fake 1", context_tokens=command.context_tokens, confinement=(), load_ms=1.0
                            )
                        )
                case frames.Generate():
                    running[command.id] = Conversation(command)
                    running[command.id].start()
                case frames.Score():
                    send(frames.Step(scored=(score(command),)))
                case frames.Cancel():
                    if command.id in running:
                        running[command.id].cancelled.set()
    os._exit(0)


if __name__ == "__main__":
    main()
