"""Long work waits while the battery is low or the processor hot."""

from __future__ import annotations

import time
from collections.abc import Callable

from agent import device

LOOK_EVERY_S = 5.0


def wait_while_strained(
    tell: Callable[[str], None],
    *,
    look: Callable[[], device.PowerState] = device.power_state,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when the device may work hard; ``tell`` is given the reason once, when it may not."""
    told = False
    while reason := look().strain:
        if not told:
            tell(reason)
            told = True
        sleep(LOOK_EVERY_S)
