"""``outrider target``: where requests may be escalated to, kept in outrider.toml."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.config_file import replace_config
from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, notice, table
from agent.errors import ConfigError, DaemonUnreachable, NotFound, OutriderError

if TYPE_CHECKING:
    from agent.settings import TargetSettings

EGRESS_EXPLAINED = """what may leave for this target, when the local answer is not sure:
  approve  pseudonymised, and nothing leaves before `outrider queue release` has shown it to you (default)
  redact   sent at once with e-mail addresses, numbers and secrets replaced; names are NOT removed
  allow    sent at once as it is, UNREDACTED"""


@click.group()
def target() -> None:
    """Say where requests may be escalated to."""


@target.command(name="list")
@json_option
@pass_invocation
def list_targets(invocation: Invocation, as_json: bool) -> None:
    """Print the configured targets, and how each stands when the daemon runs.

    Example:  outrider target list
    """
    by_name = standing(invocation)
    rows = [{**_shown(one), "status": by_name.get(one.name)} for one in invocation.settings.targets]
    if as_json:
        emit_json(rows)
        return
    if not rows:
        notice("no target: nothing leaves this device; add one with `outrider target add`")
        return
    table(
        ["NAME", "URL", "MODEL", "EGRESS", "HANDOFF", "STATE", "WHY"],
        [
            (
                row["name"],
                row["base_url"],
                row["model"],
                row["egress"],
                row["handoff"],
                (row["status"] or {}).get("state"),
                (row["status"] or {}).get("reason"),
            )
            for row in rows
        ],
    )


@target.command()
@click.argument("name")
@click.option("--base-url", required=True, help="URL of the OpenAI API there, with /v1.")
@click.option("--model", required=True, help="Model to ask for there.")
@click.option(
    "--egress", type=click.Choice(["approve", "redact", "allow"]), help="What may leave. Asked for on a terminal."
)
@click.option("--api-key-file", type=click.Path(path_type=Path), help="File with the API key, mode 0600.")
@click.option("--api-key-env", help="Environment variable of the daemon with the API key.")
@click.option(
    "--handoff", type=click.Choice(["fresh", "refine", "verify"]), help="Ask anew, improve or judge the draft."
)
@click.option("--ca-file", type=click.Path(path_type=Path), help="Certificate authority of a private target (PEM).")
@click.option(
    "--images", type=click.Choice(["never", "approve", "allow"]), help="Images, sound, files. Default: approve."
)
@click.option("--input-price", type=float, help="Dollars per million tokens sent.")
@click.option("--output-price", type=float, help="Dollars per million tokens of the answer.")
@click.option("--max-output-tokens", type=click.IntRange(1), help="Most tokens of an answer; a budget needs it.")
@click.option("--chain", is_flag=True, help="The target is an Outrider that may hand on further.")
@json_option
@pass_invocation
def add(
    invocation: Invocation,
    name: str,
    base_url: str,
    model: str,
    egress: str | None,
    api_key_file: Path | None,
    api_key_env: str | None,
    handoff: str | None,
    ca_file: Path | None,
    images: str | None,
    input_price: float | None,
    output_price: float | None,
    max_output_tokens: int | None,
    chain: bool,
    as_json: bool,
) -> None:
    """Add a target to outrider.toml (comments are kept) and tell a running daemon.

    Rows accepted earlier do not leave: `outrider queue release` shows and frees them. Without
    --egress a script gets "approve"; a terminal is asked, also for the API key (kept in a 0600 file).

    Example:  outrider target add cloud --base-url https://api.example.com/v1 --model big-1
    """
    if name in {one.name for one in invocation.settings.targets}:
        raise ConfigError(f"target {name} exists already: remove it first, or choose another name")
    asking = sys.stdin.isatty() and not as_json
    if egress is None:
        egress = "approve"
        if asking:
            notice(EGRESS_EXPLAINED)
            egress = click.prompt(
                "egress", default="approve", type=click.Choice(["approve", "redact", "allow"]), err=True
            )
    entry: dict[str, Any] = {"name": name, "base_url": base_url, "model": model, "egress": egress}
    if api_key_file:
        entry["api_key_file"] = str(api_key_file.expanduser().absolute())
    if api_key_env:
        entry["api_key_env"] = api_key_env
    if handoff:
        entry["handoff"] = handoff
    if ca_file:
        entry["ca_file"] = str(ca_file.expanduser().absolute())
    if chain:
        entry["chain"] = True
    given = {"images": images, "input_price": input_price, "output_price": output_price}
    entry |= {name: value for name, value in given.items() if value is not None}
    if input_price is not None:
        entry["price_as_of"] = datetime.now().astimezone().date()
    if max_output_tokens:
        entry["max_output_tokens"] = max_output_tokens
    _checked(entry)  # before a secret is asked for
    kept: Path | None = None
    if asking and not (api_key_file or api_key_env):
        typed = click.prompt("API key (empty for none)", default="", hide_input=True, show_default=False, err=True)
        if typed:
            kept = _keep_key(invocation, name, typed)
            entry["api_key_file"] = str(kept)
    added: TargetSettings = _checked(entry)
    path = invocation.loaded.path
    try:
        applied = _apply(invocation, lambda targets: targets.append(_toml_table(entry)))
    except OutriderError:
        if kept:
            kept.unlink(missing_ok=True)
        raise
    if as_json:
        emit_json({**_shown(added), "path": str(path), "applied": applied})
        return
    click.echo(f"target {name} is in {path}" + ("; the daemon uses it now" if applied else ""))
    from agent.cli.finding import PROBLEM
    from agent.cli.findings import files_of

    for found in files_of(added):
        notice(f"{found.detail}: {found.remedy}" + (" (until then nothing is sent)" if found.level == PROBLEM else ""))
    notice(
        {
            "allow": "text is sent there as it is, UNREDACTED, when the local answer is not sure",
            "redact": "text is sent there pseudonymised when the local answer is not sure; names are NOT removed",
        }.get(
            egress,
            "nothing is sent there before `outrider queue release`; it goes pseudonymised, names are NOT removed",
        )
    )


@target.command()
@click.argument("name")
@json_option
@pass_invocation
def remove(invocation: Invocation, name: str, as_json: bool) -> None:
    """Take a target out of outrider.toml; its rows stay in the queue and wait.

    Example:  outrider target remove cloud
    """
    _configured(invocation, name)
    path = invocation.loaded.path

    def drop(targets: Any) -> None:
        del targets[next(index for index, one in enumerate(targets) if one["name"] == name)]

    applied = _apply(invocation, drop)
    if as_json:
        emit_json({"name": name, "removed": True, "path": str(path), "applied": applied})
        return
    click.echo(f"target {name} is out of {path}" + ("; the daemon uses it no more" if applied else ""))


@target.command()
@click.argument("name")
@json_option
@pass_invocation
def test(invocation: Invocation, name: str, as_json: bool) -> int:
    """Ask a target for its list of models, as the daemon's probe does; no text leaves.

    Exit code 69 when it cannot be used now.

    Example:  outrider target test cloud
    """
    from agent.cli.escalating import probe

    outcome = asyncio.run(probe(_configured(invocation, name), invocation.settings))
    if as_json:
        emit_json({"name": name, "ok": outcome.ok, "state": outcome.state, "reason": outcome.reason})
    else:
        click.echo(f"{name}: {outcome.state}" + (f": {outcome.reason}" if outcome.reason else ""))
    return 0 if outcome.ok else DaemonUnreachable.exit_code


def _configured(invocation: Invocation, name: str) -> TargetSettings:
    for one in invocation.settings.targets:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in invocation.settings.targets) or "none"
    raise NotFound(f"there is no target {name}; configured: {known}")


def _checked(entry: dict[str, Any]) -> TargetSettings:
    import msgspec

    from agent.configuration import check_target
    from agent.escalation.target import make_target
    from agent.settings import ConnectivitySettings, TargetSettings
    from agent.text_settings import RedactionSettings

    try:
        found = msgspec.convert(entry, TargetSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"target {entry['name']}: {error}") from error
    check_target(found)
    make_target(found, ConnectivitySettings(), RedactionSettings())  # what the daemon does with it; opens nothing
    return found


def _shown(one: TargetSettings) -> dict[str, Any]:
    import msgspec

    shown: dict[str, Any] = msgspec.to_builtins(one)
    return shown


def _toml_table(entry: dict[str, Any]) -> Any:
    import tomlkit

    drawn = tomlkit.table()
    for name, value in entry.items():
        drawn.add(name, value)
    return drawn


def _edit(path: Path, change: Any) -> None:
    """Apply ``change`` to the list of targets; the file is replaced only by one that loads."""
    import tomlkit
    from tomlkit.items import AoT

    text = path.read_text(encoding="utf-8") if path.exists() else ""
    document = tomlkit.parse(text)
    found = document.get("targets")
    if not isinstance(found, AoT):  # none, or written inline: [[targets]] tables can be added to
        if found is not None:
            document.remove("targets")
        document.append("targets", tomlkit.aot())
        for one in found or ():
            document["targets"].append(_toml_table(one))
    change(document["targets"])
    if not document["targets"]:
        document.remove("targets")
    replace_config(path, tomlkit.dumps(document))


def _keep_key(invocation: Invocation, name: str, secret: str) -> Path:
    folder = invocation.data_path / "target-keys"
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(secret.strip() + "\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; use --api-key-file") from error
    return path


def _apply(invocation: Invocation, change: Any) -> bool:
    """Edit the file and tell a running daemon; what the daemon refuses is undone. False when none runs."""
    path = invocation.loaded.path
    before = path.read_text(encoding="utf-8") if path.exists() else None
    _edit(path, change)
    try:
        return reload_daemon(invocation) is not None
    except DaemonUnreachable as error:
        notice(f"outrider: {path} is changed, but the daemon was not told: {error}")
        return False
    except OutriderError:
        if before is None:
            path.unlink()
        else:
            replace_config(path, before)
        raise


def reload_daemon(invocation: Invocation) -> str | None:
    """Tell a running daemon. Returns the ``egress.policy`` that it has then, None when none runs."""
    from agent.cli.client import DaemonClient, find_daemon

    if find_daemon(invocation.data_path) is None:
        return None
    with DaemonClient(invocation.settings) as client:
        return str(client.post("/v1/admin/reload", admin=True)["egress"])


def standing(invocation: Invocation) -> dict[str, Any]:
    """Return the daemon's view of each target by name, empty when none runs."""
    from agent.cli.client import DaemonClient, find_daemon

    if find_daemon(invocation.data_path) is None:
        return {}
    with DaemonClient(invocation.settings) as client:
        ready = client.get("/readyz")
    return {one["name"]: one for one in ready.get("targets", ())}
