"""What the daemon and an engine worker say to each other.

A frame is a 4-byte big-endian length and a msgpack map with a ``type``. The worker speaks
first (``Hello``); the daemon answers ``Load``; after ``Ready`` come ``Generate``, ``Score``,
``Encode`` and ``Cancel`` one way and ``Step`` the other. End of file on the worker's input is
its order to leave. Every ``Generate`` gets exactly one ``Ended``, every ``Score`` one ``Scored``
and every ``Encode`` one ``Encoded``, also after a ``Cancel``. ``Pin`` may follow right after ``Load``; what a worker says of it is a
``PrefixNews``, and what it has computed is fetched from it a piece at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Generic, TypeVar

import msgspec

from agent.compute import DeviceUse, DeviceVerdict, DeviceWish, DraftingMode, WeightLayout
from agent.engine.worker_status import ModelTraits, ThreadChoice
from agent.structure import OutputFormat, Tools
from agent.types import Failure, FailureKind, KvType, Message, ModelFile, Prompt, Sampling, Thinking, Token

PROTOCOL = 4
MAX_FRAME_BYTES = 64 << 20
PIECE_BYTES = 1 << 20  # of a saved prefix in one frame
_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """The bytes are not frames of this protocol; the stream cannot be trusted any more."""


class Load(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="load"):
    """Load this model; sent once, right after ``Hello``."""

    model: ModelFile
    context_tokens: int  # of one request, prompt and answer
    parallel: int  # requests decoded at the same time
    waiting_line: int  # requests that may wait beyond those
    threads: int  # 0: what the machine has free, step by step
    confine: bool
    kv_type: KvType = KvType.F16
    thinking_budget_tokens: int = 1024  # of a request that names none
    drafting: DraftingMode = DraftingMode.AUTO
    devices: DeviceWish = DeviceWish.AUTO
    verdicts: tuple[DeviceVerdict, ...] = ()  # of this model on devices, from earlier lives
    weights: WeightLayout = WeightLayout.FAST
    memory_bytes: int = 0  # most that the worker may take, with all it has; 0: what is free


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="generate"):
    """Answer these messages. ``id`` is unique in the life of the worker."""

    id: int
    messages: tuple[Message, ...]
    sampling: Sampling
    response_format: OutputFormat | None = None
    tools: Tools | None = None
    thinking: Thinking | None = None
    deadline_ms: float | None = None  # span left, counted from the receipt
    prompt: Prompt | None = None  # continue this, instead of answering messages
    scope: str = ""  # what is cached of it is found by requests of the same scope; "": by all that have none
    suffix: str = ""  # what comes after the gap that the answer fills
    prediction: str = ""  # what the answer is expected to repeat


class Score(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="score"):
    """Tell the log-probabilities of given answers, or of the prompt itself. Nothing is drawn."""

    id: int
    messages: tuple[Message, ...] = ()
    prompt: Prompt | None = None  # instead of messages
    labels: tuple[str, ...] = ()
    offsets: tuple[float, ...] = ()  # nats, added to each label where only the best is wanted
    best_only: bool = False  # find the best label; the others' figures may be missing
    echo: bool = False  # the log-probabilities of the prompt's own tokens
    hidden: bool = False  # the model's last hidden state at the end of the prompt; then labels may be missing
    top_logprobs: int = 0  # of each of those
    deadline_ms: float | None = None
    scope: str = ""  # as of Generate


class Encode(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="encode"):
    """Run an encoder over some texts: what comes back is a row of numbers for each, or its spans."""

    id: int
    texts: tuple[Prompt, ...]  # one that is tokens already gets the marks around it that the model expects
    query: str | None = None  # of a reranker: each text is read together with this
    dimensions: int = 0  # of a vector; 0: all that the model gives
    truncate: bool = False  # read the beginning of a text that is too long, instead of refusing it
    deadline_ms: float | None = None
    scope: str | None = ""  # whose identical texts are not computed again; None: nothing is kept


Ask = Generate | Score | Encode


def prompt_param(ask: Ask) -> str:
    """Return the parameter that the prompt of a request came from."""
    if isinstance(ask, Encode):
        return "input"
    return "messages" if ask.prompt is None else "prompt"


class Cancel(msgspec.Struct, frozen=True, tag_field="type", tag="cancel"):
    """Stop this request within one step. Unknown ids are ignored: it may just have ended."""

    id: int


class SavedPrefix(msgspec.Struct, frozen=True, array_like=True):
    """A prefix as a worker has computed it. Its bytes travel in frames of their own."""

    fingerprint: str  # of all that they depend on; a worker takes no others
    tokens: int
    parts: tuple[tuple[int, int, int], ...]  # first token, the one after the last, bytes

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(part[2] for part in self.parts)


class Pin(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="pin"):
    """Keep the prompt that begins with these messages ready. As many bytes as ``saved`` says follow."""

    name: str
    messages: tuple[Message, ...]
    saved: SavedPrefix | None = None  # of an earlier life


class PinData(msgspec.Struct, frozen=True, tag_field="type", tag="pin_data"):
    """The next bytes of the last ``Pin``; empty: they end here, the rest cannot be read."""

    data: bytes


class FetchPrefix(msgspec.Struct, frozen=True, tag_field="type", tag="fetch_prefix"):
    """Send a piece of a computed prefix, from this byte on. With the last one the worker forgets to send it."""

    name: str
    offset: int


class Hello(msgspec.Struct, frozen=True, tag_field="type", tag="hello"):
    """First words of a worker."""

    protocol: int
    pid: int


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="ready"):
    """The model is loaded."""

    runtime: str  # name and version
    context_tokens: int  # of one request; may be less than asked for
    kv_tokens: int = 0  # of all requests and cached beginnings together
    confinement: tuple[str, ...]  # what is in force, by name
    traits: ModelTraits | None = None
    device: DeviceUse | None = None  # of a runtime that has a choice
    load_ms: float


class Trying(msgspec.Struct, frozen=True, tag_field="type", tag="trying"):
    """A device is about to be tried for the first time: if this is the worker's last word, it was that."""

    verdict: DeviceVerdict


