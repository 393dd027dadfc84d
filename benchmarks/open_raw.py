"""What the local model answers to the items of the open sets: asked once, kept in a raw file, looked at often.

    python benchmarks/open_raw.py --data DIR --record RAW.jsonl [--set NAME ...] [--seconds 400]

A run goes on where the one before it stopped. Answers are greedy and come from a worker as requests do.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import math
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program this file has only its own folder

from agent import configuration
from agent.batch import open_encoder
from agent.classification import Classifier
from agent.demonstrations import MOST, nearest, with_demonstrations
from agent.engine.supervisor import EnginePool
from agent.label_likeness import LabelLikeness
from agent.models.store import open_store
from agent.structure import FormatKind, OutputFormat, ToolChoice, Tools
from agent.tasks import TaskKind
from agent.types import Generation, InferenceRequest, RequestKind, Sampling
from benchmarks.open_sets import SETS, Item, OpenSet

MODEL, ENCODER = "smollm2-135m-instruct", "minilm-l6-v2-int8"
LONGEST_ANSWER = {TaskKind.TEXT: 32, TaskKind.EXTRACT: 80, TaskKind.TOOL: 160}
Mode = tuple[str, int, int]  # part, demonstrations, how many items


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of the raw file."""

    set: str
    part: str  # taught, asked
    shown: int  # demonstrations
    key: str  # of the item
    generation: Generation


def key_of(item: Item) -> str:
    """Return what names an item in the raw file."""
    return hashlib.sha256(
        msgspec.json.encode((item.input, item.answers, *([item.task] if item.task else [])))
    ).hexdigest()[:16]


def read_raw(path: Path) -> dict[tuple[str, str, int, str], Kept]:
    """Return what a raw file holds."""
    found = {}
    if path.exists():
        for line in path.read_bytes().splitlines():
            one = msgspec.json.decode(line, type=Kept)
            found[one.set, one.part, one.shown, one.key] = one
    return found


def request_of(of: OpenSet, item: Item, shown: Sequence[Item]) -> InferenceRequest:
    """Return the request as the task has it."""
    spec = of.spec_of(item)
    if item.options:
        messages = spec.messages(item.input)
        return InferenceRequest(
            id="", kind=RequestKind.CLASSIFY, model=MODEL, messages=messages, labels=item.options, received_at_ms=0
        )
    messages = with_demonstrations(spec.messages(item.input), [(one.input, one.answers[0]) for one in shown])
    form = None
    if spec.kind is TaskKind.EXTRACT:
        form = OutputFormat(kind=FormatKind.JSON_SCHEMA, source=msgspec.json.encode(spec.schema).decode(), name="task")
    return InferenceRequest(
        id="",
        model=MODEL,
        messages=messages,
        sampling=Sampling(max_tokens=LONGEST_ANSWER[spec.kind]),
        response_format=form,
        tools=Tools(functions=item.tools, choice=ToolChoice.REQUIRED, parallel=False) if item.tools else None,
        received_at_ms=0,
    )


@asynccontextmanager
async def engine() -> AsyncIterator[EnginePool]:
    """Run the worker of the model."""
    settings = configuration.load().settings
    store = open_store(settings.data_path)
    pool = EnginePool(msgspec.structs.replace(settings.engine, parallel=4, context_tokens=2048), store.resolve)
    try:
        yield pool
    finally:
        await pool.stop(0)


async def answer(pool: EnginePool, classifier: Classifier, request: InferenceRequest) -> Generation:
    """Return the local answer."""
    if request.kind is RequestKind.CLASSIFY:
        return await classifier.run(request)
    async with aclosing(pool.generate(request)) as events:
        async for event in events:
            if isinstance(event, Generation):
                return event
    raise RuntimeError("the engine ended without an answer")


def parts_of(of: OpenSet, folder: Path) -> tuple[list[Item], list[Item]]:
    """Return the items that teach and those that are asked."""
    taught, asked = of.read(folder)
    return taught[: of.taught], asked[: of.asked]


def shown_to(
    item: Item,
    vector: Sequence[float],
    taught: Sequence[Item],
    vectors: Sequence[Sequence[float]],
    count: int,
    *,
    but: int | None,
) -> list[int]:
    """Return which taught items of its task an item is answered behind, the nearest last; ``but`` is itself."""
    own = [index for index, other in enumerate(taught) if other.task == item.task and index != but]
    return [own[at] for at in nearest(vector, [vectors[index] for index in own], count)]


async def record(of: OpenSet, folder: Path, raw: Path, until: float, modes: Sequence[Mode]) -> bool:
    """Answer what the raw file has not yet. Returns whether all is done."""
    taught, asked = parts_of(of, folder)
    known = read_raw(raw)
    with open_encoder(ENCODER) as encoder:
        of_taught = [tuple(map(float, row)) for row in encoder.embed([one.input for one in taught])]
        waiting = []
        for part, shown, most in modes:
            items = (taught if part == "taught" else asked)[:most]
            vectors = [tuple(map(float, v)) for v in encoder.embed([one.input for one in items])]
            for at, (item, vector) in enumerate(zip(items, vectors, strict=True)):
                if (of.name, part, shown, key_of(item)) in known:
                    continue
                near = shown_to(item, vector, taught, of_taught, shown, but=at if part == "taught" else None)
                waiting.append((at, (part, shown, item, [taught[i] for i in near])))
    waiting.sort(key=lambda one: one[0])  # a run that is stopped has some of each part
    print(f"{of.name}: {len(waiting)} to ask", file=sys.stderr, flush=True)
    if not waiting:
        return True
    async with engine() as pool:
        classifier = Classifier(pool, likeness=LabelLikeness(pool))
        places = asyncio.Semaphore(4)
        with raw.open("ab") as file:

            async def one(part: str, shown: int, item: Item, near: list[Item]) -> bool:
                async with places:
                    if time.monotonic() > until:
                        return False
                    found = await answer(pool, classifier, request_of(of, item, near))
                    if found.failure:
                        print(f"{of.name}: {found.failure.message}", file=sys.stderr, flush=True)
                    kept = Kept(set=of.name, part=part, shown=shown, key=key_of(item), generation=found)
                    file.write(msgspec.json.encode(kept) + b"\n")
                    file.flush()
                    return True

            return all(await asyncio.gather(*(one(*args) for _, args in waiting)))


def modes_of(of: OpenSet) -> list[Mode]:
    """Return what is recorded of a set: what teaches (some of it without demonstrations, too), then what is asked."""
    count = MOST if of.demonstrated else 0
    plain = [("taught", 0, of.plain), ("asked", 0, of.plain_asked)] if of.demonstrated else []
    return [("taught", count, of.taught), ("asked", count, of.asked), *plain]


def record_all(folder: Path, raw: Path, names: Sequence[str] = (), seconds: float = math.inf) -> int:
    """Record all sets, or those of these names. Returns the exit code: 3 when there is more to do."""
    until = time.monotonic() + seconds
    for of in SETS:
        if (not names or of.name in names) and not asyncio.run(record(of, folder, raw, until, modes_of(of))):
            return 3
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="What the local model answers to open sets.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], help="one of them; repeatable")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop then, and go on in the next run")
    chosen = parser.parse_args()
    return record_all(chosen.data, chosen.record, chosen.set, chosen.seconds)


if __name__ == "__main__":
    sys.exit(main())
