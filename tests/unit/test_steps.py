"""Steps of a measurement that was stopped."""

import os
from contextlib import contextmanager, suppress

import pytest

from agent.errors import StorageError, WrongState
from agent.evaluation.steps import Steps, kept_steps
from agent.models.quality import Needles

HERE = ("model", "machine")


class Stopped(Exception):
    pass


@contextmanager
def stopped(folder):
    """Hold the steps of a measurement that does not come to its end."""
    with suppress(Stopped), kept_steps(folder, HERE) as steps:
        yield steps
        raise Stopped


def stop_after(folder, **values):
    with stopped(folder) as steps:
        for name, value in values.items():
            steps.keep(name, value)


def test_what_was_done_is_found_again_under_the_same_conditions_only(tmp_path):
    stop_after(tmp_path, first=True, second=Needles(500, 3, 5))
    with stopped(tmp_path) as steps:
        assert len(steps) == 2
        assert steps.found("first", bool) is True
        assert steps.found("second", Needles) == Needles(500, 3, 5)
        assert steps.found("third", bool) is None
    with kept_steps(tmp_path, ("model", "another machine")) as steps:
        assert not len(steps)


def test_a_step_that_was_cut_short_was_not_done_and_does_not_spoil_the_next(tmp_path):
    stop_after(tmp_path, first=1, second=2)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        stop_after(tmp_path, third=3)
        with stopped(tmp_path) as steps:
            assert steps.found("first", int) == (1 if cut >= whole.index(b"\n") + 1 else None)
            assert steps.found("second", int) is None
            assert steps.found("third", int) == 3


def test_a_measurement_that_ended_leaves_nothing_and_old_ones_are_swept(tmp_path):
    old = tmp_path / f"{'0' * 24}.jsonl"
    old.write_text("")
    os.utime(old, (0, 0))
    with kept_steps(tmp_path, HERE) as steps:
        steps.keep("first", 1)
        with pytest.raises(WrongState, match="wait for it"), kept_steps(tmp_path, HERE):
            pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="permissions"), kept_steps(tmp_path / "file", HERE):
        pass


def test_without_a_file_steps_are_kept_in_memory():
    steps = Steps()
    steps.keep("first", [1.5])
    assert steps.found("first", list[float]) == [1.5]
