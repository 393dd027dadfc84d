"""``outrider ask``: one question, one answer, and how sure it is."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from agent.cli.invocation import Decorated, Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, notice, printable

if TYPE_CHECKING:
    from agent.cli.client import DaemonClient

MOST_TOKENS = 512  # small models can repeat themselves to the end of their context
NO_TEXT = 3  # exit code: accepted, but there is no text (yet)
TIMEOUT_MARGIN_S = 10.0  # the daemon ends a request at its deadline; it gets this long to say so


def answer_options(function: Decorated) -> Decorated:
    """Add the options that ``ask`` and ``chat`` share."""
    for option in reversed(
        (
            click.option("--model", help="Local model or alias; without it, default."),
            click.option("--system", help="System prompt."),
            click.option(
                "--max-tokens",
                type=click.IntRange(0),
                default=MOST_TOKENS,
                show_default=True,
                help="Longest answer, tokens; 0 goes on to the end of the context.",
            ),
            click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True),
            click.option("--seed", type=int, help="The same seed draws the same tokens."),
            click.option(
                "--on-low-confidence",
                type=click.Choice(["draft", "wait", "defer", "abstain"]),
                help="What to get when the local answer is not sure. Default: routing.on_low_confidence.",
            ),
            click.option(
                "--route",
                type=click.Choice(["local_only", "local_first", "cloud_first", "cloud_only"]),
                help="Who may answer. Default: routing.mode.",
            ),
            click.option(
                "--egress",
                type=click.Choice(["never", "approve", "redact", "allow"]),
                help="What may leave the device for this. Never looser than the target's own policy.",
            ),
            click.option(
                "--deadline", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Give up then."
            ),
        )
    ):
        function = option(function)
    return function


@click.command()
@click.argument("question")
@answer_options
@click.option("--wait", is_flag=True, help="Hold until the final answer; short for --on-low-confidence wait.")
@click.option("--explain", is_flag=True, help="Print signals, rule, threshold and decision too.")
@click.option("--stream/--no-stream", default=None, help="Print tokens as they come. Default: on a terminal.")
@json_option
@pass_invocation
def ask(
    invocation: Invocation,
    /,
    question: str,
    wait: bool,
    explain: bool,
    stream: bool | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Ask one question and print the answer.

    The answer goes to stdout, confidence and decision to stderr. QUESTION "-" reads stdin.
    Exit code 3: the request is accepted, but there is no text (queued, or withheld as uncertain).

    Example:  outrider ask "What is the capital of France?" --explain
    """
    from agent.cli.client import DaemonClient

    if wait:
        if options["on_low_confidence"] not in {None, "wait"}:
            raise click.UsageError("--wait and --on-low-confidence contradict each other: keep one")
        options["on_low_confidence"] = "wait"
    text = sys.stdin.read() if question == "-" else question
    if not text.strip():
        raise click.UsageError("the question is empty")
    messages = [{"role": "system", "content": options["system"]}] if options["system"] else []
    messages.append({"role": "user", "content": text})
    body = request_body(messages, options)
    timeout_s = patience_s(invocation, options)
    streamed = sys.stdout.isatty() if stream is None else stream
    with DaemonClient(invocation.settings) as client:
        if streamed and not as_json:
            answer = print_stream(client, body, timeout_s)
        else:
            answer = client.answer(body, timeout_s)
            if not as_json and text_of(answer):
                click.echo(printable(text_of(answer)))
        outcome = answer.get("outrider", {})
        record = client.get(f"/v1/requests/{outcome['request_id']}") if explain else None
    if as_json:
        emit_json({**answer, "request": record} if explain else answer)
    else:
        notice(summary(answer) + demo_label(invocation, answer))
        if record is not None:
            from agent.cli.requests import explanation

            notice(explanation(record))
    return 0 if text_of(answer) else NO_TEXT


def demo_label(invocation: Invocation, answer: dict[str, Any]) -> str:
    """Return what to say of an answer by the demo model; at the first one, what would be better."""
    from agent.models.blobs import write_durably
    from agent.models.store import open_store

    store = open_store(invocation.data_path)
    spec = store.manifest.find(str(answer.get("model")))
    if spec is None or not spec.demo or answer.get("outrider", {}).get("source") != "local":
        return ""
    offered = store.blobs.root / "get-offered"
    if offered.exists() or any("chat" in entry.tasks and not entry.demo for entry in store.served()):
        return " (demo model)"
    with contextlib.suppress(OSError):  # then it is offered once more
        offered.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(offered, b"")
    return (
        " (demo model)\n"
        "That was the demo model: it shows that things work, and is weak at facts. "
        "A better one for this device: outrider get"
    )


def request_body(messages: list[dict[str, str]], options: dict[str, Any]) -> dict[str, Any]:
    """Return the chat request for these options; what was not given is left out."""
    body: dict[str, Any] = {
        "model": options["model"] or "default",
        "messages": messages,
        "temperature": options["temperature"],
    }
    if options["max_tokens"]:
        body["max_completion_tokens"] = options["max_tokens"]
    if options["seed"] is not None:
        body["seed"] = options["seed"]
    ours = {
        "on_low_confidence": options["on_low_confidence"],
        "route_mode": options["route"],
        "egress": options["egress"],
        "deadline_ms": int(options["deadline"] * 1000) if options["deadline"] else None,
    }
    if given := {name: value for name, value in ours.items() if value is not None}:
        body["outrider"] = given
    return body


def patience_s(invocation: Invocation, options: dict[str, Any]) -> float:
    """Return how long this side waits, seconds: a little longer than the daemon does."""
    deadline_s: float = options["deadline"] or invocation.settings.server.request_timeout_s
    return deadline_s + TIMEOUT_MARGIN_S


def print_stream(client: DaemonClient, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Print text as it comes; return the answer put together like one that was not streamed."""
    text: list[str] = []
    refusal = finish_reason = None
    outcome: dict[str, Any] = {}
    model = ""
    try:
        for event in client.stream("/v1/chat/completions", {**body, "stream": True}, timeout_s):
            outcome = event.get("outrider") or outcome
            model = event.get("model") or model
            for choice in event.get("choices", ()):
                finish_reason = choice.get("finish_reason") or finish_reason
                delta = choice.get("delta") or choice.get("message") or {}
                refusal = delta.get("refusal") or refusal
                if piece := delta.get("content"):
                    click.echo(printable(piece), nl=False)
                    sys.stdout.flush()
                    text.append(piece)
    finally:  # an error that ends the stream stands on a line of its own
        if text:
            click.echo()
    message = {"role": "assistant", "content": "".join(text) or None, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"model": model, "choices": [choice], "outrider": outcome}


def text_of(answer: dict[str, Any]) -> str:
    """Return the text of a chat completion, "" when it has none."""
    choices = answer.get("choices") or [{}]
    return str((choices[0].get("message") or {}).get("content") or "")


def summary(answer: dict[str, Any]) -> str:
    """Return one line on how sure the answer is and what became of the request."""
    outcome = answer.get("outrider", {})
    confidence = outcome.get("confidence")
    sure = "no confidence signal" if confidence is None else f"confidence {confidence:.2f}"
    if confidence is not None and not outcome.get("calibrated"):
        sure += " (uncalibrated)"
    line = f"{sure}; {outcome.get('decision')} ({outcome.get('reason')}), answer from {outcome.get('source') or 'nobody yet'}"
    if (answer.get("choices") or [{}])[0].get("finish_reason") == "length":
        line += "; cut at the length limit (--max-tokens)"
    if outcome.get("state") == "queued":
        line += f"; ask later: outrider requests show {outcome.get('request_id')}"
    return line
