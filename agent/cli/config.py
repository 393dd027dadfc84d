"""``outrider config``: what holds, and where each value comes from."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, table
from agent.configuration import LISTS


@click.group()
def config() -> None:
    """See the configuration and where each value comes from."""


@config.command()
@json_option
@pass_invocation
def show(invocation: Invocation, as_json: bool) -> None:
    """Print every value with its origin: default, file, env or flag.

    Example:  outrider config show
    """
    loaded = invocation.loaded
    rows = [
        {"key": key, "value": value, "origin": _origin(loaded.origins, key)} for key, value in _values(loaded.settings)
    ]
    if as_json:
        emit_json(rows)
        return
    table(["KEY", "VALUE", "ORIGIN"], [(row["key"], _toml(row["value"]), row["origin"]) for row in rows])


@config.command()
@json_option
@pass_invocation
def path(invocation: Invocation, as_json: bool) -> None:
    """Print the path of the configuration file, whether it exists or not.

    Example:  $EDITOR "$(outrider config path)"
    """
    found = invocation.loaded.path
    if as_json:
        emit_json({"path": str(found), "exists": found.exists()})
        return
    click.echo(found)


@config.command()
@json_option
@pass_invocation
def check(invocation: Invocation, as_json: bool) -> None:
    """Check file, environment and flags; exit 78 with one line if they do not hold.

    Example:  outrider --config new.toml config check
    """
    loaded = invocation.loaded
    if as_json:
        emit_json(
            {"ok": True, "path": str(loaded.path), "targets": [target.name for target in loaded.settings.targets]}
        )
        return
    click.echo(f"the configuration holds ({loaded.path}{'' if loaded.path.exists() else ', which does not exist'})")


def _values(settings: msgspec.Struct) -> list[tuple[str, Any]]:
    """Return dotted keys and values in the order of the file; targets are ``targets.NAME.key``, adapters likewise."""
    found: list[tuple[str, Any]] = []
    for name, value in msgspec.to_builtins(settings).items():
        if name in LISTS:
            for item in value:
                found += [(f"{name}.{item['name']}.{key}", inner) for key, inner in item.items() if key != "name"]
        elif isinstance(value, dict):
            found += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            found.append((name, value))
    return found


def _origin(origins: dict[str, str], key: str) -> str:
    section = key.partition(".")[0]
    return origins.get(section if section in LISTS else key, "default")


def _toml(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
