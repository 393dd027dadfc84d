"""What was measured of a model on this device, and the floor below which it is not served."""

from __future__ import annotations

import msgspec

LEAST_INSTRUCTIONS = 0.5  # share of the direct instructions that are followed
LEAST_AGREEMENT = 0.5  # share of positions with the same likeliest token as the reference
LEAST_COSINE = 0.9  # mean between the vectors of an encoder and those of its source
LEAST_FOUND = 0.6  # share of needles that makes a length of context useful


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its 95 % interval: bootstrap over blocks of neighbouring tokens; of an accuracy, Wilson's."""

    value: float
    low: float
    high: float


class TextFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How a model predicts one text, and how that differs from a reference."""

    name: str
    tokens: int  # positions that count
    perplexity: Estimate
    bits_per_byte: float  # comparable between vocabularies
    reference_perplexity: Estimate | None = None
    divergence: Estimate | None = None  # KL(reference || model), mean nats per token
    agreement: Estimate | None = None  # share of positions with the same likeliest token, 0..1
    fault: str = ""  # sign of a damaged file: no numbers, or one token whatever the text


class Needles(msgspec.Struct, frozen=True):
    """How many facts were found again in a prompt of this length, spread over its depth."""

    prompt_tokens: int
    found: int
    asked: int

    @property
    def passed(self) -> bool:
        return self.found >= LEAST_FOUND * self.asked


class EncoderFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How far an encoder agrees with its source on some texts; None: not compared."""

    texts: int
    cosine: float | None = None  # mean, -1..1
    least_cosine: float | None = None
    neighbours: Estimate | None = None  # share of texts whose nearest other text is the same


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """What the source of a model says of a text that ships: on any device the model must say much the same."""

    reference: str
    reference_digest: str
    text_digest: str  # SHA-256
    likeliest: tuple[int, ...]  # the token it puts first at each position that counts


class TaskFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How often a model chose the right label of a user's own examples."""

    name: str
    digest: str  # of the file
    labels: int
    examples: int
    accuracy: Estimate
    majority: float  # accuracy of always saying the commonest label


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer costs here."""

    tokens_per_second: float  # one stream
    first_token_ms: float
    prompt_tokens: int  # of that first token's prompt, nothing of it cached
    memory_bytes: int  # of the worker, with its context


class MeasuredSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer costs under these conditions; under others it is measured anew."""

    digest: str
    device: str  # processor and threads, as `DeviceProfile.kind` has them
    version: str  # of this program
    context_tokens: int
    threads: int  # 0: the adaptive choice
    measured_at_ms: int
    speed: Speed


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement. It holds for these bytes only: ``digest``."""

    digest: str
    measured_at_ms: int
    machine: str  # processor
    runtime: str
    reference: str | None  # name of the model that was compared with
    reference_digest: str | None
    texts: tuple[TextFigures, ...]
    instructions_followed: int
    instructions_asked: int
    needles: tuple[Needles, ...]  # from short to long, up to the first length that failed
    speed: Speed
    tasks: tuple[TaskFigures, ...] = ()
    encoder: EncoderFigures | None = None  # of a model that does not write; then the rest is empty but for the speed
    golden: Golden | None = None  # goes with the model where its source does not

    @property
    def useful_context_tokens(self) -> int | None:
        """The longest prompt whose needles were found; None: all lengths that were tried passed, or not one did."""
        passed = [needles.prompt_tokens for needles in self.needles if needles.passed]
        return max(passed) if passed and len(passed) < len(self.needles) else None

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the model is below the floor, each with the floor; empty when it is not."""
        found = [f"{text.name}: {text.fault}" for text in self.texts if text.fault]
        if self.instructions_followed < LEAST_INSTRUCTIONS * self.instructions_asked:
            least = round(LEAST_INSTRUCTIONS * self.instructions_asked)
            found.append(
                f"follows {self.instructions_followed} of {self.instructions_asked} direct instructions, the floor is {least}"
            )
        found += [
            f"{text.name}: agrees with {self.reference} on {text.agreement.value:.0%} of the tokens, "
            f"the floor is {LEAST_AGREEMENT:.0%}"
            for text in self.texts
            if text.agreement and not text.fault and text.agreement.value < LEAST_AGREEMENT
        ]
        if self.encoder and self.encoder.cosine is not None and self.encoder.cosine < LEAST_COSINE:
            found.append(
                f"its vectors have a cosine of {self.encoder.cosine:.2f} to those of {self.reference}, "
                f"the floor is {LEAST_COSINE:.2f}"
            )
        return tuple(found)
