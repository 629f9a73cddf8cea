"""Clients, the provider's journal and the ledger, side by side.

Every prompt carries a token of its own, so what a client was told, what the provider was sent and
what was booked can be laid together prompt by prompt.  `Audit.run` returns what does not fit, in
words; the rules are those of the ledger's contract:

  - what a client was told (an answer, an error) is what its row says
  - a call that was cancelled or lost may have ended in any way, but not with an answer that the
    provider did not give in full; `unknown` only where somebody was killed
  - every request in the journal is one attempt in the ledger, in order; an attempt that is in
    no journal never reached the provider
  - usage times price, to the nano-dollar; an HTTP error costs nothing; what was sent and has no
    known end costs the estimate of its input, or what the provider had counted of it, and the
    output that may have been seen; `unknown` the estimate of the input and the output that was
    expected
  - a call that was refused because the spool is full was not sent
  - no prompt is in the ledger twice, or without a client who sent it

Money is integer nano-dollars throughout.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from .load import APPLICATION, SUMS_DIFFER, Record
from .replay import Said, Usage, asked, said
from .wire import Row, Session

EXPECTED_OUTPUT = 256  # tokens, where the call does not say max_tokens
CHARACTERS_PER_TOKEN = 4
_TOKEN = re.compile(r"token-[0-9a-f]{8}-\d{6}(?= |$)")
# An answer whose stream ends like this has been read by the gateway up to there; after a reset,
# the kernel may have thrown away what it had not read yet.
_READ_UP_TO_THE_END = {"cut", "cut-short", "malformed", "error-in-stream"}

_CLASSES = {
    "LG002": {"rate_limit"},
    "LG003": {"timeout"},
    "LG004": {"network", "server_error", "overloaded", "all_failed"},
    "LG008": {"invalid_request"},
    "LG009": {"auth"},
    "LG010": {"malformed", "all_failed"},
    "LG012": {"quota", "unavailable", "all_failed"},
}
# A call that is not sent to anybody may end like this.
_REJECTED = {"no_candidate", "unavailable"}


def nano(usd: str | None) -> int | None:
    if usd is None:
        return None
    amount = Decimal(usd).scaleb(9)
    if amount != int(amount):
        raise ValueError(f"{usd} is not a number of nano-dollars")
    return int(amount)


def tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def number(value: str | None) -> int:
    return int(value or 0)


@dataclass(frozen=True)
class Price:
    """Nano-dollars per million tokens; None: not known."""

    input: int | None
    output: int | None
    cached: int | None

    def cost(self, usage: Usage) -> int | None:
        if self.input is None or (self.output is None and usage.output):
            return None
        cached = self.input if self.cached is None else self.cached
        total = (usage.input - usage.cached) * self.input + usage.cached * cached
        total += usage.output * (self.output or 0)
        return (total + 500_000) // 1_000_000


@dataclass
class Attempt:
    number: int
    provider: str
    model: str
    http_status: int
    error_class: str | None
    input: int
    cached: int
    output: int
    cost: int | None
    source: str


@dataclass
class Request:
    request_id: int
    status: str
    error_class: str | None
    finish: str | None
    provider: str | None
    model: str | None
    count: int  # its column attempts
    fallback: bool
    input: int
    cached: int
    output: int
    estimate: int | None
    cost: int | None
    source: str
    application: str | None
    requested_model: str | None
    prompt: str | None
    response: str | None
    token: str | None
    tag: str | None
    attempts: list[Attempt] = field(default_factory=list)


@dataclass
class Sent:
    """A request as the provider saw it."""

    provider: str
    model: str
    entry: dict[str, Any]
    said: Said

    @property
    def delivered(self) -> bool:
        return self.entry["outcome"] == "delivered"


@dataclass
class Books:
    """What there is to be laid side by side."""

    records: dict[str, Record]
    sent: dict[str, list[Sent]]
    requests: dict[str, list[Request]]
    prices: dict[tuple[str, str], Price]
    first: dict[str, set[tuple[str, str]]]  # of a name that callers use, who may be the first asked


class Audit:
    """killed: processes of the server were killed, so that a request may have no known end."""

    def __init__(self, books: Books, killed: bool = False) -> None:
        self._books = books
        self._killed = killed
        self.findings: list[str] = []
        self.counts: dict[str, int] = defaultdict(int)

    def run(self) -> list[str]:
        books = self._books
        for token in sorted({*books.records, *books.sent, *books.requests}):
            problems = self._token(
                books.records.get(token), books.sent.get(token, []), books.requests.get(token, [])
            )
            self.findings += [f"{token}: {problem}" for problem in problems]
        return self.findings

    def _token(
        self, record: Record | None, sent: list[Sent], requests: list[Request]
    ) -> Iterable[str]:
        if record is None:
            yield "no client sent this prompt"
            return
        self.counts[f"client {record.outcome}"] += 1
        self.counts["journal"] += len(sent)
        if not requests:
            self.counts["never sent"] += 1
            if sent:
                yield f"{_what(record)}; not in the ledger, although sent {len(sent)} times"
            elif record.outcome not in ("cancelled", "lost") and not _refused(record):
                yield f"{_what(record)}; not in the ledger"
            return
        if len(requests) > 1:
            yield f"in the ledger {len(requests)} times: {[r.request_id for r in requests]}"
            return
        request = requests[0]
        self.counts[f"ledger {request.status}"] += 1
        problems = [
            *self._outcome(record, sent, request),
            *self._request(record, request),
            *self._attempts(record, sent, request),
        ]
        if problems:
            yield f"{_what(record)}; request {request.request_id} {request.status}"
            yield from problems

    # A request's row -----------------------------------------------------------------------------

    def _outcome(self, record: Record, sent: list[Sent], request: Request) -> Iterable[str]:
        allowed = {
            "answered": {"ok"},
            "error": {"rejected"} if _refused(record) and not sent else {"error", "rejected"},
            "cancelled": {"cancelled", "ok", "error"} | (set() if sent else {"rejected"}),
            "lost": {"cancelled", "ok", "error"} | ({"unknown"} if self._killed else set()),
        }[record.outcome]
        if request.status not in allowed:
            yield f"its status is not one of {', '.join(sorted(allowed))}"
        if request.status == "rejected" and (sent or request.attempts):
            yield "was sent"
        if request.status == "rejected" and request.error_class not in _REJECTED:
            yield f"was not sent because of {request.error_class}"
        if record.sqlstate in _CLASSES and request.error_class not in _CLASSES[record.sqlstate]:
            yield f"its error is {request.error_class}, the client's {record.sqlstate}"
        if request.status != "ok":
            # a backend that was killed may have had time to write its answer down, but not its end
            noted = sent[-1].said.text if sent and request.status == "unknown" else None
            if request.response not in (None, noted):
                yield f"has a response: {request.response!r}"
            return
        # one that was not delivered to its end has all of its text, but maybe no usage
        if not sent or not sent[-1].said.whole:
            yield "is no answer: the provider did not give one"
            return
        answer = sent[-1].said
        if request.response != answer.text:
            yield f"its response is {request.response!r} and not {answer.text!r}"
        if record.text is not None and record.text != answer.text:
            yield f"the client was told {record.text!r} and not {answer.text!r}"
        if request.finish != answer.finish:
            yield f"its finish reason is {request.finish} and not {answer.finish}"
        if (request.provider, request.model) != (sent[-1].provider, sent[-1].model):
            yield f"was not answered by {request.provider}/{request.model}"

    def _request(self, record: Record, request: Request) -> Iterable[str]:
        attempts = request.attempts
        if [a.number for a in attempts] != list(range(1, len(attempts) + 1)):
            yield f"its attempts are {[a.number for a in attempts]}"
        if request.count != len(attempts):
            yield f"has {len(attempts)} attempts and says {request.count}"
        costs = [a.cost for a in attempts]
        total = None if None in costs else sum(c for c in costs if c is not None)
        if request.cost != total:
            yield f"its cost is {request.cost}, that of its attempts {total}"
        sources = {a.source for a in attempts}
        source = next((s for s in ("estimate", "usage") if s in sources), "none")
        if request.source != ("none" if total is None else source):
            yield f"its cost is from {request.source}, that of its attempts from {sources}"
        for column in ("input", "cached", "output"):
            want = sum(getattr(a, column) for a in attempts)
            if getattr(request, column) != want:
                yield f"its {column} tokens are {getattr(request, column)}, of its attempts {want}"
        if request.prompt != record.prompt and (request.attempts or request.prompt is not None):
            yield f"its prompt is {request.prompt!r}"
        if record.form != "batch" and request.tag != record.token:
            yield f"its tag is {request.tag}"
        if request.application != APPLICATION or (request.requested_model or "") != record.model:
            yield f"is of {request.application} for {request.requested_model}"
        first = self._books.first.get(record.model) or {tuple(record.model.split("/", 1))}
        estimates = {self._books.prices[model].cost(_expected(record)) for model in first}
        if request.estimate not in estimates and request.status != "rejected":
            yield f"its estimate is {request.estimate} and not one of {estimates}"
        if record.request_id is not None:
            if record.request_id != request.request_id:
                yield f"the client knows it as {record.request_id}"
            if nano(record.cost) != request.cost:
                yield f"its cost is {request.cost}, the client was told {nano(record.cost)}"
            if record.attempts != request.count:
                yield f"the client was told of {record.attempts} attempts"
            if record.error_class != request.error_class:
                yield f"its error is {request.error_class}, the client's {record.error_class}"

    # Its attempts --------------------------------------------------------------------------------

    def _attempts(self, record: Record, sent: list[Sent], request: Request) -> Iterable[str]:
        """Finds which attempt is which entry of the journal: in order, but some were not sent."""
        attempts = request.attempts
        if len(sent) > len(attempts):
            return [f"{len(sent)} requests were sent, and {len(attempts)} are in the ledger"]
        best: list[str] | None = None
        places = itertools.combinations(range(len(attempts)), len(sent))
        for chosen, order in itertools.product(places, (sent, _in_order(attempts, sent))):
            entries: list[Sent | None] = [None] * len(attempts)
            for at, entry in zip(chosen, order, strict=True):
                entries[at] = entry
            problems = [
                f"attempt {attempt.number} ({attempt.provider}/{attempt.model}"
                f" {attempt.error_class or 'no error'}): {problem}"
                for attempt, entry in zip(attempts, entries, strict=True)
                for problem in self._attempt(record, request, attempt, entry)
            ]
            if best is None or len(problems) < len(best):
                best = problems
        return best or []

    def _attempt(
        self, record: Record, request: Request, attempt: Attempt, sent: Sent | None
    ) -> Iterable[str]:
        last = attempt.number == len(request.attempts)
        charged = Usage(attempt.input, attempt.cached, attempt.output, 0)
        price = self._books.prices.get((attempt.provider, attempt.model))
        if price is None:
            yield "of no model that there is"
            return
        if not last and attempt.error_class is None:
            yield "has no error, and was followed by another"
        if sent and (sent.provider, sent.model) != (attempt.provider, attempt.model):
            yield f"was sent to {sent.provider}/{sent.model}"
        # where nothing was used, it does not matter what it would have cost
        cost = price.cost(charged) if any(charged) else 0
        if attempt.cost != cost:
            yield f"{charged} costs {attempt.cost} and not {cost}"
        source = attempt.source
        if attempt.cost is None and source != "none":
            yield f"has no cost, and it is from {source}"
        priced = price.input is not None

        answered = request.status == "ok" and last
        if answered and attempt.error_class is not None:
            yield "is the answer"
        if sent is None:
            # The gateway had noted it, and then could not send it, or not wholly.
            if answered:
                yield "never reached the provider"
            if charged == Usage(0, 0, 0, 0):
                right = source == "none"
            else:
                right = source == ("estimate" if priced else "none")
                right = right and self._estimated(record, request, last, charged, Said())
            if not right:
                yield f"never reached the provider, and is charged {charged} from {source}"
            return

        answer = sent.said
        usage = answer.usage and answer.usage._replace(reasoning=0)
        if attempt.http_status not in (0, answer.status or 0):
            yield f"has status {attempt.http_status}, and was sent {answer.status}"
        by_usage = bool(usage) and charged == usage and source == ("usage" if priced else "none")
        if by_usage and (answered or not (answer.status or 0) >= 300):
            pass  # also where its end was not waited for: the provider had said what it costs
        elif answered and usage and sent.delivered and record.fate != "deadline":
            yield f"used {usage}, and is charged {charged} from {source}"
        elif answered:
            # a finish reason is an answer, though the usage behind it came too late
            estimate = Usage(_input(record), 0, tokens(len(answer.text)), 0)
            if charged != estimate or (priced and source != "estimate"):
                yield f"used {estimate} by estimate, and is charged {charged} from {source}"
        elif (answer.status or 0) >= 300 and attempt.http_status:
            if charged != Usage(0, 0, 0, 0) or (priced and (attempt.cost or source != "none")):
                yield f"was refused with {answer.status}, and is charged {charged} from {source}"
        elif not self._estimated(record, request, last, charged, answer):
            yield (
                f"is charged {charged}: its input is {_input(record)} tokens, and"
                f" {len(answer.text)} characters may have been seen ({sent.entry['outcome']})"
            )
        elif priced and source != "estimate":
            yield f"its cost is from {source} and not from an estimate"
        elif (
            not (request.status in ("cancelled", "unknown") and last)
            and attempt.error_class != "timeout"
            and _READ_UP_TO_THE_END & set(sent.entry["behaviour"].split("+"))
            and not sent.entry["reset"]
            and charged.output != _seen(answer)
        ):
            yield f"is charged {charged.output} tokens, and {len(answer.text)} characters were seen"

    def _estimated(
        self, record: Record, request: Request, last: bool, charged: Usage, answer: Said
    ) -> bool:
        """Whether the charge is the rule's for something without a known end."""
        if request.status == "unknown" and last:
            return charged == _expected(record)
        if answer.unread and charged.output:
            # what the model made may be in it
            most = record.max_tokens or charged.output
            return charged == Usage(_input(record), 0, min(tokens(answer.unread), most), 0)
        inputs = [(_input(record), 0)]
        if answer.counted:
            inputs.append(answer.counted[:2])
        return charged[:2] in inputs and 0 <= charged.output <= _seen(answer)


