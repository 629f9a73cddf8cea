"""Looks at the breakers, and says from time to time how it goes."""

from __future__ import annotations

import asyncio
import bisect
import time
from collections import Counter
from dataclasses import dataclass, field

from ledger.load import Record
from ledger.wire import Session

from .admin import Operator
from .providers import Fake, candidates
from .weather import WELL, Weather


@dataclass
class Look:
    at: float
    well: set[str]  # providers that are well and in service, and
    closed: set[str]  # those with a closed breaker
    stood: bool  # before it the machine stood still, for about as long as time-outs are


@dataclass
class Share:
    """Calls, and how many of them were answered."""

    calls: int = 0
    answered: int = 0
    others: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        self.calls += 1
        if record.outcome == "answered":
            self.answered += 1
        else:
            self.others[f"{word(record)} from {record.model or 'any'}"] += 1

    def __str__(self) -> str:
        share = f" = {100 * self.answered / self.calls:.2f} %" if self.calls else ""
        others = f" ({', '.join(f'{n} {what}' for what, n in self.others.most_common(12))})"
        return f"{self.answered} of {self.calls}{share}{others if self.others else ''}"


@dataclass
class Watch:
    session: Session
    fakes: dict[str, Fake]
    weather: Weather
    operator: Operator
    records: list[Record]
    looks: list[Look] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        start = said = drained = time.monotonic()
        stood = False
        while not self.stop.is_set():
            rows = await self.session.rows("SELECT provider, state FROM llm_provider_status")
            states = {provider or "": state for provider, state in rows}
            closed = {name for name in self.fakes if states.get(name, "closed") == "closed"}
            weather, taken = self.weather.now, self.operator.taken
            well = {name for name in self.fakes if weather[name] == WELL} - taken
            self.looks.append(Look(time.time(), well, closed, stood))
            now = time.monotonic()
            if now - said >= 10:
                said = now
                print(self._line(now - start, closed), flush=True)
            if now - drained >= 5:
                drained = now
                for fake in self.fakes.values():
                    await fake.read_journal()
            slept = time.monotonic()
            await asyncio.sleep(0.25)
            stood = time.monotonic() - slept > 1

    def _line(self, seconds: float, closed: set[str]) -> str:
        counts = Counter(word(record) for record in self.records if record.told_at)
        errors = ", ".join(f"{n} {word}" for word, n in sorted(counts.items()) if word != "ok")
        broken = [f"{name} ({self.weather.now[name]})" for name in self.fakes if name not in closed]
        return (
            f"{seconds:5.0f} s: {counts.total()} calls, {counts['ok']} ok, {errors or 'no errors'};"
            f" not closed: {', '.join(broken) or 'none'}"
        )

    def shares(self) -> tuple[float, Share, Share]:
        """How much of the time somebody was well; and of the calls that nobody disturbed, and
        which had time: those for whose model somebody was well all the time, and those for which
        such a breaker was closed as well."""
        well, closed = Share(), Share()
        times = [look.at for look in self.looks]
        for record in self.records:
            disturbed = record.fate != "none" or record.form == "glance" or not record.told_at
            if disturbed or 0 < record.patience < 3:
                continue
            looks = _during(self.looks, times, record.sent_at, record.told_at)
            if any(look.stood for look in looks):
                continue
            names = candidates(record.model)
            steady = names.intersection(*(look.well for look in looks))
            if not steady:
                continue
            well.add(record)
            if steady.intersection(*(look.closed for look in looks)):
                closed.add(record)
        share = sum(1 for look in self.looks if look.well) / max(1, len(self.looks))
        return share, well, closed


def _during(looks: list[Look], times: list[float], start: float, end: float) -> list[Look]:
    """From the last look before it to the first after it."""
    first = max(0, bisect.bisect_left(times, start) - 1)
    last = bisect.bisect_right(times, end) + 1
    return looks[first:last]


def word(record: Record) -> str:
    """How its call ended."""
    if record.outcome == "answered":
        return "ok"
    return record.sqlstate or record.error_class or record.outcome
