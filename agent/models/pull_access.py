"""Which hub is asked, with which token, and whether it may be asked at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from agent.errors import ConfigError
from agent.models.pull_job import require_tls
from agent.settings import PullSettings

DEFAULT_ENDPOINT = "https://huggingface.co"
_TRUE = frozenset({"1", "true", "yes", "on"})


def is_offline(settings: PullSettings) -> bool:
    """Return whether the configuration or the environment switches downloads off."""
    return settings.offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


def hub_endpoint(settings: PullSettings) -> str:
    """Return the hub or its mirror. Raises InvalidRequest when it is not https."""
    endpoint = (settings.endpoint or os.environ.get("HF_ENDPOINT", "") or DEFAULT_ENDPOINT).rstrip("/")
    require_tls(endpoint)
    return endpoint


def hub_token(settings: PullSettings) -> str | None:
    """Return the access token, if there is one. Raises ConfigError when others may read its file."""
    if not settings.token_file:
        return os.environ.get("HF_TOKEN", "").strip() or None
    path = Path(settings.token_file).expanduser()
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"pull.token_file {path} may be read by others; chmod 600 {path}")
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"pull.token_file {path} cannot be read: {error}") from error
