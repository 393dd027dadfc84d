"""The folder with the tasks' files: ``tasks/NAME.toml`` beside the configuration."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from pathlib import Path

from agent.errors import ConfigError, TaskNotFound
from agent.tasks import NAME_PATTERN, TaskSpec, parse_task, task_text

FOLDER = "tasks"
SUFFIX = ".toml"
LONGEST_BYTES = 4 << 20
MOST_TASKS = 1000

_Stamp = tuple[int, int, int]  # inode, modification in ns, bytes


class TaskFolder:
    """The tasks of one configuration. Blocking, but cheap: a file that has not changed is not read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, tuple[_Stamp, TaskSpec]] = {}

    def get(self, name: str) -> TaskSpec:
        """Return a task. Raises TaskNotFound with the nearest name, ConfigError for a file that does not hold."""
        if not re.fullmatch(NAME_PATTERN, name):
            raise self._missing(name)
        path = self.path / (name + SUFFIX)
        try:
            status = path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._known.get(name)
            if known is not None and known[0] == stamp:
                return known[1]
            if status.st_size > LONGEST_BYTES:
                raise ConfigError(f"{path} has more than {LONGEST_BYTES} bytes")
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            self._known.pop(name, None)
            raise self._missing(name) from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text") from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
        spec = parse_task(text, str(path), name)
        self._known[name] = (stamp, spec)
        return spec

    def names(self) -> list[str]:
        """Return the names of all files, readable or not."""
        return sorted(path.stem for path in self.path.glob("*" + SUFFIX) if re.fullmatch(NAME_PATTERN, path.stem))

    def put(self, spec: TaskSpec, *, replace: bool = False) -> Path:
        """Write a task's file, durably. Raises ConfigError when it exists already, or cannot be written."""
        path = self.path / (spec.name + SUFFIX)
        if path.exists() and not replace:
            raise ConfigError(f"task {spec.name} exists already: {path}; remove it first, or choose another name")
        if len(self.names()) >= MOST_TASKS and not path.exists():
            raise ConfigError(f"{self.path} holds {MOST_TASKS} tasks, the most: remove some first")
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(task_text(spec))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}; check its folder's permissions") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return path

    def remove(self, name: str) -> None:
        """Delete a task's file. Raises TaskNotFound."""
        if not re.fullmatch(NAME_PATTERN, name) or not (self.path / (name + SUFFIX)).exists():
            raise self._missing(name)
        try:
            (self.path / (name + SUFFIX)).unlink()
        except OSError as error:
            raise ConfigError(f"{self.path / name}{SUFFIX} cannot be removed: {error.strerror}") from error

    def _missing(self, name: str) -> TaskNotFound:
        names = self.names()
        near = difflib.get_close_matches(name, names, n=1)
        if near:
            advice = f"did you mean {near[0]}?"
        elif names:
            advice = f"known are {', '.join(names[:20])}"
        else:
            advice = "make one with `outrider tasks new`"
        return TaskNotFound(f"there is no task {name[:80]!r} in {self.path}; {advice}", param="task")


def folder_beside(config_path: Path) -> TaskFolder:
    """Return the tasks that belong to a configuration file, which need not exist."""
    return TaskFolder(config_path.parent / FOLDER)
