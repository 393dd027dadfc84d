"""Three classes of hardware, and what a model may cost on each: the one place where these figures stand."""

from __future__ import annotations

import msgspec

from agent.models.manifest import Profile
from agent.types import ModelFormat

_GENERATION = (ModelFormat.GGUF, ModelFormat.ONNX_GENERATION)
_ENCODING = frozenset({"embed", "classify", "rerank"})


class HardwareProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The budget of a class of hardware."""

    name: Profile
    memory_mib: int | None  # ceiling of weights, cache and program; None: what the device has free
    context_tokens: int  # of one request, that has to fit
    parallel: int  # requests decoded at the same time
    threads: int | None  # None: as the device has cores
    recipe: str | None  # what `quantize` makes where the manifest names nothing for a model
    formats: tuple[ModelFormat, ...]  # that run there
    tasks: frozenset[str]  # one of which a model for it must do
    types: tuple[str, ...]  # how weights are best written there, best first; others come last
    least_tokens_per_second: float  # slower than this, nobody waits for an answer


PROFILES: dict[Profile, HardwareProfile] = {
    "cpu": HardwareProfile(
        name="cpu",
        memory_mib=None,
        context_tokens=4096,
        parallel=4,
        threads=None,
        recipe="gguf-q4_k_m",
        formats=_GENERATION,
        tasks=frozenset({"chat"}),
        types=("Q4_K", "Q5_K", "Q6_K", "Q4_0", "IQ4_XS", "Q4_1", "Q8_0", "int4", "int8", "BF16", "F16", "F32"),
        least_tokens_per_second=5,
    ),
    "npu": HardwareProfile(
        name="npu",
        memory_mib=None,
        context_tokens=2048,
        parallel=1,
        threads=None,
        recipe=None,
        formats=(ModelFormat.ONNX_ENCODER,),
        tasks=_ENCODING,
        types=("int4", "int8"),
        least_tokens_per_second=5,
    ),
    "phone": HardwareProfile(
        name="phone",
        memory_mib=2048,
        context_tokens=2048,
        parallel=1,
        threads=4,
        recipe="gguf-q4_0",
        formats=_GENERATION,
        tasks=frozenset({"chat"}),
        types=("Q4_0", "int4", "Q4_K", "IQ4_XS", "Q4_1", "Q5_K", "Q6_K", "Q8_0"),
        least_tokens_per_second=4,
    ),
}
