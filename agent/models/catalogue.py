"""What an entry of the manifest becomes: a record of the store, and what is told of it before."""

from __future__ import annotations

from collections.abc import Sequence

from agent.models.artifact import StoredFile, StoredModel, model_digest
from agent.models.entry import ModelEntry, ModelState
from agent.models.manifest import HubSource, ModelSpec, PackageSource
from agent.models.packaged import packaged_files


def stored_model(spec: ModelSpec, files: Sequence[StoredFile], *, revision: str = "") -> StoredModel:
    """Return what the store shall keep of a model of the manifest, with the files as they are."""
    return StoredModel(
        name=spec.name,
        title=spec.title,
        format=spec.format,
        files=tuple(files),
        licence=spec.licence,
        source=source_text(spec),
        revision=revision or _version(spec),
        context_tokens=spec.context_tokens,
        parameters=spec.parameters,
        tasks=spec.tasks,
        chat_template=spec.chat_template,
        system_prompt=spec.system_prompt,
        thinking=spec.thinking,
        encoder=spec.encoder,
        remark=spec.remark,
    )


def entry_outside(spec: ModelSpec, quarantined: str | None) -> ModelEntry:
    """Return what is told of a model that the store has not."""
    return ModelEntry(
        name=spec.name,
        title=spec.title,
        format=spec.format,
        licence=spec.licence,
        state=state_outside(spec),
        bytes=sum(file.bytes or 0 for file in spec.files),
        sha256=model_digest(spec.promised) if spec.pinned else "",
        context_tokens=spec.context_tokens,
        parameters=spec.parameters,
        tasks=spec.tasks,
        source=source_text(spec),
        path=None,
        quarantined=quarantined,
        remark=spec.remark,
        demo=spec.demo,
    )


def state_outside(spec: ModelSpec) -> ModelState:
    """Return how near a model is that the store has not; one with a licence to accept has to be pulled."""
    at_hand = not spec.accept and packaged_files(spec) is not None
    return ModelState.AVAILABLE if at_hand else ModelState.MISSING


def source_text(spec: ModelSpec) -> str:
    """Return where a model comes from, for people."""
    source = spec.source
    if isinstance(source, PackageSource):
        first, *more = source.requirements
        return f"package {first.replace('==', ' ')}" + (f" and {len(more)} more" if more else "")
    return f"hub {source.repository}" if isinstance(source, HubSource) else source.url


def requirements(spec: ModelSpec) -> str:
    """Return the packages of a model as pip takes them."""
    return " ".join(spec.source.requirements) if isinstance(spec.source, PackageSource) else ""


def _version(spec: ModelSpec) -> str:
    """Return the version of the one package that all files are in, else nothing."""
    packages = requirements(spec).split()
    return packages[0].partition("==")[2] if len(packages) == 1 else ""