def _in_order(attempts: list[Attempt], sent: list[Sent]) -> list[Sent]:
    """Providers are processes of their own: one may take a request later than it was sent.

    Entries of one provider stay in their order; those of several are put as the attempts are.
    """
    rest = list(sent)
    ordered: list[Sent] = []
    for attempt in attempts:
        entry = next((e for e in rest if e.provider == attempt.provider), None)
        if entry is not None:
            ordered.append(entry)
            rest.remove(entry)
    return ordered + rest


def _what(record: Record) -> str:
    how = record.sqlstate or record.error_class or ""
    words = (record.form, "to", record.model, record.block, record.fate, record.outcome, how)
    return " ".join(word for word in words if word and word != "none")


def _refused(record: Record) -> bool:
    """Whether the client was told that the spool is full; there is no room to tell it there."""
    return record.sqlstate == "53100" or record.error_class == "unavailable"


def _input(record: Record) -> int:
    if record.characters is not None:
        return tokens(record.characters)
    return tokens(len(record.prompt) + len(record.system or ""))


def _seen(answer: Said) -> int:
    """The tokens of an output of which all has been seen that was sent, or counted."""
    seen = tokens(len(answer.text))
    if answer.counted is None:
        return seen
    # thoughts are not in the text
    thoughts = min(answer.counted.reasoning, answer.counted.output)
    return max(seen + thoughts, answer.counted.output)


