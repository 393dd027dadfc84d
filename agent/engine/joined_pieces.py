"""Pieces of answers that follow each other closely go out together.

Each frame wakes the daemon, and each event that it writes wakes a client. On a device whose
cores all compute, the time for that is taken from the next step. Nobody reads faster than
``JOIN_S``; an answer's first piece, and its last, wait for nothing.
"""

from __future__ import annotations

import msgspec

from agent.engine import frames

JOIN_S = 0.04  # between two frames: as many a second as a film has pictures


class JoinedPieces:
    """What steps brought and nobody was told yet. Pure: times are passed in, seconds."""

    def __init__(self) -> None:
        self._held: list[frames.Piece] = []
        self._since = 0.0  # when the oldest of them came
        self._last = 0.0  # when the last step ended
        self._begun: set[int] = set()  # requests of which a piece went out

    def add(self, step: frames.Step, now: float, held_s: float = 0.0) -> frames.Step | None:
        """Take what a step that ended now has brought, the first of it ``held_s`` ago; return what is to be told, or None."""
        spent, self._last = now - self._last, now
        if not self._held:
            self._since = now - held_s
        for piece in step.pieces:
            self._hold(piece)
        # The next step will take as long as this one: what would then be too late goes now.
        late = now - self._since + spent >= JOIN_S
        told = bool(step.ended or step.scored or step.encoded)
        if not told and not late and self._begun.issuperset(piece.id for piece in step.pieces):
            return None
        pieces = self._release()
        for ended in step.ended:
            self._begun.discard(ended.id)
        if not (pieces or told):
            return None
        return msgspec.structs.replace(step, pieces=pieces)

    def flush(self) -> frames.Step | None:
        """Return what is held: the next step may take long."""
        return frames.Step(self._release()) if self._held else None

    def _hold(self, piece: frames.Piece) -> None:
        for index in range(len(self._held) - 1, -1, -1):
            earlier = self._held[index]
            if earlier.id == piece.id:
                if earlier.text and piece.thought:
                    break  # in one piece a thought comes before the text
                self._held[index] = frames.Piece(
                    piece.id,
                    earlier.text + piece.text,
                    earlier.tokens + piece.tokens,
                    earlier.thought + piece.thought,
                )
                return
        self._held.append(piece)

    def _release(self) -> tuple[frames.Piece, ...]:
        pieces, self._held = tuple(self._held), []
        self._begun.update(piece.id for piece in pieces)
        return pieces
