#!/usr/bin/python3
"""Tests of the ledger's audit, without a server:  python3 t/ledger_load_test.py

A ledger is kept by hand, as the contract wants it, for requests that really went to the fake
provider.  The audit has nothing to say about it, and finds each single thing that is changed.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import unittest
from collections.abc import Callable
from typing import Any

sys.dont_write_bytecode = True

from fake_provider_test import Fake, raw_request, read_all  # noqa: E402
from ledger.audit import (  # noqa: E402
    Attempt,
    Audit,
    Books,
    Price,
    Request,
    Sent,
    nano,
    tokens,
)
from ledger.load import APPLICATION, Record  # noqa: E402
from fake import behaviours  # noqa: E402
from ledger.mixture import ANSWERS, ENDLESS, FAULTS, Mixture  # noqa: E402
from ledger.replay import Said, Usage, asked, said  # noqa: E402

# path, headers, and body of a streamed request
DIALECTS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "openai": (
        "/v1/chat/completions",
        ["Authorization: Bearer sk-fake-test-0123456789"],
        {
            "model": "m",
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": "PROMPT"}],
        },
    ),
    "anthropic": (
        "/anthropic/v1/messages",
        ["x-api-key: sk-fake-test-0123456789", "anthropic-version: 2023-06-01"],
        {
            "model": "m",
            "stream": True,
            "max_tokens": 2000,
            "messages": [{"role": "user", "content": "PROMPT"}],
        },
    ),
    "gemini": (
        "/gemini/v1beta/models/m:streamGenerateContent?alt=sse",
        ["x-goog-api-key: sk-fake-test-0123456789"],
        {"contents": [{"role": "user", "parts": [{"text": "PROMPT"}]}]},
    ),
    "ollama": (
        "/ollama/api/chat",
        [],
        {"model": "m", "messages": [{"role": "user", "content": "PROMPT"}]},
    ),
}
PRICE = Price(150_000_007, 600_000_001, 75_000_003)
MAX_TOKENS = 300


class Replay(unittest.TestCase):
    """What is replayed is what goes over the wire."""

    def test_every_behaviour(self) -> None:
        fake = Fake()
        self.addCleanup(fake.stop)
        names = [m for m in (*ANSWERS, *FAULTS) if "reset" not in m and "close" not in m]
        for name in names:
            for stream in (True, False):
                with self.subTest(name, stream=stream), fake.connect() as sock:
                    more = {"stream_options": {"include_usage": True}} if stream else {}
                    prompt = "token-00000000-000000 and more"
                    request = raw_request(name, stream=stream, prompt=prompt, **more)
                    close = request.replace(b"Host:", b"Connection: close\r\nHost:", 1)
                    sock.sendall(close)
                    raw, _ = read_all(sock)
                    answer = said(fake.journal()[-1])
                    self.assertEqual(answer.status, int(raw.split()[1]))
                    text = answer.text.encode()
                    if stream:  # the pieces, in order
                        for i in range(0, len(text), 4):
                            self.assertIn(b'{"content":"%b"}' % text[i : i + 4], raw)
                    else:
                        self.assertIn(text, raw)
                    sound = name in ANSWERS or "flaky" in name
                    self.assertEqual(answer.whole, sound and answer.status == 200)
                    if stream and answer.whole:
                        self.assertIn(b"[DONE]", raw)
                    if answer.usage:
                        self.assertIn(b'"prompt_tokens":%d' % answer.usage.input, raw)
                        self.assertIn(b'"completion_tokens":%d' % answer.usage.output, raw)

    def test_every_dialect(self) -> None:
        """Read as its clients read it: the same answer, and the same usage, but for what a
        dialect does not tell."""
        fake = Fake()
        self.addCleanup(fake.stop)
        prompt = "token-00000000-000000 näive \\ 東京"
        for dialect, (path, headers, body) in DIALECTS.items():
            for name in ("metered", "metered+length", "metered+cut", "metered+malformed", "html"):
                with self.subTest(dialect, name=name), fake.connect() as sock:
                    fake.script("*", name)
                    said_by = json.dumps(body).replace("PROMPT", json.dumps(prompt)[1:-1]).encode()
                    head = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
                    head += [f"Content-Length: {len(said_by)}", "", ""]
                    sock.sendall("\r\n".join(head).encode() + said_by)
                    read_all(sock)
                    entry = fake.journal()[-1]
                    ask, answer = asked(entry), said(entry)
                    assert ask
                    self.assertEqual((ask.prompt, ask.dialect.name), (prompt, dialect))
                    if name in ("metered", "metered+length"):
                        self.assertEqual(answer.text, "echo: " + prompt)
                        self.assertTrue(answer.whole)
                        self.assertEqual(answer.finish, "length" if "length" in name else "stop")
                        metered = ask.answer()
                        behaviours.REGISTRY["metered"].shape(ask, metered)  # type: ignore[misc]
                        usage = metered.usage
                        assert usage and answer.usage
                        self.assertEqual(answer.usage.input, usage.prompt)
                        self.assertEqual(answer.usage.output, usage.completion)
                        self.assertIn(answer.usage.cached, (0, usage.cached))
                    else:
                        self.assertFalse(answer.whole)
                        self.assertIsNone(answer.usage)
                        self.assertEqual(answer.text, ("echo: " + prompt)[: len(answer.text)])
                        self.assertEqual(answer.unread > 0, name == "html")

    def test_nothing_is_said(self) -> None:
        fake = Fake()
        self.addCleanup(fake.stop)
        for name in ("silent", "reset-before", "close-before"):
            with fake.connect() as sock:
                sock.sendall(raw_request(name, prompt="token-00000000-000000"))
                while not fake.journal():
                    pass
                self.assertEqual(said(fake.journal()[-1]), Said())
            fake.control("POST", "reset")


class Money(unittest.TestCase):
    def test_nano(self) -> None:
        self.assertEqual(nano("0.000000001"), 1)
        self.assertEqual(nano("12345678901.5"), 12_345_678_901_500_000_000)
        self.assertIsNone(nano(None))
        with self.assertRaises(ValueError):
            nano("0.0000000001")

    def test_cost(self) -> None:
        price = Price(1_500_000, 2_000_000, None)  # 1.5 and 2 nano-dollars a token
        self.assertEqual(price.cost(Usage(1, 0, 0, 0)), 2)  # half up
        self.assertEqual(price.cost(Usage(3, 3, 1, 0)), 7)
        self.assertEqual(Price(0, None, None).cost(Usage(3, 3, 0, 0)), 0)
        self.assertIsNone(Price(0, None, None).cost(Usage(3, 3, 1, 0)))
        self.assertIsNone(Price(None, 1, None).cost(Usage(0, 0, 0, 0)))


class Drawing(unittest.TestCase):
    def test_the_same_again(self) -> None:
        first, second = Mixture(1, False), Mixture(1, False)
        calls = [first.draw() for _ in range(500)]
        self.assertEqual(calls, [second.draw() for _ in range(500)])
        drawn = [token for call in calls for token in call.tokens]
        self.assertEqual(len(drawn), len(set(drawn)))
        for call in calls:
            if call.model.split("/")[-1] in ENDLESS:
                self.assertNotEqual(call.fate, "none")


class ByHand(unittest.TestCase):
    """The ledger kept by hand."""

    fake: Fake

    @classmethod
    def setUpClass(cls) -> None:
        cls.fake = Fake()
        cls.addClassCleanup(cls.fake.stop)
        cls.books = Books({}, {}, {}, {}, {"alias": {("p", "metered+status-500")}})
        cls.n = 0
        cls.answered = cls.enter("answered", ["metered"])
        cls.no_usage = cls.enter("answered", ["metered+no-usage"])
        cls.retried = cls.enter("answered", ["metered+cut", "metered"], model="p/metered+cut")
        cls.fallen_back = cls.enter("answered", ["metered+status-500", "metered"], model="alias")
        cls.refused = cls.enter("error", ["metered+status-400"])
        cls.cut = cls.enter("error", ["metered+cut"])
        cls.broken = cls.enter("error", ["metered+malformed"])
        cls.reset = cls.enter("error", ["metered+reset-mid"])
        cls.cancelled = cls.enter("cancelled", ["metered+silent"])
        cls.killed = cls.enter("lost", ["metered+stall"], status="unknown")
        cls.finished = cls.enter("cancelled", ["metered"], status="ok")
        cls.unsent = cls.enter("cancelled", [], model="p/metered")
        cls.never = cls.enter("lost", [], model="p/metered", booked=False)
        cls.full = cls.enter("error", [], model="p/metered", booked=False)
        cls.books.records[cls.full].sqlstate = "53100"
        cls.unpriced = cls.enter("answered", ["metered+slow-3"])

    @classmethod
    def enter(
        cls, outcome: str, models: list[str], model: str = "", status: str = "", booked: bool = True
    ) -> str:
        """Sends it, and writes down what is right.  Returns its token."""
        books = cls.books
        cls.n += 1
        token = f"token-00000000-{cls.n:06d}"
        record = Record(
            token=token,
            prompt=f"{token} näive {'x' * cls.n}",
            model=model or f"p/{models[0]}",
            system="Be brief.",
            max_tokens=MAX_TOKENS,
            form="detail" if outcome == "answered" else "scalar",
            block="none",
            fate="none",
            outcome=outcome,
            sqlstate={"error": "LG004", "cancelled": "57014"}.get(outcome),
        )
        books.records[token] = record
        estimate = tokens(len(record.prompt) + len("Be brief."))
        request = Request(
            request_id=1000 + cls.n,
            status=status or {"answered": "ok"}.get(outcome, outcome),
            error_class="network" if outcome == "error" else None,
            finish=None,
            provider="p",
            model=models[-1] if models else "metered",
            count=max(1, len(models)),
            fallback=model == "alias",
            input=0,
            cached=0,
            output=0,
            estimate=0,
            cost=0,
            source="usage",
            application=APPLICATION,
            requested_model=record.model,
            prompt=record.prompt,
            response=None,
            token=token,
            tag=token,
        )
        for number, name in enumerate(models or ["metered"], 1):
            price = Price(None, None, None) if name == "metered+slow-3" else PRICE
            books.prices["p", name] = price
            answer = Said()
            if models:
                answer = cls.send(record, name)
            last = number == max(1, len(models))
            if request.status == "ok" and last:
                usage = answer.usage or Usage(estimate, 0, tokens(len(answer.text)), 0)
                source = "usage" if answer.usage else "estimate"
                request.response, request.finish = answer.text, answer.finish
            elif (answer.status or 0) >= 300:
                usage, source = Usage(0, 0, 0, 0), "none"
            elif request.status == "unknown" and last:
                usage, source = Usage(estimate, 0, MAX_TOKENS, 0), "estimate"
            else:
                usage, source = Usage(estimate, 0, tokens(len(answer.text)), 0), "estimate"
            failed = not last or outcome == "error"
            cost = price.cost(usage)
            request.attempts.append(
                Attempt(
                    number=number,
                    provider="p",
                    model=name,
                    http_status=answer.status or 0,
                    error_class="some" if failed else None,
                    input=usage.input,
                    cached=usage.cached,
                    output=usage.output,
                    cost=cost,
                    source="none" if cost is None else source,
                )
            )
        costs = [a.cost for a in request.attempts]
        sources = [a.source for a in request.attempts]
        request.source = min(sources, key=("estimate", "usage", "none").index)
        request.cost = None if None in costs else sum(c or 0 for c in costs)
        for column in ("input", "cached", "output"):
            setattr(request, column, sum(getattr(a, column) for a in request.attempts))
        first = books.prices["p", request.attempts[0].model]
        request.estimate = first.cost(Usage(estimate, 0, MAX_TOKENS, 0))
        if record.form == "detail":
            record.request_id, record.attempts = request.request_id, request.count
            record.text = request.response
            record.cost = None if request.cost is None else f"{request.cost / 10**9:.9f}"
        if booked:
            books.requests[token] = [request]
        return token

    @classmethod
    def send(cls, record: Record, name: str) -> Said:
        with cls.fake.connect() as sock:
            more = {"stream": True, "stream_options": {"include_usage": True}}
            request = raw_request(name, prompt=record.prompt, max_tokens=MAX_TOKENS, **more)
            sock.sendall(request.replace(b"Host:", b"Connection: close\r\nHost:", 1))
            if name.split("+")[-1] in ("silent", "stall"):
                sock.settimeout(1.0)
            read_all(sock)
        while (entry := cls.fake.journal()[-1])["outcome"] is None:
            pass
        answer = said(entry)
        cls.books.sent.setdefault(record.token, []).append(Sent("p", name, entry, answer))
        return answer

    def audit(self, books: Books) -> list[str]:
        return Audit(books, killed=True).run()

    def test_sound(self) -> None:
        self.assertEqual(self.audit(self.books), [])

    def test_killed_only_where_somebody_was(self) -> None:
        findings = Audit(self.books).run()
        self.assertTrue(findings)
        for finding in findings:
            self.assertTrue(finding.startswith(self.killed), finding)

    def found(
        self, what: str, token: str, change: Callable[[Books, Request, Record], object]
    ) -> None:
        with self.subTest(what):
            books = copy.deepcopy(self.books)
            request = books.requests.get(token, [None])[0]
            change(books, request, books.records[token])  # type: ignore[arg-type]
            findings = self.audit(books)
            self.assertTrue(findings, "is not found")
            for finding in findings:
                self.assertIn(token, finding)

    def test_rows(self) -> None:
        answered, killed = self.answered, self.killed
        for token in (answered, self.cut, self.cancelled, killed):
            self.found("lost", token, lambda b, r, c: b.requests.pop(c.token))
        for token in (answered, self.unsent):
            self.found(
                "booked twice",
                token,
                lambda b, r, c: b.requests[c.token].append(dataclasses.replace(r, request_id=7)),
            )
        self.found("of nobody", answered, lambda b, r, c: b.records.pop(c.token))
        self.found("not sent", answered, lambda b, r, c: b.sent.pop(c.token))
        self.found("sent twice", answered, lambda b, r, c: b.sent[c.token].extend(b.sent[c.token]))
        self.found("no attempt", answered, lambda b, r, c: r.attempts.clear())
        self.found("no second attempt", self.retried, lambda b, r, c: r.attempts.pop())
        self.found("no first attempt", self.retried, lambda b, r, c: r.attempts.pop(0))
        self.found("attempts in disorder", self.fallen_back, lambda b, r, c: r.attempts.reverse())

    def test_columns(self) -> None:
        """Each column of each kind of request."""
        for token, requests in self.books.requests.items():
            for column, wrong in (
                ("cost", 1),
                ("input", 1),
                ("cached", 1),
                ("output", 1),
                ("estimate", 1),
                ("count", 1),
                ("source", "x"),
                ("prompt", "x"),
                ("tag", "x"),
                ("application", "x"),
                ("requested_model", "x"),
            ):
                self.wrong(token, column, wrong, lambda r: r)
            if requests[0].status == "ok":
                for column in ("response", "finish", "provider", "model"):
                    self.wrong(token, column, "x", lambda r: r)
            else:
                self.wrong(token, "response", "x", lambda r: r)
            for at in range(len(requests[0].attempts)):
                changes = (("number", 1), ("provider", "x"), ("cost", 1), ("source", "x"))
                for column, wrong in changes:
                    self.wrong(token, column, wrong, lambda r, at=at: r.attempts[at])

    def wrong(self, token: str, column: str, wrong: object, where: Callable[..., object]) -> None:
        def change(books: Books, request: Request, record: Record) -> None:
            row = where(request)
            value = getattr(row, column)
            setattr(row, column, (value or 0) + 1 if isinstance(wrong, int) else wrong)

        what = f"{column} of {token} {self.books.requests[token][0].status}"
        self.found(what, token, change)

    def recharge(self, token: str, at: int, source: str, **charge: int) -> None:
        """The attempt at another charge, all sums in step."""

        def change(books: Books, request: Request, record: Record) -> None:
            attempt = request.attempts[at]
            for column, value in charge.items():
                total = getattr(request, column) + value - getattr(attempt, column)
                setattr(request, column, total)
                setattr(attempt, column, value)
            cost = PRICE.cost(Usage(attempt.input, attempt.cached, attempt.output, 0))
            request.cost = (request.cost or 0) + (cost or 0) - (attempt.cost or 0)
            attempt.cost, attempt.source = cost, source
            sources = [a.source for a in request.attempts]
            request.source = min(sources, key=("estimate", "usage", "none").index)
            record.cost = f"{request.cost / 10**9:.9f}"

        self.found(f"{self.books.records[token].model}: {source} {charge}", token, change)

    def test_charges(self) -> None:
        sent = {t: self.books.sent[t][0].said for t in self.books.sent}
        usage = sent[self.answered].usage
        assert usage
        self.recharge(self.answered, 0, "estimate", input=usage.input + 1)
        self.recharge(self.answered, 0, "usage", output=usage.output - 1)
        self.recharge(self.answered, 0, "usage", cached=usage.cached + 1)
        self.recharge(self.answered, 0, "none", input=0, cached=0, output=0)
        self.recharge(self.no_usage, 0, "estimate", output=0)
        self.recharge(self.no_usage, 0, "usage")
        self.recharge(self.retried, 0, "none", input=0, output=0)
        self.recharge(self.refused, 0, "estimate", input=5)
        self.recharge(self.fallen_back, 0, "usage", input=5)
        seen = tokens(len(sent[self.cut].text))
        self.recharge(self.cut, 0, "estimate", output=seen - 1)
        self.recharge(self.cut, 0, "estimate", output=seen + 1)
        self.recharge(self.broken, 0, "estimate", output=0)
        self.recharge(self.reset, 0, "estimate", output=tokens(len(sent[self.reset].text)) + 1)
        self.recharge(self.reset, 0, "none", input=0, output=0)
        self.recharge(self.cancelled, 0, "estimate", output=1)
        self.recharge(self.cancelled, 0, "none", input=0)
        self.recharge(self.killed, 0, "estimate", output=256)
        self.recharge(self.killed, 0, "none", input=0, output=0)
        self.recharge(self.unsent, 0, "estimate", output=1)

    def test_outcomes(self) -> None:
        for token in (self.answered, self.refused):
            self.found("unknown", token, lambda b, r, c: setattr(r, "status", "unknown"))
            self.found("cancelled", token, lambda b, r, c: setattr(r, "status", "cancelled"))
        self.found("an error", self.answered, lambda b, r, c: setattr(r, "status", "error"))
        for token in (self.cut, self.refused, self.cancelled, self.unsent):
            self.found("ok", token, lambda b, r, c: setattr(r, "status", "ok"))
        self.found(
            "refused, and sent",
            self.full,
            lambda b, r, c: b.sent.update({c.token: b.sent[self.cut]}),
        )
        self.found("other text", self.answered, lambda b, r, c: setattr(c, "text", "x"))
        self.found("another id", self.answered, lambda b, r, c: setattr(c, "request_id", 1))
        self.found("another cost", self.answered, lambda b, r, c: setattr(c, "cost", "1"))
        self.found("other attempts", self.answered, lambda b, r, c: setattr(c, "attempts", 9))
        for token in (self.answered, self.cut):
            self.found("other error", token, lambda b, r, c: setattr(r, "error_class", "timeout"))
        self.found(
            "an error, of nothing",
            self.never,
            lambda b, r, c: setattr(c, "outcome", "error"),
        )

    def test_what_may_be_either(self) -> None:
        """A call that was cancelled, of which the provider had sent all."""
        for usage in (self.books.sent[self.finished][0].said.usage, None):
            books = copy.deepcopy(self.books)
            request = books.requests[self.finished][0]
            attempt = request.attempts[0]
            request.status, request.response = "cancelled", None
            if usage is None:
                attempt.input = tokens(len(books.records[self.finished].prompt) + len("Be brief."))
                attempt.cached, attempt.output, attempt.source = 0, 1, "estimate"
                attempt.cost = PRICE.cost(Usage(attempt.input, 0, 1, 0))
                for column in ("input", "cached", "output", "cost", "source"):
                    setattr(request, column, getattr(attempt, column))
            self.assertEqual(self.audit(books), [])


if __name__ == "__main__":
    unittest.main()
