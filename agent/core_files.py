"""No core file is written of a process that holds texts."""

from __future__ import annotations

try:
    import resource
except ImportError:  # Windows has no core files
    resource = None  # type: ignore[assignment]


def refuse_core_files() -> None:
    """Set this process's limit on core files to nothing, and that of all that it starts."""
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
