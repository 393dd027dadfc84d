"""What was proved of models on devices, kept between the lives of workers: ``<data dir>/devices.json``."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.compute import DeviceKind, DeviceUse, DeviceVerdict
from agent.telemetry import LOG, METRICS

FILE_NAME = "devices.json"
MOST_KEPT = 500  # the oldest go first


class DeviceVerdicts:
    """The verdicts of one data directory. Blocking; a file that cannot be read is as none: all is proved anew."""

    def __init__(self, folder: Path | None) -> None:
        """Without a folder they are kept in memory."""
        self._path = folder / FILE_NAME if folder else None
        self._kept: list[DeviceVerdict] = []
        self._turn = threading.Lock()  # two models may be loaded at the same time

    def all(self) -> tuple[DeviceVerdict, ...]:
        """Return what was proved of any model."""
        return tuple(self._read())

    def known(self, model_digest: str) -> tuple[DeviceVerdict, ...]:
        """Return what was proved of a model."""
        return tuple(one for one in self._read() if one.model_digest == model_digest)

    def loaded(self, model: str, use: DeviceUse | None) -> None:
        """Keep what was proved when a model was loaded, and tell of it."""
        if use is None:
            return
        LOG.info("model %s runs on %s by %s", model, use.used.kind, use.used.provider)
        for one in use.refused:
            METRICS.count("devices_refused", model=model, kind=one.kind, provider=one.provider)
            LOG.warning("model %s does not run on %s by %s: %s", model, one.device, one.provider, one.reason)
        for problem in use.problems:
            LOG.warning("%s", problem)
        self.keep([use.used, *use.refused])

    def lost(self, on: DeviceVerdict | None, reason: str) -> None:
        """Keep that a worker was lost on a device, unless that is the processor: it is not tried again."""
        if on is not None and on.kind is not DeviceKind.CPU:
            self.keep([msgspec.structs.replace(on, holds=False, reason=f"the worker {reason}")])

    def keep(self, verdicts: Sequence[DeviceVerdict]) -> None:
        """Keep these in the place of earlier ones of the same keys."""
        with self._turn:
            before = self._read()
            new = {one.key: one for one in verdicts}
            kept = [*(one for one in before if one.key not in new), *new.values()][-MOST_KEPT:]
            if kept == before:
                return
            self._kept = kept
            if self._path is None:
                return
            try:
                _write(self._path, msgspec.json.encode(kept))
            except OSError as error:
                LOG.warning(
                    "%s cannot be written (%s): devices are proved anew at the next start", self._path, error.strerror
                )

    def _read(self) -> list[DeviceVerdict]:
        if self._path is None:
            return self._kept
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[DeviceVerdict])
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            LOG.warning("%s cannot be read (%s): devices are proved anew", self._path, error)
            return []


def _write(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
