"""A model that was measured on another processor: is it computed the same on this one? Asked before it is first loaded.

A bundle, or a data directory on a disk that was moved, brings models with the answers of their
source. 8-bit weights may saturate here, a kernel may be wrong: nothing fails then, so it is
looked at, once, in a child that reads a text with the model.
"""

from __future__ import annotations

import subprocess

from agent import executable
from agent.errors import ModelRejected
from agent.models.serving import measured
from agent.models.store import ModelStore
from agent.telemetry import LOG
from agent.types import ModelFile

PATIENCE_S = 600.0


class FirstLoad:
    """Finds models to load. Blocking: the first time of such a model takes as long as some pages of prompt."""

    def __init__(self, store: ModelStore, processor: str) -> None:
        self._store = store
        self._processor = processor

    def __call__(self, name: str) -> ModelFile:
        """Return a verified model. Raises ModelNotFound, ModelRejected."""
        file = self._store.resolve(name)
        if not self._is_foreign(name):
            return file
        LOG.info(
            "%s was measured on another processor: comparing what it says here with the answers of its source", name
        )
        if (status := self._verified(name)) not in {0, ModelRejected.exit_code}:
            LOG.warning("%s could not be compared (status %s); it is loaded all the same", name, status)
        return self._store.resolve(name)  # refused now where it says something else

    def _is_foreign(self, name: str) -> bool:
        model = self._store.get(name)
        quality = measured(model) if model else None
        if model is None or quality is None or quality.golden is None:
            return False
        return self._processor not in {quality.machine, model.checked_on}

    def _verified(self, name: str) -> int | None:
        command = executable.command("--data-dir", str(self._store.data_path), "models", "verify", name)
        try:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=PATIENCE_S
            ).returncode
        except subprocess.TimeoutExpired:
            return None
