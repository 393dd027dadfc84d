"""Configuration: ``outrider.toml``, then ``OUTRIDER_*`` in the environment, then flags.

Unknown keys are refused by name. Every value knows where it came from (``config show``).
The field descriptions are the configuration reference (docs/configuration.md is generated).
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from agent.errors import ConfigError
from agent.types import EgressPolicy, Handoff, KvType, OnLowConfidence, RouteMode

ENV_PREFIX = "OUTRIDER_"
# Read by the CLI or the environment itself; not settings.
ENV_RESERVED = frozenset({"OUTRIDER_CONFIG", "OUTRIDER_API_KEY", "OUTRIDER_ADMIN_KEY"})
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
LOOPBACK_IP = re.compile(r"127\.\d{1,3}\.\d{1,3}\.\d{1,3}")


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration file."""


class ServerSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP API."""

    host: Annotated[str, Meta(description="Address to listen on. Anything but loopback needs TLS.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port; 0 takes a free one.")] = 8484
    tls_cert: Annotated[str, Meta(description="PEM certificate; needed off loopback.")] = ""
    tls_key: Annotated[str, Meta(description="PEM key of the certificate.")] = ""
    allowed_hosts: Annotated[
        tuple[str, ...], Meta(description="Host headers accepted besides the loopback names (no port).")
    ] = ()
    allowed_origins: Annotated[tuple[str, ...], Meta(description="Origin headers accepted; none by default.")] = ()
    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 28, description="Largest request body.")] = 4 << 20
    max_messages: Annotated[int, Meta(ge=1, le=100_000, description="Most messages in one chat request.")] = 1024
    request_timeout_s: Annotated[
        float, Meta(gt=0, le=86_400, description="Deadline of a request that names none, seconds.")
    ] = 300.0
    grace_s: Annotated[
        float, Meta(ge=0, le=600, description="How long a stop waits for running generations, seconds.")
    ] = 10.0


class EngineSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The local model and its worker process."""

    model: Annotated[str, Meta(description="Default model, a name in the manifest.")] = "smollm2-135m-instruct"
    context_tokens: Annotated[int, Meta(ge=256, le=1 << 20, description="Prompt and answer together, tokens.")] = 4096
    parallel: Annotated[int, Meta(ge=1, le=64, description="Requests decoded at the same time.")] = 4
    kv_type: Annotated[KvType, Meta(description="Keys and values: f16, or q8_0 for half the memory.")] = KvType.F16
    idle_unload_s: Annotated[float, Meta(ge=0, description="Seconds unused until a model unloads; 0: never.")] = 0.0
    waiting_line: Annotated[int, Meta(ge=0, le=10_000, description="Waiting requests; one more is a 429.")] = 32
    threads: Annotated[int, Meta(ge=0, le=256, description="Threads; 0: as the machine has free, step by step.")] = 0
    load_timeout_s: Annotated[float, Meta(gt=0, le=3600, description="Longest load of a model, seconds.")] = 120.0
    crashes_to_quarantine: Annotated[
        int, Meta(ge=1, le=100, description="Crashes of one model in crash_window_s after which it is not started.")
    ] = 3
    crash_window_s: Annotated[float, Meta(gt=0, le=86_400, description="Span in which crashes count, seconds.")] = 600.0
    confine: Annotated[
        bool, Meta(description="Lock the worker in before it loads a model (no sockets, no programs).")
    ] = True


class ConfidenceSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a local answer counts as sure."""

    threshold: Annotated[
        float, Meta(ge=0, le=1, description="An answer below this score is not sure. On the estimator's scale, 0..1.")
    ] = 0.5
    estimator: Annotated[str, Meta(description="Score of an answer without a calibration.")] = "lowest_tenth"


class RoutingSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Defaults of a request that names none."""

    mode: Annotated[RouteMode, Meta(description="Route of a request that names none.")] = RouteMode.LOCAL_FIRST
    on_low_confidence: Annotated[
        OnLowConfidence, Meta(description="What a caller gets that names nothing: draft, wait, defer or abstain.")
    ] = OnLowConfidence.DRAFT


class QueueSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The outbox: ceilings, life and attempts."""

    max_rows: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Ceiling of open rows; one more is refused (507).")
    ] = 100_000
    max_bytes: Annotated[int, Meta(ge=4096, description="Ceiling of the bodies of open rows, bytes.")] = 1 << 30
    ttl_s: Annotated[int, Meta(ge=1, le=30 * 86_400, description="Life of a row that nobody answered, seconds.")] = (
        7 * 86_400
    )
    max_attempts: Annotated[
        int, Meta(ge=1, le=1000, description="Sends that fail before a row is dead. Offline is not an attempt.")
    ] = 12
    lease_s: Annotated[float, Meta(gt=0, le=86_400, description="How long one send may hold a row, seconds.")] = 600.0
    ballast_bytes: Annotated[int, Meta(ge=0, description="Space reserved to free when the disk is full, bytes.")] = (
        16 << 20
    )


class RetentionSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long texts stay on this device."""

    bodies: Annotated[
        typing.Literal["keep", "none"],
        Meta(description="none: texts go with the end of a request; what nobody could read before, once fetched."),
    ] = "keep"
    answered_s: Annotated[int, Meta(ge=0, description="How long texts stay after an answer, seconds.")] = 86_400
    late_s: Annotated[int, Meta(ge=0, description="How long a late answer that nobody fetched stays, seconds.")] = (
        30 * 86_400
    )
    rows_s: Annotated[
        int,
        Meta(
            ge=0,
            description="How long an ended request is known without its texts (its Idempotency-Key too), seconds.",
        ),
    ] = 90 * 86_400


class ConnectivitySettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the daemon finds out whether a target can be reached."""

    connect_timeout_s: Annotated[
        float, Meta(gt=0, le=60, description="Connect timeout of a probe or send, DNS included, seconds.")
    ] = 3.0
    probe_cap_s: Annotated[float, Meta(ge=1, le=3600, description="Longest wait between probes on mains, seconds.")] = (
        60.0
    )
    probe_cap_battery_s: Annotated[
        float, Meta(ge=1, le=3600, description="Longest wait between probes on battery, seconds.")
    ] = 300.0


class TargetSettings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somewhere bigger to escalate to, one [[targets]] table each."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="Name of the target.")]
    base_url: Annotated[str, Meta(description="URL of the OpenAI API, with /v1. https, or http on loopback.")]
    model: Annotated[str, Meta(min_length=1, description="Model to ask for there.")]
    egress: Annotated[
        EgressPolicy, Meta(description="allow: sent as it is. approve: a person releases each row. never: nothing.")
    ]
    api_key_env: Annotated[str, Meta(description="Environment variable with the API key.")] = ""
    api_key_file: Annotated[str, Meta(description="File with the API key, mode 0600.")] = ""
    handoff: Annotated[
        Handoff, Meta(description="fresh, refine (the draft goes along) or verify (the draft is judged).")
    ] = Handoff.FRESH
    timeout_s: Annotated[
        float, Meta(gt=0, le=3600, description="Longest send, from connect to the whole answer, seconds.")
    ] = 120.0
    concurrency: Annotated[int, Meta(ge=1, le=64, description="Sends under way at once.")] = 2
    min_interval_s: Annotated[float, Meta(ge=0, le=3600, description="Shortest time between two sends, seconds.")] = 0.0
    ca_file: Annotated[str, Meta(description="PEM file with the certificate authority, for a private one.")] = ""
    chain: Annotated[bool, Meta(description="The target is an Outrider that may hand on further.")] = False
    max_reply_bytes: Annotated[int, Meta(ge=1024, le=1 << 28, description="Largest reply.")] = 16 << 20

    @property
    def fingerprint(self) -> str:
        """SHA-256 of address and model: who a row was accepted or released for, whatever the name."""
        return hashlib.sha256(f"{self.base_url.rstrip('/')}\n{self.model}".encode()).hexdigest()


class Settings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration."""

    data_dir: Annotated[
        str, Meta(description="Database, keys, tokens and models. Default: $XDG_DATA_HOME/outrider.")
    ] = ""
    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    confidence: ConfidenceSettings = ConfidenceSettings()
    routing: RoutingSettings = RoutingSettings()
    queue: QueueSettings = QueueSettings()
    retention: RetentionSettings = RetentionSettings()
    connectivity: ConnectivitySettings = ConnectivitySettings()
    targets: tuple[TargetSettings, ...] = ()

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir)


