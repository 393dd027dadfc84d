"""A part of a text as a model reads it: the figures that all others are made of."""

from __future__ import annotations

import msgspec

WINDOW_TOKENS = 256


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one window: a figure for each position that counts. Without a reference, three are empty."""

    begin: int  # first token of the text
    surprise: tuple[float, ...]  # -ln p(following token), nats
    reference_surprise: tuple[float, ...]
    divergence: tuple[float, ...]  # KL(reference || model), nats
    agreement: tuple[bool, ...]
    likeliest: tuple[int, ...]  # tokens
    expected: tuple[int, ...] = ()  # what the reference puts first
    bytes: int  # of the following tokens
    damaged: bool = False  # the model computed no number
