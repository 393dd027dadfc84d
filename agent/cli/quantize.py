"""``outrider quantize``: make a smaller model of a larger one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import click
import msgspec

from agent.cli.invocation import Invocation, json_option, model_store, pass_invocation
from agent.cli.output import confirm, emit_json, notice, size, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.models.build_env import EnvironmentName
    from agent.models.quantizing import Outcome, Target
    from agent.models.recipes.job import Progress


@click.command()
@click.argument("model", required=False)
@click.option(
    "--target",
    type=click.Choice(["cpu", "npu", "phone"]),
    default="cpu",
    show_default=True,
    help="The device that it is for.",
)
@click.option("--recipe", help="What to make, instead of the target's own; `--recipe list` names them.")
@click.option("--name", help="Name of the new model.")
@click.option(
    "--importance",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An importance matrix of llama-imatrix. Default: one is made with the model itself.",
)
@click.option("--no-importance", is_flag=True, help="Quantize without an importance matrix: faster, a little worse.")
@click.option("--threads", type=click.IntRange(1, 256), help="Default: the cores of this machine.")
@click.option("--no-measure", is_flag=True, help="Do not measure what was made, beside its source.")
@click.option("--licence", help="Licence of a file that does not say it.")
@click.option("--setup", is_flag=True, help="Make an environment for what needs torch, and nothing else.")
@click.option(
    "--environment",
    type=click.Choice(["checkpoints", "generation", "npu"]),
    default="checkpoints",
    show_default=True,
    help="With --setup and --remove: which one. checkpoints: to GGUF, and to ONNX by optimum; generation: to ONNX "
    "models that write text; npu: to compile for Qualcomm NPUs.",
)
@click.option("--remove", is_flag=True, help="Remove that environment.")
@click.option("--offline", is_flag=True, help="With --setup: ask no package index, take all from --find-links.")
@click.option(
    "--find-links",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --setup: a folder of wheels, with the source of llama-cpp-python.",
)
@click.option("--yes", is_flag=True, help="With --setup: do not ask.")
@click.option("--force", is_flag=True, help="Go on where it does harm, or replace another model of that name.")
@json_option
@pass_invocation
def quantize(
    invocation: Invocation,
    model: str | None,
    target: Target,
    recipe: str | None,
    name: str | None,
    importance: Path | None,
    no_importance: bool,
    threads: int | None,
    no_measure: bool,
    licence: str | None,
    setup: bool,
    environment: EnvironmentName,
    remove: bool,
    offline: bool,
    find_links: Path | None,
    yes: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Make a smaller model of MODEL, and put it into the store.

    MODEL is a name, a GGUF file, the folder of an ONNX encoder, or the folder of a Hugging Face
    checkpoint (safetensors). GGUF files and ONNX encoders need no network and nothing else; what
    a checkpoint needs, --setup makes once.

    cpu makes Q4_K_M, of an encoder int8. phone makes Q4_0 with a context of 2048 tokens, within
    2 GiB of memory. npu makes encoders of one length with 16-bit activations. MODEL should be
    F16, BF16 or Q8_0: what is rounded already loses twice, and is refused without --force. A call
    that was stopped goes on where it was when it is given again.

    Example:  outrider quantize my-model-f16.gguf --target cpu
    """
    from agent import device
    from agent.cli.before_after import before_and_after
    from agent.models.converting import quantize_any
    from agent.models.onnx_making import ENCODER_RECIPES, EXPORT_RECIPES, GENERATION_RECIPES
    from agent.models.quantizing import Wish
    from agent.models.recipes.tensor_types import TARGETS

    if setup or remove:
        _environment(invocation, environment, remove=remove, offline=offline, find_links=find_links, yes=yes)
        return
    if model is None and recipe != "list":
        raise click.UsageError("name a MODEL, a GGUF file or the folder of a checkpoint")
    if recipe == "list" or model is None:
        emit_json(list(TARGETS | EXPORT_RECIPES | ENCODER_RECIPES | GENERATION_RECIPES))
        return
    if importance and no_importance:
        raise click.UsageError("--importance and --no-importance contradict each other")
    store = model_store(invocation)
    spec = store.manifest.find(model)
    wish = Wish(
        source=model,
        recipe=recipe or (spec.recipes.get(target) if spec else None) or "",
        name=name,
        target=target,
        force=force,
        importance="none" if no_importance else str(importance.resolve()) if importance else "auto",
        threads=threads or device.profile().decode_threads,
        licence=licence,
    )
    with Bar(hidden=as_json) as bar:
        outcome = quantize_any(store, invocation.data_path, wish, bar)
    for warning in outcome.warnings:
        notice(f"outrider: forced: {warning}")
    if not as_json:
        _print(outcome)
    quality = None if no_measure else before_and_after(invocation, outcome.model, quiet=as_json)
    if as_json:
        emit_json(msgspec.structs.asdict(outcome) | {"quality": quality})


def _environment(
    invocation: Invocation, name: EnvironmentName, *, remove: bool, offline: bool, find_links: Path | None, yes: bool
) -> None:
    from agent.models.build_env import BuildEnvironment
    from agent.models.room import require_room

    environment = BuildEnvironment(invocation.data_path, name)
    if remove:
        notice(f"{environment.root} {'is removed' if environment.remove() else 'was not there'}")
        return
    if environment.made:
        notice(f"{environment.root} is there already; --remove removes it")
        return
    environment.require_wheels(offline=offline, find_links=find_links)
    if not environment.root.exists():  # one of other pins gives its space back when it is made anew
        require_room(model_store(invocation), environment.kind.needed_bytes, f"the environment {name}")
    if not yes:
        notice(f"In it {environment.kind.use}.")
        confirm(f"make an environment in {environment.root}, {environment.kind.size}?")
    environment.make(notice, offline=offline, find_links=find_links)
    notice(f"{environment.root} is ready")


def _print(outcome: Outcome) -> None:
    made = outcome.model
    if outcome.was_there:
        notice(f"{made.name} was made before; its files hold")
    rows = [("name", made.name), ("title", made.title), ("size", f"{size(outcome.source_bytes)} -> {size(made.bytes)}")]
    rows += [("context", str(made.context_tokens)), ("licence", made.licence), ("sha256", made.digest)]
    if made.making:
        rows += [("recipe", made.making.recipe), ("parent", f"{made.making.parent} ({made.making.parent_digest[:12]})")]
        rows += [(key, value) for part in (made.making.versions, made.making.inputs) for key, value in part.items()]
    table(["FIELD", "VALUE"], rows)
    if "chat" in made.tasks:
        notice(f'ask it: outrider ask --model {made.name} "What is the capital of France?"')


class Bar:
    """Shows how far the child is: a bar in a terminal, else a line for each step."""

    def __init__(self, *, hidden: bool) -> None:
        self._hidden = hidden
        self._step = ""
        self._update: Callable[[Progress], None] | None = None

    def __enter__(self) -> Self:
        from rich.console import Console

        console = Console(stderr=True)
        if not self._hidden and console.is_terminal:
            from rich.progress import Progress as Bars

            bars = Bars(console=console, transient=True)
            task = bars.add_task("starting", total=None)
            bars.start()
            self._stop = bars.stop
            self._update = lambda at: bars.update(task, description=at.step, completed=at.done, total=at.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._update:
            self._stop()

    def __call__(self, progress: Progress) -> None:
        if self._update:
            self._update(progress)
        elif progress.step != self._step and not self._hidden:
            notice(f"{progress.step} ...")
        self._step = progress.step
