"""``outrider bundle``: models to another device, in one signed file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.golden import require_golden
from agent.cli.invocation import Invocation, json_option, model_store, pass_invocation
from agent.cli.output import confirm, counted, emit_json, notice, size, table
from agent.cli.pull import Bar
from agent.errors import OutriderError

if TYPE_CHECKING:
    from agent.models.bundle_file import BundledModel, Index
    from agent.models.bundling import Imported, Landing, Trust

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def bundle() -> None:
    """Carry models to another device in one signed file, without a network."""


@bundle.command(name="export")
@click.argument("names", nargs=-1, required=True)
@click.argument("file", type=_FILE)
@click.option(
    "--with-wheels",
    "wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Put the wheels (*.whl, *.tar.gz) of this folder into it too.",
)
@click.option("--config", "with_config", is_flag=True, help="Put the configuration into it too, without secrets.")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME",
    help="Put this task into it too, with what it was taught and what it promises, without its examples. Repeatable.",
)
@click.option("--force", is_flag=True, help="Replace FILE.")
@json_option
@pass_invocation
def export(
    invocation: Invocation,
    names: tuple[str, ...],
    file: Path,
    wheels: Path | None,
    with_config: bool,
    tasks: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Write the models NAMES with all that is known of them to FILE, signed by this device.

    Each file is verified first. The same models give the same bytes. Who takes the bundle in needs
    the public key, or its fingerprint, to compare: see `outrider bundle key`.

    Example:  outrider bundle export default minilm-l6-v2-int8 /media/stick/models.outrider
    """
    from agent.cli import bundled_tasks
    from agent.errors import WrongState
    from agent.models.aliases import Aliases
    from agent.models.bundle_trust import BundleTrust
    from agent.models.bundling import Parcel, export_bundle

    if file.exists() and not force:
        raise WrongState(f"{file} exists already; --force replaces it")
    store = model_store(invocation)
    aliases = Aliases(store.blobs.root, invocation.settings.engine.model)
    key = BundleTrust(store.data_path).own()
    parcel = Parcel(
        config=_config(invocation) if with_config else None,
        wheels=_wheels(wheels),
        tasks=bundled_tasks.bundled(invocation, tasks),
    )
    with Bar(hidden=as_json) as bar:
        index = export_bundle(store, [aliases.target(name) for name in names], file, key, parcel, bar)
    if as_json:
        emit_json({"file": str(file), "bytes": file.stat().st_size, "key": str(key.public), **_told(index)})
        return
    _show(index)
    click.echo(f"{file}: {size(file.stat().st_size)}")
    notice(f"signed by {key.public}, fingerprint {key.public.fingerprint}")