def _expected(record: Record) -> Usage:
    return Usage(_input(record), 0, record.max_tokens or EXPECTED_OUTPUT, 0)


# Reading ----------------------------------------------------------------------------------------


_REQUESTS = """
SELECT request_id, status, error_class, finish_reason, provider, model, attempts, fallback,
       input_tokens, cached_input_tokens, output_tokens, estimated_usd, cost_usd, cost_source,
       application_name, requested_model, prompt, response, tags->>'token'
FROM llm_requests WHERE request_id > {} ORDER BY request_id"""
_ATTEMPTS = """
SELECT request_id, attempt, provider, model, http_status, error_class, input_tokens,
       cached_input_tokens, output_tokens, cost_usd, cost_source
FROM llm_attempts WHERE request_id > {} ORDER BY request_id, attempt"""
# Models by the names that stand for them: of the rules of an alias (and of no name) the first ones,
# and the models' own.
_FIRST = """
WITH names AS (
    SELECT alias, model, rank = min(rank) OVER (PARTITION BY alias) AS first FROM llm_routing_rules
    UNION ALL SELECT name, name, true FROM llm_models)
SELECT coalesce(n.alias, ''), m.provider, m.name
FROM names n JOIN llm_models m ON n.model IN (m.name, m.provider || '/' || m.name)
WHERE n.first"""


