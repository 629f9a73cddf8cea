"""An operator who changes the configuration while calls are made."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from ledger.wire import Session, literal

from .providers import PROVIDERS, SETTINGS
from .weather import Weather

# What is changed, and to what; NULL and 'x' as SQL has them.
_CHANGES = {
    "weight": ("0", "0.5", "1", "3", "10"),
    "max_concurrency": ("NULL", "4", "8", "16"),
    "breaker_failures": ("1", "2", "3", "5"),
    "breaker_window": ("'2 s'", "'10 s'", "'60 s'"),
    "breaker_cooldown": ("'300 ms'", "'500 ms'", "'1 s'"),
}
_BALANCING = ("weighted", "round_robin", "least_busy", "lowest_latency")


@dataclass
class Operator:
    session: Session
    weather: Weather
    seed: str
    faults: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    _taken: Counter[str] = field(default_factory=Counter)
    _later: list[asyncio.Task[None]] = field(default_factory=list)
    _free: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        rng = random.Random(f"{self.seed}/operator")
        while not self.stop.is_set():
            await asyncio.sleep(rng.expovariate(1))
            while self.weather.parked:
                # the key is right again, or credit has been bought
                provider = self.weather.parked.pop()
                if rng.random() < 0.5:
                    await self._do("reset", _call("llm_breaker_reset", provider))
                else:
                    await self._do("edit", _set(provider, "weight", "weight"))
            provider = rng.choice(tuple(PROVIDERS))
            column = rng.choice(tuple(_CHANGES))
            value = rng.choice(_CHANGES[column])
            balancing, length = rng.choice(_BALANCING), rng.uniform(0.5, 3)
            match rng.choices(
                ("set", "set, rolled back", "open", "open, rolled back", "disable", "probe", "sighup"),
                (40, 10, 8, 4, 8, 15, 15),
            )[0]:
                case "set":
                    await self._do("set", _set(provider, column, value))
                case "set, rolled back":
                    begin = f"BEGIN; {_set(provider, column, value)}; SELECT pg_sleep({length / 4})"
                    await self._do("set, rolled back", f"{begin}; ROLLBACK")
                case "open":
                    await self._out("open", provider, _call("llm_breaker_open", provider))
                    self._after(length, provider, _call("llm_breaker_reset", provider))
                case "open, rolled back":
                    # it holds all the same
                    opened = f"BEGIN; {_call('llm_breaker_open', provider)}; ROLLBACK"
                    await self._out("open, rolled back", provider, opened)
                    self._after(length, provider, _call("llm_breaker_reset", provider))
                case "disable":
                    await self._out("disable", provider, _set(provider, "enabled", "false"))
                    self._after(length, provider, _set(provider, "enabled", "true"))
                case "probe":
                    await self._do("probe", _call("llm_probe", provider))
                case "sighup":
                    sql = f"ALTER SYSTEM SET llm_gateway.load_balancing = {balancing}"
                    await self._do("sighup", sql)
                    await self._do("", "SELECT pg_reload_conf()")

    @property
    def taken(self) -> set[str]:
        """Out of service, by us."""
        return {provider for provider, times in self._taken.items() if times}

    async def put_back(self) -> None:
        """All as it was, and nothing stays that only an operator can end."""
        await asyncio.gather(*self._later)
        columns = ", ".join(f"{name} = {value}" for name, value in SETTINGS.items())
        await self._do("", f"UPDATE llm_providers SET {columns}")
        for (provider,) in await self.session.rows(
            "SELECT provider FROM llm_provider_status WHERE reason IN ('auth', 'quota', 'operator')"
        ):
            await self._do("", _call("llm_breaker_reset", provider or ""))

    def _after(self, seconds: float, provider: str, sql: str) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            await self._do("", sql)
            self._taken[provider] -= 1

        self._later.append(asyncio.create_task(wait()))

    async def _out(self, what: str, provider: str, sql: str) -> None:
        self._taken[provider] += 1
        await self._do(what, sql)

    async def _do(self, what: str, sql: str) -> None:
        async with self._free:
            result = await self.session.query(sql)
        if result.error:
            self.faults.append(f"{sql}: {result.error}")
        if what:
            self.counts[what] = self.counts.get(what, 0) + 1


def _call(function: str, provider: str) -> str:
    return f"SELECT * FROM {function}({literal(provider)})"


def _set(provider: str, column: str, value: str) -> str:
    return f"UPDATE llm_providers SET {column} = {value} WHERE name = {literal(provider)}"
