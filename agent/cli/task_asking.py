"""What ``outrider tasks new`` asks a person at a terminal."""

from __future__ import annotations

import click

from agent.cli.output import notice

SAMPLED_UNDER = ("redact", "allow")  # egress policies under which an answer may go up without a person


def label_of(text: str) -> tuple[str, str]:
    """Return name and description of NAME=DESCRIPTION."""
    name, _, description = text.partition("=")
    return name.strip(), description.strip()


def asked_kind() -> str:
    """Return the kind."""
    notice("labels: choose one of some labels. extract: JSON by a schema. tool: a call. text: anything else.")
    kind: str = click.prompt(
        "kind", default="labels", type=click.Choice(["labels", "extract", "tool", "text"]), err=True
    )
    return kind


def asked_labels() -> dict[str, str]:
    """Return the labels with their descriptions."""
    notice("The labels, one a line, with = and a description if it helps; an empty line ends them.")
    found: dict[str, str] = {}
    while True:
        text = click.prompt(f"label {len(found) + 1}", default="", show_default=False, err=True)
        if not text.strip():
            return found
        name, description = label_of(text)
        found[name] = description


def asked_quality_sample(egress: str | None) -> float | None:
    """Return which share of the answers served goes up to be checked; None under policies that let none go."""
    if egress not in SAMPLED_UNDER:
        return None
    notice("What share of the answers served here may go up to be checked? It watches the promise, and costs money.")
    share: float = click.prompt("quality sample", default=0.0, type=float, err=True)
    return share
