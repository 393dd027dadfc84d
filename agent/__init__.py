"""Outrider: answers offline, knows how sure it is, escalates when there is a line."""

__version__ = "0.1.0"
