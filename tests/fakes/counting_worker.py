"""The real worker with real weights, which says on stderr what it still holds whenever it has nothing to do."""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

import llama_cpp.llama_cpp as native

from agent.engine import scheduler, worker

COMMAND = [sys.executable, str(Path(__file__).resolve())]


class CountingScheduler(scheduler.Scheduler):
    def step(self):
        step = super().step()
        if self.idle:
            sys.stderr.write(json.dumps(self.held()) + "\n")
            sys.stderr.flush()
        return step

    def held(self):
        runtime = self._runtime
        ends = [native.llama_memory_seq_pos_max(runtime._memory, slot) + 1 for slot in range(runtime.slots + 1)]
        return {
            "sequences": len(self._running) + len(self._waiting),
            "slots": runtime.slots - len(self._free),
            "cells": sum(ends),
            "tokens": sum(runtime._filled),
            "kept_too_many": max(0, self.prefixes.tokens - runtime.saved_tokens),
        }


if __name__ == "__main__":
    scheduler.Scheduler = CountingScheduler
    sys.exit(worker.main([]))
