"""The likelihood of every label by way of llama-server: the nearest exact road that its API has.

It returns no log-probabilities of a given text, only the most likely next tokens of a prompt.
So a client walks down the tree of the labels' tokens, one request for each inner node, and asks
for so many alternatives that the wanted ones are among them; where one is not, once more for
the whole vocabulary. The prompt's cache makes each request decode little; the order of the walk
(depth first) makes the most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.http_load import Address, post

ALTERNATIVES = 1000
VOCABULARY = 49_152

Path = tuple[int, ...]


def tokens_of(address: Address, text: str) -> Path:
    """Return the tokens of a text without control tokens."""
    return tuple(post(address, "/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"])


def inner_nodes(labels: Sequence[Path]) -> dict[Path, list[int]]:
    """Return the inner nodes of the labels' tree, the root first, each with the tokens that follow it."""
    found: dict[Path, list[int]] = {}
    for label in sorted(set(labels)):
        for depth in range(len(label)):
            following = found.setdefault(label[:depth], [])
            if label[depth] not in following:
                following.append(label[depth])
    return found


def likelihoods(address: Address, prompt: str, labels: Sequence[Path], *, cold: bool) -> list[float]:
    """Return the log-likelihood of each label, nats. ``cold``: nothing of the prompt comes from a cache."""
    above: dict[Path, float] = {(): 0.0}
    for path, following in inner_nodes(labels).items():
        cached = bool(path) or not cold
        found = _next_tokens(address, prompt, path, ALTERNATIVES, cached=cached)
        if not all(token in found for token in following):
            found = _next_tokens(address, prompt, path, VOCABULARY, cached=True)
        for token in following:
            above[(*path, token)] = above[path] + found[token]
    return [above[label] for label in labels]


def _next_tokens(address: Address, prompt: str, path: Path, count: int, *, cached: bool) -> dict[int, float]:
    body: dict[str, Any] = {
        "prompt": [prompt, *path],
        "n_predict": 1,
        "n_probs": count,
        "temperature": 0,
        "cache_prompt": cached,
        "id_slot": 0,
    }
    found = post(address, "/completion", body)["completion_probabilities"][0]
    return {entry["id"]: entry["logprob"] for entry in found["top_logprobs"]}
