"""``outrider tasks teach``: a head or an appraiser for a task, from examples."""

from __future__ import annotations

import base64
import os
import subprocess
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.invocation import Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, notice, table
from agent.errors import BadExamples, InvalidRequest, OutriderError

if TYPE_CHECKING:
    from agent.cli.client import DaemonClient
    from agent.confidence.fit_order import AppraisalOrder, Order
    from agent.confidence.heads import Head
    from agent.evaluation.examples import Example
    from agent.tasks import TaskSpec

Result = TypeVar("Result")

MOST_LABELS_SCORED = 20  # by the language model, unless it is asked for
LONGEST_SCORING_S = 120.0
FEWEST, FEWEST_A_LABEL = 10, 2
PROBED = 8  # inputs by which the time of all is estimated

keep_examples_option = click.option(
    "--keep-examples/--no-keep-examples",
    default=True,
    show_default=True,
    help="Keep them in the encrypted database, where another model would have to be calibrated with them.",
)


@click.command()
@click.argument("name")
@click.argument("examples", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--hold-back",
    type=click.FloatRange(0, 0.9),
    default=0.0,
    show_default=True,
    help="Share of the examples that does not teach: what `outrider calibrate` may then use of the same file.",
)
@click.option(
    "--features",
    type=click.Choice(["auto", "embedding", "hidden", "scores", "embedding+hidden", "both", "hidden+scores", "all"]),
    default="auto",
    show_default=True,
    help="What to compare, and the averages of that: the encoder's vectors, the language model's last hidden state, "
    "its label scores; both: vectors and scores. auto: all that is quick.",
)
@keep_examples_option
@json_option
@pass_invocation
def teach(
    invocation: Invocation,
    name: str,
    examples: Path,
    hold_back: float,
    features: str,
    keep_examples: bool,
    as_json: bool,
) -> None:
    """Teach the task NAME from EXAMPLES, one JSON object a line.

    {"input": "where is my card?", "label": "card lost"}

    {"input": "Two of us, at eight", "answer": {"people": 2}}

    Kind labels: the features are compared by cross-validation on these very examples and the best
    are kept. Other kinds: the local model answers the examples, and what tells its right answers
    from its wrong ones is fitted; the examples nearest to a request are shown to it from then on,
    if that makes more answers right. Needs the running daemon. A calibration of the task ends:
    calibrate again, with examples that did not teach (--hold-back 0.5 leaves half of the file for that).

    Example:  outrider tasks teach mail examples.jsonl --hold-back 0.5
    """
    from agent.cli import task_signals
    from agent.cli.client import DaemonClient
    from agent.confidence.heads import text_digest
    from agent.evaluation.examples import check_several_labels, read_examples
    from agent.task_folder import folder_beside
    from agent.tasks import TaskKind

    spec = folder_beside(invocation.loaded.path).get(name)
    if spec.kind is not TaskKind.LABELS and features != "auto":
        raise InvalidRequest(f"task {name} is of kind {spec.kind}: --features belongs to kind labels")
    read = read_examples(examples, spec)
    for text in read.notices:
        notice(text)
    chosen = [one for one in read.found if not is_held_back(text_digest(one.input), hold_back)]
    if spec.kind is not TaskKind.LABELS:
        _teach_answers(
            invocation, spec, chosen, len(read.found) - len(chosen), str(examples), keep_examples, as_json=as_json
        )
        return
    if chosen:
        check_several_labels(chosen, str(examples))
    _check_enough(chosen, spec, str(examples))
    with DaemonClient(invocation.settings) as client:
        head = taught(client, spec, chosen, features)
        import msgspec

        client.put(f"/v1/tasks/{name}/head", msgspec.to_builtins(head))
        # Vectors are the encoder's, whatever model comes next.
        task_signals.keep_examples(client, name, "teach", chosen if keep_examples and head.model else ())
    if as_json:
        emit_json({"task": name, "head": head.id, "held_back": len(read.found) - len(chosen), **_figures(head)})
        return
    table(
        ["FEATURES", "ACCURACY", "LOG LOSS", ""],
        [
            (feature, f"{accuracy:.1%}", f"{loss:.3f}", "chosen" if feature == head.feature else "")
            for feature, accuracy, loss in head.compared
        ],
    )
    click.echo(f"task {name} is taught by {head.taught} examples ({head.feature}), {head.accuracy:.1%} out of fold")
    held = len(read.found) - len(chosen)
    notice(
        f"{held} examples are held back: outrider calibrate {name} {examples}{_wish(spec, 0.95)}"
        if held
        else f"it promises nothing yet: outrider calibrate {name} OTHER-EXAMPLES{_wish(spec, 0.95)}"
    )


