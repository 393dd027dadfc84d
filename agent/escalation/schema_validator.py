"""The check itself: ``<executable> check-schema``, a child that lives for one reply.

Standard input holds a MessagePack list of pairs (schema, document), both JSON texts; standard
output gets the first fault as a JSON string, or null. A schema may take exponential time, and
an expression in it too: in a process of its own neither can hold up the daemon. Nothing is
fetched: a reference to elsewhere is a fault.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec

MOST_MEMORY = 1 << 30  # bytes of address space
# What a fault may be called; anything else in a schema's path is a name of the user's.
KEYWORDS = frozenset(
    [
        "additionalProperties",
        "allOf",
        "anyOf",
        "const",
        "contains",
        "dependentRequired",
        "dependentSchemas",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "if",
        "items",
        "maxContains",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minContains",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "not",
        "oneOf",
        "pattern",
        "patternProperties",
        "prefixItems",
        "properties",
        "propertyNames",
        "required",
        "type",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    ]
)


def main(arguments: Sequence[str]) -> int:
    """Check what comes on standard input. Returns the exit status."""
    del arguments
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    pairs = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=list[tuple[str, str]])
    found = next(filter(None, (fault(schema, document) for schema, document in pairs)), None)
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


def fault(schema: str, document: str) -> str | None:
    """Return what is wrong with a JSON document, in words without any text of it; None: it validates."""
    from jsonschema_rs import ReferencingError, ValidationError, validator_for

    try:
        value = msgspec.json.decode(document)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return "it is not JSON"
    try:
        validator = validator_for(msgspec.json.decode(schema), validate_formats=True, offline=True)
    except (ValidationError, ReferencingError, ValueError, RecursionError):
        return "the schema cannot be used"
    error = next(validator.iter_errors(value), None)
    if error is None:
        return None
    keyword = next((str(step) for step in reversed(error.schema_path) if step in KEYWORDS), "schema")
    return f"{keyword} is not satisfied"
