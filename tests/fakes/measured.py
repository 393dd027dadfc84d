"""Candidates with figures as a measurement would give them."""

from agent.evaluation.picking import Candidate
from agent.models.fitting import MIB, PROGRAM_BYTES, Need
from agent.models.quality import Estimate, Quality, Speed, TextFigures


def quality(followed, bits):
    text = TextFigures(name="shipped text", tokens=900, perplexity=Estimate(9, 8, 10), bits_per_byte=bits)
    return Quality(
        digest="0" * 64,
        measured_at_ms=1,
        machine="chip",
        runtime="r",
        reference=None,
        reference_digest=None,
        texts=(text,),
        instructions_followed=followed,
        instructions_asked=20,
        needles=(),
        speed=Speed(tokens_per_second=1, first_token_ms=1, prompt_tokens=1, memory_bytes=1),
    )


def candidate(name, followed=15, rate=20.0, *, bits=1.0, first_ms=300.0, mib=400, measured=True, **more):
    return Candidate(
        name=name,
        parameters=mib * 1_000_000,
        bytes=mib * MIB,
        need=Need(weights=mib * MIB - PROGRAM_BYTES, cache=0, context_tokens=2048, exact=True),
        speed=Speed(tokens_per_second=rate, first_token_ms=first_ms, prompt_tokens=256, memory_bytes=mib * MIB),
        quality=quality(followed, bits) if measured else None,
        **more,
    )
