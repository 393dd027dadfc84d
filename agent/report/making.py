"""Making a report: reads facts a page at a time, adds them up off the event loop, and says what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum

from agent.escalation.charging import in_words
from agent.escalation.prices import Price, PriceBook, dollars
from agent.experiments import EVALUATION
from agent.report.book import LabelLine, Money, Paid, PriceLine, ReportBook, plain
from agent.report.tally import FEWEST_SAMPLES, PriceOf, Tally, by_request, differences, money
from agent.settings import TargetSettings
from agent.storage.report_reader import Fact, Judged, ReportReader, Spent

MOST_GROUPS = 200


class By(StrEnum):
    """What requests are put together by."""

    ARM = "arm"
    TASK = "task"
    MODEL = "model"
    KIND = "kind"
    DAY = "day"


_KEYS: Mapping[By, Callable[[Fact], str | None]] = {
    By.ARM: lambda fact: fact.arm,
    By.TASK: lambda fact: fact.task or "(no task)",
    By.MODEL: lambda fact: fact.local_model or fact.model,
    By.KIND: lambda fact: fact.kind.value,
    By.DAY: lambda fact: datetime.fromtimestamp(fact.received_at_ms / 1000, UTC).date().isoformat(),
}


class Wanted:
    """What a report is asked for: a span, perhaps of one task, perhaps in groups."""

    def __init__(self, since_ms: int, until_ms: int, by: By | None = None, task: str | None = None) -> None:
        self.since_ms, self.until_ms, self.by, self.task = since_ms, until_ms, by, task


async def make_report(
    reader: ReportReader, wanted: Wanted, book: PriceBook, targets: Sequence[TargetSettings]
) -> ReportBook:
    """Return the report. Reading leaves the storage thread free between pages."""
    said = by_request(await reader.judged(wanted.since_ms, wanted.until_ms))
    price_of = _price_of(book, targets)
    tallies = _Tallies(wanted, price_of)
    async for page in reader.facts(wanted.since_ms, wanted.until_ms):
        await asyncio.to_thread(tallies.add, page, said)
    total = tallies.total.group()
    groups = tuple(tally.group() for _, tally in sorted(tallies.groups.items()))
    paid = await reader.spent(wanted.since_ms, wanted.until_ms)
    labels = await reader.labels(wanted.since_ms, wanted.until_ms)
    return ReportBook(
        since_ms=wanted.since_ms,
        until_ms=wanted.until_ms,
        by=wanted.by,
        total=total,
        groups=groups,
        differences=differences(groups) if wanted.by in {By.ARM, By.MODEL} else (),
        paid=_paid(paid),
        paid_to=tuple(_line(one) for one in paid),
        prices=tuple(_price_line(target.name, book.target(target.name)) for target in targets),
        labels=tuple(
            LabelLine(task=one.task, label=one.label, answers=one.answers)
            for one in labels
            if wanted.task in {None, one.task}
        ),
        notes=_notes(total.estimated, total.all_cloud, total.quality.samples, tallies, targets),
    )


class _Tallies:
    def __init__(self, wanted: Wanted, price_of: PriceOf) -> None:
        self._wanted = wanted
        self._price_of = price_of
        self.total = Tally("all", price_of)
        self.groups: dict[str, Tally] = {}
        self.left_out = 0  # groups above the limit
        self.evaluations = 0

    def add(self, page: Sequence[Fact], said: Mapping[str, Sequence[Judged]]) -> None:
        for fact in page:
            if self._wanted.task not in {None, fact.task}:
                continue
            if fact.arm == EVALUATION:
                self.evaluations += 1
                continue
            words = said.get(fact.id, ())
            self.total.add(fact, words)
            if self._wanted.by is not None and (name := _KEYS[self._wanted.by](fact)) is not None:
                if name not in self.groups and len(self.groups) >= MOST_GROUPS:
                    self.left_out += 1
                    continue
                self.groups.setdefault(name, Tally(name, self._price_of)).add(fact, words)


def _price_of(book: PriceBook, targets: Sequence[TargetSettings]) -> PriceOf:
    """A request is priced at the target that it would have gone to: its own, else the first one there is now."""
    first = targets[0].name if targets else None

    def find(target: str | None) -> Price | None:
        return book.target(target) or book.target(first)

    return find


def _paid(lines: Sequence[Spent]) -> Money:
    known = dollars(sum(one.nanodollars for one in lines))
    unknown = sum(one.unknown for one in lines)
    return money(known, unknown)


def _line(one: Spent) -> Paid:
    return Paid(
        target=one.target,
        model=one.model,
        price=one.price,
        sends=one.sends,
        unknown=one.unknown,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
        dollars=plain(dollars(one.nanodollars)),
    )


def _price_line(target: str, price: Price | None) -> PriceLine:
    return PriceLine(target=target, price=None if price is None else in_words(price))


def _notes(
    estimated: int, all_cloud: Money, samples: int, tallies: _Tallies, targets: Sequence[TargetSettings]
) -> tuple[str, ...]:
    found = []
    if all_cloud.unknown:
        found.append(
            f"all-cloud and saving are unknown: {all_cloud.unknown} requests have no price or no count of tokens "
            "(set input_price and output_price of the target)"
        )
    if not targets:
        found.append("no target is configured: there is nothing to compare with")
    if estimated:
        found.append(
            f"the tokens of {estimated} requests are estimated, a token for 4 bytes: no language model read them"
        )
    if all_cloud.known != Decimal(0):
        found.append(
            "all-cloud takes the local counts of tokens and answers as long as the local ones; "
            "electricity and hardware are not in it (outrider report --plan)"
        )
    if samples < FEWEST_SAMPLES:
        found.append(
            f"the quality change rests on {samples} samples of served answers: too few to tell "
            f"({FEWEST_SAMPLES} are the least; they are drawn where a task asks for them)"
        )
    if tallies.evaluations:
        found.append(f"{tallies.evaluations} requests of evaluations are in what was paid, and in nothing else")
    if tallies.left_out:
        found.append(f"only the first {MOST_GROUPS} groups are shown")
    return tuple(found)
