"""``outrider models recommend``: which models fit this device, in order, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.invocation import Decorated, Invocation, json_option, pass_invocation
from agent.cli.output import emit_json, notice, size, table

if TYPE_CHECKING:
    from agent.models.fitting import Room
    from agent.models.manifest import Profile
    from agent.models.profiles import HardwareProfile
    from agent.models.recommending import Recommendation

SMALL_DEVICE_MIB = 4096  # of memory in all: the budget of a phone suits better than that of a computer


def budget_options(function: Decorated) -> Decorated:
    """Add the options that say what a model may cost."""
    for option in reversed(
        (
            click.option(
                "--profile",
                type=click.Choice(["cpu", "npu", "phone"]),
                help="Class of hardware. Default: phone below 4 GiB of memory, else cpu.",
            ),
            click.option(
                "--memory", "memory_mib", type=click.IntRange(1), metavar="MIB", help="Most memory that it may take."
            ),
        )
    ):
        function = option(function)
    return function


@click.command()
@budget_options
@click.option("--offline", is_flag=True, help="Only what is on this device.")
@json_option
@pass_invocation
def recommend(
    invocation: Invocation, profile: Profile | None, memory_mib: int | None, offline: bool, as_json: bool
) -> None:
    """Say which models fit this device, what should be taken first, and why the others should not.

    What fits is reckoned from the sizes of files, keys and values of one context, and the free
    memory. What a model is worth, only a measurement tells: outrider models pick.

    Example:  outrider models recommend --profile phone
    """
    from agent import device
    from agent.models.recommending import recommend as judge
    from agent.models.store import open_store

    hardware, room = budget(profile, memory_mib)
    found = judge(open_store(invocation.data_path), hardware, room, device.profile(), here_only=offline)
    if as_json:
        emit_json({"profile": hardware, "room": room, "models": found})
        return
    show(found)
    notice(f"profile {hardware.name}: up to {room.bytes >> 20} MiB, {room.why}")
    if hardware.name == "npu":
        _tell_npu()
    elif best := next((one for one in found if one.recommended), None):
        notice(f"recommended: {best.name}; outrider get {best.name} gets and measures it and makes it the default")
    else:
        notice("nothing fits; free some memory, or look at the reasons")


def _tell_npu() -> None:
    from agent.cli.devices import listed
    from agent.compute import DeviceKind

    there = [one.provider for one in listed().devices if one.kind is DeviceKind.NPU]
    notice(f"NPU: {', '.join(there)}" if there else "no NPU is seen here: nothing can be run on one")
    notice("what is made for an NPU is not verified on such hardware; outrider quantize MODEL --target npu makes it")


def show(found: tuple[Recommendation, ...]) -> None:
    """Print recommendations for people."""
    table(
        ["", "NAME", "STATE", "SIZE", "LICENCE", "WHY"],
        [
            (
                "->" if one.recommended else "fits" if one.fits else "no",
                one.name,
                one.state,
                size(one.bytes) if one.bytes else "?",
                one.licence,
                one.why,
            )
            for one in found
        ],
    )


def budget(profile: Profile | None, memory_mib: int | None) -> tuple[HardwareProfile, Room]:
    """Return the profile that was asked for, or that suits this device, and the memory that it leaves."""
    from agent import device
    from agent.models.fitting import room_of
    from agent.models.profiles import PROFILES

    machine = device.profile()
    small = (machine.memory_limit or machine.memory_total) < SMALL_DEVICE_MIB << 20
    hardware = PROFILES[profile or ("phone" if small else "cpu")]
    return hardware, room_of(hardware, memory_mib, machine)
