"""Loaded by schemathesis, in its own environment: names that exist here, so that calls get past their first check."""

import json
import os
import zlib

import schemathesis

KNOWN = json.loads(os.environ["OUTRIDER_KNOWN"])  # [beginning of a path, parameter, value]


@schemathesis.hook
def before_call(context, case, **options):
    """In three of four calls put what exists in the place of what was drawn."""
    if zlib.crc32(repr((case.path, case.body)).encode()) % 4 == 0:
        return
    for beginning, name, value in KNOWN:
        for part in (case.path_parameters, case.body):
            if case.path.startswith(beginning) and isinstance(part, dict) and name in part:
                part[name] = value
