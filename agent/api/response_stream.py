"""A response while it is made: the typed events of the Responses API, numbered in their order.

``response.created`` and ``response.in_progress`` come first; then each item is added, grows by its
deltas and is done; ``response.completed`` (or ``.incomplete``, ``.failed``) ends the stream with the
whole response. Of a draft whose row waits, that response says ``queued``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agent.api.answer import LOCAL, Given
from agent.api.call import Call
from agent.api.chat_answer import logprob_content
from agent.api.response_answer import (
    Item,
    Stand,
    call_item,
    item_name,
    items_of,
    message_item,
    reasoning_item,
    response_object,
    response_of,
    stand_of,
    text_part,
)
from agent.errors import OutriderError
from agent.records import RequestRecord, RequestState
from agent.structure import CallPiece
from agent.types import Delta, Token

Event = dict[str, Any]
_LAST = {"incomplete": "response.incomplete", "failed": "response.failed", "cancelled": "response.failed"}


class ResponseShape:
    """Writes one response. Implements Shape."""

    def __init__(self, call: Call) -> None:
        self._request = call.request
        self._wants_logprobs = call.request.sampling.logprobs
        self._name = item_name(call.request.id, late=False)
        self._number = 0
        self._items: list[Item] = []  # done, and the one that grows as the last
        self._growing = False
        self._tokens: list[Token] = []  # of the message

    def whole(self, given: Sequence[Given]) -> dict[str, Any]:
        """Return the ``response`` object."""
        ((record, _, _),) = given
        return response_object(record)

    def pieces(self, delta: Delta) -> Iterator[Event]:
        """Yield the events of a piece of the answer."""
        if not self._number:
            yield from self._begin(self._as_running())
        if self._wants_logprobs:
            self._tokens += delta.tokens
        if delta.thought:
            yield from self._think(delta.thought)
        if delta.text:
            yield from self._say(delta.text, delta.tokens if self._wants_logprobs else ())
        for piece in delta.calls:
            yield from self._call(piece)

    def rest(self, given: Given) -> Iterator[Event]:
        """Yield what no event has told yet, and the end."""
        yield from self.end(given.record)

    def end(self, record: RequestRecord) -> Iterator[Event]:
        """Yield the end of a response as its record stands."""
        stand = stand_of(record)
        if self._number:
            yield from self._close()
        else:
            yield from self._begin(response_of(record, Stand("in_progress", stand.answer), []))
        if not self._items:
            self._name = item_name(record.id, late=stand.answer.source not in {LOCAL, None})
            self._tokens = [*stand.answer.tokens] if self._wants_logprobs else []
            for item in items_of(record, stand.answer):
                yield from self._whole_item(item)
        cut = record.generation is not None and record.generation.failure is not None and stand.status == "queued"
        kind = "response.incomplete" if cut else _LAST.get(stand.status, "response.completed")
        yield self._event(kind, response=response_of(record, stand, self._items))

    def standing(self, record: RequestRecord) -> Iterator[Event]:
        """Yield where a response stands that is not at its end, to whoever begins to follow it."""
        shown = response_object(record)
        if not self._number:
            yield self._event("response.created", response=shown)
        yield self._event("response.queued" if shown["status"] == "queued" else "response.in_progress", response=shown)

    def fault(self, error: OutriderError) -> Event:
        """Return the event of an error after the beginning."""
        return self._event("error", code=error.code, message=str(error), param=error.param)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event

    def _as_running(self) -> dict[str, Any]:
        request = self._request
        record = RequestRecord(
            request=request,
            id=request.id,
            state=RequestState.RUNNING,
            model=request.model,
            received_at_ms=request.received_at_ms,
        )
        return response_object(record)

    def _begin(self, response: dict[str, Any]) -> Iterator[Event]:
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    @property
    def _at(self) -> int:
        return len(self._items) - 1

    def _of(self, **fields: Any) -> dict[str, Any]:
        """Return what every event inside an item says of its place."""
        return {"item_id": self._items[-1]["id"], "output_index": self._at, **fields}

    def _open(self, item: Item) -> Iterator[Event]:
        yield from self._close()
        self._items.append(item)
        self._growing = True
        yield self._event("response.output_item.added", output_index=self._at, item={**item})

    def _grows(self, kind: str) -> bool:
        return self._growing and self._items[-1]["type"] == kind

    def _say(self, text: str, tokens: Sequence[Token]) -> Iterator[Event]:
        if not self._grows("message"):
            yield from self._open(message_item(self._name, [], "in_progress"))
            part = text_part("", [])
            yield self._event("response.content_part.added", **self._of(content_index=0, part=part))
            self._items[-1]["content"] = [{**part}]
        self._items[-1]["content"][0]["text"] += text
        logprobs = logprob_content(tokens)["content"]
        yield self._event("response.output_text.delta", **self._of(content_index=0, delta=text, logprobs=logprobs))

    def _think(self, thought: str) -> Iterator[Event]:
        if not self._grows("reasoning"):
            yield from self._open(reasoning_item(self._name, "", "in_progress"))
            self._items[-1]["content"] = [{"type": "reasoning_text", "text": ""}]
        self._items[-1]["content"][0]["text"] += thought
        yield self._event("response.reasoning_text.delta", **self._of(content_index=0, delta=thought))

    def _call(self, piece: CallPiece) -> Iterator[Event]:
        if piece.id:
            yield from self._open(call_item(self._name, piece.index, piece.id, piece.name, "", "in_progress"))
        if piece.arguments:
            self._items[-1]["arguments"] += piece.arguments
            yield self._event("response.function_call_arguments.delta", **self._of(delta=piece.arguments))

    def _close(self) -> Iterator[Event]:
        """Yield the end of the item that grows."""
        if not self._growing:
            return
        self._growing = False
        item = self._items[-1]
        item["status"] = "completed"
        match item["type"]:
            case "message":
                part = item["content"][0]
                part["logprobs"] = logprob_content(self._tokens)["content"]
                told = self._of(content_index=0, text=part["text"], logprobs=part["logprobs"])
                yield self._event("response.output_text.done", **told)
                yield self._event("response.content_part.done", **self._of(content_index=0, part=part))
            case "reasoning":
                told = self._of(content_index=0, text=item["content"][0]["text"])
                yield self._event("response.reasoning_text.done", **told)
            case _:
                told = self._of(name=item["name"], arguments=item["arguments"])
                yield self._event("response.function_call_arguments.done", **told)
        yield self._event("response.output_item.done", output_index=self._at, item=item)

    def _whole_item(self, item: Item) -> Iterator[Event]:
        """Yield the events of an item that is known as a whole."""
        match item["type"]:
            case "message" if item["content"][0]["type"] == "output_text":
                part = item["content"][0]
                yield from self._say(part["text"], self._tokens)
            case "reasoning":
                yield from self._think(item["content"][0]["text"])
            case "function_call":
                yield from self._open({**item, "arguments": "", "status": "in_progress"})
                self._items[-1]["arguments"] = item["arguments"]
                yield self._event("response.function_call_arguments.delta", **self._of(delta=item["arguments"]))
            case _:
                yield from self._open(item)
                self._growing = False
                refusal = item["content"][0]["refusal"]
                yield self._event("response.refusal.delta", **self._of(content_index=0, delta=refusal))
                yield self._event("response.refusal.done", **self._of(content_index=0, refusal=refusal))
                yield self._event("response.output_item.done", output_index=self._at, item=item)
        yield from self._close()
