"""What befalls the providers: drawn from the seed before it begins.

Each provider goes from phase to phase, and a storm takes all of them at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

from .providers import PROVIDERS, Fake

WELL = "well"
# phase -> how likely, and the behaviours of which each request gets one
PHASES: dict[str, tuple[int, tuple[str, ...]]] = {
    WELL: (50, ("metered", "metered", "metered+slow-20", "metered+drip-1", "metered+no-usage")),
    "slow": (7, ("metered+slow-200", "metered+slow-600", "metered+drip-15")),
    "limits": (7, ("status-429+retry-after-1", "status-429+retry-after-1", "metered")),
    "errors": (7, ("status-500", "status-503", "html-502", "error-body-plain-text")),
    "resets": (6, ("metered+reset-before", "metered+reset-mid", "metered+close-before")),
    "silence": (6, ("metered+silent", "metered+stall")),
    "broken": (
        6,
        ("metered+cut", "metered+cut-short", "metered+malformed", "metered+error-in-stream", "html"),
    ),
    "flaky": (
        6,
        (*("metered",) * 6, "status-500", "metered+reset-mid", "metered+cut", "metered+stall"),
    ),
    "key refused": (3, ("metered+leak-key",)),
    "no credit": (2, ()),
    "down": (5, ()),
}
STORM = ("errors", "resets", "silence", "down", "down")
_NO_CREDIT = {
    "openai": "error-body-openai-429-quota",
    "anthropic": "error-body-anthropic-400-credit",
    "ollama": "error-body-ollama-429-weekly",
}
# Ended by the operator only, or by much time: a breaker is parked.
PARKS = ("key refused", "no credit")


@dataclass
class Phase:
    at: float  # seconds after the beginning
    provider: str
    name: str
    steps: list[str]
    reset: bool = False  # as it goes down, connections are reset


def draw(seed: str, seconds: float) -> list[Phase]:
    """All phases, in the order of time."""
    rng = random.Random(seed)
    storms = _storms(rng, seconds)
    phases: list[Phase] = []
    for provider, (kind, _) in PROVIDERS.items():
        names = [n for n in PHASES if n != "no credit" or kind in _NO_CREDIT]
        weights = [PHASES[n][0] for n in names]
        own: list[Phase] = []
        at, name = 0.0, WELL
        while at < seconds:
            own.append(_phase(rng, at, provider, kind, name))
            at += rng.uniform(2, 9) if name == WELL else rng.uniform(1, 5)
            name = rng.choices(names, weights)[0] if name == WELL or rng.random() < 0.4 else WELL
        for begin, end in storms:
            end += rng.uniform(-0.5, 0.5)
            own = [phase for phase in own if not begin <= phase.at < end]
            own.append(_phase(rng, begin, provider, kind, rng.choice(STORM)))
            own.append(_phase(rng, end, provider, kind, WELL))
        phases += own
    return sorted((p for p in phases if p.at < seconds), key=lambda phase: phase.at)


def _storms(rng: random.Random, seconds: float) -> list[tuple[float, float]]:
    """One in the first half, and then one a minute or so."""
    storms = []
    at = rng.uniform(0.2, 0.5) * min(seconds, 60)
    while at < seconds:
        storms.append((at, at + rng.uniform(1.5, 5)))
        at += rng.uniform(25, 90)
    return storms


def _phase(rng: random.Random, at: float, provider: str, kind: str, name: str) -> Phase:
    behaviours = PHASES[name][1] or (_NO_CREDIT.get(kind, "status-500"),)
    steps = rng.choices(behaviours, k=200) if len(set(behaviours)) > 1 else list(behaviours)
    return Phase(at, provider, name, steps, rng.random() < 0.5)


@dataclass
class Weather:
    """Lets it happen, and knows when who was well."""

    fakes: dict[str, Fake]
    phases: list[Phase]
    now: dict[str, str] = field(default_factory=lambda: dict.fromkeys(PROVIDERS, WELL))
    counts: dict[str, int] = field(default_factory=dict)
    parked: list[str] = field(default_factory=list)  # and well again; the operator looks after them

    async def run(self) -> None:
        start = time.monotonic()
        for phase in self.phases:
            await asyncio.sleep(max(0.0, start + phase.at - time.monotonic()))
            await self._begin(phase)

    async def clear_up(self) -> None:
        for provider in self.fakes:
            await self._begin(Phase(0, provider, WELL, ["metered"]))

    async def _begin(self, phase: Phase) -> None:
        fake, before = self.fakes[phase.provider], self.now[phase.provider]
        if phase.name != WELL:  # from now on, but well only once it is
            self.now[phase.provider] = phase.name
        if phase.name == "down":
            await fake.control("down", {"reset": phase.reset})
        else:
            await fake.behave(phase.steps)
            if before == "down":
                await fake.control("up", {})
        if before in PARKS and phase.name != before:
            self.parked.append(phase.provider)
        self.now[phase.provider] = phase.name
        self.counts[phase.name] = self.counts.get(phase.name, 0) + 1
