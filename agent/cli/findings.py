"""What ``doctor`` looks at: one function per subject, each returns findings and changes nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent import device
from agent.cli import devices
from agent.cli.access import now_ms
from agent.cli.client import DaemonClient, find_daemon
from agent.cli.finding import NOTE, OK, PROBLEM, Finding
from agent.cli.invocation import Invocation
from agent.cli.machine_findings import machine_findings
from agent.cli.output import counted, size, span
from agent.cli.task_findings import task_findings
from agent.errors import OutriderError
from agent.escalation.names import names_notice
from agent.models.aliases import DEFAULT, Aliases
from agent.models.packaged import how_to_install, missing_packages
from agent.models.store import open_store
from agent.settings import Settings, TargetSettings
from agent.storage import keys
from agent.storage.connection import (
    DATABASE_NAME,
    SCHEMA_VERSION,
    SQLITE_ERRORS,
    SQLITE_FLOOR,
    connect,
    schema_version,
    translate,
)
from agent.storage.egress_log import first_bad_row
from agent.types import EgressPolicy

DISK_RESERVE_BYTES = 256 << 20  # beside ballast and model: room for the database to grow
MODEL_MEMORY_FACTOR = 1.6  # weights, context and runtime of a small model, measured on SmolLM2-135M


def examine(invocation: Invocation) -> list[Finding]:
    """Look at everything. A look that fails becomes a finding itself."""
    found = _look("machine", machine_findings)
    try:
        settings = invocation.settings
    except OutriderError as error:
        return [*found, Finding(PROBLEM, "configuration", str(error), "correct it, then run doctor again")]
    path = invocation.loaded.path
    told = str(path) if path.exists() else f"{path} does not exist: the defaults hold"
    found.append(Finding(OK, "configuration", told))
    for subject, look in (
        ("data directory", lambda: _data_directory(settings)),
        ("disk", lambda: _disk(settings)),
        ("sqlite", _sqlite),
        ("key", lambda: _key(settings)),
        ("database", lambda: _database(settings)),
        ("native library", _native_library),
        ("devices", lambda: _devices(settings)),
        ("model", lambda: _model(settings)),
        ("tasks", lambda: task_findings(path)),
        ("targets", lambda: _targets(settings)),
        ("daemon", lambda: _daemon(settings)),
    ):
        found += _look(subject, look)
    return found


def _look(subject: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except OutriderError as error:
        return [Finding(PROBLEM, subject, str(error), "do what the line above says, then run doctor again")]
    except OSError as error:
        return [Finding(PROBLEM, subject, f"{error}", "check the permissions of that place")]


def _data_directory(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_path
    if not folder.exists():
        parent = next(parent for parent in folder.parents if parent.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            yield Finding(OK, "data directory", f"{folder} does not exist yet; the first start makes it")
        else:
            yield Finding(
                PROBLEM,
                "data directory",
                f"{folder} does not exist and {parent} may not be written",
                f"make it yours: install -d -m 700 {folder}, or set data_dir",
            )
        return
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        yield Finding(
            PROBLEM, "data directory", f"{folder} has mode {mode:04o}: others may look in", f"chmod 700 {folder}"
        )
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(PROBLEM, "data directory", f"{folder} may not be written", "run as its owner, or set data_dir")
    else:
        yield Finding(OK, "data directory", str(folder))


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = next(place for place in (settings.data_path, *settings.data_path.parents) if place.exists())
    free = shutil.disk_usage(folder).free
    wanted = DISK_RESERVE_BYTES + settings.queue.ballast_bytes
    if free < wanted:
        yield Finding(
            PROBLEM, "disk", f"{size(free)} free at {folder}, {size(wanted)} wanted", "free some space, or set data_dir"
        )
    else:
        yield Finding(OK, "disk", f"{size(free)} free at {folder}")


def _sqlite() -> Iterator[Finding]:
    from sqlcipher3 import dbapi2

    version: tuple[int, ...] = dbapi2.sqlite_version_info
    if version < SQLITE_FLOOR:
        yield Finding(
            PROBLEM,
            "sqlite",
            f"{dbapi2.sqlite_version} can corrupt its write-ahead log",
            "python -m pip install --upgrade sqlcipher3",
        )
    else:
        yield Finding(OK, "sqlite", f"{dbapi2.sqlite_version} with SQLCipher: the database is encrypted")


def _key(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_path
    if not (folder / DATABASE_NAME).exists() and not (folder / keys.PLACE_NAME).exists():
        yield Finding(OK, "key", "none yet; the first start makes it")
        return
    status = keys.status(folder)
    yield Finding(
        OK, "key", f"{status.path} (fingerprint {status.fingerprint}) protects against {status.protects_against}"
    )
    yield Finding(
        NOTE,
        "key",
        f"it does not protect against {status.does_not_protect_against}",
        "encrypt the disk, and keep a recovery code elsewhere: outrider key recovery",
    )


def _database(settings: Settings) -> Iterator[Finding]:
    """Open it and read every page, while no daemon uses it: seconds for a gigabyte."""
    folder = settings.data_path
    database = folder / DATABASE_NAME
    if not database.exists() or find_daemon(folder) is not None:
        return
    connection = connect(database, keys.load(folder).material)
    try:
        version = schema_version(connection, database)
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            yield Finding(
                PROBLEM, "database", f"{database} is damaged: {verdict}", "restore a backup, or run `outrider salvage`"
            )
            return
        bad_id = first_bad_row(connection) if version == SCHEMA_VERSION else None
    except SQLITE_ERRORS as error:
        raise translate(error, database) from error
    finally:
        connection.close()
    yield Finding(OK, "database", f"{database} is whole, schema {version}, {size(database.stat().st_size)}")
    yield _egress_log(bad_id)


def _egress_log(bad_id: int | None) -> Finding:
    if bad_id is None:
        return Finding(OK, "egress log", "whole: no entry changed, none missing")
    return Finding(
        PROBLEM,
        "egress log",
        f"broken from entry {bad_id} on: somebody with the key has changed it, or the file is damaged",
        "compare it with a backup, and ask who had access; `outrider egress verify` checks again",
    )


def _devices(settings: Settings) -> Iterator[Finding]:
    found = devices.verdicts(settings.data_path)
    names = {entry.sha256: entry.name for entry in open_store(settings.data_path).list()} if found else {}
    for one in found:
        model = names.get(one.model_digest, f"{one.model_digest[:12]} (no longer here)")
        what = f"model {model} on {one.kind} by {one.provider}"
        if one.holds:
            yield Finding(OK, "devices", f"{what}: {one.reason}")
        else:
            yield Finding(NOTE, "devices", f"{what} is refused: {one.reason}", "nothing: the next device is used")


def _native_library() -> Iterator[Finding]:
    # Found, not imported: it is native code and belongs into the worker.
    if importlib.util.find_spec("llama_cpp") is None:
        yield Finding(
            PROBLEM,
            "native library",
            "llama-cpp-python is not installed: no local answers",
            "python -m pip install llama-cpp-python==0.3.36 (in the source tree: make demo builds it)",
        )
    else:
        yield Finding(OK, "native library", "llama-cpp-python is installed")


def _model(settings: Settings) -> Iterator[Finding]:
    store = open_store(settings.data_path)
    entry = store.show(Aliases(store.blobs.root, settings.engine.model).target(DEFAULT))
    if entry.state == "missing":
        spec = store.manifest.find(entry.name)
        yield Finding(
            PROBLEM,
            "model",
            f"{entry.name} is not installed",
            how_to_install(spec) if spec is not None and missing_packages(spec) else f"outrider pull {entry.name}",
        )
        return
    yield Finding(
        OK,
        "model",
        f"{entry.name}{' (demo model)' if entry.demo else ''}, {entry.state}, {size(entry.bytes)}, licence {entry.licence}",
    )
    if entry.quarantined:
        yield Finding(NOTE, "model", f"a copy is in quarantine: {entry.quarantined}", "outrider models verify")
    free, wanted = device.profile().memory_usable, int(entry.bytes * MODEL_MEMORY_FACTOR)
    if free < wanted and find_daemon(settings.data_path) is None:
        yield Finding(
            PROBLEM,
            "memory",
            f"{size(free)} free, {entry.name} wants about {size(wanted)}",
            "close other programs, or lower engine.context_tokens and engine.parallel",
        )


def _targets(settings: Settings) -> Iterator[Finding]:
    if not settings.targets:
        yield Finding(OK, "targets", "none: nothing leaves this device; unsure requests wait for `outrider target add`")
    names = names_notice(settings.redaction.names)
    for one in settings.targets:
        subject = f"target {one.name}"
        match one.egress:
            case EgressPolicy.ALLOW:
                yield Finding(
                    NOTE,
                    subject,
                    f"text of unsure requests leaves for {one.base_url} UNREDACTED",
                    'set egress = "approve" to see each text first',
                )
            case EgressPolicy.NEVER:
                yield Finding(OK, subject, "egress is never: nothing is sent there")
            case EgressPolicy.REDACT:
                yield Finding(OK, subject, f"text of unsure requests leaves pseudonymised; {names}")
            case EgressPolicy.APPROVE:
                told = "nothing leaves before `outrider queue release`; it goes pseudonymised, " + names
                yield Finding(OK, subject, told)
        yield from files_of(one)


def files_of(one: TargetSettings) -> Iterator[Finding]:
    """Yield what is wrong with the files and the variable that a target names."""
    subject = f"target {one.name}"
    if one.ca_file and not Path(one.ca_file).is_file():
        yield Finding(PROBLEM, subject, f"ca_file {one.ca_file} does not exist", "correct ca_file")
    if one.api_key_env and not os.environ.get(one.api_key_env):
        yield Finding(
            NOTE, subject, f"{one.api_key_env} is not set here", "set it where the daemon starts, or use api_key_file"
        )
    if not one.api_key_file:
        return
    path = Path(one.api_key_file)
    if not path.is_file() or not os.access(path, os.R_OK):
        yield Finding(PROBLEM, subject, f"api_key_file {path} cannot be read", "put the key there, mode 0600")
    elif stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Finding(PROBLEM, subject, f"api_key_file {path} may be read by others", f"chmod 600 {path}")


def _daemon(settings: Settings) -> Iterator[Finding]:
    address = find_daemon(settings.data_path)
    if address is None:
        yield from _port(settings)
        yield Finding(NOTE, "daemon", "not running", "start it: outrider serve")
        return
    with DaemonClient(settings) as client:
        ready = client.get("/readyz")
        queue = client.get("/v1/queue", limit=1)
        log = client.get("/v1/egress/verify")
    yield Finding(OK, "daemon", f"process {address.pid} at {address.url}")
    yield from _readiness(ready)
    yield _egress_log(log["first_bad_id"])
    held = queue["counts"].get("awaiting_approval", {})
    if held.get("rows"):
        age = span((now_ms() - queue["oldest_ms"]) / 1000)
        yield Finding(
            NOTE,
            "queue",
            f"{counted(held['rows'], 'row')} to be released by a person (the oldest open row is {age} old)",
            "see them: outrider queue release (it asks before anything leaves)",
        )


def _readiness(ready: dict[str, Any]) -> Iterator[Finding]:
    for model in ready["models"]:
        name, state, why = model["name"], model["state"], model["last_error"].partition("\n")[0]
        if state in {"quarantined", "backoff", "stopped"}:
            remedy = "restart the daemon once the cause is gone" if state == "quarantined" else "see the daemon's log"
            yield Finding(PROBLEM, f"model {name}", f"{state}: {why or 'no reason given'}", remedy)
        else:
            yield Finding(OK, f"model {name}", str(state))
    for one in ready["targets"]:
        subject, why = f"target {one['name']}", one.get("reason") or ""
        match one.get("state"):
            case "blocked":
                yield Finding(
                    PROBLEM, subject, f"blocked: {why}", "mend its key, quota or address, then: outrider queue drain"
                )
            case "offline" | "portal":
                yield Finding(NOTE, subject, f"{one['state']}: {why}; rows wait and lose nothing")
            case state:
                yield Finding(OK, subject, str(state))


def _port(settings: Settings) -> Iterator[Finding]:
    host, port = settings.server.host, settings.server.port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            yield Finding(
                PROBLEM,
                "port",
                f"{host}:{port} cannot be taken: {error.strerror}",
                "stop the other program, or set server.port",
            )
            return
    yield Finding(OK, "port", f"{host}:{port} is free")
