"""The five providers: fakes in processes of their own, so that each can go down by itself."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger.audit import Sent, sent_of

_KEPT = ("n", "time", "behaviour", "outcome", "reset")
_PROGRAM = Path(__file__).parent.parent / "fake_provider.py"
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

# name, kind, path of its base_url
PROVIDERS = {
    "alpha": ("openai", "/openai/v1"),
    "beta": ("openai", "/openai/v1"),
    "gamma": ("anthropic", "/anthropic"),
    "delta": ("gemini", "/gemini"),
    "epsilon": ("ollama", "/ollama"),
}
MODELS = {
    "large": ("alpha", "beta", "gamma", "delta", "epsilon"),
    "small": ("beta", "gamma", "epsilon"),
}
UNPRICED = ("epsilon", "small")
# Names that callers use ("": none), and the models behind them in turn.
ALIASES = {
    "": ("small", "large"),
    "careful": ("alpha/large", "gamma/large", "small"),
}
# What each provider has when nobody has changed it.  All short: an outage is over in seconds.
SETTINGS = {
    "enabled": "true",
    "weight": "1",
    "max_concurrency": "NULL",
    "connect_timeout": "'1 s'",
    "first_byte_timeout": "'1 s'",
    "idle_timeout": "'1 s'",
    "total_timeout": "'4 s'",
    "breaker_failures": "3",
    "breaker_window": "'10 s'",
    "breaker_cooldown": "'500 ms'",
}


def key_variable(provider: str) -> str:
    return f"SOAK_{provider.upper()}_API_KEY"


def key(provider: str) -> str:
    """As script/soak has put it into the server's environment, and ours."""
    return os.environ[key_variable(provider)]


def candidates(model: str) -> set[str]:
    """Providers that may answer a call for that model."""
    if model in ALIASES:
        return set().union(*(candidates(m) for m in ALIASES[model]))
    if "/" in model:
        return {model.split("/")[0]}
    return set(MODELS[model])


def setup_sql(urls: dict[str, str]) -> str:
    sql = ["CREATE EXTENSION llm_gateway"]
    for name, (kind, path) in PROVIDERS.items():
        columns = {
            "name": f"'{name}'",
            "kind": f"'{kind}'",
            "base_url": f"'{urls[name]}{path}'",
            "api_key": f"'env:{key_variable(name)}'",
            **SETTINGS,
        }
        sql.append(
            f"INSERT INTO llm_providers ({', '.join(columns)}) VALUES ({', '.join(columns.values())})"
        )
    for m, (model, names) in enumerate(MODELS.items()):
        for i, name in enumerate(names):
            # awkward on purpose: most costs end between two nano-dollars
            prices = f"{0.1 + i * 0.037 + m:.3f}7, {1.5 + i * 0.1:.1f}00000001"
            cached = f"{0.01 + i * 0.013:.3f}3" if i % 2 else "NULL"
            if (name, model) == UNPRICED:
                prices, cached = "NULL, NULL", "NULL"
            sql.append(
                "INSERT INTO llm_models"
                " (provider, name, input_price, output_price, cached_input_price)"
                f" VALUES ('{name}', '{model}', {prices}, {cached})"
            )
    for alias, models in ALIASES.items():
        for rank, model in enumerate(models):
            sql.append(
                "INSERT INTO llm_routing_rules (alias, model, rank)"
                f" VALUES (nullif('{alias}', ''), '{model}', {rank})"
            )
    sql.append("UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 100)")
    return ";\n".join(sql)


@dataclass
class Fake:
    """One process.  Its journal is read from time to time, so that it need not keep all of it."""

    name: str
    process: asyncio.subprocess.Process
    port: int
    control_port: int
    sent: list[tuple[str, Sent]] = field(default_factory=list)  # with their tokens
    requests: int = 0  # probes as well
    _read: int = 0  # all entries up to this one have been taken, and
    _taken: set[int] = field(default_factory=set)  # these

    @staticmethod
    async def start(name: str) -> Fake:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(_PROGRAM), "--journal", "20000"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout
        numbers = [int((await process.stdout.readline()).split()[1]) for _ in range(2)]
        return Fake(name, process, *numbers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def control(self, endpoint: str, body: dict[str, Any] | None = None) -> Any:
        url = f"http://127.0.0.1:{self.control_port}/_control/{endpoint}"
        data = None if body is None else json.dumps(body).encode()

        def ask() -> Any:
            with _OPEN(urllib.request.Request(url, data), timeout=60) as response:
                return json.load(response)

        return await asyncio.to_thread(ask)

    async def behave(self, steps: list[str]) -> None:
        """The next requests, probes as well, get these; the last step lasts."""
        script: list[Any] = [*steps[:-1], {"behaviour": steps[-1], "repeat": "forever"}]
        await self.control("script", {"model": "*", "steps": script})

    async def read_journal(self, settled: float = 1) -> None:
        """Takes what has ended since, that many seconds ago: a reset may still take its end."""
        entries = await self.control(f"journal?since={self._read}")
        if entries and entries[0]["n"] > self._read + 1:
            raise RuntimeError(f"{self.name}: the journal has lost requests")
        until = time.time() - settled
        open_entries = {e["n"] for e in entries if e["outcome"] is None or e["ended"] > until}
        for at, entry in enumerate(entries):
            if entry["n"] in open_entries or entry["n"] in self._taken:
                continue
            self._taken.add(entry["n"])
            self.requests += 1
            if found := sent_of(self.name, entry):
                found[1].entry = {k: entry[k] for k in _KEPT}
                self.sent.append(found)
            if at % 50 == 0:
                await asyncio.sleep(0)
        if entries:
            self._read = min(open_entries, default=entries[-1]["n"] + 1) - 1
            self._taken = {n for n in self._taken if n > self._read}

    async def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        await self.process.wait()


def by_token(fakes: list[Fake]) -> dict[str, list[Sent]]:
    """What all of them were sent, in the order of time."""
    found: dict[str, list[Sent]] = {}
    for token, sent in (item for fake in fakes for item in fake.sent):
        found.setdefault(token, []).append(sent)
    for requests in found.values():
        requests.sort(key=lambda sent: sent.entry["time"])
    return found
