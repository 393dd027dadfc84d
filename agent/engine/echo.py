"""A completion that begins with its prompt: what is asked of the scoring context, and what that answers."""

from __future__ import annotations

from agent.engine import frames
from agent.engine.text_stream import TextStream
from agent.types import InferenceRequest, Sampling


def is_scored(request: InferenceRequest) -> bool:
    """Whether the prompt's own figures, or its length alone, are asked for."""
    return request.echo or request.sampling.max_tokens == 0


def question(request: InferenceRequest) -> frames.Score:
    """Return what is asked of the scoring context."""
    return frames.Score(
        id=0,
        messages=request.messages,
        prompt=request.prompt,
        echo=True,
        top_logprobs=request.sampling.top_logprobs,
    )


def whole_answer(request: InferenceRequest, scored: frames.Scored) -> frames.Ended | None:
    """Return the end of a request that asks for no more than the scores tell: nothing, or the likeliest token."""
    sampling = request.sampling
    if sampling.max_tokens == 0:
        return frames.Ended(0, finish_reason="length", prompt_tokens=scored.prompt_tokens)
    token = scored.following
    if token is None or sampling.max_tokens != 1 or not _takes_the_best(sampling):
        return None
    if scored.ends:
        end = token if sampling.logprobs else None
        return frames.Ended(0, finish_reason="stop", prompt_tokens=scored.prompt_tokens, end=end)
    stream = TextStream(sampling.stop)
    text, tokens = stream.push(token)
    rest, rest_tokens = stream.flush()
    return frames.Ended(
        0,
        text=text + rest,
        tokens=tokens + rest_tokens,
        finish_reason="stop" if stream.stopped else "length",
        prompt_tokens=scored.prompt_tokens,
        output_tokens=1,
    )


def _takes_the_best(sampling: Sampling) -> bool:
    changed = (sampling.temperature, sampling.min_tokens, len(sampling.logit_bias), sampling.repetition_penalty)
    return changed == (0, 0, 0, 1)
