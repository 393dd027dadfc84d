"""``POST /v1/classify``: one of given labels, with the probability of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agent.api.answer import LOCAL, Given, outrider_object, usage
from agent.api.answering import answer_whole
from agent.api.classify_request import parse_classify
from agent.api.deps import ApiDeps
from agent.api.model_choice import WRITING, model_card
from agent.api.several_labels import several_labels
from agent.classification import sorting
from agent.confidence import labels as label_confidence
from agent.encoder import EncoderTask
from agent.errors import InvalidRequest
from agent.types import InferenceRequest


async def classify(request: Request) -> Response:
    """``POST /v1/classify``."""
    return await answer_whole(request, parse_classify, classification, _with_labels)


async def _with_labels(deps: ApiDeps, request: InferenceRequest) -> InferenceRequest | Response:
    """Return the request with the labels of its model where it names none.

    A model whose labels do not exclude each other answers at once. Raises InvalidRequest where
    nobody names labels.
    """
    if request.task is not None:
        return request  # with the labels of its task; a head may answer it without the model
    encoder = deps.engine.encoder(request.model)
    if encoder is None and not WRITING & {*model_card(deps, request.model).tasks}:
        await deps.engine.make_ready(request.model)
        encoder = deps.engine.encoder(request.model)
    if encoder is not None and encoder.task is EncoderTask.CLASSIFY and encoder.several:
        return await several_labels(deps, request, encoder)
    if request.labels:
        return request
    if encoder is None or encoder.task is not EncoderTask.CLASSIFY:
        raise InvalidRequest(
            f"labels is missing: model {request.model} has none of its own",
            param="labels",
            code="missing_required_parameter",
        )
    text = request.messages[-1].content
    messages = sorting(text, encoder.labels) if len(request.messages) == 1 else request.messages
    return msgspec.structs.replace(request, messages=messages, labels=encoder.labels)


def classification(given: Sequence[Given]) -> dict[str, Any]:
    """Return the ``classification`` object.

    ``label`` is who answered's choice; ``probability``, ``margin``, ``mass``, ``out_of_scope`` and
    the list of ``labels`` (in the request's order) are the local model's or head's, where it was asked.
    """
    ((record, answer, _),) = given
    found: dict[str, Any] = {
        "id": f"classify-{record.id}",
        "object": "classification",
        "created": record.received_at_ms // 1000,
        "model": answer.model,
        "label": answer.text,
        "refusal": answer.refusal,
        "probability": None,
        "margin": None,
        "mass": None,
        "out_of_scope": None,
        "labels": [],
    }
    scores = record.generation.label_scores if record.generation else None
    if scores is not None and record.request is not None:
        probabilities = label_confidence.distribution(scores)
        chosen = record.request.labels.index(answer.text) if answer.text in record.request.labels else None
        signals = record.confidence.signals if record.confidence else {}
        by_us = chosen is not None and probabilities and answer.source == LOCAL
        found["probability"] = probabilities[chosen] if by_us and chosen is not None else None
        found["margin"] = signals.get("margin")
        found["mass"] = scores.mass
        found["out_of_scope"] = signals.get("out_of_scope")
        nothing = (None,) * len(record.request.labels)  # a head that reads vectors alone asked no language model
        found["labels"] = [
            {"label": label, "probability": probability, "logprob": logprob, "tokens": tokens}
            for label, probability, logprob, tokens in zip(
                record.request.labels,
                probabilities or nothing,
                scores.logprobs or nothing,
                scores.token_counts or nothing,
                strict=True,
            )
        ]
    found["usage"] = usage(answer)
    found["outrider"] = outrider_object(record, answer)
    found["outrider"]["estimator"] = record.confidence.estimator if record.confidence else None
    return found


ROUTES = [Route("/v1/classify", classify, methods=["POST"])]
