"""A LoRA adapter in llama.cpp: loaded beside its model, then put on every context that is to have it."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as native

from agent.engine.runtime import ModelUnloadable
from agent.types import AdapterFile


class LlamaCppAdapter:
    """One adapter of one model, freed with the model. Loaded before any context: their graphs make room for it."""

    def __init__(self, model: Any, file: AdapterFile) -> None:
        """Load it. Raises ModelUnloadable."""
        self._scale = file.scale
        self._adapter = native.llama_adapter_lora_init(model, file.path.encode())
        if not self._adapter:
            raise ModelUnloadable("llama.cpp refuses the adapter")

    def put_on(self, context: Any) -> None:
        """Have all that this context computes from now on go through the adapter. Raises ModelUnloadable."""
        adapters = (ctypes.POINTER(ctypes.c_void_p) * 1)(self._adapter)
        scales = (ctypes.c_float * 1)(self._scale)
        if native.llama_set_adapters_lora(context, adapters, 1, scales) != 0:
            raise ModelUnloadable("llama.cpp cannot put the adapter on a context")
