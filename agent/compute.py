"""The devices that a model can run on, what was proved of them, and how it is computed there. Values only."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class DeviceKind(StrEnum):
    """What a device is, as its driver says; the name of a provider says nothing of it."""

    NPU = "npu"
    GPU = "gpu"
    CPU = "cpu"


class DeviceWish(StrEnum):
    """Which devices may be used."""

    AUTO = "auto"  # the best that proves itself: NPU, then GPU, then CPU
    CPU = "cpu"
    GPU = "gpu"  # or the model is not loaded
    NPU = "npu"  # or the model is not loaded

    @property
    def kinds(self) -> tuple[DeviceKind, ...]:
        """The kinds that may be used, the best first."""
        return tuple(DeviceKind) if self is DeviceWish.AUTO else (DeviceKind(self.value),)


class DeviceVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was proved of one model on one device. It holds as long as nothing of its key changes."""

    # The key.
    model_digest: str
    kind: DeviceKind
    provider: str  # as onnxruntime calls it
    version: str  # of the provider
    driver: str  # of the device, as far as it tells
    processor: str  # name and features of the processor: the reference ran there
    # The proof.
    device: str  # vendor and name, for people
    holds: bool
    reason: str  # why it does not; else what holds
    node_share: float | None = None  # of the graph's nodes, those that ran there; 0..1
    agreement: float | None = None  # with the processor, of the outputs for known texts; 1: the same
    speed: float | None = None  # times that of the processor

    @property
    def key(self) -> tuple[str, ...]:
        return (self.model_digest, self.kind, self.provider, self.version, self.driver, self.processor)


class OfferedDevice(msgspec.Struct, frozen=True):
    """A device that a provider offers, whatever was proved of it."""

    kind: DeviceKind
    provider: str
    version: str
    device: str


class OfferedDevices(msgspec.Struct, frozen=True):
    """All that are offered here, and what is wrong with providers that are installed."""

    devices: tuple[OfferedDevice, ...] = ()
    problems: tuple[str, ...] = ()


class DeviceUse(msgspec.Struct, frozen=True, kw_only=True):
    """The device that a loaded model runs on, and those that it does not run on, with the reasons."""

    used: DeviceVerdict
    refused: tuple[DeviceVerdict, ...] = ()
    problems: tuple[str, ...] = ()  # providers that are installed and cannot be asked


class WeightLayout(StrEnum):
    """In which form the weights of a model are held in memory."""

    FAST = "fast"  # small files: the one that this processor computes fastest
    STORED = "stored"  # as they are in the file


class DraftingMode(StrEnum):
    """Whether tokens are guessed and verified several at a time."""

    AUTO = "auto"  # where the step times say that it pays
    OFF = "off"
