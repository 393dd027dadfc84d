"""One life of one worker child: its pipes, its frames, its last words."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

import msgspec

from agent.compute import DeviceVerdict
from agent.engine import frames
from agent.engine.worker_status import ThreadChoice
from agent.types import Failure, FailureKind

STDERR_TAIL_BYTES = 8192
REASON_CHARS = 400
# A worker needs no secrets: it gets these variables and nothing else.
ENV_NAMES = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT"})
ENV_PREFIXES = ("LC_", "PYTHON", "OMP_", "GOMP_", "GGML_", "LLAMA_CPP_")
# glibc asks for huge pages for large pieces of memory: weights that lie in them are read faster.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class Lost(Exception):
    """The worker is gone; ``str()`` is the reason, ``last_words`` the tail of its stderr."""

    def __init__(self, reason: str, last_words: str = "") -> None:
        super().__init__(reason)
        self.last_words = last_words


class Expired:
    """Put into a request's inbox when its deadline passes."""


EXPIRED = Expired()
Ending = frames.Ended | frames.Scored | frames.Encoded
Inbox = asyncio.Queue[frames.Piece | Ending | Lost | Expired]


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a worker may see."""
    own = {name: value for name, value in environ.items() if name in ENV_NAMES or name.startswith(ENV_PREFIXES)}
    return {**own, **HUGE_PAGES}


class WorkerProcess(asyncio.SubprocessProtocol):
    """A child that is started once, dies once and is then thrown away."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[Lost] = loop.create_future()
        self.loading = asyncio.Event()  # the order to load is sent: others may follow
        self.prefix_news: asyncio.Queue[frames.PrefixNews] = asyncio.Queue()
        self._prefix_data: asyncio.Queue[frames.PrefixData] = asyncio.Queue()
        self._writable = asyncio.Event()
        self._writable.set()
        self._greeting: asyncio.Future[frames.Hello] = loop.create_future()
        self._ready: asyncio.Future[frames.Ready] = loop.create_future()
        self._reader = frames.event_reader()
        self._inboxes: dict[int, Inbox] = {}
        self._overdue: dict[int, asyncio.TimerHandle] = {}
        self._stderr = bytearray()
        self._reason: str | None = None
        self._next_id = 0
        self._closing = False
        self._transport: asyncio.SubprocessTransport
        self.threads: ThreadChoice | None = None
        self.trying: DeviceVerdict | None = None  # the device that was tried last, if any

    @classmethod
    async def spawn(cls, command: Sequence[str]) -> WorkerProcess:
        """Start the child. Raises OSError when the program cannot be run."""
        loop = asyncio.get_running_loop()
        _, worker = await loop.subprocess_exec(
            cls,
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=worker_environment(os.environ),
        )
        return worker

    @property
    def pid(self) -> int:
        return self._transport.get_pid()

    async def load(self, load: frames.Load, timeout_s: float) -> frames.Ready:
        """Wait for the greeting, have the model loaded. Raises Lost on anything else."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._first(self._greeting)
                self._send(frames.encode(load))
                self.loading.set()
                return await self._first(self._ready)
        except TimeoutError:
            self.kill(f"did not load the model within {timeout_s:g} s")
            await asyncio.wait([self.lost])  # not awaited itself: a cancel would cancel the future, too
            raise self.lost.result() from None

    async def _first(self, awaited: asyncio.Future[frames.Hello] | asyncio.Future[frames.Ready]) -> frames.Ready:
        await asyncio.wait([awaited, self.lost], return_when=asyncio.FIRST_COMPLETED)
        if self.lost.done():
            raise self.lost.result()
        return awaited.result()  # type: ignore[return-value]

    @property
    def loaded(self) -> bool:
        """Whether the model was loaded, even if the worker is lost by now."""
        return self._ready.done()

    @property
    def ready(self) -> bool:
        return self.loaded and not self.lost.done()

    async def send(self, command: frames.Pin | frames.PinData | frames.FetchPrefix) -> None:
        """Send what is no request, as fast as the worker takes it."""
        await self._writable.wait()
        self._send(frames.encode(command))

    async def prefix_pieces(self, name: str) -> AsyncIterator[bytes]:
        """Yield the bytes of a prefix that the worker has computed. One call at a time."""
        offset = 0
        while True:
            await self.send(frames.FetchPrefix(name, offset))
            piece = await self._prefix_data.get()
            if piece.data:
                yield piece.data
                offset += len(piece.data)
            if len(piece.data) < frames.PIECE_BYTES:
                return

    async def converse(
        self, ask: frames.Ask, deadline: float | None, stuck_s: float
    ) -> AsyncGenerator[frames.Piece | Ending | Failure, None]:
        """Send a request; yield what comes back, up to the one event that ends it.

        ``deadline`` is on the monotonic clock. Closing the iterator cancels the request.
        """
        left_ms = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
        try:
            request_id, inbox = self.submit(msgspec.structs.replace(ask, deadline_ms=left_ms))
        except frames.FrameError:
            yield Failure(FailureKind.CONTEXT_OVERFLOW, "the prompt is far above the context", frames.prompt_param(ask))
            return
        timer = _alarm(inbox, deadline)
        try:
            while True:
                match event := await inbox.get():
                    case frames.Piece():
                        yield event
                    case frames.Ended() | frames.Scored() | frames.Encoded():
                        yield event
                        return
                    case Lost():
                        yield Failure(FailureKind.CRASH, f"the model's worker {event}")
                        return
                    case _:
                        yield Failure(FailureKind.TIMEOUT, "the deadline passed")
                        return
        finally:
            if timer is not None:
                timer.cancel()
            self.abandon(request_id, stuck_s)

    def submit(self, ask: frames.Ask) -> tuple[int, Inbox]:
        """Send a request under a new id. Its events come in order into the inbox.

        Raises FrameError when the request is too large for a frame.
        """
        self._next_id += 1
        data = frames.encode(msgspec.structs.replace(ask, id=self._next_id))
        inbox: Inbox = asyncio.Queue()
        if self.lost.done():
            inbox.put_nowait(self.lost.result())
        else:
            self._inboxes[self._next_id] = inbox
            self._send(data)
        return self._next_id, inbox

    def abandon(self, request_id: int, stuck_s: float) -> None:
        """Cancel a request that nobody reads any more.

        A worker that does not confirm within ``stuck_s`` hangs in native code: it is killed.
        """
        if self.lost.done() or request_id not in self._inboxes or request_id in self._overdue:
            return
        self._send(frames.encode(frames.Cancel(request_id)))
        self._overdue[request_id] = asyncio.get_running_loop().call_later(
            stuck_s, self.kill, f"did not confirm a cancel within {stuck_s:g} s"
        )

    async def close(self, grace_s: float) -> None:
        """Order the child to leave, and kill it if it has not within ``grace_s``, or if this is cancelled."""
        self._closing = True
        if self.lost.done():
            return
        stdin = self._transport.get_pipe_transport(0)
        if stdin is not None:
            stdin.close()
        try:
            await asyncio.wait([self.lost], timeout=grace_s)
        finally:
            if not self.lost.done():
                self.kill("did not leave when told to")
                await asyncio.wait([self.lost])

    def kill(self, reason: str) -> None:
        """Kill the child with -9; ``reason`` is what its loss will say."""
        if not self.lost.done():
            self._reason = self._reason or reason
            self._transport.kill()

    def _send(self, data: bytes) -> None:
        stdin = self._transport.get_pipe_transport(0)
        if isinstance(stdin, asyncio.WriteTransport) and not stdin.is_closing():
            stdin.write(data)

    # Called by the event loop.

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd != 1:
            self._stderr += data
            del self._stderr[:-STDERR_TAIL_BYTES]
            return
        try:
            for event in self._reader.feed(data):
                self._take(event)
        except frames.FrameError as error:
            self.kill(f"sent bytes that are not frames: {error}")

    def _take(self, event: frames.Event) -> None:
        match event:
            case frames.Step():
                self.threads = event.threads or self.threads
                for piece in event.pieces:
                    if inbox := self._inboxes.get(piece.id):
                        inbox.put_nowait(piece)
                endings: tuple[Ending, ...] = (*event.ended, *event.scored, *event.encoded)
                for ended in endings:
                    if inbox := self._inboxes.pop(ended.id, None):
                        inbox.put_nowait(ended)
                    if timer := self._overdue.pop(ended.id, None):
                        timer.cancel()
            case frames.PrefixNews():
                self.prefix_news.put_nowait(event)
            case frames.PrefixData():
                self._prefix_data.put_nowait(event)
            case frames.Hello() if event.protocol != frames.PROTOCOL:
                self.kill(f"speaks protocol {event.protocol}, this daemon speaks {frames.PROTOCOL}")
            case frames.Hello() if not self._greeting.done():
                self._greeting.set_result(event)
            case frames.Ready() if not self._ready.done():
                self._ready.set_result(event)
            case frames.Trying():
                self.trying = event.verdict
            case frames.LoadFailed():
                self.kill(f"cannot load the model: {event.message}")
            case _:
                self.kill("sent a frame out of turn")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # the exit status says more
        self._transport.close()
        last_words = self._stderr.decode("utf-8", "replace").strip()
        reason = self._reason or _exit_reason(self._transport.get_returncode())
        if not self._closing and last_words:
            reason = f"{reason}; last words: {_tail(last_words)}"
        lost = Lost(reason, last_words)
        self.lost.set_result(lost)
        for timer in self._overdue.values():
            timer.cancel()
        for inbox in self._inboxes.values():
            inbox.put_nowait(lost)
        self._inboxes.clear()


def _alarm(inbox: Inbox, deadline: float | None) -> asyncio.TimerHandle | None:
    # One timer a request: a timeout around each wait would cost on every token.
    if deadline is None:
        return None
    return asyncio.get_running_loop().call_later(max(0.0, deadline - time.monotonic()), inbox.put_nowait, EXPIRED)


def _exit_reason(returncode: int | None) -> str:
    if returncode is None or returncode >= 0:
        return f"ended with exit status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = "unknown"
    return f"died of signal {-returncode} ({name})"


def _tail(text: str) -> str:
    return " | ".join(line.strip() for line in text[-REASON_CHARS:].splitlines()[-4:] if line.strip())
