"""What waits for an encoder: the texts of all requests, a batch at a time, in turns.

Texts of one batch are of like length, so that little of it is padding, and come from whoever
waits: eight requests of one text cost little more than one of eight. Each request gives one
text in turn, so that a long list holds up nobody.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict, deque
from typing import NamedTuple

import numpy as np

from agent.encoder import EncoderTask
from agent.engine import frames
from agent.engine.encoder_rows import Rows, shortened
from agent.engine.encoder_tokens import Tokens
from agent.engine.onnx_encoder_runtime import OnnxEncoderRuntime
from agent.engine.refusals import PromptRejected, PromptTooLong
from agent.types import Failure, FailureKind, Prompt

BATCH_TEXTS = 16
BATCH_TOKENS = 1024  # padding included: bounds the memory of a batch, which grows with it
ALIKE = 1.5  # lengths that differ by a larger factor do not share a batch
LOOKED_AT = 64  # texts that are tokenized and wait
CACHE_BYTES = 16 << 20


class EncoderQueue:
    """The requests of one encoder. Used by one thread."""

    def __init__(self, runtime: OnnxEncoderRuntime, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._runtime = runtime
        self._tags = runtime.spec.task is EncoderTask.TAG
        self._jobs: dict[int, _Job] = {}
        self._turns: deque[_Job] = deque()  # those with texts that are not looked at
        self._waiting: deque[_Item] = deque()
        self._ended: list[frames.Encoded] = []
        self._cache = _RowCache(cache_bytes)

    @property
    def idle(self) -> bool:
        return not self._jobs and not self._ended

    def submit(self, ask: frames.Encode) -> None:
        """Take a request; what is wrong with it ends it."""
        if fault := self._fault(ask):
            self._ended.append(frames.Encoded(id=ask.id, failure=fault))
            return
        job = _Job(ask, time.monotonic())
        self._jobs[ask.id] = job
        self._turns.append(job)

    def cancel(self, request_id: int) -> None:
        """End a request; one that has ended is ignored."""
        self._fail(request_id, Failure(FailureKind.CANCELLED, "cancelled", "input"))

    def step(self) -> tuple[frames.Encoded, ...]:
        """Run one batch; return the requests that ended."""
        self._expire()
        self._look_at()
        if batch := self._batch():
            self._run(batch)
        ended, self._ended = self._ended, []
        return tuple(ended)

    def _fault(self, ask: frames.Encode) -> Failure | None:
        task, width = self._runtime.spec.task, self._runtime.width
        if (ask.query is not None) != (task is EncoderTask.RERANK):
            what = "ranks texts by a query" if task is EncoderTask.RERANK else f"does not rank: it was made to {task}"
            return Failure(FailureKind.REJECTED, f"the model {what}", "model")
        if ask.dimensions and task is not EncoderTask.EMBED:
            return Failure(FailureKind.REJECTED, f"the model gives no vector: it was made to {task}", "model")
        if ask.dimensions > width:
            return Failure(FailureKind.REJECTED, f"the model gives {width} dimensions at most", "dimensions")
        return None

    def _expire(self) -> None:
        now = time.monotonic()
        for job in [job for job in self._jobs.values() if job.deadline is not None and job.deadline <= now]:
            self._fail(job.ask.id, Failure(FailureKind.TIMEOUT, "the deadline passed", "input"))

    def _look_at(self) -> None:
        """Tokenize the next texts, one of each request in turn; those known by now are answered."""
        while self._turns and len(self._waiting) < LOOKED_AT:
            job = self._turns.popleft()
            if job.ask.id not in self._jobs:
                continue
            index = job.next
            job.next += 1
            if job.next < len(job.ask.texts):
                self._turns.append(job)
            self._take(job, index)

    def _take(self, job: _Job, index: int) -> None:
        text = job.ask.texts[index]
        key = None if self._tags or job.ask.scope is None else _key(job.ask, text)
        if key is not None and (known := self._cache.get(key)):
            self._put(job, index, *known)
            return
        try:
            tokens = self._runtime.tokens.read(text, job.ask.query, truncate=job.ask.truncate)
        except (PromptTooLong, PromptRejected) as error:
            kind = FailureKind.CONTEXT_OVERFLOW if isinstance(error, PromptTooLong) else FailureKind.REJECTED
            self._fail(job.ask.id, Failure(kind, f"input {index} {error}", f"input[{index}]"))
            return
        self._waiting.append(_Item(job, index, tokens, key))

    def _batch(self) -> list[_Item]:
        """Take the text that waits longest, and others of like length."""
        while self._waiting and self._waiting[0].job.ask.id not in self._jobs:
            self._waiting.popleft()
        if not self._waiting:
            return []
        length = len(self._waiting[0].tokens.ids)
        shortest, longest = length / ALIKE, length * ALIKE
        chosen: list[_Item] = []
        rest: deque[_Item] = deque()
        padded = 0
        for item in self._waiting:
            own = len(item.tokens.ids)
            wide = max(padded, own)
            fits = not chosen or (len(chosen) < BATCH_TEXTS and wide * (len(chosen) + 1) <= BATCH_TOKENS)
            if item.job.ask.id not in self._jobs:
                continue
            if fits and shortest <= own <= longest:
                chosen.append(item)
                padded = wide
            else:
                rest.append(item)
        self._waiting = rest
        return chosen

    def _run(self, batch: list[_Item]) -> None:
        try:
            results = self._results([item.tokens for item in batch])
        except Exception as error:  # onnxruntime's have no narrower base
            if len(batch) > 1:
                # Which of them it was shows alone; the others are not to suffer for it.
                for item in batch:
                    self._run([item])
                return
            item = batch[0]
            told = " ".join(str(error).split())[:200]
            self._refuse(item, f"is refused by the model's graph: {told}")
            return
        for item, result in zip(batch, results, strict=True):
            if isinstance(result, np.ndarray) and not np.isfinite(result).all():
                self._refuse(item, "gives numbers that are not finite")
                continue
            if item.key is not None and isinstance(result, np.ndarray):
                self._cache.put(item.key, result, len(item.tokens.ids))
            self._put(item.job, item.position, result, len(item.tokens.ids))

    def _results(self, batch: list[Tokens]) -> Rows | list[tuple[frames.Span, ...]]:
        return self._runtime.spans(batch) if self._tags else self._runtime.rows(batch)

    def _refuse(self, item: _Item, why: str) -> None:
        failure = Failure(FailureKind.REJECTED, f"input {item.position} {why}", f"input[{item.position}]")
        self._fail(item.job.ask.id, failure)

    def _put(self, job: _Job, index: int, result: Rows | tuple[frames.Span, ...], tokens: int) -> None:
        if job.ask.id not in self._jobs:
            return
        job.results[index] = result
        job.tokens += tokens
        if len(job.results) == len(job.ask.texts):
            del self._jobs[job.ask.id]
            self._ended.append(self._encoded(job))

    def _encoded(self, job: _Job) -> frames.Encoded:
        ordered = [job.results[index] for index in range(len(job.ask.texts))]
        if self._tags:
            told = tuple(one for one in ordered if isinstance(one, tuple))
            return frames.Encoded(id=job.ask.id, spans=told, prompt_tokens=job.tokens)
        rows = np.stack([one for one in ordered if isinstance(one, np.ndarray)])
        if 0 < job.ask.dimensions < rows.shape[1]:
            rows = shortened(rows, job.ask.dimensions)
        data = rows.astype("<f4", copy=False).tobytes()
        return frames.Encoded(id=job.ask.id, rows=data, width=rows.shape[1], prompt_tokens=job.tokens)

    def _fail(self, request_id: int, failure: Failure) -> None:
        if self._jobs.pop(request_id, None):
            self._ended.append(frames.Encoded(id=request_id, failure=failure))


class _Job:
    def __init__(self, ask: frames.Encode, now: float) -> None:
        self.ask = ask
        self.deadline = None if ask.deadline_ms is None else now + ask.deadline_ms / 1000
        self.next = 0
        self.results: dict[int, Rows | tuple[frames.Span, ...]] = {}
        self.tokens = 0


class _Item(NamedTuple):
    job: _Job
    position: int  # in the texts of its request
    tokens: Tokens
    key: bytes | None


class _RowCache:
    """Rows of texts that came lately, least used first out."""

    def __init__(self, most_bytes: int) -> None:
        self._room = most_bytes
        self._rows: OrderedDict[bytes, tuple[Rows, int]] = OrderedDict()

    def get(self, key: bytes) -> tuple[Rows, int] | None:
        found = self._rows.get(key)
        if found:
            self._rows.move_to_end(key)
        return found

    def put(self, key: bytes, row: Rows, tokens: int) -> None:
        if key in self._rows:
            return
        row = row.copy()  # of its batch nothing else is kept
        self._room -= _cost(row)
        self._rows[key] = row, tokens
        while self._room < 0:
            _, (oldest, _) = self._rows.popitem(last=False)
            self._room += _cost(oldest)


def _cost(row: Rows) -> int:
    return int(row.nbytes) + 200  # the key, and what Python keeps of each


def _key(ask: frames.Encode, text: Prompt) -> bytes:
    """Name a text for the requests that may know of each other. A hash: no text is kept in memory for it."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (ask.scope or "", ask.query or "", "1" if ask.truncate else "", text):
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else np.asarray(part, "<i8").tobytes()
        digest.update(f"{type(part).__name__} {len(data)} ".encode() + data)
    return digest.digest()
