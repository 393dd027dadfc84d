"""Generative ONNX models on ONNX Runtime: the rows of one decoder graph are the slots.

The files are those of onnxruntime-genai's model builder; its generators are not used
(docs/decisions/0004-onnx-generation.md). What a graph for a processor cannot do is in ``traits``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from agent import device
from agent.compute import DeviceWish
from agent.engine import frames
from agent.engine.chat_template import ChatTemplate
from agent.engine.control_texts import ControlTexts
from agent.engine.generation_folder import GenerationFolder, read_folder
from agent.engine.grammar import Vocabulary
from agent.engine.kv_cache import cell_count
from agent.engine.memory_room import memory_room
from agent.engine.onnx_decoder import OnnxDecoder
from agent.engine.onnx_scoring import PROMPT_TOKENS, SEVERAL, OnnxScoring
from agent.engine.onnx_states import RowStates
from agent.engine.prompt_tokens import PromptMethods, PromptTokens
from agent.engine.runtime import Chunk, ModelUnloadable, PromptRejected, Row, RuntimeBroken, check_chunks
from agent.engine.tokenizer_file import TokenizerFile
from agent.engine.worker_status import ModelTraits, ThreadChoice
from agent.types import KvType

BATCH_TOKENS = 64  # as with llama.cpp: a step lasts under a second on a slow device
DRAFTED_TOKENS = 24
SAVED_SHARE = 0.5  # tokens of kept beginnings, of those that all slots hold
IDLE_BETWEEN = 2  # slots; each adds a third of a run of one token, a run of its own would add two thirds
SCORING_ROWS = (8, 4, 2, 1)  # the most whose memory is there
SCORING_TOKENS = 1024  # in each of those rows
SCORING_SHARE = 0.25  # of the free memory
UNLIKE = 0.3  # of the way to another row: two that are farther apart are not the same but for rounding
# Names that tokens for the end of an answer have in the families of models that are known.
END_TEXTS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
)
GAP_TEXTS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
)


class OnnxGenerationRuntime(RowStates, PromptMethods):
    """A decoder in memory. Used by one thread."""

    def __init__(self, load: frames.Load) -> None:
        """Load the model. Raises ModelUnloadable."""
        if load.model.adapter:
            raise ModelUnloadable("LoRA adapters are for GGUF models: an ONNX graph has no place for one")
        folder = read_folder(Path(load.model.path))
        room_bytes = memory_room(load.memory_bytes)
        self.name = f"onnxruntime {onnxruntime.__version__}"
        self.slots = load.parallel
        self._threads = load.threads or device.profile().decode_threads
        self.thread_choice = ThreadChoice(
            self._threads,
            self._threads,
            "engine.threads" if load.threads else "one for each core: this runtime keeps what it was loaded with",
        )
        self.vocabulary_size = folder.vocabulary_size
        self._tokens = TokenizerFile(folder.path / "tokenizer.json", self.vocabulary_size)
        self._template = _chat_template(load, folder)
        self.thinking = self._template.thinking if self._template else None
        self._decoder = OnnxDecoder(folder, self._threads)
        self.hidden_width = self._decoder.hidden_width
        self._take_memory(load, folder, room_bytes)
        ends = [token for text in (*END_TEXTS, folder.eos) if (token := self._tokens.find(text)) is not None]
        self._ends = frozenset(token for token in (*folder.ends, *ends) if self._tokens.is_control(token))
        gap_marks = self._gap_marks()
        self.traits = ModelTraits(
            parameters=folder.graph.parameters,
            quantization=folder.graph.quantization,
            fills_gaps=gap_marks is not None,
            thinks=self.thinking is not None,
            absent=_absent(load, joins=self._decoder.joins, hidden=bool(self._decoder.hidden_width)),
        )
        self._prompts = PromptTokens(
            lambda text, special: self._tokens.tokenize(text, special=special),
            template=self._template,
            control_texts=ControlTexts(self._tokens.control_texts()),
            bos=self._tokens.bos,
            gap_marks=gap_marks,
            vocabulary_size=self.vocabulary_size,
            context_tokens=self.context_tokens,
            shortage=""
            if self.context_tokens == load.context_tokens
            else ", all that the free memory or the model holds",
        )
        self._scoring: OnnxScoring | None = None
        self._prove()

    def _take_memory(self, load: frames.Load, folder: GenerationFolder, room_bytes: int) -> None:
        """Size the slots by what was free before the weights were loaded."""
        # A run may go beyond the last token: slots and scoring fill up. The table of positions ends there.
        context = min(load.context_tokens, folder.context_tokens - PROMPT_TOKENS)
        self.cells = cell_count(
            load.parallel * context,
            cell_bytes=math.ceil(self._decoder.cell_bytes * (1 + SAVED_SHARE)),
            free_bytes=room_bytes,
            weight_bytes=folder.weight_bytes,
        )
        self.context_tokens = min(context, self.cells)
        self.saved_tokens = int(self.cells * SAVED_SHARE)
        self.batch_tokens = max(BATCH_TOKENS, load.parallel)
        self.drafted_tokens = DRAFTED_TOKENS
        self.state_format = (
            f"{self.name}, keys and values {np.dtype(self._decoder.data_type).name} {self._decoder.shape}"
        )
        self._values = self._decoder.key_values(rows=self.slots, tokens=self.context_tokens)
        self._filled = [0] * self.slots
        self._prompting = [True] * self.slots  # no row was wanted yet: what comes is a prompt
        row = SCORING_TOKENS * self._decoder.cell_bytes
        self._scoring_rows = next(
            (rows for rows in SCORING_ROWS if rows * row <= max(0, room_bytes - folder.weight_bytes) * SCORING_SHARE), 1
        )

    def _prove(self) -> None:
        """Make sure that tokens one by one, beside other slots, give what they give in one piece.

        Other graphs than those that write into the buffer they read from would not.
        """
        try:
            distance = self._distance([at % self.vocabulary_size for at in (3, 5, 7)])
        except RuntimeBroken as error:
            raise ModelUnloadable(f"the graph cannot be run: {error}") from error
        if not distance <= UNLIKE:  # nor is what is no number
            raise ModelUnloadable(
                "the graph gives other figures for tokens one by one than in one piece: its weights are damaged, or it "
                "does not keep keys and values as genai_config.json says (past_present_share_buffer)"
            )

    def _distance(self, tokens: Sequence[int]) -> float:
        """Return how far the row after these tokens is from itself computed in another way; 1 is as far as from the row before."""
        before, whole = self.decode([Chunk(0, 0, tokens, wants_row=True, drafted=1)])
        self.clear(0)
        beside = range(1, min(3, self.slots))
        for slot, begun in ((0, tokens[:-1]), *((slot, tokens[:1]) for slot in beside)):
            self.decode([Chunk(slot, 0, begun, wants_row=True)])
        others = [Chunk(slot, 1, tokens[:1], wants_row=False) for slot in beside]
        apart = self.decode([Chunk(0, len(tokens) - 1, tokens[-1:], wants_row=True), *others])[0]
        for slot in (0, *beside):
            self.clear(slot)
        return float(np.linalg.norm(apart - whole) / max(1e-6, float(np.linalg.norm(before - whole))))

    def _gap_marks(self) -> tuple[int, int, int] | None:
        for texts in GAP_TEXTS:
            before, after, gap = (self._tokens.find(text) for text in texts)
            if before is not None and after is not None and gap is not None:
                return before, after, gap
        return None

    def markup_tokens(self, text: str) -> list[int]:
        """Tokenize text of our own."""
        return self._tokens.tokenize(text, special=True)

    def label_tokens(self, label: str) -> list[int]:
        """Tokenize the text of an answer."""
        return self._tokens.tokenize(label, special=False)

    def written(self, token: int) -> bytes:
        """Return the bytes of a token, those of a control token as its name."""
        return self._tokens.written(token)

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token; empty for a control token."""
        return self._tokens.piece(token)

    def ends(self, token: int) -> bool:
        """Return whether this token ends an answer."""
        return token in self._ends

    def vocabulary(self) -> Vocabulary:
        """Return the tokens as a grammar needs them."""
        return self._tokens.vocabulary(sorted(self._ends))

    def scoring(self, cells: int) -> OnnxScoring:
        """Return the scoring context, made when it is first needed and again when it must be larger."""
        if self._scoring is None or self._scoring.cells < cells:
            fixed = None
            if self._scoring is not None:
                fixed = self._scoring.fixed
                self._scoring.close()
                self._scoring = None
            self._scoring = OnnxScoring(self._decoder, cells=cells, rows=self._scoring_rows, fixed=fixed)
        return self._scoring

    def decode(self, chunks: Sequence[Chunk]) -> list[Row]:
        """Append the chunks and return the rows asked for: tokens of answers in one run, pieces in one each.

        A prompt always comes in pieces of several tokens, so that what is known of it already changes nothing.
        """
        check_chunks(self, self._filled, chunks)
        rows: dict[int, list[Row]] = {}
        answering = [chunk for chunk in chunks if len(chunk.tokens) == 1 and not self._prompting[chunk.slot]]
        singles = answering if self._decoder.joins else []
        for group in _neighbours(singles):
            rows |= self._together(group)
        for chunk in chunks:
            if chunk.slot not in rows:
                rows[chunk.slot] = self._alone(chunk)
            self._prompting[chunk.slot] &= not chunk.wants_row
        return [row for chunk in chunks for row in rows[chunk.slot]]

    def _together(self, chunks: Sequence[Chunk]) -> dict[int, list[Row]]:
        """Append a token each, in the order of their slots. Slots between them get one too, behind their own, that nobody sees."""
        first, last = chunks[0].slot, chunks[-1].slot
        given = {chunk.slot: chunk.tokens[0] for chunk in chunks}
        tokens = [[given.get(slot, 0)] for slot in range(first, last + 1)]
        ends = [self._filled[slot] + 1 for slot in range(first, last + 1)]
        logits = self._decoder.run(self._values, first, tokens, ends, chosen=(0,))
        for chunk in chunks:
            self._filled[chunk.slot] += 1
        return {chunk.slot: [logits[chunk.slot - first, 0]] if chunk.wants_row else [] for chunk in chunks}

    def _alone(self, chunk: Chunk) -> list[Row]:
        end, count = chunk.start + len(chunk.tokens), len(chunk.tokens)
        chosen = range(count - 1 - chunk.drafted, count) if chunk.wants_row else ()
        spare = max(0, SEVERAL - count) if self._prompting[chunk.slot] else 0
        tokens = [*chunk.tokens, *[0] * spare]
        logits = self._decoder.run(self._values, chunk.slot, [tokens], [end + spare], chosen=chosen)
        self._filled[chunk.slot] = end
        return list(logits[0])

    def decode_one_each(self, slots: Sequence[int], tokens: Sequence[int]) -> list[Row]:
        """Append one token to each slot and return the rows, in this order."""
        return self.decode(
            [
                Chunk(slot, self._filled[slot], [token], wants_row=True)
                for slot, token in zip(slots, tokens, strict=True)
            ]
        )

    def close(self) -> None:
        """Free the rows, then the graph."""
        if self._scoring is not None:
            self._scoring.close()
        self._decoder.close()
        del self._values


