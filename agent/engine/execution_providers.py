"""The execution providers of onnxruntime that are installed here, and the devices that they offer.

For child processes only. A provider is judged by the kind of its device, never by its name:
some offer the processor itself. Whether one is used is decided in ``device_proof``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import onnxruntime

from agent import device
from agent.compute import DeviceKind, DeviceVerdict, OfferedDevice, OfferedDevices
from agent.engine.onnx_session import CPU

# Packages with a provider as a plugin: module -> the name under which it is registered.
PLUGINS = {
    "onnxruntime_qnn": "QNNExecutionProvider",
    "onnxruntime_ep_openvino": "OpenVINOExecutionProvider",
    "onnxruntime_ep_nv_tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
    "onnxruntime_ep_webgpu": "WebGpuExecutionProvider",
}
# Providers that are a part of some builds of onnxruntime: their devices cannot be listed, they are asked for one.
BUILT_IN: dict[str, tuple[tuple[DeviceKind, dict[str, str]], ...]] = {
    "CoreMLExecutionProvider": ((DeviceKind.NPU, {"MLComputeUnits": "CPUAndNeuralEngine"}),),
    "DmlExecutionProvider": ((DeviceKind.GPU, {}),),
    "CUDAExecutionProvider": ((DeviceKind.GPU, {}),),
}
_registered: dict[str, str] = {}  # a library may be registered once in the life of a process


class Candidate(NamedTuple):
    """A device of a provider."""

    kind: DeviceKind
    provider: str
    version: str
    driver: str
    device: str  # vendor and name
    handles: tuple[Any, ...]  # of onnxruntime; none for a built-in provider
    options: dict[str, str]

    def verdict(self, model_digest: str, *, holds: bool, reason: str, **proof: float | None) -> DeviceVerdict:
        """Return what was proved of it."""
        return DeviceVerdict(
            model_digest=model_digest,
            kind=self.kind,
            provider=self.provider,
            version=self.version,
            driver=self.driver,
            processor=processor(),
            device=self.device,
            holds=holds,
            reason=reason,
            **proof,
        )

    def configure(self, settings: Any) -> None:
        """Have a session run on this device; what it does not take runs on the processor."""
        if self.handles:
            settings.add_provider_for_devices(list(self.handles), self.options)
        else:
            settings.add_provider(self.provider, self.options)


class Offer(NamedTuple):
    """All devices, the best kind first, and what is wrong with providers that are installed."""

    candidates: tuple[Candidate, ...]
    problems: tuple[str, ...]


def processor() -> str:
    """Return what the reference depends on: name and features of the processor."""
    seen = device.profile()
    return f"{seen.cpu_model or seen.machine} {' '.join(seen.cpu_features)}".strip()


def offer() -> Offer:
    """Register what is installed and return what there is. The processor by onnxruntime itself is always there."""
    problems = [problem for problem in (_register(module) for module in PLUGINS) if problem]
    problems += _register_windows_catalog()
    found = [*_plugged(), *_built_in()]
    kinds = list(DeviceKind)
    found.sort(key=lambda one: (kinds.index(one.kind), one.provider != CPU))
    return Offer(tuple(found), tuple(problems))


def _register(module: str) -> str:
    """Register a plugin. Returns why it cannot be, or nothing, also where it is not installed."""
    name = PLUGINS[module]
    if name in _registered:
        return _registered[name]
    if importlib.util.find_spec(module) is None:
        return ""

    def library() -> str:
        return str(importlib.import_module(module).get_library_path())

    return _register_library(name, library)


def _register_library(name: str, library: Callable[[], str]) -> str:
    try:
        onnxruntime.register_execution_provider_library(name, library())
    except Exception as error:  # vendors raise what they like
        _registered[name] = f"{name} is installed and cannot be registered: {_line(error)}"
    else:
        _registered[name] = ""
    return _registered[name]


def _register_windows_catalog() -> list[str]:
    """Windows ML: the providers that the system keeps for its devices."""
    if sys.platform != "win32" or importlib.util.find_spec("windowsml") is None:
        return []
    try:
        with importlib.import_module("windowsml").EpCatalog() as catalog:
            found = [(one.name, one.library_path) for one in catalog.find_all_providers() if one.ensure_ready()]
    except Exception as error:
        return [f"the providers of Windows ML cannot be listed: {_line(error)}"]
    return [told for name, path in found if (told := _register_library(name, lambda path=path: path))]


def _plugged() -> Iterator[Candidate]:
    kinds = {kind.name: kind for kind in DeviceKind}
    for one in onnxruntime.get_ep_devices():
        told = dict(one.device.metadata)
        name = told.get("Description") or told.get("name") or one.device.type.name
        yield Candidate(
            kind=kinds.get(one.device.type.name, DeviceKind.CPU),
            provider=one.ep_name,
            version=dict(one.ep_metadata).get("version", onnxruntime.__version__),
            driver=" ".join(f"{key}={value}" for key, value in sorted(told.items()) if "driver" in key.lower()),
            device=f"{one.device.vendor} {name}".strip(),
            handles=(one,),
            options={},
        )


def _built_in() -> Iterator[Candidate]:
    available = onnxruntime.get_available_providers()
    plugged = {one.ep_name for one in onnxruntime.get_ep_devices()}
    offers = {name: BUILT_IN[name] for name in BUILT_IN if name in available and name not in plugged}
    if "OpenVINOExecutionProvider" in available and "OpenVINOExecutionProvider" not in plugged:
        offers["OpenVINOExecutionProvider"] = tuple(_openvino_devices())
    for provider, devices in offers.items():
        for kind, options in devices:
            yield Candidate(kind, provider, onnxruntime.__version__, "", f"{kind} of {provider}", (), options)


def _openvino_devices() -> Iterator[tuple[DeviceKind, dict[str, str]]]:
    state = importlib.import_module("onnxruntime.capi._pybind_state")
    for name in state.get_available_openvino_device_ids():
        kind = next((kind for kind in DeviceKind if name.startswith(kind.name)), None)
        if kind is not None:
            yield kind, {"device_type": name}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def main(argv: Sequence[str]) -> int:
    """Be ``<executable> list-devices``: write what is offered as JSON. Returns the exit code."""
    del argv
    found = offer()
    lines = tuple(OfferedDevice(one.kind, one.provider, one.version, one.device) for one in found.candidates)
    sys.stdout.buffer.write(msgspec.json.encode(OfferedDevices(lines, found.problems)))
    return 0
