"""The soak: see script/soak --help."""

from __future__ import annotations

import argparse
import asyncio
import gc
import getpass
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

sys.dont_write_bytecode = True

from ledger.audit import Audit  # noqa: E402
from ledger.load import Options  # noqa: E402
from ledger.wire import Failed, Lost, Session  # noqa: E402

from . import checks, weather  # noqa: E402
from .admin import Operator  # noqa: E402
from .providers import PROVIDERS, Fake, setup_sql  # noqa: E402
from .sessions import DEFAULT_TIMEOUT, TOOLS, SoakLoad  # noqa: E402
from .watch import Share, Watch, word  # noqa: E402

_CONFIGURATION = {
    "log_line_prefix": "'%m [%p] %e '",
    "llm_gateway.log_content": "on",
    "llm_gateway.default_timeout": str(DEFAULT_TIMEOUT),
}
_SHOWN = 20  # findings of a check that are printed
# The worst share of calls that may fail while a provider is well and its breaker closed.
_ANSWERED = 0.98


def duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text} is no duration: 30s, 20m, 2h")
    return float(match[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[match[2]]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="script/soak",
        description="Many sessions call five providers that fail in every way, while an operator"
        " changes the configuration; then all providers are well again, and nothing may be left.",
    )
    parser.add_argument(
        "duration", nargs="?", type=duration, default=1200.0, help="30s, 20m (default), 2h"
    )
    parser.add_argument("--seed", default=secrets.token_hex(4), help="default: drawn")
    parser.add_argument("--sessions", type=int, default=32, help="default: %(default)s")
    parser.add_argument(
        "--all", action="store_true", help=f"print all findings, not {_SHOWN} of each check"
    )
    # from script/soak
    parser.add_argument("--host", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--user", default=getpass.getuser(), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 1 <= options.sessions <= 80:
        parser.error("--sessions: from 1 to 80")
    return options


class Soak:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._fakes: dict[str, Fake] = {}
        self._passed = self._failed = 0

    async def run(self) -> bool:
        options = self._options
        try:
            for name in PROVIDERS:
                self._fakes[name] = await Fake.start(name)
            await self._soak()
        except* (Lost, Failed) as errors:
            await self._check("the server lives", map(str, errors.exceptions))
            await self._check("the server's log", checks.log_is_clean(options.log))
        finally:
            for fake in self._fakes.values():
                await fake.stop()
        if self._failed:
            print(
                f"seed {options.seed}; again: script/soak {options.duration:g}s"
                f" --seed {options.seed} --sessions {options.sessions}"
            )
        print(f"{self._passed} passed, {self._failed} failed", flush=True)
        return not self._failed

    async def _connect(self) -> Session:
        options = self._options
        return await Session.connect(options.host, options.port, "postgres", options.user)

    async def _set_up(self, session: Session) -> None:
        for name, value in _CONFIGURATION.items():
            await session.rows(f"ALTER SYSTEM SET {name} = {value}")
        await session.rows("SELECT pg_reload_conf()")
        await session.rows(setup_sql({name: fake.url for name, fake in self._fakes.items()}))
        if await session.rows(f"SELECT '{TOOLS}'::jsonb::text") != [[TOOLS]]:
            raise RuntimeError("TOOLS is not as the server prints it")

    async def _soak(self) -> None:
        options = self._options
        session = await self._connect()
        await self._set_up(session)
        for fake in self._fakes.values():
            await fake.behave(["metered"])
        load = SoakLoad(
            Options(
                host=options.host,
                port=options.port,
                database="postgres",
                user=options.user,
                sessions=options.sessions,
                calls=10**9,
                seconds=options.duration,
                sync="mixed",
                seed=0,
                crash=False,
            ),
            options.seed,
        )
        sky = weather.Weather(self._fakes, weather.draw(options.seed, options.duration))
        operator = Operator(await self._connect(), sky, options.seed)
        watch = Watch(await self._connect(), self._fakes, sky, operator, load.report.records)
        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(sky.run())
            group.create_task(operator.run())
            group.create_task(watch.run())
            try:
                async with asyncio.timeout(options.duration + 180):
                    await load.run()
            except* TimeoutError:
                load.report.faults.append("some session does not end")
            except* (Failed, Lost) as failures:
                load.report.faults += [str(failure) for failure in failures.exceptions]
            seconds = time.monotonic() - start
            operator.stop.set()
            watch.stop.set()
        await sky.clear_up()
        await operator.put_back()

        print("==> all providers are well again", flush=True)
        fakes, records = list(self._fakes.values()), load.report.records
        await self._check("every breaker closes", checks.breakers_close(session))
        await self._check("every provider answers", checks.providers_answer(session))
        await self._check("no call is in flight or waits", checks.nothing_in_flight(session))
        spool = options.data / "llm_gateway" / "spool"
        await self._check("the ledger is written", checks.ledger_is_written(session, spool))
        await self._check("changes of breakers are chains", checks.events_are_chains(session))
        await self._check("calls, and what they were told", load.report.faults)
        await self._check("the operator's changes", operator.faults)
        audit = await checks.lay_side_by_side(session, records, fakes)
        await self._check("clients, journals and ledger agree", audit.findings)
        sizes = checks.backends_do_not_grow(load.sizes)
        await self._check("backends do not grow", sizes)
        await self._check("the server's log", checks.log_is_clean(options.log))
        await self._check("the fakes themselves", checks.fakes_are_sound(fakes))
        closed = await self._figures(session, load, watch, audit, seconds)
        bad = closed.answered < _ANSWERED * closed.calls or not closed.calls
        await self._check(
            f"{100 * _ANSWERED:g} % answered where a provider is well and its breaker closed",
            [str(closed)] if bad else [],
        )
        session.close()

    async def _figures(
        self,
        session: Session,
        load: SoakLoad,
        watch: Watch,
        audit: Audit,
        seconds: float,
    ) -> Share:
        records = load.report.records
        time_well, well, closed = watch.shares()
        [[attempts, wasted]] = await session.rows(
            "SELECT count(*), count(*) FILTER (WHERE error_class IS NOT NULL) FROM llm_attempts"
        )
        events = await session.rows(
            "SELECT to_state || coalesce(' ' || reason, ''), count(*) FROM llm_breaker_events"
            " WHERE to_state <> 'half_open' GROUP BY 1 ORDER BY 1"
        )
        ends = Counter(map(word, records))
        probes = sum(fake.requests - len(fake.sent) for fake in self._fakes.values())
        print("==> figures")
        print(f"calls                {len(records)}, {len(records) / seconds:.1f} a second")
        print(f"ends                 {_list(ends)}")
        print(f"attempts             {attempts}, {wasted} of them wasted")
        print(f"laid side by side    {_list(audit.counts)}")
        print(f"probes               {probes}")
        print(f"breakers             {_list({str(k): v for k, v in events})}")
        print(f"phases               {_list(watch.weather.counts)}")
        print(f"operator             {_list(watch.operator.counts)}")
        print(f"latest end           {load.worst:.2f} s after its time-out")
        print(f"somebody was well    {100 * time_well:.1f} % of the time")
        print(f"answered, somebody of the model well                {well}")
        print(f"answered, somebody well and with a closed breaker   {closed}")
        return closed

    async def _check(self, name: str, findings: AsyncIterator[str] | Iterable[str]) -> None:
        if isinstance(findings, AsyncIterator):
            found = [finding async for finding in findings]
        else:
            found = list(findings)
        self._passed += not found
        self._failed += bool(found)
        print(f"{'not ok' if found else 'ok'}: {name}", flush=True)
        shown = len(found) if self._options.all else _SHOWN
        for finding in found[:shown]:
            print(f"    {finding}")
        if len(found) > shown:
            print(f"    and {len(found) - shown} more: --all")


def _list(counts: Mapping[str, object]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "none"


def main() -> None:
    options = _options()
    print(
        f"==> {options.duration:g} s, {options.sessions} sessions, seed {options.seed}", flush=True
    )
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    sys.exit(0 if asyncio.run(Soak(options).run()) else 1)


main()
