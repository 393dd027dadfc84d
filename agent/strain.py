"""Long work waits while the battery is low or the processor hot, and goes on by itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import psutil

from agent import device

LOOK_EVERY_S = 5.0

Look = Callable[[], device.PowerState]
Sleep = Callable[[float], None]


def wait_while_strained(
    tell: Callable[[str], None], *, look: Look = device.power_state, sleep: Sleep = time.sleep
) -> None:
    """Return when the device may work hard; ``tell`` is given the reason once, when it may not."""
    told = False
    while reason := look().strain:
        if not told:
            tell(reason)
            told = True
        sleep(LOOK_EVERY_S)


def hold_children_while_strained(
    tell: Callable[[str], None], *, look: Look = device.power_state, sleep: Sleep = time.sleep
) -> None:
    """Suspend the programs that this process has started while the device is strained, and resume them after.

    For programs that cannot be asked to wait. One look and, if need be, one pause; ``tell`` is
    given the reason when something was suspended.
    """
    if not (reason := look().strain):
        return
    held = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.suspend()
            held.append(child)
    if not held:
        return
    try:
        tell(reason)
        while look().strain:
            sleep(LOOK_EVERY_S)
    finally:
        for child in held:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.resume()
