"""The command line with a measurement of seconds instead of minutes; run as a program, it can die at a step of ``get``.

``python short_measuring.py STEP ARGUMENTS...`` is killed with -9 right before that step (a name of ``STEPS``), gets
the Ctrl-C of a terminal there when STEP ends with ``^C``, or runs to its end when STEP is ``none``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agent.cli import get
from agent.cli.main import cli
from agent.evaluation import asking, instructions, needles, quality
from agent.evaluation.measure_worker import Text

STEPS = ("made_smaller", "end", "take", "_first_answer")


def shorten(put) -> None:
    """Have three questions asked and a short text read; ``put`` is setattr or like it."""
    text = quality.shipped_text().text[:400]
    put(quality, "shipped_text", lambda: Text(quality.SHIPPED, text))
    put(instructions, "INSTRUCTIONS", instructions.INSTRUCTIONS[:3])
    put(instructions, "ANSWER_TOKENS", 4)
    put(needles, "LENGTHS", ())
    put(asking, "SPEED_PROMPT_TOKENS", 16)
    put(asking, "SPEED_ANSWER_TOKENS", 4)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGINT if interrupted else signal.SIGKILL)


if __name__ == "__main__":
    shorten(setattr)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    step = sys.argv.pop(1)
    interrupted = step.endswith("^C")
    step = step.removesuffix("^C")
    if step in STEPS:
        setattr(get if hasattr(get, step) else get._Getting, step, die)
    cli(prog_name="outrider")