def _teach_answers(
    invocation: Invocation,
    spec: TaskSpec,
    chosen: Sequence[Example],
    held: int,
    examples: str,
    keep: bool,
    *,
    as_json: bool,
) -> None:
    """Teach a task whose answers are written."""
    import msgspec

    from agent.cli import teach_answers
    from agent.cli.client import DaemonClient
    from agent.confidence.fit_order import Appraised

    with DaemonClient(invocation.settings) as client:
        found = teach_answers.taught(client, spec, chosen, lambda order: _fit(order, Appraised), keep=keep)
        client.put(f"/v1/tasks/{spec.name}/appraiser", msgspec.to_builtins(found))
    shown = found.demonstrations.count if found.demonstrations else 0
    if as_json:
        emit_json(
            {
                "task": spec.name,
                "appraiser": found.id,
                "held_back": held,
                "taught": found.taught,
                "right": found.right,
                "auroc": found.auroc,
                "log_loss": found.log_loss,
                "demonstrations": shown,
                "samples": found.samples,
                "fields": found.fields is not None,
                "compared": [{"answered": how, "right": right, "asked": asked} for how, right, asked in found.compared],
            }
        )
        return
    if found.compared:
        rows = [(how, f"{right} of {asked}") for how, right, asked in found.compared]
        table(["ANSWERED", "RIGHT"], rows)
    click.echo(
        f"task {spec.name} is taught by {found.taught} answers, {found.right / found.taught:.1%} of them right; "
        f"right from wrong out of fold: AUROC {found.auroc or 0:.3f}"
    )
    click.echo(f"shown to the model: {f'the {shown} nearest examples' if shown else 'no examples'}")
    notice(
        f"{held} examples are held back: outrider calibrate {spec.name} {examples}{_wish(spec, 0.9)}"
        if held
        else f"it promises nothing yet: outrider calibrate {spec.name} OTHER-EXAMPLES{_wish(spec, 0.9)}"
    )


def _wish(spec: TaskSpec, accuracy: float) -> str:
    """Return what a calibration is to be told; nothing where the task's file says it."""
    return "" if spec.target.named else f" --accuracy {accuracy:g}"


def is_held_back(digest: bytes, share: float) -> bool:
    """Whether an input is left for calibrating: by its text alone, so that another order changes nothing."""
    return int.from_bytes(digest, "big") < share * float(1 << (8 * len(digest)))


def _check_enough(chosen: Sequence[Example], spec: TaskSpec, where: str) -> None:
    counts = {label: sum(1 for one in chosen if one.answer == label) for label in spec.names}
    rare = [label for label, count in counts.items() if count < FEWEST_A_LABEL]
    if rare:
        named = ", ".join(f"{label!r} ({counts[label]})" for label in rare[:10])
        raise BadExamples(
            f"{where}: {len(chosen)} examples to teach by; at least {FEWEST_A_LABEL} of each label are needed, "
            f"5 to 10 are better. Too few: {named}{' and more' if len(rare) > 10 else ''}"
        )
    if len(chosen) < FEWEST:
        raise BadExamples(f"{where}: {len(chosen)} examples to teach by, at least {FEWEST} are needed")


