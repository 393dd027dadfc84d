"""Several answers to one prompt: ``n`` requests to the engine, told as one.

The first goes ahead; the others follow with its first token, when the engine has its prompt
ready to be shared. Answer ``i`` is drawn with seed + i, so that a seed repeats all of them.
Where more are drawn than are wanted, those with the highest mean log-probability are told,
best first.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Callable

import msgspec

from agent.types import Choice, Delta, Generation, InferenceRequest, Sampling

Generate = Callable[[InferenceRequest], AsyncGenerator[Delta | Generation]]
_Told = tuple[int, Delta | Generation | BaseException]


async def generate_choices(request: InferenceRequest, generate: Generate) -> AsyncGenerator[Delta | Generation]:
    """Yield the deltas of all answers as they come, then one Generation.

    A failure of any answer is the failure of the request, and ends the others. Closing the
    iterator cancels all.
    """
    told: asyncio.Queue[_Told] = asyncio.Queue()
    first, *rest = _single_requests(request)
    tasks = [asyncio.create_task(_follow(0, first, generate, told))]
    found: dict[int, Generation] = {}
    try:
        while len(found) < request.sampling.drawn:
            choice, event = await told.get()
            if isinstance(event, BaseException):
                raise event
            if rest and not (isinstance(event, Generation) and event.failure):
                tasks += [
                    asyncio.create_task(_follow(index, other, generate, told)) for index, other in enumerate(rest, 1)
                ]
                rest = []
            if isinstance(event, Delta):
                yield msgspec.structs.replace(event, choice=choice)
                continue
            found[choice] = event
            if event.failure:
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    yield _joined(found, request.sampling)


async def _follow(choice: int, request: InferenceRequest, generate: Generate, told: asyncio.Queue[_Told]) -> None:
    try:
        async with contextlib.aclosing(generate(request)) as events:
            async for event in events:
                told.put_nowait((choice, event))
    except Exception as error:
        told.put_nowait((choice, error))


def _single_requests(request: InferenceRequest) -> list[InferenceRequest]:
    sampling = request.sampling
    count = range(sampling.drawn)
    seeds = [None if sampling.seed is None else (sampling.seed + index) & 0xFFFF_FFFF for index in count]
    return [
        msgspec.structs.replace(
            request,
            sampling=msgspec.structs.replace(sampling, n=1, best_of=1, seed=seed),
            echo=request.echo and not index,  # the prompt's figures are the same for all
        )
        for index, seed in enumerate(seeds)
    ]


def _joined(found: dict[int, Generation], sampling: Sampling) -> Generation:
    """Put the answers into one value: the first, or the one that failed, with the others in it."""
    failed = next((generation for generation in found.values() if generation.failure), None)
    if failed is not None:
        return failed
    told = [found[choice] for choice in sorted(found)]
    echoed = told[0].prompt_logprobs
    if sampling.best_of > sampling.n:
        told = sorted(told, key=_mean_logprob, reverse=True)[: sampling.n]
    first, *others = told
    return msgspec.structs.replace(
        first,
        prompt_logprobs=echoed,
        others=tuple(
            Choice(
                text=other.text,
                finish_reason=other.finish_reason,
                tokens=other.tokens,
                tool_calls=other.tool_calls,
                incomplete=other.incomplete,
                end=other.end,
                thoughts=other.thoughts,
            )
            for other in others
        ),
        output_tokens=sum(generation.output_tokens for generation in found.values()),
        thought_tokens=sum(generation.thought_tokens for generation in found.values()),
        accepted_tokens=sum(generation.accepted_tokens for generation in found.values()),
        rejected_tokens=sum(generation.rejected_tokens for generation in found.values()),
        duration_ms=max(generation.duration_ms for generation in found.values()),
    )


def _mean_logprob(generation: Generation) -> float:
    tokens = generation.tokens
    return math.fsum(token.logprob for token in tokens) / len(tokens) if tokens else -math.inf
