"""Measuring a model of the store on this device, through the worker that serves and a child that reads texts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import msgspec

from agent import __version__, device, executable
from agent.classification import Classifier
from agent.engine.supervisor import EnginePool
from agent.errors import EngineFailed
from agent.evaluation import instructions, measure_worker, needles
from agent.evaluation.asking import Asking, Tell, speed_of
from agent.evaluation.labelled import Task, solve, wilson
from agent.evaluation.measure_worker import Text
from agent.evaluation.steps import Steps, kept_steps
from agent.evaluation.window import WINDOW_TOKENS, Window
from agent.models.quality import Golden, Needles, Quality, Speed, TaskFigures, TextFigures
from agent.settings import EngineSettings
from agent.types import Message, ModelFile

SHIPPED = "shipped text"
GOLDEN_WINDOWS = 2  # of the text that ships, kept with a model
KEPT_FOLDER = "measuring"  # of the store: steps of measurements that are not finished


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    model: ModelFile
    reference: ModelFile | None
    texts: tuple[Text, ...]
    engine: EngineSettings
    longest_context: int  # of the needles, tokens
    tasks: tuple[Task, ...] = ()
    golden: Golden | None = None  # what takes the place of a reference that is not here
    kept: Path | None = None  # folder for finished steps, so that a measurement that was stopped goes on


def shipped_text() -> Text:
    """Return the text that comes with this program: prose, talk, a manual, code, data, figures."""
    return Text(SHIPPED, resources.files("agent.evaluation").joinpath("measuring_text.txt").read_text(encoding="utf-8"))


def measure(plan: Plan, tell: Tell, *, now_ms: int) -> Quality:
    """Measure. Minutes of work; raises OutriderError when the model cannot be loaded or asked."""
    with kept_steps(plan.kept, _conditions(plan)) if plan.kept else contextlib.nullcontext(Steps()) as steps:
        if len(steps):
            tell(f"going on where it was stopped: {len(steps)} steps are done")
        answers = asyncio.run(_ask(plan, tell, steps))
        texts = read_texts(plan, tell, steps)
        golden, texts, reference = against_golden(plan, steps, texts)
    return Quality(
        digest=plan.model.sha256,
        measured_at_ms=now_ms,
        machine=device.profile().cpu_model,
        runtime=answers.runtime,
        reference=reference,
        reference_digest=golden.reference_digest if golden and reference else None,
        texts=texts,
        instructions_followed=answers.followed,
        instructions_asked=len(instructions.INSTRUCTIONS),
        needles=answers.needles,
        speed=answers.speed,
        tasks=answers.tasks,
        golden=golden,
    )


def against_golden(
    plan: Plan, steps: Steps, texts: tuple[TextFigures, ...]
) -> tuple[Golden | None, tuple[TextFigures, ...], str | None]:
    """Return what to keep of the source's answers, the figures, and the name of what they were compared with.

    Without a reference the answers that came with the model take its place: their agreement is
    then a figure of the first text.
    """
    text = plan.texts[0].text
    digest = hashlib.sha256(text.encode()).hexdigest()
    windows = windows_of(plan.texts[0], steps)[:GOLDEN_WINDOWS]
    if plan.reference is not None:
        expected = tuple(token for window in windows for token in window.expected)
        if not expected:  # another vocabulary
            return None, texts, None
        name, sha256 = plan.reference.name, plan.reference.sha256
        return Golden(reference=name, reference_digest=sha256, text_digest=digest, likeliest=expected), texts, name
    said = [token for window in windows for token in window.likeliest]
    golden = plan.golden
    if golden is None or golden.text_digest != digest or len(said) != len(golden.likeliest):
        return golden, texts, None
    same = sum(one == other for one, other in zip(said, golden.likeliest, strict=True))
    first = msgspec.structs.replace(texts[0], agreement=wilson(same, len(said)))
    return golden, (first, *texts[1:]), f"{golden.reference} (its kept answers)"


def _conditions(plan: Plan) -> list[str]:
    """Return what decides the outcome of a step: under other conditions it is done anew."""
    model = plan.model
    told = [model.sha256, model.chat_template or "", model.system_prompt or "", str(model.context_tokens)]
    told += [plan.reference.sha256 if plan.reference else "", str(plan.longest_context), str(plan.engine.threads)]
    return [*told, device.profile().cpu_model, __version__]


def _window_step(text: str, begin: int) -> str:
    return f"window {hashlib.sha256(text.encode()).hexdigest()[:16]} {begin}"


def windows_of(text: Text, steps: Steps) -> tuple[Window, ...]:
    """Return what was read of a text, from its beginning."""
    found: list[Window] = []
    while (window := steps.found(_window_step(text.text, len(found) * WINDOW_TOKENS), Window)) is not None:
        found.append(window)
    return tuple(found)


def _done(text: Text, steps: Steps) -> Text:
    return Text(text.name, text.text, windows_of(text, steps))


def read_texts(plan: Plan, tell: Tell, steps: Steps | None = None) -> tuple[TextFigures, ...]:
    """Have a child read the texts with the model, beside the reference if there is one.

    Windows are kept with ``steps``, and not read again.
    """
    steps = Steps() if steps is None else steps
    order = measure_worker.Order(
        model=plan.model,
        reference=plan.reference,
        texts=tuple(_done(text, steps) for text in plan.texts),
        threads=plan.engine.threads or device.profile().decode_threads,
        confine=plan.engine.confine,
    )
    with (
        tempfile.TemporaryFile() as notes,
        subprocess.Popen(
            executable.command("measure-worker"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=notes
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        result: measure_worker.Result | None = None
        try:
            try:
                child.stdin.write(msgspec.json.encode(order))
                child.stdin.close()
            except BrokenPipeError:
                pass  # its status says more
            for line in child.stdout:
                match msgspec.json.decode(line, type=measure_worker.Event):
                    case measure_worker.Progress(done, total, name):
                        tell(f"{name}: {done} of {total} tokens read")
                    case measure_worker.Read(number, window):
                        steps.keep(_window_step(plan.texts[number].text, window.begin), window)
                    case measure_worker.Paused(reason):
                        tell(f"paused: {reason}")
                    case measure_worker.Failed(message):
                        raise EngineFailed(message)
                    case measure_worker.Result() as result:
                        if result.remark:
                            tell(f"no comparison: {result.remark}")
        finally:
            if result is None:
                child.kill()
        status = child.wait()
        if result is None or status:
            notes.seek(0)
            last = notes.read().decode("utf-8", "replace").strip().splitlines()[-3:]
            raise EngineFailed(f"the process that reads texts ended with status {status}: {' | '.join(last)[-400:]}")
        return result.texts


class _Answers(msgspec.Struct):
    runtime: str
    followed: int
    needles: tuple[Needles, ...]
    speed: Speed
    tasks: tuple[TaskFigures, ...]


async def _ask(plan: Plan, tell: Tell, steps: Steps) -> _Answers:
    """Ask the worker that serves, alone: its speed and memory are measured, too."""
    context = min(plan.longest_context, plan.model.context_tokens)
    engine = msgspec.structs.replace(plan.engine, parallel=1, context_tokens=context, idle_unload_s=0.0)
    pool = EnginePool(engine, lambda _: plan.model)
    asking = Asking(pool, plan.model.name, tell)
    try:
        followed = 0
        for number, instruction in enumerate(instructions.INSTRUCTIONS, 1):
            is_followed = steps.found(f"instruction {number}", bool)
            if is_followed is None:
                answer = await asking.ask((Message("user", instruction.question),), instructions.ANSWER_TOKENS)
                is_followed = instruction.is_followed_by(answer.text)
                steps.keep(f"instruction {number}", is_followed)
            followed += is_followed
            tell(f"instructions: {number} of {len(instructions.INSTRUCTIONS)} asked, {followed} followed")
        if (speed := steps.found("speed", Speed)) is None:
            speed = await speed_of(asking, pool)
            steps.keep("speed", speed)
            steps.keep("runtime", pool.status()[plan.model.name].runtime)
        found = await _needles(asking, context, tell, steps)
        solved = [await solve(task, plan.model.name, Classifier(pool), steps, tell) for task in plan.tasks]
        return _Answers(steps.found("runtime", str) or "", followed, found, speed, tuple(solved))
    finally:
        await pool.stop(0)


async def _needles(asking: Asking, context: int, tell: Tell, steps: Steps) -> tuple[Needles, ...]:
    found: list[Needles] = []
    per_sentence = steps.found("tokens per sentence", float)
    if per_sentence is None:
        short, long = [await asking.ask(probe, 1) for probe in needles.probes()]
        per_sentence = (long.prompt_tokens - short.prompt_tokens) / needles.PROBE_SENTENCES
        steps.keep("tokens per sentence", per_sentence)
    for length in [length for length in needles.LENGTHS if length <= context]:
        known = steps.found(f"needles {length}", Needles)
        if known is None:
            known = await _needles_of(length, per_sentence, asking)
            steps.keep(f"needles {length}", known)
        found.append(known)
        tell(f"needles: {known.found} of {known.asked} found in {known.prompt_tokens} tokens")
        if not known.passed:
            break
        per_sentence *= max(1.0, known.prompt_tokens / (length - needles.ANSWER_TOKENS - 8))  # facts and template, too
    return tuple(found)


async def _needles_of(length: int, per_sentence: float, asking: Asking) -> Needles:
    hits = prompt_tokens = 0
    asked = needles.questions(length, per_sentence)
    for question in asked:
        answer = await asking.ask(question.messages, needles.ANSWER_TOKENS)
        prompt_tokens = max(prompt_tokens, answer.prompt_tokens)
        hits += question.answer in answer.text
    return Needles(prompt_tokens, hits, len(asked))
