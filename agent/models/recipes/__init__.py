"""What can be made of a model: one module for each way, loaded only in the child that does the work.

A recipe is a name and ``module:attribute``, a function from a ``Job`` and a ``Tell`` to ``Made``
(``agent.models.recipes.job``). It writes into the job's folder only, raises OutriderError for
what a user can change, and takes up where it was stopped.
"""

from __future__ import annotations

RECIPES: dict[str, str] = {
    "checkpoint": "agent.models.recipes.checkpoint_to_gguf:make",
    "gguf-f16": "agent.models.recipes.gguf_to_gguf:make",
    "gguf-q8_0": "agent.models.recipes.gguf_to_gguf:make",
    "gguf-q6_k": "agent.models.recipes.gguf_to_gguf:make",
    "gguf-q5_k_m": "agent.models.recipes.gguf_to_gguf:make",
    "gguf-q4_k_m": "agent.models.recipes.gguf_to_gguf:make",
    "gguf-q4_0": "agent.models.recipes.gguf_to_gguf:make",
    "gguf-iq4_xs": "agent.models.recipes.gguf_to_gguf:make",
    "encoder-f32": "agent.models.recipes.checkpoint_to_encoder:make",
    "encoder-int8": "agent.models.recipes.onnx_to_int8:make",
    "encoder-npu": "agent.models.recipes.onnx_to_npu:make",
    "generation-int4": "agent.models.recipes.checkpoint_to_generation:make",
    "generation-int8": "agent.models.recipes.checkpoint_to_generation:make",
    "blocks-int4": "agent.models.recipes.checkpoint_to_blocks:make",
    "blocks-int8": "agent.models.recipes.checkpoint_to_blocks:make",
}
