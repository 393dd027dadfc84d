"""Models from Python, without a daemon: for work on many texts at once.

::

    from agent.batch import open_encoder, open_writer

    with open_encoder("minilm-l6-v2-int8") as encoder:
        vectors = encoder.embed(texts)

    with open_writer("smollm2-135m-instruct") as writer:
        answers = writer.answer(questions, max_tokens=64)

A model is a name of the catalogue, or the path of its files. It is loaded into the calling
process, which nothing locks in: give it files that you trust. Nothing is journaled, judged or
sent anywhere. Used by one thread at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent import configuration, device
from agent.engine import frames
from agent.errors import EngineFailed, InvalidRequest, ModelNotFound
from agent.models.store import open_store
from agent.types import Failure, FailureKind, Message, ModelFile, ModelFormat, Prompt, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from agent.engine.encoder_queue import EncoderQueue
    from agent.engine.onnx_encoder_runtime import OnnxEncoderRuntime
    from agent.engine.scheduler import Scheduler

AT_ONCE = 1024  # texts that are handed over together: bounds what is held of them
FOLDER_TOKENS = 8192  # limit of an encoder in a folder, where its own files name none lower
_ENCODERS_NEED = "an encoder: a folder with model.onnx and tokenizer.json"


class Encoder:
    """An encoder in memory."""

    def __init__(self, runtime: OnnxEncoderRuntime, queue: EncoderQueue) -> None:
        self.runtime = runtime
        self._queue = queue
        self._ids = itertools.count(1)

    def embed(self, texts: Iterable[Prompt], *, dimensions: int = 0, truncate: bool = False) -> NDArray[np.float32]:
        """Return one vector a text: (texts, dimensions), of length 1 unless the model says otherwise.

        ``dimensions`` shortens them, 0 leaves them whole; ``truncate`` reads the beginning of a
        text above the limit. Raises InvalidRequest that names the text at fault, or for a model
        that was made for something else.
        """
        return self._rows(texts, "embed", dimensions=dimensions, truncate=truncate)

    def classify(self, texts: Iterable[Prompt], *, truncate: bool = False) -> list[dict[str, float]]:
        """Return the probability of each label, for each text. Raises as ``embed`` does."""
        import numpy as np

        labels = self.runtime.spec.labels
        rows = np.exp(self._rows(texts, "classify", truncate=truncate))
        return [dict(zip(labels, map(float, row), strict=True)) for row in rows]

    def rank(self, query: str, documents: Iterable[str], *, truncate: bool = False) -> list[float]:
        """Return how well each document answers the query, 0 to 1, in their order. Raises as ``embed`` does."""
        return [float(row[0]) for row in self._rows(documents, "rerank", query=query, truncate=truncate)]

    def tag(self, texts: Iterable[str], *, truncate: bool = False) -> list[tuple[frames.Span, ...]]:
        """Return the labelled pieces of each text. Raises as ``embed`` does."""
        found: list[tuple[frames.Span, ...]] = []
        for encoded in self._encoded(texts, "tag", truncate=truncate):
            found += encoded.spans
        return found

    def _rows(
        self,
        texts: Iterable[Prompt],
        task: str,
        *,
        query: str | None = None,
        dimensions: int = 0,
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        import numpy as np

        parts = [
            np.frombuffer(encoded.rows, "<f4").reshape(-1, encoded.width)
            for encoded in self._encoded(texts, task, query=query, dimensions=dimensions, truncate=truncate)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, dimensions or self.runtime.width), np.float32)

    def _encoded(
        self,
        texts: Iterable[Prompt],
        task: str,
        *,
        query: str | None = None,
        dimensions: int = 0,
        truncate: bool = False,
    ) -> Iterator[frames.Encoded]:
        if self.runtime.spec.task != task:
            raise InvalidRequest(f"this model is made to {self.runtime.spec.task}, not to {task}", param="model")
        left = iter(texts)
        done = 0
        while part := tuple(itertools.islice(left, AT_ONCE)):
            ask = frames.Encode(
                id=next(self._ids), texts=part, query=query, dimensions=dimensions, truncate=truncate, scope=None
            )
            self._queue.submit(ask)
            ended: tuple[frames.Encoded, ...] = ()
            while not ended:
                ended = self._queue.step()
            if failure := ended[0].failure:
                raise _error(failure, f"; counted from text {done}" if done else "")
            yield ended[0]
            done += len(part)


class Writer:
    """A model that writes, in memory."""

    def __init__(self, scheduler: Scheduler, parallel: int) -> None:
        self._scheduler = scheduler
        self._parallel = parallel
        self._ids = itertools.count(1)

    def answer(
        self,
        prompts: Iterable[str | Sequence[Message]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
    ) -> list[str]:
        """Return the answer to each question or conversation, in their order; several are written at a time.

        Greedy unless ``sampling`` says otherwise. Raises InvalidRequest or EngineFailed for the
        first that cannot be answered.
        """
        drawn = msgspec.structs.replace(sampling or Sampling(), **({"max_tokens": max_tokens} if max_tokens else {}))
        left = iter(prompts)
        texts: dict[int, list[str]] = {}
        open_ids: set[int] = set()
        while True:
            for prompt in itertools.islice(left, self._parallel - len(open_ids)):
                messages = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
                ask = frames.Generate(id=next(self._ids), messages=messages, sampling=drawn)
                texts[ask.id] = []
                open_ids.add(ask.id)
                self._scheduler.submit(ask)
            if not open_ids:
                return ["".join(parts) for _, parts in sorted(texts.items())]
            step = self._scheduler.step()
            for piece in step.pieces:
                texts[piece.id].append(piece.text)
            for ended in step.ended:
                texts[ended.id].append(ended.text)
                open_ids.discard(ended.id)
                if ended.failure:
                    for other in open_ids:
                        self._scheduler.cancel(other)
                    raise _error(ended.failure, "")


@contextmanager
def open_encoder(model: str | Path, *, threads: int = 0) -> Iterator[Encoder]:
    """Load an encoder: a name, or a folder with model.onnx and tokenizer.json.

    ``threads`` 0: the cores of this machine. Raises ModelNotFound, ModelRejected, EngineFailed.
    """
    file = _file(model, ModelFormat.ONNX_ENCODER)
    from agent.engine.encoder_queue import EncoderQueue
    from agent.engine.onnx_encoder_runtime import OnnxEncoderRuntime
    from agent.engine.refusals import ModelUnloadable

    try:
        runtime = OnnxEncoderRuntime(file, threads=threads or device.profile().decode_threads)
    except ModelUnloadable as error:
        raise EngineFailed(f"model {file.name} cannot be loaded: {error}") from error
    yield Encoder(runtime, EncoderQueue(runtime))


@contextmanager
def open_writer(
    model: str | Path, *, context_tokens: int = 2048, parallel: int = 4, threads: int = 0
) -> Iterator[Writer]:
    """Load a model that writes: a name, the path of a .gguf file, or that of the folder of an ONNX model.

    ``context_tokens`` of one prompt with its answer, ``parallel`` answers are written together.
    Raises ModelNotFound, ModelRejected, EngineFailed.
    """
    file = _file(model, ModelFormat.GGUF, ModelFormat.ONNX_GENERATION)
    from agent.engine.refusals import ModelUnloadable
    from agent.engine.runtime import runtime_of
    from agent.engine.scheduler import Scheduler

    order = frames.Load(
        model=file,
        context_tokens=min(context_tokens, file.context_tokens),
        parallel=parallel,
        waiting_line=parallel,
        threads=threads,
        confine=False,
    )
    try:
        runtime = runtime_of(file.format)(order)
    except ModelUnloadable as error:
        raise EngineFailed(f"model {file.name} cannot be loaded: {error}") from error
    try:
        yield Writer(Scheduler(runtime, waiting_line=parallel), parallel)
    finally:
        runtime.close()


def _file(model: str | Path, *wanted: ModelFormat) -> ModelFile:
    path = Path(model)
    if path.is_dir() or path.is_file():
        return _own_file(path, wanted[0])
    if isinstance(model, Path):
        raise ModelNotFound(f"there is nothing at {model}", param="model")
    file = open_store(configuration.load().settings.data_path).resolve(model)
    if file.format not in wanted:
        raise InvalidRequest(f"model {model} is {file.format}, wanted is {' or '.join(wanted)}", param="model")
    return file


def _own_file(path: Path, wanted: ModelFormat) -> ModelFile:
    """Return the model at a path. It has no digest: nothing that is kept belongs to it."""
    if wanted is ModelFormat.ONNX_ENCODER:
        if not path.is_dir():
            raise InvalidRequest(f"{path} is not {_ENCODERS_NEED}", param="model")
        return ModelFile(name=path.name, path=str(path), format=wanted, sha256="", context_tokens=FOLDER_TOKENS)
    if path.is_dir():  # its own files name a lower limit
        form, limit = ModelFormat.ONNX_GENERATION, 1 << 20
        return ModelFile(name=path.name, path=str(path), format=form, sha256="", context_tokens=limit)
    from agent.models.gguf_check import check_gguf

    header = check_gguf(path)
    return ModelFile(name=path.stem, path=str(path), sha256="", context_tokens=header.context_tokens or FOLDER_TOKENS)


def _error(failure: Failure, where: str) -> InvalidRequest | EngineFailed:
    refused = {FailureKind.REJECTED, FailureKind.CONTEXT_OVERFLOW}
    kind = InvalidRequest if failure.kind in refused else EngineFailed
    return kind(f"{failure.message}{where}", param=failure.param)
