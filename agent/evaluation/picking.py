"""Which of several measured models this device should answer with: a decision over figures, without any work."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agent.models.fitting import MIB, Need, Room
from agent.models.quality import LEAST_INSTRUCTIONS, Quality, Speed

QUESTIONS_APART = 1  # answers to the instructions by which two models may differ and count as equally good
BITS_APART = 1.03  # times more bits per byte, the same


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What the answering model may cost, and what it must be worth."""

    room: Room
    first_token_ms: float | None = None  # after a prompt of about 256 tokens
    least_followed: float = LEAST_INSTRUCTIONS  # share of the direct instructions
    below_floor: bool = False  # take also what was measured below the floor

    @property
    def is_floor(self) -> bool:
        """Whether no more is wanted than the floor itself, which the demo model is exempt from."""
        return self.least_followed <= LEAST_INSTRUCTIONS


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the store and what is known of it here; what was not measured is None."""

    name: str
    parameters: int | None
    bytes: int
    need: Need
    demo: bool = False
    speed: Speed | None = None
    quality: Quality | None = None
    kept: bool = False  # nothing had to be measured
    fault: str = ""  # why it could not be measured

    @property
    def followed(self) -> float:
        """Share of the direct instructions that it follows."""
        if self.quality is None:
            return 0.0
        return self.quality.instructions_followed / max(1, self.quality.instructions_asked)

    @property
    def bits_per_byte(self) -> float:
        """Of the text that comes with the program; infinite where none was read."""
        return self.quality.texts[0].bits_per_byte if self.quality and self.quality.texts else float("inf")


class Refusal(msgspec.Struct, frozen=True):
    """Why a candidate is not taken, and what would change that."""

    reason: str
    remedy: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate and whether it is within the budget."""

    candidate: Candidate
    refusal: Refusal | None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """The end of it."""

    picked: str | None
    why: str
    verdicts: tuple[Verdict, ...]
    next_better: str  # what the next better one would need; empty: nothing better is known


def cost_refusal(one: Candidate, budget: Budget) -> Refusal | None:
    """Return why a candidate costs too much, by what is known so far; None: it does not."""
    room = budget.room
    if one.need.total > room.bytes:
        return Refusal(
            f"needs {one.need.total // MIB} MiB; {room.bytes // MIB} MiB are {room.why}",
            f"{(one.need.total - room.bytes) // MIB + 1} MiB more memory",
        )
    if one.fault:
        return Refusal(one.fault)
    if one.speed is None:
        return None
    if one.speed.memory_bytes > room.bytes:
        return Refusal(
            f"took {one.speed.memory_bytes // MIB} MiB when it ran; {room.bytes // MIB} MiB are {room.why}",
            f"{(one.speed.memory_bytes - room.bytes) // MIB + 1} MiB more memory",
        )
    if budget.first_token_ms is not None and one.speed.first_token_ms > budget.first_token_ms:
        return Refusal(
            f"first token after {one.speed.first_token_ms:.0f} ms, {budget.first_token_ms:.0f} ms are allowed",
            f"--first-token {one.speed.first_token_ms:.0f}",
        )
    return None


def refusal(one: Candidate, budget: Budget) -> Refusal | None:
    """Return why a measured candidate is not within the budget; None: it is."""
    if costly := cost_refusal(one, budget):
        return costly
    if one.quality is None:
        return Refusal("its quality was not measured")
    if one.quality.faults and not (budget.below_floor or one.demo):
        return Refusal(f"below the floor: {one.quality.faults[0]}", "--force, or a better source of it")
    if one.followed < budget.least_followed and not (budget.below_floor or (one.demo and budget.is_floor)):
        return Refusal(
            f"follows {one.quality.instructions_followed} of {one.quality.instructions_asked} instructions, "
            f"{budget.least_followed:.0%} are wanted",
            f"--min-quality {one.followed:.2f}",
        )
    return None


def choose(candidates: Sequence[Candidate], budget: Budget) -> Choice:
    """Return the best within the budget.

    Best follows most of the direct instructions, then predicts the text with the fewest bits. Those that
    cannot be told apart from it by so few questions count as equally good, and the fastest of them is
    taken. The demo model is taken only when no other is above the floor.
    """
    verdicts = tuple(Verdict(candidate=one, refusal=refusal(one, budget)) for one in candidates)
    within = [one.candidate for one in verdicts if one.refusal is None]
    within = [one for one in within if not one.demo and one.quality and not one.quality.faults] or within
    if not within:
        return Choice(
            picked=None,
            why="no candidate is within the budget",
            verdicts=verdicts,
            next_better=_next_better(verdicts, None),
        )
    best = max(within, key=_worth)
    equals = [one for one in within if _as_good(one, best)]
    picked = max(equals, key=lambda one: one.speed.tokens_per_second if one.speed else 0.0)
    assert picked.quality is not None
    assert picked.speed is not None
    why = (
        f"{picked.name} follows {picked.quality.instructions_followed} of {picked.quality.instructions_asked} "
        f"instructions at {picked.speed.tokens_per_second:.0f} tokens a second, first token after "
        f"{picked.speed.first_token_ms:.0f} ms, in {picked.speed.memory_bytes // MIB} MiB"
    )
    if others := [one.name for one in equals if one is not picked]:
        why += f"; it is the fastest of those that cannot be told apart by quality ({', '.join(others)})"
    elif len(within) > 1:
        why += "; no other within the budget is as good"
    if picked.demo:
        why += "; it is the demo model, and no other is above the floor"
    return Choice(picked=picked.name, why=why, verdicts=verdicts, next_better=_next_better(verdicts, picked))


def _worth(one: Candidate) -> tuple[float, float]:
    return one.followed, -one.bits_per_byte


def _as_good(one: Candidate, best: Candidate) -> bool:
    asked = best.quality.instructions_asked if best.quality else 1
    apart = (best.followed - one.followed) * asked
    return apart < QUESTIONS_APART + 0.5 and one.bits_per_byte <= best.bits_per_byte * BITS_APART


def _next_better(verdicts: Sequence[Verdict], picked: Candidate | None) -> str:
    """Say what the cheapest of the better ones that were refused would need."""
    better = [one for one in verdicts if one.refusal and one.refusal.remedy and (not picked or _is_better(one, picked))]
    if not better:
        return ""
    nearest = min(better, key=lambda one: one.candidate.need.total)
    assert nearest.refusal is not None
    return f"{nearest.candidate.name}: {nearest.refusal.reason}; it would take {nearest.refusal.remedy}"


def _is_better(one: Verdict, picked: Candidate) -> bool:
    """By what was measured; where its quality was not, by the number of its weights."""
    if one.candidate.quality is None:
        return (one.candidate.parameters or 0) > (picked.parameters or 0)
    return _worth(one.candidate) > _worth(picked)
