"""Many sessions that call at the same time, and what each of them was told.

A session draws its calls from the mixture and makes them one after another, inside and outside of
transactions that are rolled back; some calls are cancelled, some backends terminated.  A record is
begun before its call is sent, and completed with what came back; see `Record`.

Meanwhile another session compares, in one snapshot after the other, the sums of llm_daily_spend
with those of the other tables.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from .mixture import Call, Mixture
from .wire import Failed, Lost, Result, Row, Session

APPLICATION = "ledger_load"
CANCELLED = "57014"
CUT_BY_LIMIT = "01004"  # the warning that an answer was cut by a token limit

# Rows that differ between the day's spend and what it is the sum of; none.  Grouped as the columns
# are documented: tokens and cost by attempts, and the rest by requests.
SUMS_DIFFER = """
WITH booked AS (
    SELECT day, provider, model, sum(requests) AS requests, sum(failures) AS failures,
           sum(cached) AS cached, sum(fallbacks) AS fallbacks, sum(unpriced) AS unpriced,
           sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
           sum(estimated_usd) AS estimated_usd, sum(cost_usd) AS cost_usd
    FROM llm_daily_spend GROUP BY 1, 2, 3),
parts AS (
    SELECT (started_at AT TIME ZONE 'UTC')::date AS day, provider, model, 0 AS requests,
           0 AS failures, 0 AS cached, 0 AS fallbacks, (cost_usd IS NULL)::int AS unpriced,
           coalesce(input_tokens, 0) AS input_tokens, coalesce(output_tokens, 0) AS output_tokens,
           0 AS estimated_usd, coalesce(cost_usd, 0) AS cost_usd
    FROM llm_attempts
    UNION ALL
    SELECT (created_at AT TIME ZONE 'UTC')::date, coalesce(provider, ''), coalesce(model, ''), 1,
           (status IN ('error', 'unknown'))::int, (status = 'cached')::int, fallback::int, 0,
           0, 0, coalesce(estimated_usd, 0), 0
    FROM llm_requests),
sums AS (
    SELECT day, provider, model, sum(requests) AS requests, sum(failures) AS failures,
           sum(cached) AS cached, sum(fallbacks) AS fallbacks, sum(unpriced) AS unpriced,
           sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
           sum(estimated_usd) AS estimated_usd, sum(cost_usd) AS cost_usd
    FROM parts GROUP BY 1, 2, 3)
