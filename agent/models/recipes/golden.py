"""Does a smaller encoder still say what its source says? Both read the same short texts, on this very processor.

Rounding can go wrong without any error: signed 8-bit weights saturate on processors without
VNNI, and a mask constant of -3.4e38 takes the whole range of a 16-bit scale. Either shows at
once in what comes out, and nowhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from agent.errors import ModelRejected
from agent.models.recipes.job import Progress, Tell

TEXTS = Path(__file__).with_name("golden.txt")
LEAST_MEAN = 0.98  # cosine, over the texts
LEAST_SINGLE = 0.90  # cosine, of the worst text
_LONGEST = 128  # tokens
_ERRORS = 3  # level of onnxruntime's log: errors only


class Agreement(msgspec.Struct, frozen=True):
    """Cosines between the outputs of two models, one for each text, -1..1."""

    mean: float
    least: float

    @property
    def good(self) -> bool:
        return self.mean >= LEAST_MEAN and self.least >= LEAST_SINGLE

    def __str__(self) -> str:
        return f"{self.mean:.4f} (least {self.least:.4f})"


class Encoder:
    """One ONNX encoder, text by text. Raises ModelRejected for what onnxruntime or its tokenizer refuses."""

    def __init__(self, graph: Path, tokenizer: Path, *, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _ERRORS
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # it raises Exception itself
            raise ModelRejected(f"{tokenizer} is missing or no tokenizer: {str(error)[:200]}") from error
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base
            raise ModelRejected(f"onnxruntime cannot load {graph}: {str(error)[:300]}") from error
        self._names = {value.name for value in self._session.get_inputs()}
        if unknown := self._names - {"input_ids", "attention_mask", "token_type_ids"}:
            raise ModelRejected(
                f"{graph} wants {', '.join(sorted(unknown))}; an encoder reads token ids and their mask"
            )
        length = self._session.get_inputs()[0].shape[-1]
        self._length = length if isinstance(length, int) else None
        self._tokenizer.enable_truncation(min(_LONGEST, self._length or _LONGEST))
        self._tokenizer.no_padding()

    def inputs(self, text: str) -> dict[str, NDArray[np.int64]]:
        """Return what goes into the graph for one text: int64, (1, tokens), padded where its length is fixed."""
        encoding = self._tokenizer.encode(text)
        filled = (self._length or len(encoding.ids)) - len(encoding.ids)
        rows = {
            "input_ids": [*encoding.ids, *[0] * filled],
            "attention_mask": [*encoding.attention_mask, *[0] * filled],
            "token_type_ids": [*encoding.type_ids, *[0] * filled],
        }
        return {name: np.array([row], np.int64) for name, row in rows.items() if name in self._names}

    def vector(self, text: str) -> NDArray[np.float64]:
        """Return the first output as one vector: the mean over the tokens where there is a row for each."""
        inputs = self.inputs(text)
        try:
            output: Any = self._session.run(None, inputs)[0]
        except Exception as error:  # as above
            raise ModelRejected(f"onnxruntime cannot run the model on a text: {str(error)[:300]}") from error
        values: NDArray[np.float64] = np.asarray(output, np.float64)[0]
        if values.ndim > 1:
            mask = (
                inputs["attention_mask"][0].astype(np.float64) if "attention_mask" in inputs else np.ones(len(values))
            )
            values = (values * mask[:, None]).sum(0) / mask.sum()
        return values.reshape(-1)


def texts() -> tuple[str, ...]:
    """Return the texts that ship with the product."""
    return tuple(TEXTS.read_text(encoding="utf-8").splitlines())


def compare(made: Encoder, source: Encoder, tell: Tell) -> Agreement:
    """Return how far two encoders agree. Raises ModelRejected for numbers that are not finite."""
    cosines = []
    for number, text in enumerate(texts()):
        tell(Progress(step="comparing with the source", done=number, total=len(texts())))
        first, second = made.vector(text), source.vector(text)
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise ModelRejected(
                f"the {'source' if np.isfinite(first).all() else 'result'} gives numbers that are not finite"
            )
        norms = float(np.linalg.norm(first) * np.linalg.norm(second))
        cosines.append(float(first @ second) / norms if norms else 0.0)
    return Agreement(sum(cosines) / len(cosines), min(cosines))


def require_agreement(found: Agreement, name: str, *, force: bool) -> str:
    """Return what shall stand in the record. Raises ModelRejected below the floor, unless forced."""
    if not found.good and not force:
        raise ModelRejected(
            f"{name} does not say what its source says: cosine {found} on {len(texts())} texts, the floor is "
            f"{LEAST_MEAN} in the mean and {LEAST_SINGLE} for each; it is not kept. Use --force to keep it"
        )
    note = f"cosine to the source {found} on {len(texts())} texts here"
    return note if found.good else f"{note}: below the floor of {LEAST_MEAN}"