class LoadFailed(msgspec.Struct, frozen=True, tag_field="type", tag="load_failed"):
    """The model cannot be loaded; the worker ends itself."""

    message: str


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Text of one request that is final, with its tokens. One of ``text`` and ``thought`` is not empty."""

    id: int
    text: str
    tokens: tuple[Token, ...]
    thought: str = ""


class Ended(msgspec.Struct, frozen=True, array_like=True):
    """The end of one request, with the text and tokens that no ``Piece`` has carried."""

    id: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    failure: Failure | None = None
    incomplete: bool = False  # cut off before it was what its format or tools ask for
    end: Token | None = None  # the token by which the model ended, where no rule ended the answer
    thought: str = ""
    thought_tokens: int = 0  # of output_tokens
    accepted_tokens: int = 0  # guessed, and a part of the answer
    rejected_tokens: int = 0  # guessed, and computed for nothing


class Scored(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The end of one ``Score``. Log-probabilities in nats, of the unconstrained distribution."""

    id: int
    logprobs: tuple[float | None, ...] = ()  # in the order of the labels; None: not needed for the best
    label_tokens: tuple[int, ...] = ()
    mass: float | None = None  # probability that an answer begins with any of the labels
    best: int | None = None  # the label with the highest sum of log-probability and offset
    hidden: bytes = b""  # float32, little endian
    prompt: tuple[Token, ...] = ()  # of an echo; the first has no log-probability and carries 0
    following: Token | None = None  # of an echo: the likeliest token after the prompt
    ends: bool = False  # that token would end an answer
    prompt_tokens: int = 0
    cached_tokens: int = 0
    failure: Failure | None = None


