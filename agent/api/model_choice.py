"""Which model a call means, and whether that model does what the call is for."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from agent.api.deps import ApiDeps, ModelCard
from agent.errors import InvalidRequest, ModelNotFound
from agent.models.aliases import DEFAULT

MISSING = "missing"  # state of a model that is in the manifest and not on this device
WRITING = frozenset({"chat", "complete"})
CLASSIFYING = WRITING | {"classify"}


def need_model(deps: ApiDeps, name: str, tasks: Collection[str]) -> str:
    """Return the model that a name stands for. Raises ModelNotFound, or InvalidRequest for one without such a task."""
    model = deps.aliases.target(name)
    # What is loaded is asked first: the card of a model costs looks at the disk.
    encoder = deps.engine.encoder(model)
    made_for = (encoder.task,) if encoder else model_card(deps, model).tasks
    if not {*tasks} & {*made_for}:
        raise InvalidRequest(
            f"model {model} is made to {' and '.join(made_for)}, not to {' or '.join(sorted(tasks))}",
            param="model",
            code="unsupported_task",
        )
    return model


def known_model(deps: ApiDeps, name: str) -> str:
    """Return the model that a name stands for, whatever it is made for. Raises ModelNotFound but for the default's name."""
    model = deps.aliases.target(name)
    if name != DEFAULT and deps.engine.encoder(model) is None:
        model_card(deps, model)
    return model


def model_card(deps: ApiDeps, name: str) -> ModelCard:
    """Return the card of an installed model. Raises ModelNotFound."""
    card = deps.model(name)
    if card is None or card.state == MISSING:
        names = sorted(card.name for card in deps.models() if card.state != MISSING)
        near = difflib.get_close_matches(name, names, n=1)
        known = f"did you mean {near[0]}?" if near else f"installed are {', '.join(names) or 'none'}"
        raise ModelNotFound(f"model {name[:100]!r} is not installed; {known}", param="model")
    return card
