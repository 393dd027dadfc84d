"""Runs batches: validates the input, answers its lines as the engine has places, joins late answers.

Each line is a request in the background with a key of its own, made of the batch and the line's
number: after a restart it meets its own request again, whatever had become of that. Its answer is
stored once. A line whose row goes to a target by itself waits for the late answer until the batch
expires; one whose row waits for a person takes its draft, unless the line asks to wait or defer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
from starlette.datastructures import Headers

from agent.api.answer import Given, answer_of, draft_of
from agent.api.answering import make_call
from agent.api.auth import CallerKey
from agent.api.call import Call
from agent.api.chat_answer import ChatShape
from agent.api.chat_request import parse_chat
from agent.api.completion_answer import CompletionShape
from agent.api.completion_request import parse_completion
from agent.api.deps import ApiDeps
from agent.api.encoder_routes import embeddings_of
from agent.api.response_answer import response_object
from agent.api.response_routes import call_of as response_call
from agent.api.wire import error_object, parse_json
from agent.errors import Busy, InvalidRequest, OutriderError, StorageError, WrongState
from agent.records import EscalationState, RequestRecord, RequestState
from agent.storage.batch_store import Batch, Line, LineError
from agent.storage.retention import LATE
from agent.strictness import stricter
from agent.telemetry import LOG, log_fault
from agent.types import EgressPolicy, InferenceRequest, OnLowConfidence

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
MOST_LINES = 50_000
MOST_ERRORS = 100  # told of one input
LONGEST_ID = 512
AHEAD = 4  # lines under way beyond the engine's places: parsed, on disk, ready to begin
LOOK_EVERY_S = (0.1, 5.0)  # at lines that wait: at first, and at most
_KEY = "§"  # begins the keys of lines: no caller can send it, keys of callers are ASCII
_AT_ONCE = 200
_GOES_BY_ITSELF = {EscalationState.PENDING, EscalationState.LEASED}


class Told(NamedTuple):
    """What becomes of a line: the status of HTTP (0: it was not asked), its body, its request."""

    status: int
    body: dict[str, Any]
    request_id: str = ""


class BatchRunner:
    """Owns the batches under way. Made and used on one event loop."""

    def __init__(self, deps: ApiDeps) -> None:
        self._deps = deps
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._woken: dict[str, asyncio.Event] = {}

    async def start(self) -> None:
        """Go on with what an earlier life of the daemon left."""
        await self._deps.storage.files.recover()
        for batch in await self._deps.storage.batches.open():
            self.begin(batch)

    async def stop(self) -> None:
        """Stop, before the background does. Batches go on at the next start."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Let no batch run meanwhile; then they go on as after a restart."""
        await self.stop()
        try:
            yield
        finally:
            for batch in await self._deps.storage.batches.open():
                self.begin(batch)

    def begin(self, batch: Batch) -> None:
        """Run a batch that has not ended, unless it runs."""
        if batch.ended_at_ms is None and batch.id not in self._tasks:
            self._woken[batch.id] = asyncio.Event()
            task = asyncio.create_task(self._run(batch), name=batch.id)
            self._tasks[batch.id] = task
            task.add_done_callback(lambda _: self._forget(batch.id))

    def wake(self, batch_id: str) -> None:
        """Look at a batch now: it was cancelled."""
        if woken := self._woken.get(batch_id):
            woken.set()

    def _forget(self, batch_id: str) -> None:
        self._tasks.pop(batch_id, None)
        self._woken.pop(batch_id, None)

    async def _run(self, batch: Batch) -> None:
        try:
            if batch.status == "validating":
                if errors := await self._validate(batch):
                    await self._end(batch, "failed", errors)
                    return
                batch = await self._deps.storage.batches.get(batch.id)
            status = await self._work(batch)
            await self._end(batch, status)
            LOG.info("%s is %s", batch.id, status)
        except OutriderError as error:
            LOG.error("%s goes on at the next start: %s", batch.id, error)
        except Exception:
            log_fault("%s met a fault of this program; it goes on at the next start", batch.id)

    async def _end(self, batch: Batch, status: str, errors: tuple[LineError, ...] = ()) -> None:
        deps = self._deps
        await deps.storage.batches.end(
            batch,
            status,
            now_ms=deps.now_ms(),
            keep_s=deps.storage.files.settings.keep_s,
            forget_input=deps.settings.retention.bodies == "none",
            errors=errors,
        )

    # --- validating -------------------------------------------------------------------

    async def _validate(self, batch: Batch) -> tuple[LineError, ...]:
        """Store the lines of the input; return what is wrong with it."""
        store = self._deps.storage.batches
        await store.clear_lines(batch.id)
        file = await self._deps.storage.files.get(batch.body.input_file_id)
        errors: list[LineError] = []
        waiting: list[Line] = []
        seen: set[str] = set()
        number = 0
        async for raw in _lines(self._deps.storage.files.content(file), self._deps.settings.server.max_body_bytes):
            number += 1
            if not raw.strip():
                continue
            if len(seen) >= MOST_LINES:
                errors.append(LineError(code="too_many_lines", message=f"a batch has at most {MOST_LINES} lines"))
                break
            try:
                waiting.append(_line(number, raw, batch.body.endpoint, seen))
            except InvalidRequest as error:
                errors.append(LineError(code=error.code, message=str(error), line=number, param=error.param))
                if len(errors) >= MOST_ERRORS:
                    break
            if len(waiting) >= _AT_ONCE:
                await store.add_lines(batch.id, waiting)
                waiting = []
        if not (seen or errors):
            errors.append(LineError(code="empty_file", message="the input has no lines"))
        if errors:
            await store.clear_lines(batch.id)
            return tuple(errors)
        await store.add_lines(batch.id, waiting)
        await store.begin(batch.id, len(seen), now_ms=self._deps.now_ms())
        return ()

    # --- answering --------------------------------------------------------------------

    async def _work(self, batch: Batch) -> str:
        """Answer every line. Returns how the batch ends: completed, expired or cancelled."""
        left_s = (batch.expires_at_ms - self._deps.now_ms()) / 1000
        if batch.status == "cancelling" or left_s <= 0:  # so while no daemon ran: no line may begin
            status = "cancelled" if batch.status == "cancelling" else "expired"
            await self._cut(batch, status)
            return status
        feeding = asyncio.create_task(self._feed_and_join(batch))
        cancelled = asyncio.create_task(self._until_cancelled(batch.id))
        try:
            await asyncio.wait((feeding, cancelled), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                feeding.result()
                return "completed"
            status = "cancelled" if cancelled.done() else "expired"
        finally:
            feeding.cancel()
            cancelled.cancel()
            await asyncio.gather(feeding, cancelled, return_exceptions=True)
        await self._cut(batch, status)
        return status

    async def _until_cancelled(self, batch_id: str) -> None:
        while (await self._deps.storage.batches.get(batch_id)).status != "cancelling":
            woken = self._woken[batch_id]
            woken.clear()
            await woken.wait()

    async def _feed_and_join(self, batch: Batch) -> None:
        store = self._deps.storage.batches
        places = asyncio.Semaphore(self._deps.settings.engine.parallel + AHEAD)
        after = 0
        async with asyncio.TaskGroup() as group:
            while lines := await store.new_lines(batch.id, after, _AT_ONCE):
                for line in lines:
                    await places.acquire()
                    task = group.create_task(self._answer_line(batch, line))
                    task.add_done_callback(lambda _: places.release())
                after = lines[-1].number
        pause_s, longest_s = LOOK_EVERY_S
        while await store.waiting_lines(batch.id, 0, 1):
            if lines := await store.joined_lines(batch.id, _AT_ONCE):
                for line in lines:
                    await self._join_line(batch, line)
                pause_s = LOOK_EVERY_S[0]
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, longest_s)

    async def _answer_line(self, batch: Batch, line: Line) -> None:
        try:
            given = parse_json(line.body)
            told = await self._told(batch, line, given)
        except OutriderError as error:
            told = _refused(error)
        except Exception:  # one line must not hold up the others
            log_fault("%s, line %d", batch.id, line.number)
            told = _refused(OutriderError("internal error; see the daemon's log"))
        if told is not None:
            await self._store(batch, line, told)

    async def _told(self, batch: Batch, line: Line, given: dict[str, Any]) -> Told | None:
        """Return the answer of a line; None when it waits for a late one. Raises OutriderError for a refusal."""
        if batch.body.endpoint == "/v1/embeddings":
            return Told(200, await embeddings_of(self._deps, given))
        call = await self._call(batch, line, given)
        request_id = await self._run_to_its_end(call.request)
        record = await self._deps.storage.journal.get(request_id)
        if record is None:
            raise WrongState(f"request {request_id} was deleted before its line was answered")
        if record.state is RequestState.QUEUED and _waits(record, _names_policy(given, batch.body.headers)):
            await self._deps.storage.batches.wait(batch.id, line.number, record.id)
            return None
        return await self._answer_of(call, record)

    async def _call(self, batch: Batch, line: Line, given: dict[str, Any]) -> Call:
        headers, key = Headers(batch.body.headers), self._caller(batch)
        match batch.body.endpoint:
            case "/v1/chat/completions":
                call = make_call(self._deps, given, headers, parse_chat, key=key)
            case "/v1/completions":
                call = make_call(self._deps, given, headers, parse_completion, key=key)
            case _:
                call = await response_call(self._deps, given, headers, key=key)
        if call.stream:
            raise InvalidRequest("a line of a batch cannot be streamed", param="stream", code="unsupported_parameter")
        if len(call.requests) > 1:
            raise InvalidRequest("a line of a batch takes one prompt", param="prompt", code="unsupported_parameter")
        request = msgspec.structs.replace(
            call.request,
            background=True,
            idempotency_key=f"{_KEY}{batch.id}:{line.number}",
            deadline_at_ms=batch.expires_at_ms,
        )
        return msgspec.structs.replace(call, requests=(request,))

    def _caller(self, batch: Batch) -> CallerKey | None:
        """Return the key that the batch came with: the stricter of its policies then and now."""
        name, egress = batch.body.key, batch.body.key_egress
        if name is None:
            return None
        for key in self._deps.settings.keys:
            if key.name == name:
                egress = stricter(key.egress, egress)
        return CallerKey(name, "", egress or EgressPolicy.NEVER)

    async def _run_to_its_end(self, request: InferenceRequest) -> str:
        """Run the request of a line, or find what had become of it. Returns its id."""
        background = self._deps.background
        while True:
            try:
                record = await background.submit(request)
                break
            except (Busy, StorageError):  # of others in the background, a full disk: a line has time
                await asyncio.sleep(LOOK_EVERY_S[1])
        await background.ended(record.id)
        return record.id

    async def _answer_of(self, call: Call, record: RequestRecord) -> Told:
        if record.state in LATE:
            await self._deps.storage.journal.get(record.id, now_ms=self._deps.now_ms(), fetched=True)
        answer = answer_of(record, call.request.on_low_confidence)
        if call.request.response is not None:
            return Told(200, response_object(record), record.id)
        shape = CompletionShape(call) if call.request.prompt is not None else ChatShape(call)
        return Told(answer.status, shape.whole([Given(record, answer, replayed=False)]), record.id)

    async def _join_line(self, batch: Batch, line: Line) -> None:
        """Answer a line whose request has come to an end."""
        assert line.request_id is not None
        record = await self._deps.storage.journal.get(line.request_id)
        try:
            if record is None:
                raise WrongState(f"request {line.request_id} was deleted before its line was answered")
            told = await self._answer_of(await self._call(batch, line, parse_json(line.body)), record)
        except OutriderError as error:
            told = _refused(error, line.request_id)
        await self._store(batch, line, told)

    async def _store(self, batch: Batch, line: Line, told: Told) -> None:
        shown: dict[str, Any] = {
            "id": f"batch_req_{batch.id.removeprefix('batch_')}_{line.number}",
            "custom_id": line.custom_id,
            "response": {"status_code": told.status, "request_id": told.request_id, "body": told.body},
            "error": None,
        }
        if not told.status:
            shown |= {"response": None, "error": told.body}
        raw = msgspec.json.encode(shown)
        await self._deps.storage.batches.answer(batch.id, line.number, told.status, raw)

    async def _cut(self, batch: Batch, status: str) -> None:
        """End a batch early: drafts are answers where it expired; the rest is told to have none, and does not leave."""
        why = {"code": f"batch_{status}", "message": f"the batch was {status} before this line was answered"}
        store, deps = self._deps.storage.batches, self._deps
        for find in (store.new_lines, store.waiting_lines):
            while lines := await find(batch.id, 0, _AT_ONCE):
                for line in lines:
                    told = Told(0, why)
                    request_id = line.request_id or deps.background.of_key(f"{_KEY}{batch.id}:{line.number}")
                    if request_id is not None:
                        await deps.background.cancel(request_id)
                        record = await deps.storage.journal.get(request_id)
                        if record is not None and record.state is RequestState.QUEUED:
                            if status == "expired" and draft_of(record) is not None:
                                told = await self._answer_of(
                                    await self._call(batch, line, parse_json(line.body)), record
                                )
                            else:
                                await self._cancel_row(request_id)
                    await self._store(batch, line, told)

    async def _cancel_row(self, request_id: str) -> None:
        try:
            await self._deps.storage.outbox.cancel(request_id, now_ms=self._deps.now_ms())
        except WrongState:
            return  # it has just ended by itself