def _neighbours(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Put chunks together whose slots are near each other: an idle slot between costs less than a further run."""
    groups: list[list[Chunk]] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.slot):
        if groups and chunk.slot - groups[-1][-1].slot <= 1 + IDLE_BETWEEN:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return groups


def _chat_template(load: frames.Load, folder: GenerationFolder) -> ChatTemplate | None:
    source = load.model.chat_template if load.model.chat_template is not None else folder.chat_template
    if source is None:
        return None
    try:
        return ChatTemplate(
            source,
            bos=folder.bos,
            eos=folder.eos,
            system_prompt=load.model.system_prompt,
            thinking=load.model.thinking,
        )
    except PromptRejected as error:
        raise ModelUnloadable(str(error)) from error


def _absent(load: frames.Load, *, joins: bool, hidden: bool) -> tuple[str, ...]:
    """Name what the settings ask for and an ONNX graph does not have."""
    found = ["LoRA adapters", "threads by load: their number is fixed when the model is loaded"]
    if not joins:
        found.append("several answers in one run: this graph computes them one after the other")
    if not hidden:
        found.append("hidden states, as features of tasks: the logits of this graph are not a product by fixed weights")
    if load.devices in {DeviceWish.GPU, DeviceWish.NPU}:
        found.append(f"engine.devices {load.devices}: models that write run on the processor")
    if load.kv_type is not KvType.F16:
        found.append(f"engine.kv_type {load.kv_type}: the graph fixes the type of keys and values")
    return tuple(found)
