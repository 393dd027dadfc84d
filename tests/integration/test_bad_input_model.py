"""Bad input on real weights: a clear error for that request, and neither the worker nor a neighbour is harmed."""

import asyncio
import contextlib
import json
import random
import re
import struct
from pathlib import Path

import pytest
import pytest_asyncio
from fakes import smollm2

from agent.engine.supervisor import EnginePool, WorkerState
from agent.settings import EngineSettings
from agent.structure import FormatKind, OutputFormat
from agent.types import FailureKind, Generation, InferenceRequest, Message, RequestKind, Sampling

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]
TEMPLATES = {
    "looping": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "exploding": "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
}


def refused(text):
    return FailureKind.REJECTED, text


def schema(value):
    return OutputFormat(kind=FormatKind.JSON_SCHEMA, source=json.dumps(value))


DOUBLING = {"$defs": {"d0": {"type": "string"}}, "$ref": "#/$defs/d40"} | {
    "$defs": {"d0": {"const": "x"}}
    | {
        f"d{n}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/d{n - 1}"} for k in "ab"}, "required": ["a"]}
        for n in range(1, 41)
    }
}
BAD = {
    "a token that does not exist": ({"kind": RequestKind.COMPLETION, "prompt": (5, 999_999)}, refused("vocabulary")),
    "a negative token": ({"kind": RequestKind.COMPLETION, "prompt": (-1,)}, refused("vocabulary")),
    "a bias on a token that does not exist": (
        {"sampling": Sampling(logit_bias=((10**9, 1.0),))},
        refused("not in the vocabulary"),
    ),
    "a prompt longer than the context": ({"text": "word " * 3000}, (FailureKind.CONTEXT_OVERFLOW, "512")),
    "a prompt far longer than the context": ({"text": "x" * 5_000_000}, (FailureKind.CONTEXT_OVERFLOW, "512")),
    "a template that loops": ({"model": "looping"}, refused("took more than")),
    "a template that explodes": ({"model": "exploding"}, refused("too much text|took more than")),
    "an enum without end": (
        {"response_format": schema({"enum": [f"{n}" * 40 for n in range(60_000)]})},
        refused("."),
    ),
    "a grammar that cannot begin": (
        {"response_format": OutputFormat(kind=FormatKind.GRAMMAR, source="root ::= root root")},
        refused("."),
    ),
    "a file that is cut": ({"model": "cut"}, (FailureKind.QUARANTINED, "llama.cpp refuses the file")),
    "a file with a broken head": ({"model": "head"}, (FailureKind.QUARANTINED, "llama.cpp refuses the file")),
    "weights that are no numbers": ({"model": "nan"}, (FailureKind.CRASH, "NaN")),
}


def norm_weights(data):
    """Where the weights of the last norm lie in the bytes of a GGUF, as (begin, end)."""
    (count,) = struct.unpack_from("<Q", data, 8)
    name = re.compile(rb"(?:token_embd|output_norm|blk\.\d+\.[a-z_]+)\.weight")
    at = min(m.start() for m in name.finditer(data, 0, 8 << 20) if data[m.start() - 8] == len(m[0])) - 8
    found = None
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        label = data[at + 8 : at + 8 + length]
        (dimensions,) = struct.unpack_from("<I", data, at + 8 + length)
        at += 8 + length + 4 + 8 * dimensions
        kind, offset = struct.unpack_from("<IQ", data, at)
        if label == b"output_norm.weight":
            assert (kind, dimensions) == (0, 1)  # 32-bit floats
            found = offset, struct.unpack_from("<Q", data, at - 8)[0] * 4
        at += 12
    begin = at + -at % 32 + found[0]
    return begin, begin + found[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    good = Path(smollm2.model_file().path).read_bytes()
    chance = random.Random(1)
    head = bytearray(good)
    for _ in range(200):
        head[chance.randrange(8, 5000)] ^= chance.randrange(1, 256)
    begin, end = norm_weights(good)
    damaged = {
        "cut": good[: len(good) // 2],
        "head": bytes(head),
        "nan": good[:begin] + struct.pack("<f", float("nan")) * ((end - begin) // 4) + good[end:],
    }
    for name, data in damaged.items():
        (folder / name).write_bytes(data)
    found = {name: smollm2.model_file(name, path=str(folder / name), sha256=name * 8) for name in damaged}
    found |= {name: smollm2.model_file(name, chat_template=text, sha256=name) for name, text in TEMPLATES.items()}
    yield found | {"good": smollm2.model_file("good")}
    for name in damaged:
        (folder / name).unlink()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(files):
    settings = EngineSettings(context_tokens=512, parallel=2, threads=1, crashes_to_quarantine=1)
    pool = EnginePool(settings, files.__getitem__)
    yield pool
    await pool.stop(0)


def request(text="Hi", model="good", **fields):
    given = {"id": "r", "received_at_ms": 0, "messages": (Message("user", text),), "model": model}
    return InferenceRequest(**(given | fields))


async def ask(engine, **given):
    *_, last = [event async for event in engine.generate(request(**given))]
    assert isinstance(last, Generation)
    return last


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_request_gets_its_error_and_harms_nobody(engine, case):
    given, (kind, message) = BAD[case]
    name = given.get("model", "good")
    neighbour = asyncio.create_task(ask(engine, text="Tell me a story.", sampling=Sampling(max_tokens=12)))
    answer = await ask(engine, **given)
    assert answer.failure.kind is kind, answer.failure
    assert re.search(message, answer.failure.message)
    assert answer.text == ""
    assert (await neighbour).failure is None
    status = engine.status()
    assert status["good"].crashes == 0
    if kind is FailureKind.QUARANTINED:
        assert status[name].state is WorkerState.QUARANTINED
        assert message in status[name].last_error
    else:
        assert (status[name].state, status[name].crashes, status[name].active) == (WorkerState.READY, 0, 0)


@pytest.mark.parametrize(
    "rule", [schema(DOUBLING), OutputFormat(kind=FormatKind.GRAMMAR, source='r ::= "(" r ")" | "x"\nroot ::= r')]
)
async def test_recursion_and_doubling_are_bounded(engine, rule):
    """Refused or answered, but never for long and never beyond the limit."""
    answer = await ask(engine, response_format=rule, sampling=Sampling(max_tokens=20))
    assert answer.failure is None or answer.failure.kind is FailureKind.REJECTED
    assert answer.output_tokens <= 20
    assert (await ask(engine, sampling=Sampling(max_tokens=3))).failure is None


async def test_labels_that_make_no_sense_are_refused(engine):
    for labels, kind in (((), FailureKind.REJECTED), (("word " * 900,), FailureKind.CONTEXT_OVERFLOW)):
        scores = await engine.score(request(kind=RequestKind.CLASSIFY), labels)
        assert scores.failure.kind is kind
    scores = await engine.score(request(kind=RequestKind.CLASSIFY, model="nan"), ("a", "b"))
    assert scores.failure.kind is FailureKind.CRASH
    assert "NaN" in scores.failure.message
    assert (await engine.score(request(kind=RequestKind.CLASSIFY), ("a", "b"))).failure is None


async def test_who_leaves_in_the_middle_takes_nothing_along(engine):
    async with contextlib.aclosing(engine.generate(request("Tell me a story."))) as gone:
        await anext(gone)
    answers = await asyncio.gather(*(ask(engine, sampling=Sampling(max_tokens=5)) for _ in range(2)))
    assert all(answer.failure is None for answer in answers)
    status = engine.status()["good"]
    assert (status.crashes, status.active, status.waiting) == (0, 0, 0)
