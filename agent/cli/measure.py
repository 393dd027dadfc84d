"""``outrider measure``: what a model is worth on this very device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.invocation import Invocation, json_option, model_store, pass_invocation
from agent.cli.output import emit_json, notice, size, table
from agent.errors import InvalidRequest, ModelRejected
from agent.types import ModelFormat

if TYPE_CHECKING:
    from agent.evaluation.labelled import Task
    from agent.evaluation.measure_worker import Text
    from agent.models.quality import EncoderFigures, Estimate, Quality, Speed
    from agent.models.store import ModelStore
    from agent.types import ModelFile

MOST_TEXT_BYTES = 1 << 20


@click.command()
@click.argument("model")
@click.option(
    "--against", metavar="MODEL|FILE", help="Reference: a model of the store or a GGUF file. Default: its source."
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read this file too (UTF-8, up to 1 MiB). Repeatable.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Have it label these texts too: JSONL with "text" and "label" on each line. Repeatable.',
)
@click.option(
    "--longest-context", type=click.IntRange(512), help="Longest prompt to try, tokens. Default: engine.context_tokens."
)
@json_option
@pass_invocation
def measure(
    invocation: Invocation,
    model: str,
    against: str | None,
    texts: tuple[Path, ...],
    tasks: tuple[Path, ...],
    longest_context: int | None,
    as_json: bool,
) -> int:
    """Measure what MODEL is worth on this device, and keep the result with it.

    Perplexity on a text that comes with this program, and how far the model is from its source
    (KL divergence, same likeliest token); 20 direct instructions through the template that
    serves; facts found in prompts of growing length; speed and memory. A model below the floor
    is not served afterwards: the exit code is then 65. Takes minutes; a call that was stopped goes
    on where it was when it is given again. Of an encoder: how near its vectors are to those of its
    source, whether texts have the same neighbours, speed and memory; that takes seconds.

    Example:  outrider measure smollm2-135m-instruct
    """
    from agent.evaluation.labelled import read_task
    from agent.evaluation.measure_worker import Text
    from agent.evaluation.measuring import golden_of

    store = model_store(invocation)
    file = store.resolve(model, below_floor=True)
    reference = _reference(store, file, against)
    read = tuple(Text(path.name, _text(path)) for path in texts)
    labelled = tuple(read_task(path) for path in tasks)
    if reference is None:
        if golden_of(store, model):
            notice("no reference at hand: it is compared with the answers of its source that came with it")
        else:
            notice("no reference at hand: how far it is from its source is not measured; name one with --against")
    if file.format is ModelFormat.ONNX_ENCODER and (read or labelled):
        raise InvalidRequest(
            "--text and --task are for models that write; an encoder reads the lines of the text that ships"
        )
    found = measure_model(invocation, file, reference, texts=read, tasks=labelled, longest_context=longest_context)
    entry = store.show(model)
    if as_json:
        emit_json({"model": model, "bytes": entry.bytes, "quality": found, "faults": found.faults})
    else:
        show(store, model, found, reference)
    return ModelRejected.exit_code if found.faults and not entry.demo else 0


def measure_model(
    invocation: Invocation,
    model: ModelFile,
    reference: ModelFile | None,
    *,
    texts: tuple[Text, ...] = (),
    tasks: tuple[Task, ...] = (),
    longest_context: int | None = None,
) -> Quality:
    """Measure a model of the store with the user's settings and keep the result with it. Raises OutriderError."""
    from agent.evaluation import quality as evaluation
    from agent.evaluation.measuring import golden_of

    store = model_store(invocation)
    now_ms = time.time_ns() // 1_000_000
    if model.format is ModelFormat.ONNX_ENCODER:
        from agent.evaluation.encoders import measure_encoder

        text = evaluation.shipped_text().text
        found = measure_encoder(model, reference, text, invocation.settings.engine, notice, now_ms=now_ms)
        store.note(model.name, quality=found)
        return found
    plan = evaluation.Plan(
        model=model,
        reference=reference,
        texts=(evaluation.shipped_text(), *texts),
        engine=invocation.settings.engine,
        longest_context=longest_context or invocation.settings.engine.context_tokens,
        tasks=tasks,
        golden=golden_of(store, model.name),
        kept=store.blobs.root / evaluation.KEPT_FOLDER,
    )
    found = evaluation.measure(plan, notice, now_ms=now_ms)
    store.note(model.name, quality=found)
    return found


def show(store: ModelStore, model: str, found: Quality, reference: ModelFile | None) -> None:
    """Print what was measured, beside the same of the reference as far as it is known, and what follows from it."""
    entry = store.show(model)
    rows = figures(found, entry.bytes)
    if reference is None:
        table(["FIGURE", model], rows)
    else:
        source = store.get(reference.name)
        other = source.quality if source and source.digest == reference.sha256 else None
        before = size_of(reference)
        beside = dict(figures(other, before)) if other else _of_reference(found, before)
        table(["FIGURE", reference.name, model], [(name, beside.get(name, "-"), value) for name, value in rows])
    _tell_verdict(found, demo=entry.demo)


