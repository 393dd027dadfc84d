"""Encoders on bare onnxruntime: vectors, labels, tagged pieces and scores of texts.

One call runs one batch. What comes out of it for a text depends on that text alone, but for
the last places of its numbers: other texts in the batch change the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime

from agent.encoder import EncoderTask, Pooling
from agent.engine.encoder_files import encoder_files
from agent.engine.encoder_rows import Rows, log_probabilities, normalized, pooled, spans
from agent.engine.encoder_tokens import EncoderTokens, Tokens
from agent.engine.frames import Span
from agent.engine.onnx_session import open_session, options
from agent.engine.refusals import ModelUnloadable
from agent.engine.worker_status import EncoderTraits, ModelTraits
from agent.types import ModelFile

# As fast as spinning without end; none at all makes a single short text a third slower.
SPIN_US = 50
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
_FLOATS = frozenset({"tensor(float)", "tensor(float16)"})
# Rank of the output that each task reads.
_RANKS = {EncoderTask.CLASSIFY: 2, EncoderTask.RERANK: 2, EncoderTask.TAG: 3}


class OnnxEncoderRuntime:
    """One encoder in memory. Used by one thread."""

    def __init__(self, model: ModelFile, *, threads: int, configure: Callable[[Any], None] | None = None) -> None:
        """Load the model and run it once. Raises ModelUnloadable.

        ``configure`` names the devices of a session; without it the processor is used.
        """
        files = encoder_files(model)
        self.spec = files.spec
        self.name = f"onnxruntime {onnxruntime.__version__}"
        settings = options(threads, spin_us=SPIN_US)
        # Plans of memory are kept for every shape that was ever run: that never ends.
        settings.enable_mem_pattern = False
        self._session = open_session(files.graph, settings, configure)
        self._inputs = self._checked_inputs()
        self._batch, length = self._fixed_shape()
        self._output = self._chosen_output()
        self.tokens = EncoderTokens(files.tokenizer, min(files.most_tokens, length or files.most_tokens))
        self._length = length
        self.width = self._warm_up()
        self.traits = ModelTraits(
            parameters=0,
            quantization="",
            fills_gaps=False,
            thinks=False,
            encoder=EncoderTraits(
                task=self.spec.task,
                width=self.width,
                labels=self.spec.labels,
                several=self.spec.several,
                most_tokens=self.tokens.most_tokens,
                dimensions=self.spec.dimensions,
            ),
        )

    def node_share(self, provider: str) -> float:
        """Return the share of the graph's nodes that were given to a provider, 0 to 1."""
        given = [(part.ep_name, len(part.get_nodes())) for part in self._session.get_provider_graph_assignment_info()]
        total = sum(nodes for _, nodes in given)
        return sum(nodes for name, nodes in given if name == provider) / total if total else 0.0

    def rows(self, batch: Sequence[Tokens]) -> Rows:
        """Return one row an input: (n, width).

        A vector to embed; the log-probabilities (nats) of the labels to classify; the score,
        0 to 1, of a pair. Raises an exception of onnxruntime for an input that the graph refuses.
        """
        output = self._run(batch)
        match self.spec.task:
            case EncoderTask.CLASSIFY:
                return log_probabilities(output, several=self.spec.several)
            case EncoderTask.RERANK:
                return np.exp(log_probabilities(output, several=True))
        found = pooled(output, [len(tokens.ids) for tokens in batch], self.spec.pooling)
        return normalized(found) if self.spec.normalized else found

    def spans(self, batch: Sequence[Tokens]) -> list[tuple[Span, ...]]:
        """Return the tagged pieces of each input of a model that tags. Raises as ``rows`` does."""
        logprobs = log_probabilities(self._run(batch), several=False)
        return [spans(one, tokens, self.spec.labels) for one, tokens in zip(logprobs, batch, strict=True)]

    def _run(self, batch: Sequence[Tokens]) -> Rows:
        if self._batch is None or len(batch) == self._batch:
            (output,) = self._session.run([self._output], self._feed(batch))
            return np.asarray(output, np.float32)
        # A graph of a fixed size: the last batch is filled up with its own first input.
        parts = []
        for start in range(0, len(batch), self._batch):
            part = list(batch[start : start + self._batch])
            filled = part + part[:1] * (self._batch - len(part))
            (output,) = self._session.run([self._output], self._feed(filled))
            parts.append(np.asarray(output, np.float32)[: len(part)])
        return np.concatenate(parts)

    def _feed(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        lengths = [len(tokens.ids) for tokens in batch]
        shape = (len(batch), self._length or max(lengths))
        found: dict[str, Any] = {}
        for name, kind in self._inputs.items():
            if name == "attention_mask":
                found[name] = (np.arange(shape[1]) < np.asarray(lengths)[:, None]).astype(kind)
            elif name == "position_ids":
                found[name] = np.broadcast_to(np.arange(shape[1], dtype=kind), shape)
            else:
                rows = np.zeros(shape, kind)
                for row, tokens, length in zip(rows, batch, lengths, strict=True):
                    row[:length] = tokens.ids if name == "input_ids" else tokens.types
                found[name] = rows
        return found

    def _checked_inputs(self) -> dict[str, Any]:
        """Return the inputs of the graph with their types, after a look at them."""
        declared = self._session.get_inputs()
        names = [one.name for one in declared]
        if self.spec.inputs and set(names) != set(self.spec.inputs):
            raise ModelUnloadable(
                f"the graph has the inputs {', '.join(names)}, the manifest says {', '.join(self.spec.inputs)}"
            )
        if "input_ids" not in names or not set(names) <= set(INPUTS):
            raise ModelUnloadable(
                f"the graph has the inputs {', '.join(names)}; an encoder has input_ids and, where it wants them, "
                f"{', '.join(INPUTS[1:])}"
            )
        for one in declared:
            if one.type not in _INTEGERS or len(one.shape) != 2:
                raise ModelUnloadable(
                    f"the input {one.name} is {one.type} of rank {len(one.shape)}; it must be integers of rank 2"
                )
        return {one.name: _INTEGERS[one.type] for one in declared}

    def _fixed_shape(self) -> tuple[int | None, int | None]:
        """Return the texts of a batch and the tokens of a text where the graph takes one size only."""
        sizes = {
            tuple(size if isinstance(size, int) else None for size in one.shape) for one in self._session.get_inputs()
        }
        if len(sizes) > 1:
            raise ModelUnloadable(f"the inputs of the graph differ in their shapes: {sorted(map(str, sizes))}")
        batch, length = sizes.pop()
        return batch, length

    def _chosen_output(self) -> str:
        declared = self._session.get_outputs()
        shown = ", ".join(f"{one.name} ({one.type}, rank {len(one.shape)})" for one in declared)
        if self.spec.output and self.spec.output not in {one.name for one in declared}:
            raise ModelUnloadable(f"the graph has the outputs {shown}, the manifest says {self.spec.output}")
        rank = _RANKS.get(self.spec.task, 2 if self.spec.pooling is Pooling.NONE else 3)
        for one in declared:
            if self.spec.output in {"", one.name} and one.type in _FLOATS and len(one.shape) == rank:
                return str(one.name)
        raise ModelUnloadable(f"to {self.spec.task}, an output of rank {rank} is read; the graph has {shown}")

    def _warm_up(self) -> int:
        """Run one text; return the width of its row."""
        try:
            output = self._run([self.tokens.read("a", "a" if self.spec.task is EncoderTask.RERANK else None)])
        except ModelUnloadable:
            raise
        except Exception as error:
            told = " ".join(str(error).split())[:300]
            raise ModelUnloadable(f"the graph loads, and does not run on one short text: {told}") from None
        width = output.shape[-1]
        if not np.isfinite(output).all():
            raise ModelUnloadable("the graph gives numbers that are not finite for one short text")
        wanted = {
            EncoderTask.RERANK: 1,
            EncoderTask.CLASSIFY: len(self.spec.labels),
            EncoderTask.TAG: len(self.spec.labels),
        }
        if width != wanted.get(self.spec.task, width):
            raise ModelUnloadable(
                f"the graph gives {width} numbers where the task {self.spec.task} has {wanted[self.spec.task]}"
                f"{'' if self.spec.labels else ' (no labels are named: id2label of config.json)'}"
            )
        return int(width)
