"""What ``outrider get`` remembers between its steps, and whether a model should be made smaller first."""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.errors import StorageError
from agent.models.artifact import StoredModel
from agent.models.blobs import write_durably
from agent.models.gguf_check import check_gguf
from agent.models.manifest import Profile
from agent.models.profiles import HardwareProfile
from agent.models.recipes.tensor_types import GOOD_SOURCES, TARGETS, precision
from agent.models.store import ModelStore
from agent.telemetry import LOG
from agent.types import ModelFormat


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """A call that was agreed to and has not come to its end: each step finds by itself what is done."""

    given: str  # by the user, or chosen for them
    model: str  # its name in the store once it is there
    profile: Profile
    memory_mib: int | None = None

    @staticmethod
    def read(path: Path) -> Begun | None:
        """Return what is under way, None when nothing is."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=Begun)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            LOG.warning("%s cannot be read (%s): it is begun anew", path, error)
            return None

    def write(self, path: Path) -> None:
        """Keep it until ``forget``. Raises StorageError."""
        try:
            for folder in (path.parent.parent, path.parent):  # the data directory is nobody else's
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(path, msgspec.json.encode(self))
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}; check its permissions") from error

    @staticmethod
    def forget(path: Path) -> None:
        """The end has come."""
        path.unlink(missing_ok=True)


def smaller_recipe(store: ModelStore, source: StoredModel, hardware: HardwareProfile) -> str | None:
    """Return the recipe that makes of a model what suits the hardware; None where it stays as it is.

    What is in the manifest is made smaller only where its entry says so. Any other model is, as long as
    its weights were not rounded before.
    """
    if source.making is not None and source.making.recipe != "checkpoint":
        return None
    spec = store.manifest.find(source.name)
    recipe = spec.recipes.get(hardware.name) if spec else hardware.recipe
    if recipe is None or source.format is ModelFormat.CHECKPOINT:
        return recipe
    if source.format is not ModelFormat.GGUF:
        return None
    has = precision(check_gguf(Path(store.resolve(source.name, below_floor=True).path)))
    target = TARGETS.get(recipe)
    if has.name not in GOOD_SOURCES or (target and has.bits <= target.bits):
        return None
    return recipe
