"""One call of a target, which is closed behind it."""

from fakes.escalation_values import record, row

from agent.escalation.openai_target import OpenAITarget
from agent.settings import ConnectivitySettings, TargetSettings
from agent.text_settings import RedactionSettings
from agent.types import EgressPolicy, Handoff

NOW = 1_700_000_000_000
CONNECTIVITY = ConnectivitySettings(connect_timeout_s=2.0)


def target_for(base_url, *, connectivity=CONNECTIVITY, terms=(), **fields):
    settings = TargetSettings(
        **{"name": "big", "base_url": base_url, "model": "big-model", "egress": EgressPolicy.ALLOW, **fields}
    )
    return OpenAITarget(settings, connectivity, RedactionSettings(terms=terms), now_ms=lambda: NOW)


async def send(target, *, handoff=Handoff.FRESH, **options):
    asked, held = record(**options), row(handoff)
    try:
        return await target.send(held, asked, target.outgoing(asked, held))
    finally:
        await target.close()


async def probe(target):
    try:
        return await target.probe()
    finally:
        await target.close()
