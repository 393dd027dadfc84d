"""Composition root: every object is built here by hand, started and stopped in order.

Start: data directory and database, engine, dispatcher, HTTP. Stop, on SIGTERM or SIGINT:
no new requests, running ones finish or are cancelled within the grace period, no new
claims, sends finish, workers close, the database checkpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path

import msgspec
import uvicorn

from agent import __version__, configuration, device, executable, service_manager
from agent.api.app import ApiDeps, ApiServer, check_tls, create_app, uvicorn_config
from agent.api.auth import load_tokens
from agent.api.connections import BoundedListener, allow_many_files
from agent.background import Background
from agent.confidence.estimators import estimator
from agent.confidence.fields import field_judge
from agent.configuration import LoadedSettings
from agent.core_files import refuse_core_files
from agent.engine.device_verdicts import DeviceVerdicts
from agent.engine.places import Places
from agent.engine.supervisor import EnginePool
from agent.errors import AddressInUse, OutriderError
from agent.escalation.budget import Budget
from agent.escalation.dispatcher import Dispatcher
from agent.escalation.names import NamesByModel, names_notice
from agent.escalation.webhook import Webhook, check_url, load_secret
from agent.models.adapters import AdapterCatalog
from agent.models.aliases import DEFAULT, Aliases
from agent.models.first_load import FirstLoad
from agent.models.store import open_store
from agent.name_tagger import NameTagger
from agent.pipeline import Pipeline
from agent.policy import PresentPolicy, routing_policy
from agent.routing import Policy
from agent.rules import Rulebook
from agent.settings import Settings
from agent.storage import Storage, open_storage
from agent.task_book import TaskBook
from agent.task_folder import folder_beside
from agent.task_memory import TaskMemory
from agent.telemetry import LOG, configure_logging, log_fault
from agent.types import EgressPolicy, ModelFile

MAINTAIN_EVERY_S = 30.0
RELOADED = ("targets", "egress", "redaction", "prices", "budgets")  # and routing.rules; the rest needs a restart


def now_ms() -> int:
    """The wall clock, in milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def run(loaded: LoadedSettings) -> int:
    """Serve until a signal comes. Returns the exit code; raises OutriderError when it cannot start."""
    configure_logging()
    asyncio.run(serve(loaded))
    return 0