class LoadedSettings(msgspec.Struct, frozen=True):
    """Settings with the origin of each value: ``default``, a file, ``env NAME`` or ``flag``."""

    settings: Settings
    origins: dict[str, str]
    path: Path


def sections() -> dict[str, type[msgspec.Struct]]:
    """Return the section types by name, in the order of the file (without ``targets``)."""
    hints = typing.get_type_hints(Settings)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, msgspec.Struct)}


def default_config_path(environ: Mapping[str, str]) -> Path:
    """``$OUTRIDER_CONFIG``, else ``$XDG_CONFIG_HOME/outrider/outrider.toml``."""
    if named := environ.get("OUTRIDER_CONFIG"):
        return Path(named)
    base = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/")) / ".config"
    return Path(base) / "outrider" / "outrider.toml"


def default_data_dir(environ: Mapping[str, str]) -> str:
    """``$XDG_DATA_HOME/outrider``, else ``~/.local/share/outrider``."""
    base = environ.get("XDG_DATA_HOME") or Path(environ.get("HOME", "/")) / ".local" / "share"
    return str(Path(base) / "outrider")


def load(
    config_path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> LoadedSettings:
    """Read, merge and check the configuration.

    ``flags`` maps dotted keys ("server.port") to values; None values are left out.
    Raises ConfigError naming the file, the key and what is allowed.
    """
    environ = os.environ if environ is None else environ
    path = config_path or default_config_path(environ)
    explicit = config_path is not None or "OUTRIDER_CONFIG" in environ
    tree: dict[str, Any] = _read_file(path, must_exist=explicit)
    origins: dict[str, str] = {key: str(path) for key in _leaves(tree)}
    _check_names(tree, str(path))
    tree = _checked_convert_tree(tree, str(path))
    for key, text, name in _environment(environ):
        _put(tree, key, _from_text(key, text, f"environment variable {name}"))
        origins[key] = f"env {name}"
    for key, value in (flags or {}).items():
        if value is not None:
            _put(tree, key, value)
            origins[key] = "flag"
    if not tree.get("data_dir"):
        tree["data_dir"] = default_data_dir(environ)
        origins.pop("data_dir", None)
    tree["data_dir"] = str(Path(tree["data_dir"]).expanduser().absolute())
    settings = _convert(tree, "flags")
    _check(settings)
    return LoadedSettings(settings, origins, path)


def _read_file(path: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"configuration file {path} does not exist; create it or leave --config out") from None
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}; correct that line") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check its permissions") from error


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in tree.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [prefix + key]
    return found


def known_keys() -> list[str]:
    """All dotted keys except those of targets."""
    keys = ["data_dir"]
    for name, section in sections().items():
        keys += [f"{name}.{field.name}" for field in msgspec.structs.fields(section)]
    return keys


def _nearest(name: str, candidates: list[str]) -> str:
    close = difflib.get_close_matches(name, candidates, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(candidates))}"


