"""``outrider pull``: get a model onto this device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

from agent.cli.invocation import Invocation, json_option, model_store, pass_invocation
from agent.cli.output import confirm, emit_json, notice, size, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.models.pull_job import Progress
    from agent.models.pulling import Offer


@click.command()
@click.argument("model")
@click.option("--name", help="Its name here; default: made of the file's or repository's name.")
@click.option("--offline", is_flag=True, help="Open no connection: only what is here, or in a file or folder.")
@click.option("--require-pinned", is_flag=True, help="Refuse what has no digests in the manifest or the lock file.")
@click.option("--update", is_flag=True, help="Take what the source has now, and lock that.")
@click.option("--accept-licence", is_flag=True, help="Accept the licence where the model's owner asks for it.")
@click.option("--force", is_flag=True, help="Also a model above 3.5 billion weights.")
@json_option
@pass_invocation
def pull(
    invocation: Invocation,
    model: str,
    name: str | None,
    offline: bool,
    require_pinned: bool,
    update: bool,
    accept_licence: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Get MODEL: a name, owner/repository[@revision][:file], an https URL, or a GGUF file or folder.

    A bundle of another Outrider is taken in as `outrider bundle import` does.

    The first pull records commit and SHA-256 of each file in models.lock.json; later ones must get
    the same. A pull that was stopped goes on where it was when it is given again. An access token
    is read from HF_TOKEN or the file of pull.token_file, a mirror from HF_ENDPOINT or pull.endpoint.

    Example:  outrider pull qwen2.5-0.5b-instruct
    """
    from agent.models.pulling import Wish
    from agent.models.pulling import pull as fetch

    if _is_bundle(Path(model).expanduser()):
        if name:
            raise click.UsageError("models in a bundle have their names; leave --name out")
        _from_bundle(
            invocation, Path(model).expanduser(), update=update, accept_licence=accept_licence, as_json=as_json
        )
        return

    def ask(offer: Offer) -> None:
        if not as_json:
            _show(offer)
        if offer.must_accept and not accept_licence:
            where = f" ({offer.licence_url})" if offer.licence_url else ""
            confirm(f"Do you accept the licence {offer.licence}{where}?", unattended="--accept-licence")

    wish = Wish(
        given=model, name=name, offline=offline, require_pinned=require_pinned, update=update, force=force
    )  # fmt: skip
    with Bar(hidden=as_json) as bar:
        outcome = fetch(model_store(invocation), invocation.settings.pull, wish, ask, bar)
    if as_json:
        emit_json(outcome)
        return
    kept = outcome.model
    if outcome.was_there:
        notice(f"{kept.name} is here already; its files hold")
    rows = [("name", kept.name), ("source", kept.source), ("revision", kept.revision), ("licence", kept.licence)]
    rows += [(file.name, f"{size(file.bytes)}, sha256 {file.sha256}") for file in kept.files]
    table(["FIELD", "VALUE"], rows)
    if outcome.newly_locked:
        notice("commit and digests are recorded in models.lock.json")
    if kept.format == "gguf" and "chat" in kept.tasks:
        notice(f'ask it: outrider ask --model {kept.name} "What is the capital of France?"')
    elif kept.format == "onnx_encoder":
        notice(f"ask the daemon for it by its name, {kept.name}: it was made to {' and '.join(kept.tasks)}")
    elif kept.format == "checkpoint":
        notice("a checkpoint cannot be served as it is: it is a source to quantize from")


def _is_bundle(path: Path) -> bool:
    from agent.models.bundle_file import is_bundle

    try:
        with path.open("rb") as file:
            return is_bundle(file.read(512))
    except OSError:
        return False


def _from_bundle(invocation: Invocation, path: Path, *, update: bool, accept_licence: bool, as_json: bool) -> None:
    from agent.cli.bundle import print_imported, take_in
    from agent.models.bundling import Landing

    landing = Landing(replace=update)
    done = take_in(invocation, path, landing, trusted=None, accept_licence=accept_licence, progress=not as_json)
    print_imported(done, as_json=as_json)


def _show(offer: Offer) -> None:
    total = size(offer.bytes) if offer.bytes is not None else "size not told"
    revision = f" at {offer.revision[:12]}" if offer.revision else ""
    notice(f"{offer.name}: {offer.source}{revision}, {total}, licence {offer.licence}")


class Bar:
    """Shows bytes and rate in a terminal; nothing elsewhere."""

    def __init__(self, *, hidden: bool) -> None:
        self._hidden = hidden
        self._stop: Callable[[], None] | None = None
        self._update: Callable[[Progress], None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stop:
            self._stop()

    def __call__(self, progress: Progress) -> None:
        if self._hidden:
            return
        if self._stop is None:
            self._start(progress)
        if self._update is not None:
            self._update(progress)

    def _start(self, first: Progress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        console = Console(stderr=True)
        if not console.is_terminal:
            self._hidden = True
            return
        arrived = DownloadColumn(binary_units=True)
        columns = (BarColumn(), arrived, TransferSpeedColumn(), TimeRemainingColumn())
        bars = Bars(*columns, console=console, transient=True)
        task = bars.add_task("", total=first.total or None, completed=first.done)
        bars.start()
        self._stop = bars.stop
        self._update = lambda at: bars.update(task, completed=at.done, total=at.total or None)
