"""Whom the demo may ask: the user's own target where it may be sent to without asking, else a stand-in."""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent import configuration
from agent.cli.output import notice
from agent.errors import ConfigError
from agent.settings import TargetSettings
from agent.types import EgressPolicy, Handoff


def own_target() -> TargetSettings | None:
    """Return the user's target, when there is one that may be sent to without asking."""
    try:
        configured = configuration.load().settings.targets
    except ConfigError as error:
        notice(f"Your configuration is left aside: {error}")
        return None
    for target in configured:
        if target.egress is EgressPolicy.ALLOW:
            return target
        notice(f'Your target {target.name} has egress = "{target.egress}": the demo sends it nothing.')
    return None


def target_for(own: TargetSettings | None, url: str) -> TargetSettings:
    """Return the target of the demo: behind the way out, else as the user configured it."""
    if own is None:
        return TargetSettings(name="stand-in", base_url=url, model="stand-in", egress=EgressPolicy.ALLOW)
    key_file = str(Path(own.api_key_file).expanduser().absolute()) if own.api_key_file else ""
    free = {"input_price": None, "output_price": None, "price_as_of": None}  # the demo counts no money
    return msgspec.structs.replace(own, base_url=url, ca_file="", api_key_file=key_file, handoff=Handoff.FRESH, **free)