def _request(row: Row) -> Request:
    token = _TOKEN.match(row[16] or "")
    return Request(
        *(int(row[0] or 0), row[1] or "", *row[2:6], number(row[6]), row[7] == "t"),
        *(number(row[8]), number(row[9]), number(row[10]), nano(row[11]), nano(row[12])),
        *(row[13] or "", *row[14:18], token[0] if token else row[18], row[18]),
    )


def _attempt(row: Row) -> Attempt:
    return Attempt(
        *(number(row[1]), row[2] or "", row[3] or "", number(row[4]), row[5]),
        *(number(row[6]), number(row[7]), number(row[8]), nano(row[9]), row[10] or ""),
    )


async def read_ledger(
    session: Session, since: int, records: list[Record], findings: list[str]
) -> dict[str, list[Request]]:
    """By token.  Whatever belongs to nothing is a finding.

    A row of a batch that shares another's outcome is a request of its own, which costs nothing.
    """
    tokens_of = {record.request_id: record.token for record in records if record.request_id}
    rows = await session.rows(_REQUESTS.format(since))
    requests = {request.request_id: request for request in map(_request, rows)}
    for row in await session.rows(_ATTEMPTS.format(since)):
        request_id = int(row[0] or 0)
        if request_id in requests:
            requests[request_id].attempts.append(_attempt(row))
        else:
            findings.append(f"attempt {row[1]} is of a request that is not there: {request_id}")
    found: dict[str, list[Request]] = defaultdict(list)
    nameless: list[Request] = []
    for request in requests.values():
        if request.application != APPLICATION:
            continue
        if not request.attempts:
            # its prompt was sent to nobody, and is not kept
            request.token = request.token or tokens_of.get(request.request_id)
        if request.token is None:
            nameless.append(request)
        else:
            found[request.token].append(request)
    # of a batch that was ended while other calls of it went on, nobody was told which is which
    untold = [r for r in records if r.form == "batch" and r.outcome in ("cancelled", "lost")]
    left = sum(r.repeats + (r.token not in found) for r in untold)
    shared = {request_id: record for record in records for request_id in record.shared}
    findings += [
        f"{record.token}: the request that shares its outcome is not there: {request_id}"
        for request_id, record in shared.items()
        if request_id not in requests and not any(map(_refused, records))
    ]
    for request in nameless:
        record = shared.get(request.request_id)
        if record is not None:
            want = {"cached"} if record.outcome == "answered" else {"error", "rejected"}
            if request.status not in want or request.attempts or request.cost != 0:
                findings.append(f"{record.token} is shared by a request that is not: {request}")
        elif not request.attempts and request.cost == 0 and left > 0:
            left -= 1
        else:
            findings.append(f"request {request.request_id} has no prompt: {request}")
    return found


