"""Tasks that come ready: their labels, and examples of our own to teach them with. Pure reading."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

NAMES = ("moderation", "intent", "triage")


def preset_tree(preset: str) -> dict[str, Any]:
    """Return the task of a preset, as a task's file would say it, without its name."""
    found: dict[str, Any] = tomllib.loads(_text(f"{preset}.toml"))
    return found


def preset_examples(preset: str) -> str:
    """Return its examples, one JSON object a line."""
    return _text(f"{preset}.jsonl")


def _text(name: str) -> str:
    return resources.files("agent.presets").joinpath(name).read_text(encoding="utf-8")
