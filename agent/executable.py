"""How this program starts itself again as a child, from source or from a frozen package."""

from __future__ import annotations

import sys
from pathlib import Path


def frozen() -> bool:
    """Whether this is the package that needs no Python: nothing can be installed into it."""
    return bool(getattr(sys, "frozen", False))


def command(*arguments: str) -> list[str]:
    """Return the argv that runs ``outrider`` with ``arguments``, never through a shell."""
    if frozen():
        return [sys.executable, *arguments]
    return [sys.executable, "-m", "agent", *arguments]


def started(pid: int) -> str:
    """Return when a process started, in the kernel's own count: with the pid it names one process.

    Empty where the system does not say (no /proc), or when there is no such process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The name, in parentheses, may hold spaces and parentheses itself; the start is field 22.
    return text.rpartition(")")[2].split()[19]
