"""The largest model that this program is meant to serve."""

from __future__ import annotations

MOST_PARAMETERS = 3_500_000_000


def size_fault(name: str, parameters: int) -> str | None:
    """Return why a model of so many weights is refused without force, or None."""
    if parameters <= MOST_PARAMETERS:
        return None
    return (
        f"{name} has {parameters / 1e9:.1f} billion weights; up to {MOST_PARAMETERS / 1e9:.1f} billion "
        "are meant to be served by this program"
    )
