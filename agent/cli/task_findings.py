"""What ``doctor`` says of the tasks: each file that does not hold, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.cli.finding import OK, PROBLEM, Finding
from agent.cli.output import counted
from agent.errors import OutriderError
from agent.task_folder import folder_beside


def task_findings(config_path: Path) -> Iterator[Finding]:
    """Read every task's file. Nothing is said where there is none."""
    folder = folder_beside(config_path)
    sound = 0
    for name in folder.names():
        try:
            folder.get(name)
        except OutriderError as error:
            yield Finding(PROBLEM, "tasks", str(error), "correct the file; requests that name the task are refused")
        else:
            sound += 1
    if sound:
        yield Finding(OK, "tasks", f"{counted(sound, 'task')} in {folder.path}")
