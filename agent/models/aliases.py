"""Names that stand for models: ``<data dir>/models/aliases.json``. ``default`` always stands for one."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from agent.errors import InvalidRequest, StorageError, WrongState
from agent.models.artifact import ModelName, checked_name
from agent.models.blobs import write_durably
from agent.models.holding import changing_list

DEFAULT = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MOST_EARLIER = 8  # models kept to roll back to


class _Alias(msgspec.Struct, frozen=True):
    model: ModelName
    earlier: tuple[ModelName, ...] = ()  # the last one first


class Aliases:
    """The aliases of one data directory. Blocking; reads the file at every call, as others may write it."""

    def __init__(self, models_root: Path, default_model: str) -> None:
        """``default_model`` is what ``default`` stands for as long as nothing was promoted."""
        self._path = models_root / "aliases.json"
        self._default_model = default_model

    def target(self, name: str) -> str:
        """Return the model that a name stands for; a name that is no alias stands for itself."""
        found = self._read().get(name)
        if found:
            return found.model
        return self._default_model if name == DEFAULT else name

    def all(self) -> dict[str, str]:
        """Return every alias with its model."""
        return {DEFAULT: self._default_model} | {name: alias.model for name, alias in self._read().items()}

    def earlier(self, name: str) -> str:
        """Return what an alias stood for before. Raises WrongState when nothing is known."""
        found = self._read().get(name)
        if found is None or not found.earlier:
            raise WrongState(f"nothing is known of an earlier model of {name[:64]}", param="as")
        return found.earlier[0]

    def promote(self, name: str, model: str) -> str | None:
        """Have a name stand for a model from now on; return what it stood for. Durable on return.

        Raises InvalidRequest for what cannot be a name.
        """
        checked_name(model)
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"{name[:64]!r} is no name: lower-case letters, digits, '.', '_' and '-'", param="as")
        with changing_list(self._path):
            known = self._read()
            before = known.get(name)
            last = before.model if before else (self._default_model if name == DEFAULT else None)
            if last != model:
                earlier = ((last,) if last else ()) + (before.earlier if before else ())
                self._write(known | {name: _Alias(model, earlier[:MOST_EARLIER])})
            return last

    def roll_back(self, name: str) -> str:
        """Have a name stand for what it did before; return what it stood for. Raises WrongState."""
        with changing_list(self._path):
            model = self.earlier(name)
            known = self._read()
            now = known[name]
            self._write(known | {name: _Alias(model, now.earlier[1:])})
            return now.model

    def _read(self) -> dict[str, _Alias]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[ModelName, _Alias])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise StorageError(f"{self._path} cannot be read: {error}; remove it to have no aliases") from error

    def _write(self, aliases: dict[str, _Alias]) -> None:
        write_durably(self._path, msgspec.json.encode(aliases))
