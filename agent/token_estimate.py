"""How many tokens a send will take, as far as that can be known before. Pure.

What is expected is shown and weighed; what is possible at most is what budgets reserve.
"""

from __future__ import annotations

import msgspec

from agent.types import Generation, Handoff, InferenceRequest

BYTES_PER_TOKEN = 4  # of English text and of JSON in the usual vocabularies, about
INSTRUCTION_TOKENS = 60  # of a handoff with a draft
UNKNOWN_ANSWER_TOKENS = 256  # where neither a draft nor a limit says more


class TokenEstimate(msgspec.Struct, frozen=True):
    """What is expected of one send."""

    input_tokens: int
    output_tokens: int


def estimate(request: InferenceRequest, generation: Generation | None, handoff: Handoff) -> TokenEstimate:
    """Return what asking a target is expected to take: of the input as the local model counted it, else by its length.

    The encoder of a head counts the text alone, while instructions and labels go along.
    """
    drafted = generation is not None and generation.failure is None
    counted = generation.prompt_tokens if generation is not None and drafted else 0
    by_length = input_tokens(request)
    sent = max(counted, by_length) if request.labels else counted or by_length
    answer = generation.output_tokens if generation is not None and drafted else 0
    if drafted and handoff is not Handoff.FRESH:
        sent += answer + INSTRUCTION_TOKENS
    most = request.sampling.max_tokens
    if request.labels:  # a label is scored, not written; who is asked writes it
        answer = max(-(-len(label.encode()) // BYTES_PER_TOKEN) for label in request.labels)
    expected = answer or (UNKNOWN_ANSWER_TOKENS if most is None else most)
    return TokenEstimate(sent, expected if most is None else min(expected, most))


def input_tokens(request: InferenceRequest) -> int:
    """Return about how many tokens a request has, by its length alone; at least 1."""
    length = sum(len((message.parts or message.content).encode()) for message in request.messages)
    length += sum(len(label.encode()) for label in request.labels)
    if request.response_format is not None:
        length += len(request.response_format.source.encode())
    if request.tools is not None:
        length += sum(
            len(one.name) + len(one.description or "") + len(one.parameters or "") for one in request.tools.functions
        )
    return max(1, -(-length // BYTES_PER_TOKEN))
