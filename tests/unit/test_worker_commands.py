"""What a worker does with commands that it cannot read."""

import queue

import pytest

from agent.engine import frames, worker


class Left(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "says"),
    [(MemoryError(), "a command could not be read: MemoryError"), (frames.FrameError("no frame"), "no frame")],
)
def test_a_command_that_cannot_be_read_ends_the_worker_and_is_told(monkeypatch, capsys, error, says):
    class Reader:
        def feed(self, data):
            raise error

    def leave(status):
        assert status == worker.EXIT_BROKEN
        raise Left

    monkeypatch.setattr(worker.os, "_exit", leave)
    monkeypatch.setattr(worker.os, "read", lambda *_: b"a part of a frame")
    with pytest.raises(Left):
        worker._read_commands(Reader(), queue.SimpleQueue())
    assert says in capsys.readouterr().err
