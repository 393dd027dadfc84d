"""A checked view of one JSON object: what is asked for is typed and in range, the rest is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from agent.errors import InvalidRequest

E = TypeVar("E", bound=StrEnum)


class Fields:
    """Takes values out of a JSON object. ``null`` counts as absent, as in the OpenAI API.

    Every method raises InvalidRequest that names the parameter by its path. ``finish``
    refuses what nobody asked for.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values = values
        self._path = path
        self._taken: set[str] = set()

    def path(self, name: str) -> str:
        """Return the name as an error shows it."""
        return f"{self._path}.{name}" if self._path else name

    def names(self) -> list[str]:
        """Return the keys of the object."""
        return list(self._values)

    def take(self, name: str) -> Any:
        """Return the raw value, None when absent."""
        self._taken.add(name)
        return self._values.get(name)

    def number(self, name: str, low: float, high: float, *, above_low: bool = False) -> float | None:
        """Return a finite number in low..high; ``above_low`` leaves ``low`` itself out."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong_type(name, "a number")
        if not math.isfinite(value) or not low <= value <= high or (above_low and value == low):
            edge = "above" if above_low else "at least"
            raise self.wrong_value(name, f"must be {edge} {low:g} and at most {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        """Return an integer in low..high."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong_type(name, "an integer")
        if not low <= value <= high:
            raise self.wrong_value(name, f"must be {low} to {high}")
        return value

    def flag(self, name: str) -> bool | None:
        """Return true or false."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong_type(name, "true or false")
        return value

    def text(self, name: str, longest: int) -> str | None:
        """Return a string of at most ``longest`` characters."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong_type(name, "a string")
        if len(value) > longest:
            raise self.wrong_value(name, f"must have at most {longest} characters")
        return value

    def choice(self, name: str, kind: type[E]) -> E | None:
        """Return a member of an enum."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, str) or value not in {member.value for member in kind}:
            raise self.wrong_value(name, f"must be one of {', '.join(kind)}")
        return kind(value)

    def nested(self, name: str) -> Fields | None:
        """Return the view of a nested object."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong_type(name, "an object")
        return Fields(value, self.path(name))

    def array(self, name: str, longest: int) -> list[Any] | None:
        """Return a list of at most ``longest`` items."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.wrong_type(name, "a list")
        if len(value) > longest:
            raise self.wrong_value(name, f"must have at most {longest} items")
        return value

    def only(self, name: str, *defaults: object) -> None:
        """Let a known but unsupported parameter pass only where it changes nothing."""
        value = self.take(name)
        if value is not None and not any(_same(value, default) for default in defaults):
            raise InvalidRequest(
                f"{self.path(name)} is not supported here: leave it out",
                param=self.path(name),
                code="unsupported_parameter",
            )

    def finish(self) -> None:
        """Refuse every key that was not asked for."""
        for name in self._values:
            if name not in self._taken:
                raise InvalidRequest(
                    f"unknown parameter {self.path(name)[:100]}: leave it out or correct its name",
                    param=self.path(name)[:100],
                    code="unknown_parameter",
                )

    def missing(self, name: str) -> InvalidRequest:
        """Return the error for a parameter that must be there."""
        return InvalidRequest(f"{self.path(name)} is missing", param=self.path(name), code="missing_required_parameter")

    def wrong_type(self, name: str, expected: str) -> InvalidRequest:
        """Return the error for a value of another type."""
        return InvalidRequest(f"{self.path(name)} must be {expected}", param=self.path(name), code="invalid_type")

    def wrong_value(self, name: str, rule: str) -> InvalidRequest:
        """Return the error for a value that is out of range."""
        return InvalidRequest(f"{self.path(name)} {rule}", param=self.path(name), code="invalid_value")


def _same(value: object, default: object) -> bool:
    # True == 1 in Python, not in JSON.
    if isinstance(value, bool) or isinstance(default, bool):
        return value is default
    return value == default
