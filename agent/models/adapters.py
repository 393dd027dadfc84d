"""LoRA adapters by name: a request asks for one as for any model.

A name stands for a base model, an adapter file and a scale, and has a digest made of all
three. Whatever is bound to a model digest (a calibration, a quarantine, saved prefixes)
therefore never carries over to another adapter, nor to the same one at another scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from agent.errors import ModelNotFound, ModelRejected, OutriderError
from agent.models.adapter_check import check_adapter
from agent.models.entry import ModelEntry, ModelState
from agent.models.gguf_check import check_gguf
from agent.settings import AdapterSettings
from agent.telemetry import LOG
from agent.types import AdapterFile, ModelFile, ModelFormat

PEFT_CONFIG = "adapter_config.json"


class AdapterCatalog:
    """The models of a store, and the adapters of the configuration beside them. Blocking."""

    def __init__(
        self,
        adapters: Sequence[AdapterSettings],
        resolve: Callable[[str], ModelFile],
        entries: Callable[[], Sequence[ModelEntry]],
        entry: Callable[[str], ModelEntry | None] | None = None,
    ) -> None:
        """``resolve`` and ``entries`` are those of the store of base models; ``entry`` finds one without listing all."""
        models = {entry.name for entry in entries()}
        for adapter in adapters:
            if adapter.name in models:
                LOG.error("adapter %s has the name of a model: the model keeps it; rename the adapter", adapter.name)
        self._adapters = {adapter.name: adapter for adapter in adapters if adapter.name not in models}
        self._resolve = resolve
        self._entries = entries
        self._find = entry or self._listed
        self._digests: dict[str, str] = {}  # of what was resolved last, by name
        self._faults: dict[str, str] = {}  # of those that could not be when they were looked at last

    def check(self) -> None:
        """Log every adapter that cannot be served, and why."""
        for name in self._adapters:
            try:
                self.resolve(name)
            except OutriderError as error:
                LOG.error("adapter %s cannot be served (%s): %s", name, self._adapters[name].path, error)

    def resolve(self, name: str) -> ModelFile:
        """Return the verified files of a model or an adapter. Hashes the adapter: call it in a thread.

        Raises ModelNotFound or ModelRejected with the reason.
        """
        adapter = self._adapters.get(name)
        if adapter is None:
            return self._resolve(name)
        base = self._resolve(adapter.model)
        try:
            file = verified(adapter, base)
        except OutriderError as error:
            self._faults[name] = str(error)
            raise
        self._faults.pop(name, None)
        digest = combined_digest(base.sha256, file)
        self._digests[name] = digest
        return msgspec.structs.replace(base, name=name, sha256=digest, adapter=file)

    def list(self) -> tuple[ModelEntry, ...]:
        """Return every model, then every adapter. Reads no file as a whole.

        The digest of an adapter is empty before it was resolved for the first time.
        """
        models = {entry.name: entry for entry in self._entries()}
        adapters = [self._entry(adapter, models.get(adapter.model)) for adapter in self._adapters.values()]
        return (*models.values(), *adapters)

    def find(self, name: str) -> ModelEntry | None:
        """Return one of those that are listed, None when there is none of that name."""
        adapter = self._adapters.get(name)
        return self._entry(adapter, self._find(adapter.model)) if adapter else self._find(name)

    def _listed(self, name: str) -> ModelEntry | None:
        return next((entry for entry in self._entries() if entry.name == name), None)

    def adapter(self, name: str) -> ModelEntry | None:
        """Return the adapter of that name, None when there is none."""
        return self.find(name) if name in self._adapters else None

    def _entry(self, adapter: AdapterSettings, base: ModelEntry | None) -> ModelEntry:
        path = Path(adapter.path).expanduser()
        usable = path.is_file() and base is not None
        state = base.state if base is not None and usable else ModelState.MISSING
        fault = self._faults.get(adapter.name, "") if usable else ""
        return ModelEntry(
            name=adapter.name,
            title=f"LoRA adapter on {adapter.model}, scale {adapter.scale:g}",
            format=ModelFormat.GGUF,
            licence="",
            parameters=base.parameters if base else None,
            tasks=base.tasks if base else (),
            state=ModelState.REFUSED if fault else state,
            remark=fault,
            bytes=path.stat().st_size if usable else 0,
            sha256=self._digests.get(adapter.name, ""),
            context_tokens=base.context_tokens if base else 0,
            source=str(path),
            path=str(path) if usable else None,
            parent=adapter.model,
        )


def verified(adapter: AdapterSettings, base: ModelFile) -> AdapterFile:
    """Return the adapter's file after its hash, its structure and its fit to the base model were checked.

    What it raises reaches whoever asks for the model: where the file lies is none of their business.
    """
    path = Path(adapter.path).expanduser()
    what = f"adapter {adapter.name}"
    if path.is_dir():
        how = f"outrider models convert-adapter FOLDER FILE.gguf --model {adapter.model}"
        peft = " a PEFT adapter" if (path / PEFT_CONFIG).exists() else " a folder"
        raise ModelRejected(f"{what} is{peft}, not a GGUF file: convert it with: {how}")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelNotFound(f"{what} cannot be read: {error.strerror}", param="model") from error
    if adapter.sha256 and digest != adapter.sha256:
        raise ModelRejected(f"{what} is refused: its SHA-256 is {digest}, the configuration says {adapter.sha256}")
    try:
        check_adapter(check_gguf(path), check_gguf(Path(base.path)))
    except ModelRejected as error:
        raise ModelRejected(f"{what} is refused for {base.name}: {error}") from error
    return AdapterFile(path=str(path), sha256=digest, scale=adapter.scale)


def combined_digest(base_sha256: str, adapter: AdapterFile) -> str:
    """Return what a base model with an adapter at a scale is known by, 64 hexadecimal digits."""
    return hashlib.sha256(f"{base_sha256}\n{adapter.sha256}\n{adapter.scale!r}".encode()).hexdigest()
