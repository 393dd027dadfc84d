"""Run a program of a build environment, for as long as the one who asked lives."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

from agent.errors import ModelRejected
from agent.models.build_env import BuildEnvironment, clean_environment

_NOTES = 12
# It ends with the one who asked: its standard input is a pipe that then closes.
BOUND = """
import os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
"""
RUN_FILE = """
import runpy
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_program(
    environment: BuildEnvironment,
    program: str,
    arguments: Sequence[str],
    follow: Callable[[bytes], None],
    *,
    what: str,
) -> None:
    """Run the Python text ``program`` with ``arguments``; ``follow`` gets each line that it prints.

    Raises WrongState when the environment is not there, ModelRejected with the program's last
    lines when it ends with an error; ``what`` names the attempt in it.
    """
    environment.require()
    command = [str(environment.python), "-u", "-c", BOUND + program, *arguments]
    notes: list[bytes] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean_environment()
    ) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                notes = [*notes[-_NOTES:], line.strip()]
                follow(line)
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        last = b" | ".join(notes[-3:]).decode("utf-8", "replace")
        raise ModelRejected(f"{what}: {last[-600:]}")
