"""What the engine is told of a stored model, and which models it is not given."""

from __future__ import annotations

from agent.errors import ModelRejected
from agent.models.artifact import StoredModel
from agent.models.quality import Quality
from agent.types import ModelFile


def measured(model: StoredModel) -> Quality | None:
    """Return what was measured of these very bytes."""
    return model.quality if model.quality and model.quality.digest == model.digest else None


def served(model: StoredModel, path: str, *, exempt: bool) -> ModelFile:
    """Return the model as it is served: with the context that was found useful, at most.

    Raises ModelRejected for one below the floor, unless it is ``exempt`` or allowed by hand.
    """
    quality = measured(model)
    if quality and quality.faults and not (exempt or model.allowed):
        raise ModelRejected(
            f"model {model.name} is below the floor and not served: {'; '.join(quality.faults)}; "
            f"serve it all the same with: outrider models allow {model.name} --force"
        )
    useful = quality.useful_context_tokens if quality else None
    return ModelFile(
        name=model.name,
        path=path,
        format=model.format,
        sha256=model.digest,
        context_tokens=model.context_tokens if useful is None else min(model.context_tokens, useful),
        chat_template=model.chat_template,
        system_prompt=model.system_prompt,
        thinking=model.thinking,
        encoder=model.encoder,
    )
