"""What making a model smaller has cost: the new one and its source, measured on this device, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cli.invocation import model_store
from agent.cli.measure import measure_model, show
from agent.cli.output import notice
from agent.errors import OutriderError
from agent.models.serving import measured
from agent.types import ModelFormat

if TYPE_CHECKING:
    from agent.cli.invocation import Invocation
    from agent.models.artifact import StoredModel
    from agent.models.quality import Quality


def before_and_after(invocation: Invocation, made: StoredModel, *, quiet: bool) -> Quality | None:
    """Measure a model that was made, and its source once; print both. What was measured before is kept.

    None, with the reason told, for a model that cannot be asked.
    """
    from agent.evaluation.measuring import parent_of

    if made.format is ModelFormat.CHECKPOINT:
        return None
    store = model_store(invocation)
    try:
        reference = parent_of(store, made.name)
        if reference is not None:
            source = store.get(reference.name)
            if source is not None and measured(source) is None:
                notice(f"measuring {reference.name}, once ...")
                measure_model(invocation, reference, parent_of(store, reference.name))
        found = measured(made)
        if found is None:
            notice(f"measuring {made.name} ...")
            found = measure_model(invocation, store.resolve(made.name, below_floor=True), reference)
    except OutriderError as error:
        notice(f"{made.name} is made, but not measured: {error}")
        return None
    if not quiet:
        show(store, made.name, found, reference)
    return found
