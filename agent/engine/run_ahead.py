"""Several decodes in a row before anybody looks closely at their rows (multi-step scheduling).

What Python does with a row costs most right after a decode, whose weights have pushed everything
else out of the processor's caches. So where the next token is the likeliest one, which takes a
single glance at the row, the next decode begins at once, and several rows are read together. The
tokens so taken are verified by the rows before them, one after another, like any other guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agent.engine.runtime import Chunk, Row, Runtime
from agent.engine.sequence import Sequence as Request

RUN_S = 0.04  # that a run may take: what it brings goes out in one frame
MOST_ROWS = 8  # to be read together: with more, they would push each other out of the caches


class RunAhead:
    """Decodes on for requests that take the likeliest token each time. Used by the thread of the scheduler."""

    def __init__(self, runtime: Runtime, *, interrupted: Callable[[], bool]) -> None:
        """A run ends early when ``interrupted()``: somebody waits for the end of the step."""
        self._runtime = runtime
        self._interrupted = interrupted
        self._kept: list[Row] = []

    def count(self, chunks: Sequence[Chunk], requests: Sequence[Request], step_s: float) -> int:
        """Return how many more decodes may follow one of these chunks that took ``step_s`` seconds; 0: none."""
        for chunk, request in zip(chunks, requests, strict=True):
            if len(chunk.tokens) > 1 or not request.takes_likeliest:
                return 0
        # The last token of an answer comes from a row: it is never decoded itself.
        most = min(request.limit - request.generated - 1 for request in requests)
        return max(0, min(most, MOST_ROWS // len(requests), int(RUN_S / max(step_s, 1e-4)) - 1))

    def run(self, chunks: Sequence[Chunk], rows: Sequence[Row], count: int) -> tuple[list[list[int]], list[list[Row]]]:
        """Decode up to ``count`` times more, after ``chunks`` that gave a row each.

        Returns, for each chunk, the tokens taken and the rows: before each of them, and after the
        last. They hold until the next decode. Raises RuntimeBroken.
        """
        slots = [chunk.slot for chunk in chunks]
        taken: list[list[int]] = [[] for _ in slots]
        read: list[list[Row]] = [[] for _ in slots]
        for number in range(count):
            likeliest = [int(row.argmax()) for row in rows]
            if any(map(self._runtime.ends, likeliest)) or self._interrupted():
                break
            for index, (token, row) in enumerate(zip(likeliest, rows, strict=True)):
                taken[index].append(token)
                read[index].append(self._keep(number * len(slots) + index, row))
            rows = self._runtime.decode_one_each(slots, likeliest)
        for own, row in zip(read, rows, strict=True):
            own.append(row)
        return taken, read

    def _keep(self, index: int, row: Row) -> Row:
        if index == len(self._kept):
            self._kept.append(np.empty_like(row))
        np.copyto(self._kept[index], row)
        return self._kept[index]
