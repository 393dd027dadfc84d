"""The configuration as it may leave this device: without secrets, and without what is true only here."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec

from agent.settings import Settings

# Keys and files of secrets, paths, and where this one device listens and keeps its data.
_LEFT_OUT = {
    "data_dir",
    "server",
    "storage",
    "pull.token_file",
    "targets.api_key_env",
    "targets.api_key_file",
    "targets.ca_file",
    "adapters",
    "prefixes.system_file",
}


def shared_config(settings: Settings) -> str:
    """Return the values that differ from the defaults as TOML."""
    import tomlkit

    now, usual = msgspec.to_builtins(settings), msgspec.to_builtins(Settings())
    kept: dict[str, Any] = {}
    for section, value in now.items():
        if section in _LEFT_OUT or value == usual[section]:
            continue
        if isinstance(value, dict):
            changed = {key: one for key, one in value.items() if one != usual[section][key]}
            kept[section] = _without_secrets(section, changed)
        else:
            kept[section] = [_without_secrets(section, item) for item in value]
    return tomlkit.dumps({section: value for section, value in kept.items() if value})


def _without_secrets(section: str, values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in values.items()
        if f"{section}.{key}" not in _LEFT_OUT and value is not None and not _has_password(value)
    }


def _has_password(value: object) -> bool:
    """Whether a text is a URL with a name or password in it."""
    return isinstance(value, str) and "://" in value and "@" in urlsplit(value).netloc
