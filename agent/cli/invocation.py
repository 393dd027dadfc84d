"""What every command starts from: the configuration, read when it is first needed."""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from agent.configuration import LoadedSettings
    from agent.models.store import ModelStore
    from agent.settings import Settings

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Invocation:
    """The global options of one call. Reading them raises ConfigError, never earlier."""

    def __init__(self, config_path: Path | None, data_dir: Path | None, assignments: tuple[str, ...] = ()) -> None:
        self._config_path = config_path
        self._data_dir = data_dir
        self._assignments = assignments

    def load(self, **flags: object) -> LoadedSettings:
        """Return the settings with ``flags`` on top; ``server__port`` is ``server.port``.

        Root becomes the user whose data it is.
        """
        from agent.configuration import load

        merged: dict[str, object] = {"data_dir": str(self._data_dir) if self._data_dir else None}
        merged |= dict(map(parse_assignment, self._assignments))
        merged |= {name.replace("__", "."): value for name, value in flags.items() if value is not None}
        loaded = load(self._config_path, flags=merged)
        if sys.platform != "win32":
            from agent.cli.data_owner import become_owner

            become_owner(loaded.settings.data_path)
        return loaded

    @cached_property
    def loaded(self) -> LoadedSettings:
        """The settings as the file, the environment and the global options say."""
        return self.load()

    @property
    def settings(self) -> Settings:
        """The values alone."""
        return self.loaded.settings

    @property
    def data_path(self) -> Path:
        """The data directory, absolute."""
        return self.settings.data_path


def parse_assignment(text: str) -> tuple[str, object]:
    """Return key and value of ``KEY=VALUE``; the value is read as TOML, else as plain text.

    Raises ConfigError for an unknown key, with the nearest known one.
    """
    from agent.configuration import known_keys
    from agent.errors import ConfigError

    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator:
        raise ConfigError(f"--set {text}: write it as KEY=VALUE, for example server.port=9000")
    if key not in known_keys():
        near = difflib.get_close_matches(key, known_keys(), n=1)
        raise ConfigError(f"--set {text}: unknown key {key}" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value.strip()


def model_store(invocation: Invocation) -> ModelStore:
    """Return the store of the data directory, with its disk budget."""
    from agent.models.store import open_store

    settings = invocation.settings
    return open_store(settings.data_path, disk_budget=settings.storage.disk_budget_bytes)


pass_invocation = click.make_pass_decorator(Invocation)


def json_option(function: Decorated) -> Decorated:
    """Add ``--json`` as the parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, also for errors on stderr.")(
        function
    )
