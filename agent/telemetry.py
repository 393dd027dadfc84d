"""Logging without prompts, and counters for /metrics.

The one rule: no text of a user and no key is ever passed to a logger. Log calls name
ids, states, counts and reasons.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections import Counter

LOG = logging.getLogger("outrider")


def configure_logging(level: str = "INFO") -> None:
    """Send log lines to stderr, one line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOG.handlers[:] = [handler]
    LOG.setLevel(level)
    LOG.propagate = False


def log_fault(what: str, *args: object) -> None:
    """Log the exception that is being handled by its type and place; its message could quote what a user wrote."""
    error = sys.exception()
    place = "" if error is None else "".join(traceback.format_tb(error.__traceback__)).rstrip()
    LOG.error("%s: unexpected %s\n%s", what % args, type(error).__name__, place)


class Metrics:
    """Monotonic counters with labels, written in the Prometheus text format."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add ``amount`` to the counter ``outrider_<name>_total``."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount  # type: ignore[assignment]

    def lines(self) -> list[str]:
        """Return the exposition lines, sorted."""
        with self._lock:
            items = sorted(self._counts.items())
        out: list[str] = []
        seen = ""
        for (name, labels), value in items:
            if name != seen:
                out.append(f"# TYPE outrider_{name}_total counter")
                seen = name
            out.append(sample(f"outrider_{name}_total", dict(labels), value))
        return out


def sample(name: str, labels: dict[str, str], value: float) -> str:
    """Return one exposition line."""
    inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {value:g}" if inner else f"{name} {value:g}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


METRICS = Metrics()
