"""A schema in which a model may say that there is nothing, instead of having to invent a value."""

from __future__ import annotations

import json
from typing import Any

_NULL = {"type": "null"}
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_IN_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "contains", "if", "then", "else")
_OF_PARTS = {"properties", "patternProperties", "additionalProperties", "items", "prefixItems"}


def with_nullable_fields(source: str) -> str:
    """Return a JSON schema whose required properties may be null, where they are no objects and no lists.

    A constant stays: it is no field that is found out, and branches are told apart by it. What
    is not required can be left out already.
    """
    schema: Any = json.loads(source)
    parts = _Parts(schema)
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict):
            continue
        # Before the fields are wrapped: a wrapping is not looked into again.
        waiting += _inside(node)
        properties, required = node.get("properties"), node.get("required")
        if isinstance(properties, dict) and isinstance(required, list):
            for name in properties.keys() & {name for name in required if isinstance(name, str)}:
                field = properties[name]
                if (
                    isinstance(field, dict)
                    and not _is_constant(field)
                    and not _admits_null(field)
                    and not parts.has(field)
                ):
                    properties[name] = {"anyOf": [field, _NULL]}
    return json.dumps(schema, ensure_ascii=False)


def _inside(node: dict[str, Any]) -> list[Any]:
    found = [node[name] for name in _SINGLE if name in node]
    for name in _BY_NAME:
        if isinstance(node.get(name), dict):
            found += node[name].values()
    for name in _IN_LISTS:
        if isinstance(node.get(name), list):
            found += node[name]
    return found


def _is_constant(field: dict[str, Any]) -> bool:
    values = field.get("enum")
    return "const" in field or (isinstance(values, list) and len(values) == 1)


def _admits_null(field: dict[str, Any]) -> bool:
    kinds, values, branches = field.get("type"), field.get("enum"), field.get("anyOf")
    return (
        kinds == "null"
        or (isinstance(kinds, list) and "null" in kinds)
        or (isinstance(values, list) and None in values)
        or (isinstance(branches, list) and _NULL in branches)
    )


class _Parts:
    """Tells whether a schema is of an object or a list, through references and branches."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[int, bool] = {}

    def has(self, field: dict[str, Any]) -> bool:
        seen: set[int] = set()
        waiting: list[Any] = [field]
        while waiting:
            node = waiting.pop()
            if not isinstance(node, dict) or id(node) in seen or self._known.get(id(node)) is False:
                continue
            if self._known.get(id(node)) or self._has_itself(node):
                self._known[id(field)] = True
                return True
            seen.add(id(node))
            for name in ("anyOf", "oneOf", "allOf"):
                if isinstance(node.get(name), list):
                    waiting += node[name]
            if isinstance(node.get("$ref"), str):
                waiting.append(self._resolved(node["$ref"]))
        self._known |= dict.fromkeys(seen, False)
        return False

    @staticmethod
    def _has_itself(node: dict[str, Any]) -> bool:
        kinds = node.get("type")
        of_parts = kinds if isinstance(kinds, list) else [kinds]
        return bool(_OF_PARTS & node.keys()) or "object" in of_parts or "array" in of_parts

    def _resolved(self, reference: str) -> Any:
        if not reference.startswith("#"):
            return None  # refused elsewhere
        node = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            node = node.get(name) if isinstance(node, dict) else None
        return node