def _check_names(tree: Mapping[str, Any], where: str) -> None:
    by_section = {name: [f.name for f in msgspec.structs.fields(s)] for name, s in sections().items()}
    for key, value in tree.items():
        if key in by_section:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {key} must be a table, written [{key}]")
            for inner in value:
                if inner not in by_section[key]:
                    raise ConfigError(f"{where}: unknown key {key}.{inner}{_nearest(inner, by_section[key])}")
        elif key == "targets":
            names = [f.name for f in msgspec.structs.fields(TargetSettings)]
            if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
                raise ConfigError(f"{where}: targets must be written as [[targets]] tables")
            for index, target in enumerate(value):
                for inner in target:
                    if inner not in names:
                        raise ConfigError(f"{where}: unknown key targets[{index}].{inner}{_nearest(inner, names)}")
        elif key != "data_dir":
            raise ConfigError(f"{where}: unknown key {key}{_nearest(key, [*by_section, 'targets', 'data_dir'])}")


def _checked_convert_tree(tree: dict[str, Any], where: str) -> dict[str, Any]:
    # The file is checked strictly by itself, so that an error names the file and not a variable.
    _convert({**tree, "data_dir": tree.get("data_dir", "")}, where)
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _environment(environ: Mapping[str, str]) -> list[tuple[str, str, str]]:
    names = {f"{ENV_PREFIX}{key.replace('.', '_').upper()}": key for key in known_keys()}
    found = []
    for name, text in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX) or name in ENV_RESERVED:
            continue
        if name not in names:
            raise ConfigError(f"unknown environment variable {name}{_nearest(name, [*names, *ENV_RESERVED])}")
        found.append((names[name], text, name))
    return found


def _field_type(key: str) -> Any:
    if key == "data_dir":
        return str
    section, _, field = key.partition(".")
    return typing.get_type_hints(sections()[section], include_extras=True)[field]


def _from_text(key: str, text: str, where: str) -> object:
    kind = _field_type(key)
    value: object = text
    if typing.get_origin(typing.get_args(kind)[0] if typing.get_args(kind) else kind) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return msgspec.to_builtins(msgspec.convert(value, kind, strict=False))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {text!r} is not valid for {key}: {error}") from error


def _put(tree: dict[str, Any], key: str, value: object) -> None:
    section, _, field = key.partition(".")
    place = tree.setdefault(section, {}) if field else tree
    place[field or section] = value


def _convert(tree: Mapping[str, Any], where: str) -> Settings:
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        text, _, at = str(error).partition(" - at `$")
        key = at.rstrip("`").lstrip(".") or "the file"
        raise ConfigError(f"{where}: {key}: {text}") from error


def _check(settings: Settings) -> None:
    server = settings.server
    if bool(server.tls_cert) != bool(server.tls_key):
        raise ConfigError("server.tls_cert and server.tls_key go together: set both or none")
    if server.host not in LOOPBACK_HOSTS and not server.tls_cert:
        raise ConfigError(
            f"server.host = {server.host!r} is not loopback and there is no TLS: "
            "set server.tls_cert and server.tls_key, or listen on 127.0.0.1"
        )
    names = [target.name for target in settings.targets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"targets: the name {twice[0]} is used twice; names are unique")
    for target in settings.targets:
        check_target(target)


def check_target(target: TargetSettings) -> None:
    """Raise ConfigError if a target is not safe or not supported."""
    where = f"target {target.name}"
    if target.egress is EgressPolicy.REDACT:
        raise ConfigError(f'{where}: egress = "redact" is not supported yet: use "approve" or "allow"')
    try:
        url = urlsplit(target.base_url)
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ConfigError(f"{where}: base_url {target.base_url!r} is not a URL: {error}") from error
    if url.scheme not in {"http", "https"} or not host or port == 0:
        raise ConfigError(f"{where}: base_url {target.base_url!r} is not an http(s) URL")
    if url.username or url.password or url.query or url.fragment:
        raise ConfigError(f"{where}: base_url must not carry a password, a query or a fragment; use api_key_file")
    if url.scheme == "http" and host not in LOOPBACK_HOSTS and not LOOPBACK_IP.fullmatch(host):
        raise ConfigError(f"{where}: plain http would send text readable by the network: use https")
    if target.api_key_env and target.api_key_file:
        raise ConfigError(f"{where}: api_key_env and api_key_file are both set: keep one")
