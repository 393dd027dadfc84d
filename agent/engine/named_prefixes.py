"""Named prefixes in the worker: taken from an earlier life, or waited for until somebody computes them.

Used by the thread of the scheduler, whose cache holds them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from agent.engine import frames
from agent.engine.prefix_cache import SHORTEST_TOKENS, PrefixCache, agreeing
from agent.engine.runtime import PromptRejected, PromptTooLong, Runtime
from agent.types import Message, ModelFile

# What users say differs from its first token on: where two prompts part is the end of what they share.
PROBES = (Message("user", "a"), Message("user", "0"))

News = frames.PrefixNews | frames.PrefixData


class _Incoming:
    """The bytes of an earlier life, as they arrive. ``tokens`` is None for those that are not wanted."""

    def __init__(self, name: str, saved: frames.SavedPrefix, tokens: list[int] | None) -> None:
        self.name = name
        self.saved = saved
        self.tokens = tokens
        self.left = saved.size
        self.data = bytearray()


class NamedPrefixes:
    """The prefixes that this worker was told to keep ready."""

    def __init__(self, runtime: Runtime, cache: PrefixCache, model: ModelFile) -> None:
        self._runtime = runtime
        self._cache = cache
        self._model = model
        self._incoming: _Incoming | None = None
        self._waiting: dict[str, list[int]] = {}  # tokens of those that nobody has computed yet
        self._computed: dict[str, list[memoryview]] = {}  # those that were not fetched yet
        self._news: list[News] = []

    def pin(self, order: frames.Pin) -> None:
        """Take a prefix. What becomes of it is among the news."""
        tokens, problem = self._begin(order)
        wanted = None
        if problem:
            self._tell(order.name, frames.PrefixState.REFUSED, message=problem)
        elif order.saved is None or order.saved.fingerprint != self.fingerprint(tokens):
            self._miss(order.name, tokens, "" if order.saved is None else "it was saved under other settings")
        else:
            wanted = tokens
        if order.saved is not None:
            self._incoming = _Incoming(order.name, order.saved, wanted)

    def take(self, data: bytes) -> None:
        """Take bytes of an earlier life."""
        incoming = self._incoming
        if incoming is None:
            return
        incoming.left -= len(data)
        if incoming.tokens is not None:
            incoming.data += data
        if data and incoming.left > 0:
            return
        self._incoming = None
        if incoming.tokens is None:
            return
        try:
            self._restore(incoming.tokens, incoming.saved, memoryview(incoming.data))
        except ValueError as error:
            self._miss(incoming.name, incoming.tokens, f"what was saved is of no use: {error}")
        else:
            self._tell(incoming.name, frames.PrefixState.RESTORED, tokens=len(incoming.tokens))

    def fetch(self, name: str, offset: int) -> None:
        """Have a piece of a computed prefix among the news."""
        left, piece = offset, bytearray()
        for data in self._computed.get(name, ()):
            piece += data[left : left + frames.PIECE_BYTES - len(piece)]
            left = max(0, left - len(data))
        if len(piece) < frames.PIECE_BYTES:
            self._computed.pop(name, None)
        self._news.append(frames.PrefixData(name, offset, bytes(piece)))

    def news(self) -> list[News]:
        """Return what is new since the last call."""
        for name, tokens in list(self._waiting.items()):
            if (parts := self._cache.pin(tokens)) is not None:
                del self._waiting[name]
                packed = [self._runtime.pack(part) for part in parts]
                self._computed[name] = packed
                spans = tuple((part.start, part.end, len(data)) for part, data in zip(parts, packed, strict=True))
                saved = frames.SavedPrefix(self.fingerprint(tokens), len(tokens), spans)
                self._tell(name, frames.PrefixState.COMPUTED, tokens=len(tokens), saved=saved)
        news, self._news = self._news, []
        return news

    def fingerprint(self, tokens: Sequence[int]) -> str:
        """SHA-256 of all that the computed values of a prefix depend on.

        The chat template and the text are in the tokens; the file of the model and all that is
        said of it, the library, and how it keeps keys and values are beside them.
        """
        model = msgspec.structs.replace(self._model, name="", path="")
        return hashlib.sha256(msgspec.json.encode((self._runtime.state_format, model, tokens))).hexdigest()

    def _begin(self, order: frames.Pin) -> tuple[list[int], str]:
        """Return the tokens that are the same whatever a user says next, or why they cannot be kept."""
        try:
            one, other = (self._runtime.prompt_tokens((*order.messages, probe)) for probe in PROBES)
        except (PromptRejected, PromptTooLong) as error:
            return [], str(error)
        tokens = one[: agreeing(one, other, 0)]
        most = self._runtime.saved_tokens
        if not most:
            return [], "the state of this model cannot be shared"
        if not SHORTEST_TOKENS <= len(tokens) <= most:
            return [], f"it has {len(tokens)} tokens; from {SHORTEST_TOKENS} to {most} can be kept ready"
        self._cache.name(tokens)
        return tokens, ""

    def _restore(self, tokens: list[int], saved: frames.SavedPrefix, data: memoryview) -> None:
        if len(data) != saved.size:
            raise ValueError(f"{len(data)} of {saved.size} bytes could be read")
        parts, at, end = [], 0, 0
        for start, end, size in saved.parts:
            parts.append(self._runtime.unpack(start, end, data[at : at + size]))
            at += size
        if end != len(tokens) or not self._cache.adopt(tokens, parts):
            raise ValueError("its parts do not fit together")

    def _miss(self, name: str, tokens: list[int], message: str) -> None:
        self._waiting[name] = tokens
        self._tell(name, frames.PrefixState.MISSING, tokens=len(tokens), message=message)

    def _tell(
        self,
        name: str,
        state: frames.PrefixState,
        *,
        tokens: int = 0,
        saved: frames.SavedPrefix | None = None,
        message: str = "",
    ) -> None:
        self._news.append(frames.PrefixNews(name=name, state=state, tokens=tokens, saved=saved, message=message))