@bundle.command(name="import")
@click.argument("file", type=_FILE)
@click.option("--trust", "trusted", metavar="KEY", help="Trust this public key (RW..., or a .pub file) from now on.")
@click.option("--accept-licence", is_flag=True, help="Accept every licence that has to be accepted.")
@click.option(
    "--wheels",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Write the wheels in it into this folder, for `outrider quantize --setup --find-links`.",
)
@click.option("--config-to", type=_FILE, help="Write the configuration in it to this new file.")
@click.option("--tasks", is_flag=True, help="Take in the tasks in it too. Needs the running daemon.")
@click.option("--force", is_flag=True, help="Replace other models and tasks of the same names.")
@json_option
@pass_invocation
def import_file(
    invocation: Invocation,
    file: Path,
    trusted: str | None,
    accept_licence: bool,
    wheels: Path | None,
    config_to: Path | None,
    tasks: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Take in the models of the bundle FILE: all of them or, if anything does not hold, none.

    A key that is not known here is shown with its fingerprint, and trusted only if you say so.
    Needs no network.

    Example:  outrider bundle import /media/stick/models.outrider
    """
    from agent.cli import bundled_tasks
    from agent.models.bundling import Landing

    if tasks:
        bundled_tasks.require_daemon(invocation)
    done = take_in(
        invocation,
        file,
        Landing(config=config_to, wheels=wheels, tasks=tasks, replace=force),
        trusted=trusted,
        accept_licence=accept_licence,
        progress=not as_json,
    )
    taken = bundled_tasks.take_in(invocation, done.tasks, replace=force) if done.tasks else []
    print_imported(done, taken, as_json=as_json)


@bundle.command()
@click.argument("file", type=_FILE)
@click.option("--trust", "trusted", metavar="KEY", help="Trust this public key (RW..., or a .pub file) from now on.")
@json_option
@pass_invocation
def show(invocation: Invocation, file: Path, trusted: str | None, as_json: bool) -> None:
    """Check the whole bundle FILE and print what is in it. Takes nothing in.

    Example:  outrider bundle show /media/stick/models.outrider
    """
    from agent.models.bundling import read_bundle

    with Bar(hidden=as_json) as bar:
        index = read_bundle(file, _asked(invocation, trusted), bar)
    if as_json:
        emit_json(_told(index))
        return
    _show(index)
    notice("it is whole, and signed by a trusted key")


@bundle.command()
@click.option("--trust", metavar="KEY", help="Take bundles by this public key (RW..., or a .pub file).")
@click.option("--distrust", metavar="KEY", help="Take them no more.")
@json_option
@pass_invocation
def key(invocation: Invocation, trust: str | None, distrust: str | None, as_json: bool) -> None:
    """Print the public key that this device signs with, made at first, and the keys that it trusts.

    Write it to a file to check a bundle's index with minisign itself.

    Example:  outrider bundle key
    """
    from agent.models.bundle_trust import BundleTrust, given_key

    keys = BundleTrust(invocation.data_path)
    if trust:
        keys.trust(given_key(trust))
    if distrust:
        keys.distrust(given_key(distrust))
    own, trusted = keys.own().public, keys.keys()
    if as_json:
        emit_json(
            {
                "key": str(own),
                "fingerprint": own.fingerprint,
                "trusted": [{"key": str(one), "fingerprint": one.fingerprint} for one in trusted],
            }
        )
        return
    rows = [("this device", own, own.fingerprint), *(("trusted", one, one.fingerprint) for one in trusted)]
    table(["WHOSE", "KEY", "FINGERPRINT"], rows)


def take_in(
    invocation: Invocation, file: Path, landing: Landing, *, trusted: str | None, accept_licence: bool, progress: bool
) -> Imported:
    """Import a bundle, asking a person where one has to be asked."""
    from agent.models.bundling import import_bundle

    def accept(bundled: BundledModel) -> None:
        licence = bundled.model.licence
        if not accept_licence:
            confirm(f"Do you accept the licence {licence} of {bundled.model.name}?", unattended="--accept-licence")

    store = model_store(invocation)
    with Bar(hidden=not progress) as bar:
        done = import_bundle(store, file, landing, _asked(invocation, trusted), accept, bar)
    for model in done.models:
        try:  # what was measured is another processor's: does this one compute the same?
            require_golden(invocation, store, model.name)
        except OutriderError as error:
            notice(str(error))
    return done


def print_imported(done: Imported, tasks: Sequence[str] = (), *, as_json: bool) -> None:
    """Tell what came in."""
    if as_json:
        told = {"models": done.models, "wheels": done.wheels, "config": done.config, "tasks": tasks, "left": done.left}
        emit_json(told)
        return
    table(["NAME", "SIZE", "LICENCE", "SHA-256"], [(m.name, size(m.bytes), m.licence, m.digest) for m in done.models])
    if done.wheels:
        notice(f"{counted(done.wheels, 'wheel')} written")
    if tasks:
        notice(f"tasks: {', '.join(tasks)}")
    if done.left:
        notice(f"left in the bundle: {', '.join(done.left)}; see --wheels, --config-to and --tasks")


def _asked(invocation: Invocation, given: str | None) -> Trust:
    """Return who decides whether a key is trusted: the list here, the option, else the person."""
    from agent.errors import Unauthorized
    from agent.models.bundle_trust import BundleTrust, given_key
    from agent.models.minisign import PublicKey

    keys = BundleTrust(invocation.data_path)
    named = given_key(given) if given else None

    def decide(key: PublicKey) -> None:
        if keys.trusts(key):
            return
        if named is not None and named != key:
            raise Unauthorized(f"the bundle is signed by {key} (fingerprint {key.fingerprint}), not by {named}")
        if named is None:
            notice(f"the bundle is signed by a key that is not known here:\n  {key}\n  fingerprint {key.fingerprint}")
            confirm("Is that the key that `outrider bundle key` shows on the other device?", unattended="--trust KEY")
        keys.trust(key)

    return decide


def _config(invocation: Invocation) -> str:
    from agent.cli.shared_config import shared_config

    return shared_config(invocation.settings)


def _wheels(folder: Path | None) -> tuple[Path, ...]:
    if folder is None:
        return ()
    found = tuple(sorted((*folder.glob("*.whl"), *folder.glob("*.tar.gz"))))
    if not found:
        raise click.UsageError(f"{folder} has no wheels (*.whl, *.tar.gz)")
    return found


def _told(index: Index) -> dict[str, object]:
    return {
        "models": [bundled.model for bundled in index.models],
        "members": index.members,
        "made_by": index.made_by,
    }


def _show(index: Index) -> None:
    models = [bundled.model for bundled in index.models]
    table(
        ["NAME", "FORMAT", "SIZE", "LICENCE", "TITLE"],
        [(m.name, m.format, size(m.bytes), m.licence, m.title) for m in models],
    )
    others = [member.file or member.name for member in index.members if not member.name.startswith("blobs/")]
    if others:
        notice(f"beside them: {', '.join(others)}")
