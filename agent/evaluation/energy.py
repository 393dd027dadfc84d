"""What the processor draws, where the system tells: RAPL counters, in millionths of a joule, of the whole package."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Energy since it was made. The counters are the machine's: whatever else runs is in them."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones: list[tuple[Path, int, int]] = []
        self.reason = f"this system has no energy counter ({root}/intel-rapl:0)"
        for zone in sorted(root.glob("intel-rapl:*")):
            if zone.name.count(":") != 1:
                continue  # a part of another one
            try:
                whole = int((zone / "max_energy_range_uj").read_text())
                self._zones.append((zone / "energy_uj", _read(zone / "energy_uj"), whole))
            except (OSError, ValueError) as error:
                self.reason = f"the energy counter {zone}/energy_uj cannot be read ({error}); only root may, mostly"
                self._zones = []
                return

    def joules(self) -> float | None:
        """Return what was drawn; None where the system does not tell (see ``reason``)."""
        if not self._zones:
            return None
        try:
            spent = sum((_read(path) - begin) % (whole + 1) for path, begin, whole in self._zones)
        except (OSError, ValueError) as error:
            self.reason = f"the energy counter cannot be read any more ({error})"
            return None
        return spent / 1e6


def _read(path: Path) -> int:
    return int(path.read_text())
