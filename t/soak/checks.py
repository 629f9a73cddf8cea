"""What must hold at the end, when all providers are well again.

Each check gives what is wrong, in words.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from ledger import audit
from ledger.load import Record
from ledger.wire import Session, literal

from .providers import ALIASES, MODELS, PROVIDERS, Fake, by_token, key
from .sessions import Size

_CRASH = re.compile(r"terminated by signal|exited with exit code [^01]|PANIC:|TRAP:| XX\d\d\d ")
# from, to: with which reasons of the state that is, or was, not closed
_LEGAL = {
    ("closed", "open"): {"outage", "auth", "quota", "operator"},
    ("open", "open"): {"auth", "quota", "operator"},
    ("half_open", "open"): {"outage", "auth", "quota", "operator"},
    ("open", "half_open"): {"outage", "auth", "quota"},
    ("half_open", "closed"): {"outage", "auth", "quota", "operator"},
    ("open", "closed"): {"outage", "auth", "quota", "operator"},
}
# A backend in the second half of its life: a cache may still grow a bit.
_GROWTH = 512 * 1024
# a batch keeps up to batch_concurrency (32) connections warm
_DESCRIPTORS = 40


async def breakers_close(session: Session) -> AsyncIterator[str]:
    """Without an operator, by the time that each has said."""
    rows = await session.rows(
        "SELECT coalesce(max(extract(epoch FROM next_probe_at - now())), 0)::int"
        " FROM llm_provider_status WHERE state <> 'closed'"
    )
    deadline = time.monotonic() + max(0, int(rows[0][0] or 0)) + 15
    while True:
        rows = await session.rows(
            "SELECT provider, state, reason, next_probe_at - now(), last_error"
            " FROM llm_provider_status WHERE state <> 'closed'"
        )
        if not rows or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    for row in rows:
        yield f"stuck: {row}"


async def providers_answer(session: Session) -> AsyncIterator[str]:
    for model, providers in MODELS.items():
        for provider in providers:
            name = literal(f"{provider}/{model}")
            result = await session.query(f"SELECT llm_complete('are you there?', model => {name})")
            if result.error or result.rows != [["echo: are you there?"]]:
                yield f"{provider}/{model}: {result.error or result.rows}"


async def events_are_chains(session: Session) -> AsyncIterator[str]:
    """From closed to what it is now, without a gap."""
    now: dict[str, str] = dict.fromkeys(PROVIDERS, "closed")
    for provider, before, after, reason, message in await session.rows(
        "SELECT provider, from_state, to_state, reason, message FROM llm_breaker_events"
        " ORDER BY event_id"
    ):
        assert provider and before and after
        if now.get(provider) != before:
            yield f"{provider}: from {before} to {after} ({reason}), and it was {now.get(provider)}"
        if reason not in _LEGAL.get((before, after), ()):
            yield f"{provider}: from {before} to {after} because of {reason}: {message}"
        now[provider] = after
    for provider, state in await session.rows("SELECT provider, state FROM llm_provider_status"):
        if provider and now[provider] != state:
            yield f"{provider}: is {state}, and the last event says {now[provider]}"


async def nothing_in_flight(session: Session) -> AsyncIterator[str]:
    rows = await _until_empty(
        session,
        "SELECT provider, in_flight, waiting FROM llm_provider_status"
        " WHERE in_flight <> 0 OR waiting <> 0",
    )
    for row in rows:
        yield f"in flight, waiting: {row}"


async def ledger_is_written(session: Session, spool: Path) -> AsyncIterator[str]:
    rows = await _until_empty(
        session,
        "SELECT * FROM llm_worker_status WHERE worker = 'ledger' AND (pending_bytes <> 0"
        " OR open_requests <> 0 OR discarded <> 0 OR last_error IS NOT NULL OR pid IS NULL)"
        " OR notice IS NOT NULL",
        30,
    )
    for row in rows:
        yield f"worker: {row}"
    for database in spool.iterdir():
        generations = sorted(path.name for path in database.iterdir())
        if len(generations) > 1:
            yield f"spool {database.name}: {generations}"


async def _until_empty(session: Session, query: str, seconds: float = 10) -> list[list[str | None]]:
    deadline = time.monotonic() + seconds
    while (rows := await session.rows(query)) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return rows


async def lay_side_by_side(session: Session, records: list[Record], fakes: list[Fake]) -> audit.Audit:
    """Clients, journals and ledger, side by side; see ledger/audit.py."""
    findings: list[str] = []
    found = await audit.read_books(session, 0, records, findings)
    for alias, rules in ALIASES.items():
        # who is the first depends on who is enabled just then
        for rule in rules:
            provider, _, model = rule.rpartition("/")
            for name in [provider] if provider else MODELS[model]:
                found.first[alias].add((name, model))
    for fake in fakes:
        await fake.read_journal(settled=0)
    found.sent = by_token(fakes)
    if not found.requests or not found.sent:
        findings.append("there is nothing to lay side by side")
    checker = audit.Audit(found)
    checker.findings = findings
    checker.run()
    return checker


def backends_do_not_grow(sizes: dict[int, list[Size]]) -> Iterable[str]:
    for number, pair in sorted(sizes.items()):
        if len(pair) < 2:
            yield f"session {number} has not lived to its end"
            continue
        half, end = pair
        if end.bytes > half.bytes + _GROWTH:
            yield f"session {number}: from {half.bytes} to {end.bytes} bytes of memory"
        if end.descriptors > half.descriptors + _DESCRIPTORS:
            yield f"session {number}: from {half.descriptors} to {end.descriptors} descriptors"


def log_is_clean(log: Path) -> Iterable[str]:
    keys = {provider: key(provider) for provider in PROVIDERS}
    found: dict[str, int] = defaultdict(int)
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            for provider, secret in keys.items():
                if secret in line:
                    found[f"the key of {provider}"] += 1
            if _CRASH.search(line):
                found[line.rstrip()[:300]] += 1
    for what, times in found.items():
        yield f"{times} times: {what}"


async def fakes_are_sound(fakes: list[Fake]) -> AsyncIterator[str]:
    for fake in fakes:
        if errors := (await fake.control("stats"))["internal_errors"]:
            yield f"{fake.name}: {errors} internal errors, and so the fault of the fake"