async def read_books(
    session: Session, since: int, records: list[Record], findings: list[str]
) -> Books:
    """All but the journal."""
    prices = {
        (row[0] or "", row[1] or ""): Price(nano(row[2]), nano(row[3]), nano(row[4]))
        for row in await session.rows(
            "SELECT provider, name, input_price, output_price, cached_input_price FROM llm_models"
        )
    }
    first: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for alias, provider, name in await session.rows(_FIRST):
        first[alias or ""].add((provider or "", name or ""))
    requests = await read_ledger(session, since, records, findings)
    findings += [f"sums differ: {row}" for row in await session.rows(SUMS_DIFFER)]
    return Books({record.token: record for record in records}, {}, requests, prices, first)


def sent_of(provider: str, entry: dict[str, Any]) -> tuple[str, Sent] | None:
    """An entry of the journal, with its token; what has none is of no concern."""
    ask = asked(entry)
    if ask and (match := _TOKEN.match(ask.prompt)):
        return match[0], Sent(provider, ask.model, entry, said(entry, ask))
    return None


async def read_journal(session: Session, entries: list[dict[str, Any]], books: Books) -> None:
    """By token, oldest first."""
    paths = {
        row[1]: row[0] or ""
        for row in await session.rows(
            "SELECT name, regexp_replace(base_url, '^https?://[^/]*', '') FROM llm_providers"
        )
    }
    for entry in entries:
        if found := sent_of(paths[entry["path"].removesuffix("/chat/completions")], entry):
            token, sent = found
            books.sent.setdefault(token, []).append(sent)