async def _lines(pieces: AsyncIterator[bytes], longest: int) -> AsyncIterator[bytes]:
    """Yield the lines of a file that comes in pieces. What is longer than ``longest`` comes cut: it is no JSON then."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line[: longest + 1]
        rest = rest[: longest + 1]
    if rest:
        yield rest


def _line(number: int, raw: bytes, endpoint: str, seen: set[str]) -> Line:
    """Check one line of an input. Raises InvalidRequest."""
    given = parse_json(raw)
    custom_id = given.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_ID:
        raise InvalidRequest("custom_id must be a string", param="custom_id", code="missing_required_parameter")
    if custom_id in seen:
        raise InvalidRequest(f"custom_id {custom_id[:100]} came before", param="custom_id", code="duplicate_custom_id")
    if given.get("method") != "POST":
        raise InvalidRequest("method must be POST", param="method", code="invalid_method")
    if given.get("url") != endpoint:
        raise InvalidRequest(f"url must be the batch's endpoint, {endpoint}", param="url", code="mismatched_endpoint")
    if not isinstance(given.get("body"), dict):
        raise InvalidRequest("body must be an object", param="body", code="invalid_type")
    seen.add(custom_id)
    return Line(number, custom_id, None, msgspec.json.encode(given["body"]))


def _refused(error: OutriderError, request_id: str = "") -> Told:
    return Told(error.status, error_object(error), request_id)


def _names_policy(given: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    extension = given.get("outrider")
    named = isinstance(extension, dict) and extension.get("on_low_confidence") is not None
    return named or "x-outrider-on-low-confidence" in headers


def _waits(record: RequestRecord, named: bool) -> bool:
    """Whether a line waits for the late answer of its queued request."""
    asked = record.request.on_low_confidence if record.request else OnLowConfidence.DRAFT
    if asked in {OnLowConfidence.WAIT, OnLowConfidence.DEFER}:
        return True
    if asked is OnLowConfidence.DRAFT and named and draft_of(record) is not None:
        return False
    return record.escalation is not None and (record.escalation.state in _GOES_BY_ITSELF or draft_of(record) is None)
