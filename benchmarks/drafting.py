"""What guessing tokens from the prompt brings: the same engine with engine.drafting auto and off, by turns.

    python benchmarks/drafting.py --quick [--json]            under 50 seconds
    python benchmarks/drafting.py [--rounds 9] [--json]

Tokens per second after the first one, greedy, alone in the engine and four at a time. "peer" is the
engine with drafting off; a ratio above 1 means that guessing pays. The last line of what is printed to
stderr is the share of prompts whose text differed: the shape of a batch changes the last bits of a row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program this file has only its own folder

from agent.engine import frames
from agent.engine.drafting import Drafting
from agent.engine.llama_cpp_runtime import LlamaCppRuntime
from agent.engine.relaid_weights import make_room, relaid
from agent.engine.scheduler import Scheduler
from agent.models.store import open_store
from agent.types import Message, Sampling
from benchmarks.intervals import median

MODEL = "smollm2-135m-instruct"
ROUNDS = 9
QUICK_S = 42.0  # nothing begins that would end later
ANSWER_TOKENS = 64
_FERRY = (
    "The ferry leaves the old harbour at seven in the morning and reaches the island before noon. On the way it passes "
    "two lighthouses, a wreck and a small reef where seals sleep on the warm rocks. Travellers who want to see them "
    "should stand on the left side of the upper deck."
)
_BREAD = (
    "Mix the flour with water, salt and a little yeast. Let the dough rest overnight in a cool place, fold it twice in "
    "the morning, and bake it for forty minutes in a very hot oven until the crust sounds hollow."
)
_CODE = (
    'def total(prices, rate):\n    """Return the sum with tax."""\n    result = 0\n    for price in prices:\n'
    '        if price < 0:\n            raise ValueError("a price below zero")\n        result += price * (1 + rate)\n'
    "    return round(result, 2)\n"
)
_JSON = (
    '{"name": "Ada Lovelace", "born": 1815, "city": "London", "languages": ["English", "French"], '
    '"works": [{"title": "Notes", "year": 1843}, {"title": "Letters", "year": 1852}]}'
)
Chat = tuple[Message, ...]


def _asked(*texts: str) -> Chat:
    """Return a conversation: user and assistant by turns."""
    return tuple(Message("assistant" if turn % 2 else "user", text) for turn, text in enumerate(texts))


# What this small model does copy: texts, and what it has already written in the conversation.
COPY_HEAVY = (
    _asked(f"Repeat this text word by word, with 'ferry' changed to 'boat':\n\n{_FERRY}"),
    _asked(f"Repeat the following text exactly:\n\n{_BREAD}"),
    _asked("Write the function.", f"```python\n{_CODE}```", "Write the function again, with amount for result."),
    _asked("Write the JSON.", f"```json\n{_JSON}\n```", "Write the JSON again, with the city Paris."),
)
# What it was asked to copy and rewrites instead: guesses look good for a while and then fail.
NOT_COPIED = (
    _asked(f"Rename the variable result to amount in this code and print the whole code:\n\n```python\n{_CODE}```"),
    _asked(f"Print this JSON again with the city changed to Paris:\n\n{_JSON}"),
)
ORDINARY = (
    _asked("Write a short story about a dog and a river."),
    _asked("Explain how a bicycle stays upright."),
    _asked("Give five tips for better sleep."),
    _asked("Why is the sky blue?"),
)


class Cell(NamedTuple):
    """Prompts, how many of them run at once, and the ratio that is wanted."""

    name: str
    prompts: tuple[Chat, ...]
    together: int
    wanted: float


CELLS = (
    Cell("copy-heavy prompts, one at a time", COPY_HEAVY, 1, 1.3),
    Cell("copies that become something else", NOT_COPIED, 1, 0.97),
    Cell("ordinary prompts, one at a time", ORDINARY, 1, 0.97),
    Cell("ordinary prompts, four at a time", ORDINARY, 4, 0.97),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Drafting on, beside drafting off.")
    parser.add_argument("--quick", action="store_true", help="as many rounds as fit under 50 seconds")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows on stdout")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of each cell (default {ROUNDS})")
    parser.add_argument("--threads", type=int, default=0, help="threads of a step; 0 (default): as the engine chooses")
    chosen = parser.parse_args(arguments)
    begun = time.monotonic()
    until = begun + QUICK_S if chosen.quick else float("inf")
    with tempfile.TemporaryDirectory() as folder:
        order = frames.Load(
            model=open_store(Path(folder)).resolve(MODEL),
            context_tokens=1024,
            parallel=4,
            waiting_line=0,
            threads=chosen.threads,
            confine=False,
        )
        runtime = LlamaCppRuntime(relaid(order, make_room(order)))  # as a worker holds it
        rows = _measured(runtime, chosen.rounds, until)
        runtime.close()
    if chosen.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(
                f"{row['name']:36} on {row['ours']:>6} off {row['peer']:>6} tok/s, ratio {row['ratio']} {row['wanted']} {row['ok']}"
            )
    return 0


def _measured(runtime: LlamaCppRuntime, rounds: int, until: float) -> list[dict[str, object]]:
    rates: dict[tuple[Cell, bool], list[float]] = {(cell, on): [] for cell in CELLS for on in (True, False)}
    drafting = Drafting()  # one, as a worker has: what it has learnt stays
    texts: dict[tuple[Chat, bool], str] = {}
    took = dict.fromkeys(CELLS, 0.0)
    for _ in range(rounds):
        for cell in CELLS:
            turn = len(rates[cell, True])
            begun = time.monotonic()
            if turn and begun + took[cell] > until:
                continue
            for on in (True, False) if turn % 2 else (False, True):
                rate, found = _rate(runtime, cell, drafting if on else None)
                rates[cell, on].append(rate)
                took[cell] = time.monotonic() - begun
                if cell.together == 1:
                    texts |= {(prompt, on): text for prompt, text in zip(cell.prompts, found, strict=True)}
    prompts = COPY_HEAVY + NOT_COPIED + ORDINARY
    differ = sum(texts[prompt, True] != texts[prompt, False] for prompt in prompts)
    whole = len(prompts)
    print(f"{differ} of {whole} prompts got another text with drafting ({differ / whole:.0%})", file=sys.stderr)
    return [_row(cell, rates[cell, True], rates[cell, False]) for cell in CELLS]


def _row(cell: Cell, on: list[float], off: list[float]) -> dict[str, object]:
    ratio = median(on) / median(off)
    return {
        "name": f"drafting: {cell.name}",
        "ours": round(median(on), 1),
        "peer": round(median(off), 1),
        "ratio": round(ratio, 3),
        "rounds": len(on),
        "wanted": f"at least {cell.wanted:g}",
        "ok": ratio >= cell.wanted,
    }


def _rate(runtime: LlamaCppRuntime, cell: Cell, drafting: Drafting | None) -> tuple[float, list[str]]:
    """Return the tokens per second of all prompts of a cell, after the first of each group, and the texts."""
    tokens, seconds = 0, 0.0
    texts: list[str] = []
    for at in range(0, len(cell.prompts), cell.together):
        group = cell.prompts[at : at + cell.together]
        scheduler = Scheduler(runtime, waiting_line=0, drafting=drafting)
        for number, prompt in enumerate(group):
            sampling = Sampling(max_tokens=ANSWER_TOKENS)
            scheduler.submit(frames.Generate(id=number, messages=prompt, sampling=sampling))
        found = dict.fromkeys(range(len(group)), "")
        started: float | None = None
        while not scheduler.idle:
            step = scheduler.step()
            events: tuple[frames.Piece | frames.Ended, ...] = (*step.pieces, *step.ended)
            for event in events:
                found[event.id] += event.text
                if started is not None:
                    tokens += len(event.tokens)
            if started is None and all(found.values()):
                started = time.monotonic()
            if failed := [ended.failure for ended in step.ended if ended.failure]:
                raise RuntimeError(failed[0].message)
        if started is not None:
            seconds += time.monotonic() - started
        texts += found.values()
    return tokens / seconds, texts


if __name__ == "__main__":
    sys.exit(main())
