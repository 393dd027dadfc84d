"""When a device should keep its line and its battery: rows wait then, but for those with a priority above 0."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable

from agent.delivery_settings import Metered
from agent.device import PowerState
from agent.settings import ConnectivitySettings

LOOK_EVERY_S = 60.0
ASK_TIMEOUT_S = 3.0
URGENT = 1  # the least priority that goes all the same
# The property Metered of NetworkManager (NMMetered): yes, and yes as it guesses.
_ASK = (
    "busctl", "--system", "get-property", "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager", "Metered",
)  # fmt: skip
_METERED = {"u 1", "u 3"}


class Thrift:
    """Looks at line and battery, at most once a minute, and only when somebody wants to send."""

    def __init__(self, settings: ConnectivitySettings, power: Callable[[], PowerState]) -> None:
        self._settings = settings
        self._power = power
        self._reason = ""
        self._looked_s = -LOOK_EVERY_S
        self._looking = asyncio.Lock()

    @property
    def is_off(self) -> bool:
        """Whether nothing is ever held back."""
        return not (self._settings.hold_on_metered or self._settings.hold_below_battery_percent)

    async def reason(self) -> str:
        """Return why rows wait now; empty: they need not."""
        if self.is_off:
            return ""
        async with self._looking:
            if time.monotonic() - self._looked_s >= LOOK_EVERY_S:
                self._reason = await self._look()
                self._looked_s = time.monotonic()
        return self._reason

    async def _look(self) -> str:
        settings, power = self._settings, self._power()
        charge = power.battery_percent
        if power.on_battery and charge is not None and charge < settings.hold_below_battery_percent:
            return f"the battery is at {charge:.0f} %"
        if settings.hold_on_metered and await _is_metered(settings.metered):
            return "the line is metered"
        return ""


async def _is_metered(told: Metered) -> bool:
    if told is not Metered.AUTO:
        return told is Metered.YES
    program = shutil.which(_ASK[0])
    if program is None:
        return False
    child = await asyncio.create_subprocess_exec(
        program, *_ASK[1:], stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            answer, _ = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        return False
    return answer.decode("ascii", "replace").strip() in _METERED