SELECT b AS booked, s AS sums
FROM booked b FULL JOIN sums s USING (day, provider, model)
WHERE (b.requests, b.failures, b.cached, b.fallbacks, b.unpriced, b.input_tokens, b.output_tokens,
       b.estimated_usd, b.cost_usd)
    IS DISTINCT FROM
      (s.requests, s.failures, s.cached, s.fallbacks, s.unpriced, s.input_tokens, s.output_tokens,
       s.estimated_usd, s.cost_usd)"""


@dataclass
class Record:
    """One prompt.  outcome: answered, error, cancelled, lost (with the connection)."""

    token: str
    prompt: str
    model: str
    system: str | None
    max_tokens: int | None
    form: str
    block: str
    fate: str
    outcome: str = "lost"
    sqlstate: str | None = None
    error_class: str | None = None
    text: str | None = None
    request_id: int | None = None  # with what follows, only of forms that tell
    cost: str | None = None
    attempts: int | None = None
    characters: int | None = None  # of what is sent, where that is not prompt and system
    repeats: int = 0  # of a batch: how many other rows share what becomes of it
    shared: list[int] = field(default_factory=list)  # their requests, as far as they were told
    patience: float = 0.0  # its time-out in seconds; 0: none of its own
    sent_at: float = 0.0
    told_at: float = 0.0


@dataclass
class Report:
    records: list[Record] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # what was seen and must not be
    counts: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        return {
            "records": [asdict(record) for record in self.records],
            "faults": self.faults,
            "counts": self.counts,
        }


@dataclass
class Options:
    host: str
    port: int
    database: str
    user: str
    sessions: int
    calls: int
    seconds: float  # no call begins later than this
    sync: str  # on, off, or mixed
    seed: int
    crash: bool  # the server will go down: a session ends with its connection


class Load:
    """What has no underscore before its name may be overridden."""

    pause_between_sums = 0.1  # seconds

    def __init__(self, options: Options) -> None:
        self._options = options
        self._mixture = Mixture(options.seed, options.crash)
        self._left = options.calls
        self._deadline = time.monotonic() + options.seconds
        self._admin: Session | None = None
        self._admin_free = asyncio.Lock()
        self.report = Report()

    async def run(self) -> Report:
        self._admin = await self._connect()
        watcher = asyncio.create_task(self._watch_sums())
        async with asyncio.TaskGroup() as group:
            for number in range(self._options.sessions):
                group.create_task(self._session(number))
        self._left = 0
        await watcher
        self._admin.close()
        return self.report

    def draw(self, number: int) -> Call:
        """What that session calls next."""
        return self._mixture.draw()

    async def before(self, session: Session, number: int) -> None:
        """A call of that session."""

    async def after(self, session: Session, number: int) -> None:
        """Its last one."""

    async def query(self, session: Session, call: Call) -> Result:
        return await session.query(call.sql())

    async def activity(self, pid: int) -> str:
        """What the server says of a backend."""
        assert self._admin
        async with self._admin_free:
            rows = await self._admin.rows(
                "SELECT state, wait_event_type, wait_event, query FROM pg_stat_activity"
                f" WHERE pid = {pid}"
            )
        return str(rows)

    def lost(self, call: Call, error: Lost) -> None:
        """The connection has ended."""

    async def _connect(self, sync: str = "on") -> Session:
        options = self._options
        return await Session.connect(
            options.host,
            options.port,
            options.database,
            options.user,
            application_name=APPLICATION,
            **{
                "llm_gateway.ledger_sync": sync,
                # on a slow machine, too, a call that waits shall find its row
                "llm_gateway.ledger_sync_timeout": "120s",
            },
        )

    # Sums --------------------------------------------------------------------------------------

    async def _watch_sums(self) -> None:
        try:
            session = await self._connect()
            while self._left > 0 and time.monotonic() < self._deadline:
                rows = await session.rows(
                    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; " + SUMS_DIFFER
                )
                self.report.faults += [f"sums differ: {row}" for row in rows]
                self.report.counts["snapshots"] += 1
                # a second look into the same snapshot: nothing of it changes
                rows = await session.rows(SUMS_DIFFER + "; COMMIT")
                self.report.faults += [f"sums differ: {row}" for row in rows]
                left = self._deadline - time.monotonic()
                await asyncio.sleep(max(0.0, min(self.pause_between_sums, left)))
            session.close()
        except Lost:
            if not self._options.crash:
                raise

    # Calls --------------------------------------------------------------------------------------

    async def _session(self, number: int) -> None:
        sync = self._options.sync
        if sync == "mixed":
            sync = "on" if number % 2 else "off"
        try:
            session = await self._connect(sync)
        except Lost:
            if not self._options.crash:
                raise
            return
        while self._left > 0 and time.monotonic() < self._deadline:
            await self.before(session, number)
            call = self.draw(number)
            self._left -= len(call.tokens)
            try:
                await self._make(session, call, sync)
            except Lost as error:
                session.close()
                self.lost(call, error)
                self.report.counts["connections lost"] += 1
                if self._options.crash and call.fate != "terminate":
                    # the server goes down; when it is up again, nobody shall call
                    self._left = 0
                try:
                    session = await self._connect(sync)
                except Lost:
                    if not self._options.crash:
                        raise
                    return
        await self.after(session, number)
        session.close()

    async def _make(self, session: Session, call: Call, sync: str) -> None:
        records = [
            Record(
                token=token,
                prompt=call.booked(prompt),
                model=call.model,
                system=call.system,
                max_tokens=call.max_tokens,
                form=call.form,
                block=call.block,
                fate=call.fate,
                characters=call.characters(prompt),
                repeats=call.repeated.count(index),
                patience=(call.timeout or 0) / 1000,
                sent_at=time.time(),
            )
            for index, (token, prompt) in enumerate(zip(call.tokens, call.prompts, strict=True))
        ]
        if call.block != "none":
            await session.rows("BEGIN" + ("; SAVEPOINT s" if call.block == "savepoint" else ""))
        if call.fate == "statement":
            await session.rows(f"SET statement_timeout = {int(call.after * 1000)}")
        self.report.records += records
        disturber = None
        if call.fate in ("cancel", "backend", "terminate"):
            disturber = asyncio.create_task(self._disturb(session, call))
        try:
            result = await self.query(session, call)
            self._told(call, records, result)
            if sync == "on" and not result.error and not disturber and call.fate == "none":
                await self._look(session, records)
            if disturber:
                # may still hit: let it, and let nothing else be hit
                await disturber
                await session.query("SELECT")
            if call.block == "savepoint":
                await self._surely(session, "ROLLBACK TO s")
            if call.block != "none":
                await self._surely(session, "ROLLBACK" if call.block == "rollback" else "COMMIT")
            if call.fate == "statement":
                await self._surely(session, "RESET statement_timeout")
        finally:
            if disturber:
                await disturber

    async def _surely(self, session: Session, sql: str) -> None:
        """Even where a short statement_timeout cancels it at first."""
        while (await session.query(sql)).sqlstate == CANCELLED:
            pass

    async def _disturb(self, session: Session, call: Call) -> None:
        await asyncio.sleep(call.after)
        if call.fate == "cancel":
            await session.cancel()
            return
        assert self._admin
        function = "pg_cancel_backend" if call.fate == "backend" else "pg_terminate_backend"
        try:
            async with self._admin_free:
                await self._admin.rows(f"SELECT {function}({session.pid})")
        except Lost:
            pass

    def _told(self, call: Call, records: list[Record], result: Result) -> None:
        """Completes the records."""
        for notice in result.notices:
            if notice["C"] != CUT_BY_LIMIT and notice["S"] != "NOTICE":
                self.report.faults.append(f"{notice['S']} {notice['C']}: {notice['M']}")
        for record in records:
            record.told_at = time.time()
        if result.error:
            for record in records:
                record.outcome = "cancelled" if result.sqlstate == CANCELLED else "error"
                record.sqlstate = result.sqlstate
                self.report.counts[f"{record.outcome} {result.sqlstate}"] += 1
            return
        if call.form == "glance":
            records[0].outcome = "cancelled"
            self.report.counts["cancelled"] += 1
            return
        if call.form in ("scalar", "stream"):
            text = "".join(row[0] or "" for row in result.rows)
            records[0].outcome, records[0].text = "answered", text
            self.report.counts["answered"] += 1
            return
        if len(result.rows) != len(records) + len(call.repeated):
            self.report.faults.append(f"{records[0].token}: {len(result.rows)} rows")
        for record, row in zip(records, result.rows, strict=False):
            self._row_told(record, row)
        for index, row in zip(call.repeated, result.rows[len(records) :], strict=False):
            first = records[index]
            shared = first.outcome == "answered"
            if row[0] != first.text or row[1] == str(first.request_id) or row[5] != "ft"[shared]:
                self.report.faults.append(f"{first.token}: its repetition is {row}")
            first.shared.append(int(row[1] or 0))

    def _row_told(self, record: Record, row: Row) -> None:
        text, request_id, record.cost, attempts, record.error_class, cached = row
        record.request_id, record.attempts = int(request_id or 0), int(attempts or 0)
        record.text = text
        record.outcome = "answered" if record.error_class is None else "error"
        self.report.counts[f"{record.outcome} {record.error_class or ''}".strip()] += 1
        if cached != "f":
            self.report.faults.append(f"{record.token}: cached is {cached}")

    async def _look(self, session: Session, records: list[Record]) -> None:
        """The next query of the same session, in the same transaction if there is one, has it."""
        known = [record for record in records if record.request_id]
        if not known:
            return
        ids = ", ".join(str(record.request_id) for record in known)
        rows = await session.rows(
            f"SELECT request_id, status FROM llm_requests WHERE request_id IN ({ids})"
        )
        found = {int(row[0] or 0): row[1] for row in rows}
        for record in known:
            want = ("ok",) if record.outcome == "answered" else ("error", "rejected")
            if found.get(record.request_id or 0) not in want:
                self.report.faults.append(
                    f"{record.token}: after the call its row is {found.get(record.request_id or 0)}"
                )
        self.report.counts["rows seen at once"] += len(known)


async def run(options: Options) -> Report:
    load = Load(options)
    try:
        await load.run()
    except* Failed as failures:
        # a query of ours that must not fail; what was told so far is worth keeping
        load.report.faults += [str(failure) for failure in failures.exceptions]
    return load.report