class _Live:
    """What a reload may change while requests run: RELOADED, and the routing rules made of them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rules = Rulebook(settings.routing.rules)

    def take(self, settings: Settings) -> None:
        """Take over what was reloaded."""
        self.rules = Rulebook(settings.routing.rules)
        self.settings = settings

    def may_leave(self) -> bool:
        """Whether anything at all may leave this device."""
        return self.settings.egress.policy is not EgressPolicy.NEVER

    def policy(self) -> Policy:
        current = self.settings
        return routing_policy(current, self.rules)


async def serve(
    loaded: LoadedSettings,
    *,
    worker_command: Sequence[str] | None = None,
    resolve: Callable[[str], ModelFile] | None = None,
) -> None:
    """Start everything, serve, stop everything.

    ``worker_command`` replaces the argv of the engine's child process, ``resolve`` the store
    that finds model files: the seam to native inference.
    """
    config = loaded.settings
    has_file = loaded.path.exists()
    check_tls(config.server)
    if config.webhook.url:
        check_url(config.webhook)
    named = configuration.named_prefixes(loaded)
    refuse_core_files()
    allow_many_files()
    judge = estimator(config.confidence.estimator)
    live = _Live(config)
    async with contextlib.AsyncExitStack() as stack:
        storage = await open_storage(
            config.data_path, config.queue, config.retention, now_ms=now_ms(), files=config.files
        )
        stack.push_async_callback(storage.close)
        listener = _listen(config)
        stack.callback(listener.close)
        tokens = load_tokens(config.data_path, config.keys)
        store = open_store(config.data_path)
        aliases = Aliases(store.blobs.root, config.engine.model)
        found = resolve or FirstLoad(store, device.profile().cpu_model)
        catalog = AdapterCatalog(config.adapters, found, store.served, store.served_one)
        prefixes = storage.prefix_store(config.engine.prefix_disk_bytes)
        stack.push_async_callback(prefixes.close)
        await prefixes.keep_only({(prefix.name, prefix.model) for prefix in named})
        engine = EnginePool(
            config.engine,
            catalog.resolve,
            worker_command=worker_command,
            prefixes=named,
            shelf=prefixes if config.engine.prefix_disk_bytes else None,
            verdicts=DeviceVerdicts(config.data_path),
        )
        folder = folder_beside(loaded.path)
        name_tagger = NameTagger(engine, lambda: live.settings.redaction)
        dispatcher = Dispatcher(
            storage,
            config.targets,
            config.connectivity,
            config.queue,
            config.redaction,
            now_ms=now_ms,
            random=random.Random(),  # noqa: S311 - jitter, not a secret
            on_battery=device.on_battery,
            budget=Budget(config.targets, config.prices, config.budgets),
            names=NamesByModel(name_tagger.tag, asyncio.get_running_loop()),
            power=device.power_state,
            told_now=PresentPolicy(folder, config.keys).told,
        )

        async def reload() -> Settings:
            found = _read_egress(loaded, needed=has_file)
            budget = Budget(found.targets, found.prices, found.budgets)
            await dispatcher.replace_targets(found.targets, found.redaction, budget)
            live.take(found)
            LOG.info("targets reloaded: %s", ", ".join(target.name for target in found.targets) or "none")
            _warn_about_egress(live.settings)
            return live.settings

        tasks = TaskMemory(TaskBook(folder), storage.tasks, now_ms)
        await tasks.load()
        stack.push_async_callback(tasks.save)
        storage.outbox.on_feedback = tasks.on_feedback
        _warn_about_tasks(tasks.book)
        pipeline = Pipeline(
            Places(engine, config.engine.parallel, now_ms),
            storage.journal,
            judge,
            live.policy,
            now_ms,
            dispatcher.wake,
            field_judge(config.confidence.estimator),
            tasks.book,
            config.moderation,
        )
        stack.push_async_callback(pipeline.flush)
        background = Background(pipeline, storage.journal)
        if recovered := await storage.recover(now_ms(), pipeline.decide_cut_short):
            LOG.info("%d requests were running when the daemon last stopped; settled", recovered)
        app = create_app(
            ApiDeps(
                pipeline=pipeline,
                background=background,
                storage=storage,
                engine=engine,
                prefixes=prefixes,
                dispatcher=dispatcher,
                settings=config,
                targets=lambda: live.settings.targets,
                redaction=lambda: live.settings.redaction,
                models=catalog.list,
                model=catalog.find,
                aliases=aliases,
                tasks=tasks,
                tokens=tokens,
                now_ms=now_ms,
                version=__version__,
                reload_targets=reload,
            )
        )
        server = ApiServer(uvicorn_config(app, config.server), pipeline.holds.end)
        stack.push_async_callback(engine.stop, config.server.grace_s)
        stack.push_async_callback(dispatcher.stop)
        await dispatcher.start()
        stack.push_async_callback(background.stop)
        if resumed := await background.start():
            LOG.info("%d requests in the background are taken up again", resumed)
        await stack.enter_async_context(_task(_tell_webhook(config, storage, live.may_leave)))
        stack.push_async_callback(app.state.batches.stop)
        await app.state.batches.start()
        await stack.enter_async_context(_task(_maintain(storage, tasks)))
        await stack.enter_async_context(_task(asyncio.to_thread(catalog.check)))
        await stack.enter_async_context(_task(engine.start([aliases.target(DEFAULT)])))
        _on_signals(server, reload)  # before anybody is told that it runs, and may stop it
        stack.enter_context(_announced(config.data_path, listener, tls=bool(config.server.tls_cert)))
        await stack.enter_async_context(
            service_manager.announced(f"listening on {_url(listener, tls=bool(config.server.tls_cert))}")
        )
        _warn_about_egress(config)
        # What was built until now lives as long as the daemon: keep it out of every later collection.
        gc.collect()
        gc.freeze()
        LOG.info("listening on %s", _url(listener, tls=bool(config.server.tls_cert)))
        await server.serve(sockets=[listener])
        LOG.info("stopping")
    LOG.info("stopped")


def _read_egress(loaded: LoadedSettings, *, needed: bool) -> Settings:
    """Return the settings of the start with what their file, and no other, says may leave now.

    The environment and the flags of the start stay on top of it. Raises ConfigError when the file was
    there once and is gone.
    """
    found = configuration.load(loaded.path, flags=loaded.flags, needed=needed).settings
    config = loaded.settings
    routing = msgspec.structs.replace(config.routing, rules=found.routing.rules)
    return msgspec.structs.replace(config, routing=routing, **{name: getattr(found, name) for name in RELOADED})


def _warn_about_egress(config: Settings) -> None:
    for target in config.targets:
        if target.egress is EgressPolicy.ALLOW:
            LOG.warning("target %s: text leaves this device UNREDACTED as soon as it is not sure", target.name)
        elif target.egress is EgressPolicy.REDACT:
            LOG.warning(
                "target %s: text leaves this device pseudonymised; %s",
                target.name,
                names_notice(config.redaction.names),
            )


def _listen(config: Settings) -> socket.socket:
    """Take the port before anything slow: a taken one is told at once, an early caller waits and is not refused."""
    host, port = config.server.host, config.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, because asyncio switches off Nagle only where it is: else every answer waits 40 ms on a connection kept open.
    listener = BoundedListener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise AddressInUse(
            f"cannot listen on {host}:{port}: {error.strerror}; stop the other program or set server.port"
        ) from error
    listener.set_inheritable(False)
    return listener


def _url(listener: socket.socket, *, tls: bool) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


@contextlib.contextmanager
def _announced(data_path: Path, listener: socket.socket, *, tls: bool) -> Iterator[None]:
    """Tell the command line where the daemon listens, as long as it does."""
    path = data_path / "daemon.json"
    temporary = path.with_suffix(".tmp")
    pid = os.getpid()
    told = {"pid": pid, "started": executable.started(pid), "url": _url(listener, tls=tls), "version": __version__}
    temporary.write_text(json.dumps(told), encoding="utf-8")
    temporary.chmod(0o600)
    temporary.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _warn_about_tasks(book: TaskBook) -> None:
    """Name the tasks that requests cannot ask for: the daemon serves all others."""
    for name in book.folder.names():
        try:
            book.spec(name)
        except OutriderError as error:
            LOG.error("%s", error)


async def _maintain(storage: Storage, tasks: TaskMemory) -> None:
    """Expire rows, purge bodies and trim the write-ahead log, every half minute."""
    while True:
        await asyncio.sleep(MAINTAIN_EVERY_S)
        try:
            await tasks.save()
            await storage.maintain(now_ms())
        except OutriderError as error:
            LOG.error("maintenance: %s", error)
        except Exception:
            # Retention and expiry are promises: no fault may end them for the rest of this life.
            log_fault("maintenance met a fault of this program; it goes on")


async def _tell_webhook(config: Settings, storage: Storage, may_leave: Callable[[], bool]) -> None:
    """Deliver events as long as the daemon runs; without a webhook none are written."""
    await storage.webhooks.want(wanted=bool(config.webhook.url))
    if not config.webhook.url:
        return
    key = load_secret(config.webhook, config.data_path)
    await Webhook(
        config.webhook,
        key,
        storage.webhooks,
        now_ms=now_ms,
        random=random.Random(),  # noqa: S311 - jitter, not a secret
        may_leave=may_leave,
    ).run()


@contextlib.asynccontextmanager
async def _task(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run a coroutine beside the server; cancel it on the way out."""
    task = asyncio.create_task(work)
    task.add_done_callback(_tell_failure)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):  # told by the callback
            await task


def _tell_failure(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, OutriderError):
        LOG.error("background work has ended: %s", error)
    elif error:
        log_fault("background work has ended", error=error)


def _on_signals(server: uvicorn.Server, reload: Callable[[], Awaitable[object]]) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if server.should_exit:
            server.force_exit = True  # asked twice: do not wait for held connections
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    reloads: set[asyncio.Future[None]] = set()

    def reload_now() -> None:
        task = asyncio.ensure_future(_reload_logged(reload))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload_now)


async def _reload_logged(reload: Callable[[], Awaitable[object]]) -> None:
    try:
        await reload()
    except OutriderError as error:
        LOG.error("reload refused, the old targets stay: %s", error)
