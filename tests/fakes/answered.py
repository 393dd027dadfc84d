"""Requests to a scheduler, to their ends."""

from agent.engine import frames
from agent.types import Message


def answered(scheduler, asks):
    """Return text, tokens and end of the answer to every (text, sampling), and the number of steps."""
    told = {}
    for number, (text, sampling) in enumerate(asks):
        told[number] = ["", (), None]
        scheduler.submit(frames.Generate(id=number, messages=(Message("user", text),), sampling=sampling))
    steps = 0
    while not scheduler.idle:
        step = scheduler.step()
        steps += 1
        for event in (*step.pieces, *step.ended):
            told[event.id][0] += event.text
            told[event.id][1] += event.tokens
        for ended in step.ended:
            told[ended.id][2] = ended
    return told, steps