class Span(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a text to which a model gave a label."""

    start: int  # character
    end: int  # the one after the last
    label: str
    score: float  # mean probability of its words, 0..1


class Encoded(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The end of one ``Encode``."""

    id: int
    rows: bytes = b""  # float32, little endian: ``width`` of them a text, in the order of the texts
    width: int = 0
    spans: tuple[tuple[Span, ...], ...] = ()  # of each text, from a model that tags
    prompt_tokens: int = 0
    failure: Failure | None = None


class PrefixState(StrEnum):
    """What became of a prefix in the life of a worker."""

    LOADING = "loading"  # said by the daemon alone: the worker has not looked at it yet
    RESTORED = "restored"  # taken from what an earlier life saved
    MISSING = "missing"  # not there: it has to be computed
    COMPUTED = "computed"  # and may be fetched
    REFUSED = "refused"  # it cannot be kept ready


class PrefixNews(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="prefix_news"):
    """A prefix has come to a state."""

    name: str
    state: PrefixState
    tokens: int = 0
    saved: SavedPrefix | None = None  # of one that was computed
    message: str = ""  # why it is missing or refused; never its text


class PrefixData(msgspec.Struct, frozen=True, tag_field="type", tag="prefix_data"):
    """A piece of a computed prefix; empty behind its end, or when the worker has it no more."""

    name: str
    offset: int
    data: bytes


class Step(msgspec.Struct, frozen=True, tag_field="type", tag="step"):
    """All that one step of the engine brought, for all requests: one frame, one write."""

    pieces: tuple[Piece, ...] = ()
    ended: tuple[Ended, ...] = ()
    scored: tuple[Scored, ...] = ()
    encoded: tuple[Encoded, ...] = ()
    threads: ThreadChoice | None = None  # when it is no longer what was told last


Command = Load | Generate | Score | Encode | Cancel | Pin | PinData | FetchPrefix
Event = Hello | Ready | Trying | LoadFailed | Step | PrefixNews | PrefixData
FrameType = TypeVar("FrameType")

_encoder = msgspec.msgpack.Encoder()


def encode(frame: Command | Event) -> bytes:
    """Return the frame as bytes. Raises FrameError above MAX_FRAME_BYTES."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes is above the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


def encode_step(step: Step) -> Iterator[bytes]:
    """Yield a step as one frame; a part that no frame holds as a failure of its request, apart from the others."""
    try:
        yield encode(step)
    except FrameError:
        parts = [Step(pieces=step.pieces, threads=step.threads), *(Step(ended=(one,)) for one in step.ended)]
        yield from map(encode, parts)
        for scored in step.scored:
            failure = Failure(FailureKind.REJECTED, "too many log-probabilities: ask for fewer of them", "logprobs")
            yield _encode_or(Step(scored=(scored,)), Step(scored=(Scored(id=scored.id, failure=failure),)))
        for encoded in step.encoded:
            failure = Failure(FailureKind.REJECTED, "too many figures at once: send fewer inputs", "input")
            yield _encode_or(Step(encoded=(encoded,)), Step(encoded=(Encoded(id=encoded.id, failure=failure),)))


def _encode_or(step: Step, instead: Step) -> bytes:
    try:
        return encode(step)
    except FrameError:
        return encode(instead)


class FrameReader(Generic[FrameType]):
    """Cuts a stream of bytes into frames, whatever the sizes in which the bytes arrive."""

    def __init__(self, decode: Callable[[bytes], FrameType]) -> None:
        self._decode = decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[FrameType]:
        """Yield the frames that are complete now. Raises FrameError on anything else."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame announces {size} bytes, the limit is {MAX_FRAME_BYTES}")
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                return
            body = bytes(memoryview(self._buffer)[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                frame = self._decode(body)
            except msgspec.MsgspecError as error:
                # The error names a path and a type, never a value.
                raise FrameError(f"a frame of {size} bytes does not decode: {error}") from error
            yield frame

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._buffer)


def command_reader() -> FrameReader[Command]:
    """Return what a worker reads its input with."""
    return FrameReader(msgspec.msgpack.Decoder(Command).decode)


def event_reader() -> FrameReader[Event]:
    """Return what the daemon reads a worker's output with."""
    return FrameReader(msgspec.msgpack.Decoder(Event).decode)
