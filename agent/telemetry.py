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
from typing import Any

LOG = logging.getLogger("outrider")


class _Discreet(logging.Formatter):
    """Tells of an exception its kind and place, never its message; of what a library says, the first line.

    Both could quote what a user wrote: asyncio, for one, writes an exception nobody took into its own line.
    """

    def format(self, record: logging.LogRecord) -> str:
        told = logging.makeLogRecord({**record.__dict__, "exc_text": None})  # another handler's words for it
        if record.name != LOG.name:
            first = record.getMessage().partition("\n")[0][:200]
            told.msg, told.args = f"{record.name}: {first}", None
        return super().format(told)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name of logging
        kind, _, place = ei
        return f"{''.join(traceback.format_tb(place))}{kind.__name__ if kind else 'no exception'}"


def configure_logging(level: str = "INFO") -> None:
    """Send log lines to stderr, one line an event; of libraries warnings and above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Discreet("%(asctime)s %(levelname)s %(message)s"))
    LOG.handlers[:] = [handler]
    LOG.setLevel(level)
    LOG.propagate = False
    logging.getLogger().handlers[:] = [handler]


def log_fault(what: str, *args: object, error: BaseException | None = None) -> None:
    """Log ``error``, or the exception that is being handled, by its type and place.

    Its message could quote what a user wrote.
    """
    error = error or sys.exception()
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
