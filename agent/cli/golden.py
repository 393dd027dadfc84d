"""Whether a model says here what its source said where it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.cli.invocation import Invocation
    from agent.models.store import ModelStore


def require_golden(invocation: Invocation, store: ModelStore, name: str) -> None:
    """Raise ModelRejected when a model does not say what its source said, where that is known."""
    from agent.errors import ModelRejected
    from agent.evaluation.golden_check import check_golden

    found = check_golden(store, name, invocation.settings.engine)
    if found and not found.hold:
        raise ModelRejected(
            f"model {name} {found}: its files hold, but this processor computes something else with them. It is not "
            f"served; `outrider measure {name}` measures it again"
        )
