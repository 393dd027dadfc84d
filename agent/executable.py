"""How this program starts itself again as a child, from source or from a frozen package."""

from __future__ import annotations

import sys


def command(*arguments: str) -> list[str]:
    """Return the argv that runs ``outrider`` with ``arguments``, never through a shell."""
    if getattr(sys, "frozen", False):
        return [sys.executable, *arguments]
    return [sys.executable, "-m", "agent", *arguments]