def size_of(model: ModelFile) -> int:
    """Return the bytes of a model: of its file, or of all files in its folder."""
    path = Path(model.path)
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


def figures(quality: Quality, file_bytes: int) -> list[tuple[str, str]]:
    """Return what was measured as lines for people."""
    rows = [("size", size(file_bytes))]
    if quality.encoder:
        return rows + _encoder_figures(quality.encoder, quality.speed)
    for text in quality.texts:
        rows.append((f"perplexity, {text.name}", _estimate(text.perplexity, "{:.2f}")))
        rows.append((f"bits per byte, {text.name}", f"{text.bits_per_byte:.3f}"))
        if text.divergence:
            rows.append((f"KL divergence (nats), {text.name}", _estimate(text.divergence, "{:.4f}")))
        if text.agreement:
            rows.append((f"same likeliest token, {text.name}", _estimate(text.agreement, "{:.1%}")))
    rows.append(("instructions followed", f"{quality.instructions_followed} of {quality.instructions_asked}"))
    rows += [
        (f"right labels, {task.name}", f"{_estimate(task.accuracy, '{:.1%}')}, commonest label {task.majority:.1%}")
        for task in quality.tasks
    ]
    rows += [
        (f"needles in {needles.prompt_tokens} tokens", f"{needles.found} of {needles.asked}")
        for needles in quality.needles
    ]
    speed = quality.speed
    return [
        *rows,
        ("tokens per second", f"{speed.tokens_per_second:.1f}"),
        (f"first token after {speed.prompt_tokens} tokens", f"{speed.first_token_ms:.0f} ms"),
        ("memory of the worker", size(speed.memory_bytes)),
    ]


def _encoder_figures(found: EncoderFigures, speed: Speed) -> list[tuple[str, str]]:
    rows = []
    if found.cosine is not None and found.least_cosine is not None:
        rows.append(
            (f"cosine to the source, {found.texts} texts", f"{found.cosine:.4f} (least {found.least_cosine:.4f})")
        )
    if found.neighbours:
        rows.append(("same nearest text", _estimate(found.neighbours, "{:.1%}")))
    return [
        *rows,
        ("tokens per second", f"{speed.tokens_per_second:.0f}"),
        ("one text", f"{speed.first_token_ms:.1f} ms, about {speed.prompt_tokens} tokens"),
        ("memory of the worker", size(speed.memory_bytes)),
    ]


def _of_reference(quality: Quality, file_bytes: int) -> dict[str, str]:
    """Return what the comparison itself says of the reference, which was not measured for its own sake."""
    rows = {"size": size(file_bytes)}
    for text in quality.texts:
        if text.reference_perplexity:
            rows[f"perplexity, {text.name}"] = _estimate(text.reference_perplexity, "{:.2f}")
    return rows


def _tell_verdict(quality: Quality, *, demo: bool) -> None:
    for fault in quality.faults:
        notice(f"below the floor: {fault}")
    if quality.faults:
        notice(
            "it is the demo model and served all the same" if demo else "it is not served; see: outrider models allow"
        )
    if quality.encoder:
        return
    if useful := quality.useful_context_tokens:
        notice(f"useful context: {useful} tokens; longer prompts count as too long for it")
    elif quality.needles and quality.needles[-1].passed:
        notice(f"useful context: at least {quality.needles[-1].prompt_tokens} tokens, no longer one was tried")
    else:
        notice("useful context: not found, it misses facts in the shortest prompt too; the nominal one stays the limit")


def _estimate(estimate: Estimate, form: str) -> str:
    return f"{form.format(estimate.value)} ({form.format(estimate.low)} to {form.format(estimate.high)})"


def _reference(store: ModelStore, model: ModelFile, against: str | None) -> ModelFile | None:
    """Return the reference that was named, else the model's source if the store has it."""
    if against is None:
        from agent.evaluation.measuring import parent_of

        return parent_of(store, model.name)
    from agent.models.quantizing import find_source
    from agent.types import ModelFile

    if against in store.names():
        reference = store.resolve(against, below_floor=True)
    else:
        source = find_source(store, against)
        reference = ModelFile(name=source.name, path=str(source.path), sha256=source.digest, context_tokens=512)
    if reference.sha256 == model.sha256:
        raise InvalidRequest(f"{against} is the same file as {model.name}: compare it with its source", param="against")
    return reference


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_TEXT_BYTES:
        raise InvalidRequest(f"{path} has more than 1 MiB; give a part of it", param="text")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8 text: {error.reason}", param="text") from error
