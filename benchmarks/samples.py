"""What is done in one round to one contestant, and the figures that come of it.

Each function takes the field, the contestant's name and a key that is new in every round but
the same for all contestants, and returns named figures.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import llama_peer

from benchmarks import label_walk, prompts
from benchmarks.contestants import MODEL, OURS, PYTHON, SHARED_SYSTEM, SLOTS, Contestant, Field, model_file
from benchmarks.drafting import COPY_HEAVY
from benchmarks.http_load import Answer, at_once, chat, get, post

Figures = dict[str, float]
Sample = Callable[[Field, str, str], Figures]

LLAMA_BENCH = "llama-bench"
SLOT_FILE = "shared-prefix.bin"
SAVE_PATIENCE_S = 30.0
COPY_TOKENS = 56  # fewer than there are to copy
CEILING_TOKENS = 64
FRAME_TOKENS = 20  # of SYSTEM and the template around one message
LENGTHS_DIFFER = 3  # tokens by which a prompt of so many words may miss its length
INSTRUCTION = "Sort the text that the user sends. Reply with exactly one of these labels and nothing else:\n"
BRIEF_INSTRUCTION = (  # as long as a system prompt that explains instead of listing
    "You sort messages to the support of a bank. Think of what the customer wants to have done, not of the mood that "
    "the message was written in. Reply with the label of the matter and with nothing else: no sentence, no reason."
)
OTHER_LABELS = ("yes", "no")
SCHEMA = {
    "type": "object",
    "properties": {
        "topic": {"enum": ["card", "account", "transfer", "refund", "identity"]},
        "urgent": {"type": "boolean"},
        "mood": {"enum": ["friendly", "neutral", "angry"]},
        "department": {"enum": ["payments", "security", "support"]},
        "priority": {"enum": [1, 2, 3, 4, 5]},
    },
    "required": ["topic", "urgent", "mood", "department", "priority"],
    "additionalProperties": False,
}


class _Done(NamedTuple):
    answers: list[Answer]
    wall_s: float
    cpu_s: float


def _ask(contestant: Contestant, bodies: Sequence[dict[str, object]]) -> _Done:
    """Send all bodies at once."""
    before = contestant.cpu_seconds()
    answers, wall_s = at_once([lambda body=body: chat(contestant.address, body) for body in bodies])  # type: ignore[misc]
    return _Done(answers, wall_s, contestant.cpu_seconds() - before)


def warm_up(field: Field, side: str) -> None:
    """Have a server touch its memory, open its files and start its threads."""
    if side != LLAMA_BENCH:
        contestant = field[side]
        stream = side != PYTHON  # its streams do not tell how many tokens they had
        _ask(contestant, [contestant.chat_body(prompts.short(f"warm {n}"), 4, stream=stream) for n in range(2)])


def speed(clients: int, tokens: int, *, words: int = 0, stream: bool = True) -> Sample:
    """Return a sample: ``clients`` chats at once of ``tokens`` tokens each, after a short prompt or one of ``words``."""

    def sample(field: Field, side: str, key: str) -> Figures:
        contestant = field[side]
        texts = [
            prompts.of_words(words, f"{key} {n}") if words else prompts.short(f"{key} {n}") for n in range(clients)
        ]
        done = _ask(contestant, [contestant.chat_body(text, tokens, stream=stream) for text in texts])
        if lengths := {answer.completion_tokens for answer in done.answers} - {tokens}:
            raise RuntimeError(f"{side} wrote {lengths} tokens instead of {tokens}: the comparison would not be fair")
        if words:
            _check_length(side, done.answers, words + FRAME_TOKENS)
        return {
            "tokens_per_s": clients * tokens / done.wall_s,
            "cpu_s_per_answer": done.cpu_s / clients,
            "first_ms": 1000 * statistics.median(answer.first_s for answer in done.answers),
        }

    return sample


def _check_length(side: str, answers: Sequence[Answer], wanted: int) -> None:
    for answer in answers:
        if abs(answer.prompt_tokens - wanted) > LENGTHS_DIFFER:
            raise RuntimeError(f"{side} read {answer.prompt_tokens} prompt tokens instead of {wanted}")


def first_token(prompt_tokens: int) -> Sample:
    """Return a sample: the time to the first token after a prompt of that length, its words never seen before."""

    def sample(field: Field, side: str, key: str) -> Figures:
        contestant = field[side]
        body = contestant.chat_body(prompts.of_words(prompt_tokens - FRAME_TOKENS, key), 1)
        done = _ask(contestant, [body])
        _check_length(side, done.answers, prompt_tokens)
        return {"first_ms": 1000 * done.answers[0].first_s, "cpu_s_per_answer": done.cpu_s}

    return sample


def first_after_shared(field: Field, side: str, key: str) -> Figures:
    """The time to the first token of a new question behind a system prompt of 400 tokens that was used before."""
    contestant = field[side]
    _ask_behind_shared(contestant, f"{key} before")  # brings the system prompt in, where it is not yet
    found = _ask_behind_shared(contestant, key)
    return {"first_ms": 1000 * found.first_s, "cached_tokens": found.cached_tokens}


def _ask_behind_shared(contestant: Contestant, key: str, **more: object) -> Answer:
    body = contestant.chat_body(prompts.short(key), 1, system=SHARED_SYSTEM)
    return _ask(contestant, [body | more]).answers[0]


def first_after_restart(field: Field, side: str, key: str) -> Figures:
    """The same right after a restart, from what was saved, and the next question's time beside it.

    Ours comes ready with it; to llama-server a client says which slot to restore, in the time that counts.
    """
    own = {"id_slot": 0} if side == SLOTS else {}
    if not (field.folder(side) / SLOT_FILE).exists():
        _ask_behind_shared(field[side], f"{key} before", **own)
        _save_prefix(field[side], side)
        (field.folder(side) / SLOT_FILE).touch()
    field.close(side)
    contestant = field[side]
    begun = time.perf_counter()
    if side == SLOTS:
        post(contestant.address, "/slots/0?action=restore", {"filename": SLOT_FILE})
    restored_s = time.perf_counter() - begun
    first = _ask_behind_shared(contestant, key, **own)
    warm = _ask_behind_shared(contestant, f"{key} again", **own)
    return {
        "restart_ms": 1000 * (restored_s + first.first_s),
        "warm_ms": 1000 * warm.first_s,
        "cached_tokens": first.cached_tokens,
    }


def _save_prefix(contestant: Contestant, side: str) -> None:
    if side == SLOTS:
        post(contestant.address, "/slots/0?action=save", {"filename": SLOT_FILE})
        return
    until = time.monotonic() + SAVE_PATIENCE_S
    while not get(contestant.address, "/v1/prefixes/shared")["saved"]:
        if time.monotonic() > until:
            raise RuntimeError(f"{side} has not saved its prefix within {SAVE_PATIENCE_S:g} s")
        time.sleep(0.1)


def copying(field: Field, side: str, key: str) -> Figures:
    """Decode speed of answers that repeat much of their prompts."""
    contestant = field[side]
    tokens, seconds = 0, 0.0
    for conversation in COPY_HEAVY:
        messages = [{"role": message.role, "content": message.content} for message in conversation]
        answer = _ask(contestant, [contestant.conversation(messages, COPY_TOKENS)]).answers[0]
        tokens += answer.completion_tokens - 1
        seconds += answer.last_s - answer.first_s
    return {"decode_per_s": tokens / seconds}


def ceiling(field: Field, side: str, key: str) -> Figures:
    """Decode alone: tokens per second after the first one; for llama-bench what it prints."""
    if side == LLAMA_BENCH:
        command = [str(llama_peer.find() / llama_peer.BENCH), "-m", str(model_file())]
        command += ["-p", "0", "-n", str(CEILING_TOKENS), "-r", "1", "-o", "json"]
        done = subprocess.run(command, capture_output=True, check=True)
        return {"decode_per_s": float(json.loads(done.stdout)[0]["avg_ts"])}
    contestant = field[side]
    answer = _ask(contestant, [contestant.chat_body(prompts.short(key), CEILING_TOKENS + 1)]).answers[0]
    return {"decode_per_s": (answer.completion_tokens - 1) / (answer.last_s - answer.first_s)}


def labels(names: Sequence[str], *, listed: bool) -> Sample:
    """Return a sample: the likelihood of all labels for a new message, nothing of the prompt in a cache.

    ``listed``: whether the prompt names them; the server's part and ours have the same prompt.
    """
    instruction = INSTRUCTION + "\n".join(sorted(names)) if listed else BRIEF_INSTRUCTION
    paths: dict[str, list[label_walk.Path]] = {}
    known: set[Contestant] = set()

    def sample(field: Field, side: str, key: str) -> Figures:
        contestant = field[side]
        text = prompts.message(key)
        if side == OURS:
            # Untimed: what is kept for a set of labels (scores of inputs without content), and then
            # another question, so that the scoring context holds another prompt.
            if contestant not in known:
                post(contestant.address, "/v1/classify", _classify(names, instruction, prompts.message("kept")))
                known.add(contestant)
            post(contestant.address, "/v1/classify", _classify(OTHER_LABELS, "Is it so?", key))
        elif side not in paths:
            paths[side] = [label_walk.tokens_of(contestant.address, name) for name in names]
        before, begun = contestant.cpu_seconds(), time.perf_counter()
        if side == OURS:
            found = post(contestant.address, "/v1/classify", _classify(names, instruction, text))
            assert len(found["labels"]) == len(names)
        else:
            label_walk.likelihoods(contestant.address, _rendered(instruction, text), paths[side], cold=True)
        return {
            "wall_ms": 1000 * (time.perf_counter() - begun),
            "cpu_s": contestant.cpu_seconds() - before,
        }

    return sample


def _classify(names: Sequence[str], instruction: str, text: str) -> dict[str, object]:
    messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
    own = {"route_mode": "local_only", "on_low_confidence": "draft"}
    return {"model": MODEL, "labels": list(names), "messages": messages, "outrider": own}


def _rendered(system: str, text: str) -> str:
    turns = (("system", system), ("user", text))
    return "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns) + "<|im_start|>assistant\n"


def schema(clients: int) -> Sample:
    """Return a sample: ``clients`` answers at once in the form of a JSON schema."""
    form = {"type": "json_schema", "json_schema": {"name": "ticket", "strict": True, "schema": SCHEMA}}

    def sample(field: Field, side: str, key: str) -> Figures:
        contestant = field[side]
        bodies = []
        for index in range(clients):
            body = contestant.chat_body(f"{prompts.message(f'{key} {index}')} Describe this as JSON.", 100)
            for name in contestant.endless():
                del body[name]
            bodies.append(body | {"response_format": form})
        done = _ask(contestant, bodies)
        for answer in done.answers:
            if json.loads(answer.text).keys() != SCHEMA["properties"].keys():  # type: ignore[attr-defined]
                raise RuntimeError(f"{side} wrote what the schema does not allow: {answer.text}")
        return {
            "answers_per_s": clients / done.wall_s,
            "tokens_per_s": sum(answer.completion_tokens for answer in done.answers) / done.wall_s,
            "cpu_s_per_answer": done.cpu_s / clients,
        }

    return sample


def memory(field: Field, side: str, key: str) -> Figures:
    """Resident memory after 16 chats at once."""
    contestant = field[side]
    _ask(contestant, [contestant.chat_body(prompts.short(f"{key} {n}"), 4) for n in range(16)])
    return {"resident_mib": contestant.resident_mib()}