def taught(
    client: DaemonClient, spec: TaskSpec, chosen: Sequence[Example], features: str, model: str | None = None
) -> Head:
    """Return a head fitted to examples; with the label scores of another model than the task's, where one is named."""
    from agent.cli import task_signals
    from agent.confidence.fit_order import Fitted, Order
    from agent.confidence.heads import Feature, Head, centred, text_digest
    from agent.label_likeness import label_texts

    inputs = [one.input for one in chosen]
    answers = tuple(spec.names.index(str(one.answer)) for one in chosen)
    wanted = Feature.ALL.parts if features == "auto" else Feature(features).parts
    vectors = task_signals.Vectors()
    if Feature.EMBEDDING in wanted:
        try:
            vectors = task_signals.vectors(client, spec.name, [*inputs, *label_texts(spec.names, spec.labels)])
        except OutriderError as error:
            if features != "auto":
                raise
            notice(f"no vectors: {error}")
    rows: list[dict[str, Any]] = []
    asks_model = len(wanted - {Feature.EMBEDDING}) > 0
    if asks_model and (features != "auto" or _is_quick(client, spec, inputs, bool(vectors.raw))):
        signal = "scores" if Feature.SCORES in wanted else "hidden"
        rows = task_signals.rows(client, spec.name, signal, inputs, spec.digest, model)
    scores = array("f")
    for one, row in zip(chosen, rows if Feature.SCORES in wanted else (), strict=False):
        if None in row["logprobs"]:
            raise InvalidRequest(f"line {one.line}: the model gave no finite score to every label")
        scores.extend(centred(row["logprobs"]))
    one_vector = len(vectors.raw) // (len(inputs) + len(spec.labels))  # bytes
    of_names = one_vector * len(inputs)
    order = Order(
        labels=len(spec.labels),
        answers=answers,
        embedding=vectors.raw[:of_names],
        names=vectors.raw[of_names:],
        texts=tuple(inputs),
        name_texts=tuple(label_texts(spec.names, spec.labels)),
        hidden=_states(rows, features) if Feature.HIDDEN in wanted else b"",
        scores=scores.tobytes(),
    )
    fitted = _fit(order, Fitted)
    probabilities = array("f", fitted.probabilities)
    width = len(spec.labels)
    pilot = []
    for index, answer in enumerate(answers):
        row_of = probabilities[index * width : (index + 1) * width]
        top = max(row_of)
        pilot.append((float(top), row_of.index(top) == answer))
    compared = tuple((one.feature.value, one.accuracy, one.log_loss) for one in fitted.compared)
    reads_vectors, asked = Feature.EMBEDDING in fitted.feature.parts, fitted.feature is not Feature.EMBEDDING
    return Head(
        task=spec.name,
        task_digest=spec.digest,
        labels=spec.names,
        feature=fitted.feature,
        embedding=fitted.embedding,
        hidden=fitted.hidden,
        scores=fitted.scores,
        temperature=fitted.temperature,
        encoder=vectors.model if reads_vectors else "",
        encoder_digest=vectors.model_digest if reads_vectors else "",
        model=rows[0]["model"] if asked else "",
        model_digest=rows[0]["model_digest"] if asked else "",
        taught=len(chosen),
        accuracy=next(one.accuracy for one in fitted.compared if one.feature is fitted.feature),
        compared=compared,
        pilot=tuple(pilot),
        texts=tuple(text_digest(text) for text in inputs),
        familiarity=fitted.familiarity,
        wording=fitted.wording,
        neighbours=fitted.neighbours,
    )


def _states(rows: Sequence[dict[str, Any]], features: str) -> bytes:
    """Return the hidden states; nothing where the model gives none and nobody asked for them by name."""
    states = [row["hidden"] for row in rows]
    if None not in states:
        return b"".join(map(base64.b64decode, states))
    if features != "auto":
        raise InvalidRequest("the task's model gives no hidden state: GET /v1/models names that under `absent`")
    return b""


def _is_quick(client: DaemonClient, spec: TaskSpec, inputs: Sequence[str], has_vectors: bool) -> bool:
    """Whether what the language model says is to be compared, too."""
    from agent.cli import task_signals

    if len(spec.labels) > MOST_LABELS_SCORED and has_vectors:
        notice(f"{len(spec.labels)} labels: the language model is not asked (--features all does)")
        return False
    try:
        task_signals.rows(client, spec.name, "scores", inputs[:1], spec.digest)  # loads the model
        began = time.monotonic()
        task_signals.rows(client, spec.name, "scores", inputs[:PROBED], spec.digest)
    except OutriderError as error:
        if not has_vectors:
            raise
        notice(f"nothing of the language model: {error}")
        return False
    estimate_s = (time.monotonic() - began) / min(PROBED, len(inputs)) * len(inputs)
    if estimate_s > LONGEST_SCORING_S and has_vectors:
        notice(f"the language model would take {estimate_s:.0f} s: it is not asked (--features all does)")
        return False
    return True


def _fit(order: Order | AppraisalOrder, result: type[Result]) -> Result:
    """Fit in a child process: it has numpy, this one stays small."""
    import msgspec

    from agent import executable

    child = subprocess.run(
        executable.command("fit"),
        input=msgspec.msgpack.encode(order),
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(os.cpu_count() or 1)},
    )
    if child.returncode:
        lines = child.stderr.decode("utf-8", "replace").strip().splitlines()
        raise InvalidRequest(f"these examples cannot be fitted: {lines[-1] if lines else child.returncode}")
    return msgspec.msgpack.decode(child.stdout, type=result)


def _figures(head: Head) -> dict[str, Any]:
    return {
        "taught": head.taught,
        "feature": head.feature,
        "accuracy": head.accuracy,
        "compared": [
            {"feature": feature, "accuracy": accuracy, "log_loss": loss} for feature, accuracy, loss in head.compared
        ],
    }
