"""Reading the configuration: ``outrider.toml``, then ``OUTRIDER_*`` in the environment, then flags.

Unknown keys are refused by name. Every value knows where it came from (``config show``).
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from agent.egress_settings import BudgetSettings, KeySettings
from agent.errors import ConfigError
from agent.linear_regex import UnsafePattern
from agent.rules import Rulebook
from agent.settings import AdapterSettings, ExperimentSettings, PrefixSettings, PriceSettings, Settings, TargetSettings
from agent.strictness import stricter
from agent.types import Message, NamedPrefix

ENV_PREFIX = "OUTRIDER_"
# Read by the CLI or the environment itself; not settings.
ENV_RESERVED = frozenset({"OUTRIDER_CONFIG", "OUTRIDER_API_KEY", "OUTRIDER_ADMIN_KEY"})
# Lists of tables, written [[name]].
LISTS: Mapping[str, type[msgspec.Struct]] = {
    "keys": KeySettings,
    "targets": TargetSettings,
    "prices": PriceSettings,
    "budgets": BudgetSettings,
    "adapters": AdapterSettings,
    "prefixes": PrefixSettings,
    "experiments": ExperimentSettings,
}
DEAREST = 1_000_000  # dollars per million tokens
SYSTEM_CONFIG = Path("/etc/outrider/outrider.toml")  # of the installed package
LONGEST_PREFIX_BYTES = 1 << 20  # of a system prompt in a file
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})
LOOPBACK_IP = re.compile(r"127\.\d{1,3}\.\d{1,3}\.\d{1,3}")


class LoadedSettings(msgspec.Struct, frozen=True):
    """Settings with the origin of each value: ``default``, a file, ``env NAME`` or ``flag``."""

    settings: Settings
    origins: dict[str, str]
    path: Path
    flags: Mapping[str, object] = {}  # as they were given to load: a reload puts them on top again


def sections() -> dict[str, type[msgspec.Struct]]:
    """Return the section types by name, in the order of the file (without LISTS)."""
    hints = typing.get_type_hints(Settings)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, msgspec.Struct)}


def default_config_path(environ: Mapping[str, str]) -> Path:
    """``$OUTRIDER_CONFIG``, else ``$XDG_CONFIG_HOME/outrider/outrider.toml``.

    A user with neither that file nor data of his own is served by the machine's daemon, where one is
    installed: then it is SYSTEM_CONFIG.
    """
    if named := environ.get("OUTRIDER_CONFIG"):
        return Path(named)
    base = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/")) / ".config"
    own = Path(base) / "outrider" / "outrider.toml"
    served = not own.exists() and not Path(default_data_dir(environ)).exists() and SYSTEM_CONFIG.exists()
    return SYSTEM_CONFIG if served else own


def default_data_dir(environ: Mapping[str, str]) -> str:
    """``$XDG_DATA_HOME/outrider``, else ``~/.local/share/outrider``."""
    base = environ.get("XDG_DATA_HOME") or Path(environ.get("HOME", "/")) / ".local" / "share"
    return str(Path(base) / "outrider")


def load(
    config_path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    needed: bool | None = None,
) -> LoadedSettings:
    """Read, merge and check the configuration.

    ``flags`` maps dotted keys ("server.port") to values; None values are left out. ``needed``: whether
    the file must be there; by itself one that was named must.
    Raises ConfigError naming the file, the key and what is allowed.
    """
    environ = os.environ if environ is None else environ
    path = config_path or default_config_path(environ)
    named = config_path is not None or "OUTRIDER_CONFIG" in environ
    tree: dict[str, Any] = _read_file(path, must_exist=named if needed is None else needed)
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
    return LoadedSettings(_under_ceiling(settings), origins, path, flags or {})


def _under_ceiling(settings: Settings) -> Settings:
    """Return the settings with no target looser than ``egress.policy``."""
    ceiling = settings.egress.policy
    targets = [msgspec.structs.replace(one, egress=stricter(one.egress, ceiling)) for one in settings.targets]
    return msgspec.structs.replace(settings, targets=tuple(targets))


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
    """All dotted keys except those of LISTS."""
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
        elif key in LISTS:
            names = [f.name for f in msgspec.structs.fields(LISTS[key])]
            if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
                raise ConfigError(f"{where}: {key} must be written as [[{key}]] tables")
            for index, item in enumerate(value):
                for inner in item:
                    if inner not in names:
                        raise ConfigError(f"{where}: unknown key {key}[{index}].{inner}{_nearest(inner, names)}")
        elif key != "data_dir":
            raise ConfigError(f"{where}: unknown key {key}{_nearest(key, [*by_section, *LISTS, 'data_dir'])}")


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
    for key in LISTS:
        names = [item.name for item in getattr(settings, key)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{key}: the name {twice[0]} is used twice; names are unique")
    for target in settings.targets:
        check_target(target)
    for price in settings.prices:
        _check_prices(f"prices {price.name}", price.input, price.output)
    _check_rules(settings)
    for budget in settings.budgets:
        _check_budget(budget, settings.targets)
    for prefix in settings.prefixes:
        if prefix.system and prefix.system_file:
            raise ConfigError(f"prefix {prefix.name}: system and system_file are both set: keep one")
        if not (prefix.system or prefix.system_file or prefix.examples):
            raise ConfigError(f"prefix {prefix.name}: it is empty: set system, system_file or examples")
    for experiment in settings.experiments:
        check_experiment(experiment)
    for adapter in settings.adapters:
        if not Path(adapter.path).expanduser().is_absolute():
            raise ConfigError(f"adapter {adapter.name}: path {adapter.path!r} is not absolute: begin it with / or ~")


def named_prefixes(loaded: LoadedSettings) -> tuple[NamedPrefix, ...]:
    """Return the prefixes with their texts. Raises ConfigError for a file that cannot be read."""
    settings = loaded.settings
    found = []
    for prefix in settings.prefixes:
        system = prefix.system or (_system_text(prefix, loaded.path.parent) if prefix.system_file else "")
        messages = [Message("system", system)] if system else []
        for example in prefix.examples:
            messages += [Message("user", example.user), Message("assistant", example.assistant)]
        model = prefix.model or settings.engine.model
        found.append(NamedPrefix(name=prefix.name, model=model, messages=tuple(messages)))
    return tuple(found)


def _system_text(prefix: PrefixSettings, folder: Path) -> str:
    path = folder / Path(prefix.system_file).expanduser()
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_PREFIX_BYTES + 1).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"prefix {prefix.name}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"prefix {prefix.name}: {path} is not UTF-8 text") from error
    if not text or len(text) > LONGEST_PREFIX_BYTES:
        raise ConfigError(f"prefix {prefix.name}: {path} is empty, or above {LONGEST_PREFIX_BYTES} bytes")
    return text


def check_target(target: TargetSettings) -> None:
    """Raise ConfigError if a target is not safe or not supported."""
    where = f"target {target.name}"
    if target.name in {"local", "person"}:
        raise ConfigError(f"{where}: this name says who answered where no target did; choose another")
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
    if (target.input_price is None) != (target.output_price is None):
        raise ConfigError(f"{where}: input_price and output_price go together: set both or none")
    if target.input_price is not None and target.output_price is not None:
        _check_prices(where, target.input_price, target.output_price)


def _check_rules(settings: Settings) -> None:
    names = [rule.name for rule in settings.routing.rules]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"routing.rules: the name {twice[0]} is used twice; names are unique")
    try:
        Rulebook(settings.routing.rules)
    except UnsafePattern as error:
        raise ConfigError(f"routing.rules: {error}") from error


def _check_budget(budget: BudgetSettings, targets: tuple[TargetSettings, ...]) -> None:
    where = f"budget {budget.name}"
    dollars = (budget.dollars_per_day, budget.dollars_per_month)
    ceilings = (*dollars, budget.tokens_per_day, budget.tokens_per_month)
    if all(ceiling is None for ceiling in ceilings):
        raise ConfigError(f"{where}: it has no ceiling: set dollars_per_day, tokens_per_day or one of a month")
    if any(amount is not None and not (amount.is_finite() and amount >= 0) for amount in dollars):
        raise ConfigError(f"{where}: a ceiling in dollars is a number from 0 on")
    if budget.target and budget.target not in {target.name for target in targets}:
        raise ConfigError(f"{where}: there is no target {budget.target}")
    for target in targets:
        if budget.target in {"", target.name} and not target.max_output_tokens:
            raise ConfigError(
                f"{where}: target {target.name} needs max_output_tokens: without it nobody knows what an answer may cost"
            )


def _check_prices(where: str, *prices: Decimal) -> None:
    for price in prices:
        if not price.is_finite() or not 0 <= price <= DEAREST:
            raise ConfigError(f"{where}: {price} is no price: dollars per million tokens, 0 to {DEAREST}")


def check_experiment(experiment: ExperimentSettings) -> None:
    """Raise ConfigError if arms cannot be told apart."""
    where = f"experiment {experiment.name}"
    names = [arm.name for arm in experiment.arms]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: two arms have the same name; names are unique")
    if len({(arm.route_mode, arm.model) for arm in experiment.arms}) < len(names):
        raise ConfigError(f"{where}: two arms do the same: give each another route_mode or model")
