"""``outrider models``: what is installed, and whether it is what it claims to be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.clearing import gc, rm
from agent.cli.devices import verdict_lines
from agent.cli.golden import require_golden
from agent.cli.invocation import Invocation, json_option, model_store, pass_invocation
from agent.cli.output import emit_json, notice, size, table
from agent.cli.picking import pick
from agent.cli.promotion import promote, rollback
from agent.cli.recommending import recommend
from agent.engine.device_verdicts import DeviceVerdicts
from agent.errors import OutriderError

if TYPE_CHECKING:
    from agent.models.adapters import AdapterCatalog
    from agent.models.store import ModelStore


@click.group()
def models() -> None:
    """See, check and remove the installed models."""


models.add_command(promote)
models.add_command(rollback)
models.add_command(rm)
models.add_command(gc)
models.add_command(recommend)
models.add_command(pick)


@models.command(name="list")
@json_option
@pass_invocation
def list_models(invocation: Invocation, as_json: bool) -> None:
    """Print every model of the manifest and its state here, then the adapters of the configuration.

    Example:  outrider models list
    """
    entries = _catalog(invocation).list()
    if as_json:
        emit_json(entries)
        return
    table(
        ["NAME", "STATE", "SIZE", "CONTEXT", "LICENCE", "TITLE"],
        [
            (
                e.name,
                e.state,
                size(e.bytes) if e.bytes else "?",
                e.context_tokens,
                e.licence,
                f"{e.title} (demo model)" if e.demo else e.title,
            )
            for e in entries
        ],
    )


@models.command()
@click.argument("name")
@json_option
@pass_invocation
def show(invocation: Invocation, name: str, as_json: bool) -> None:
    """Print all that is known of one model or adapter.

    Example:  outrider models show smollm2-135m-instruct
    """
    entry = _catalog(invocation).adapter(name) or model_store(invocation).show(name)
    data_path = invocation.settings.data_path
    told = {field: getattr(entry, field) for field in entry.__struct_fields__} | {"runtime": entry.format.runtime}
    if as_json:
        emit_json(told | {"devices": DeviceVerdicts(data_path).known(entry.sha256)})
        return
    table(["FIELD", "VALUE"], [*told.items(), *verdict_lines(data_path, entry.sha256)])


@models.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Serve it although it was measured below the floor.")
@click.option("--withdraw", is_flag=True, help="Do not any more.")
@json_option
@pass_invocation
def allow(invocation: Invocation, name: str, force: bool, withdraw: bool, as_json: bool) -> None:
    """Serve a model that was measured below the floor, or stop doing so.

    A daemon that has the model loaded is not told: it takes effect at the next load.

    Example:  outrider models allow my-model --force
    """
    if force == withdraw:
        raise click.UsageError("say either --force or --withdraw")
    store = model_store(invocation)
    store.note(name, allowed=force)
    entry = store.show(name)
    faults = entry.quality.faults if entry.quality else ()
    if as_json:
        emit_json({"name": name, "allowed": force, "faults": faults})
        return
    notice(f"{name}: {'; '.join(faults) or 'not measured, or not below the floor'}")
    notice(f"{name} is served {'whatever was measured' if force else 'only above the floor'}")


@models.command(name="convert-adapter")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--model", required=True, help="The base model, a name in the manifest.")
@json_option
@pass_invocation
def convert_adapter(invocation: Invocation, folder: Path, file: Path, model: str, as_json: bool) -> None:
    """Convert the PEFT LoRA adapter in FOLDER to a GGUF FILE.

    FOLDER holds adapter_config.json and adapter_model.safetensors. What cannot be carried over
    exactly is refused. Afterwards, name FILE in an [[adapters]] table of the configuration.

    Example:  outrider models convert-adapter ./my-lora my-lora.gguf --model smollm2-135m-instruct
    """
    from agent.models.peft_conversion import convert

    base = model_store(invocation).resolve(model)
    try:
        made = convert(folder, Path(base.path), file)
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from error
    if as_json:
        emit_json(made)
        return
    click.echo(f"{file}: {made.tensors // 2} matrices of rank {made.rank}, {size(made.bytes)}")


@models.command()
@click.argument("names", nargs=-1)
@click.option("--answers/--no-answers", default=True, show_default=True, help="Compare kept answers, too.")
@json_option
@pass_invocation
def verify(invocation: Invocation, names: tuple[str, ...], answers: bool, as_json: bool) -> int:
    """Hash model files again and check their headers; all in the store without NAMES.

    A file that does not hold is moved to quarantine; the exit code is then 65. Where the answers of
    a model's source are kept (`outrider measure` does that), the model reads a text, some seconds:
    one that this processor computes wrongly is not served from then on.

    Example:  outrider models verify
    """
    store = model_store(invocation)
    chosen = names or tuple(store.stored_names())
    results = [_verify_one(invocation, store, name, answers=answers) for name in chosen]
    if as_json:
        emit_json(
            [{"name": name, "ok": error is None, "error": str(error) if error else None} for name, error in results]
        )
    else:
        for name, error in results:
            click.echo(f"{name}: {'holds' if error is None else error}")
        if not results:
            notice("no model is in the store yet; the first use takes it in")
    return max((error.exit_code for _, error in results if error), default=0)


def _verify_one(
    invocation: Invocation, store: ModelStore, name: str, *, answers: bool
) -> tuple[str, OutriderError | None]:
    try:
        store.verify(name)
        if answers:
            require_golden(invocation, store, name)
    except OutriderError as error:
        return name, error
    return name, None


def _catalog(invocation: Invocation) -> AdapterCatalog:
    from agent.models.adapters import AdapterCatalog

    store = model_store(invocation)
    return AdapterCatalog(invocation.loaded.settings.adapters, store.resolve, store.list)
