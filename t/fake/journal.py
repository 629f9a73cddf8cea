"""What was asked, and how it ended."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from .model import Dialect, Request

# A body larger than this is kept only by its beginning, once its request is over.
LARGE_BODY = 1 << 20
KEPT_OF_LARGE = 4096

DELIVERED = "delivered"  # every planned byte is with the kernel
CLIENT_CLOSED = "client_closed"  # the client went first; `ended` is when that was noticed
CUT = "cut"  # ended early by the behaviour itself


@dataclass(slots=True)
class Entry:
    """One request.  `outcome` is None while it is still being answered."""

    n: int
    time: float
    connection: int
    request: Request
    tls: bool
    model: str = ""
    behaviour: str = ""
    status: int | None = None
    sent: int = 0
    outcome: str | None = None
    reset: bool = False  # its connection was, and the client may have lost what it had not read
    ended: float | None = None
    body_bytes: int = 0
    epoch: int = 0
    dialect: Dialect | None = None
    operation: str = ""

    def as_json(self, asked: bool = False) -> dict[str, Any]:
        request = self.request
        out: dict[str, Any] = {
            "n": self.n,
            "time": round(self.time, 6),
            "connection": self.connection,
            "tls": self.tls,
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "headers": request.headers,
            "model": self.model,
            "body": None,
            "body_bytes": self.body_bytes,
            "behaviour": self.behaviour,
            "status": self.status,
            "sent": self.sent,
            "outcome": self.outcome,
            "reset": self.reset,
            "ended": self.ended and round(self.ended, 6),
        }
        if len(request.body) < self.body_bytes:
            out["raw"], out["truncated"] = request.body.decode("utf-8", "replace"), True
        elif request.body:
            try:
                out["body"] = request.json()
            except ValueError:
                out["raw"] = request.body.decode("utf-8", "replace")
        if asked and self.dialect and len(request.body) == self.body_bytes:
            # Read once more: kept for every request it would be twice the memory.
            out["dialect"] = self.dialect.name
            out["asked"] = self.dialect.read(request, self.operation).asked()
        return out


class Journal:
    """The last `size` requests, and counts over all since the last reset."""

    def __init__(self, size: int) -> None:
        self._entries: deque[Entry] = deque(maxlen=size)
        self._requests = 0
        self._outcomes: Counter[str] = Counter()
        self._in_flight = 0
        self._max_in_flight = 0
        self._epoch = 0  # counts resets

    def begin(self, connection: int, request: Request, tls: bool) -> Entry:
        self._requests += 1
        entry = Entry(self._requests, time.time(), connection, request, tls)
        entry.body_bytes = len(request.body)
        entry.epoch = self._epoch
        self._entries.append(entry)
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        return entry

    def end(self, entry: Entry, outcome: str) -> None:
        entry.outcome, entry.ended = outcome, time.time()
        self._in_flight -= 1
        if entry.epoch == self._epoch:
            self._outcomes[outcome] += 1
        if entry.body_bytes > LARGE_BODY:
            entry.request.body = entry.request.body[:KEPT_OF_LARGE]

    def since(self, n: int, asked: bool = False) -> list[dict[str, Any]]:
        """All entries after number `n`, oldest first; if `asked`, with what their dialect read."""
        return [entry.as_json(asked) for entry in self._entries if entry.n > n]

    def stats(self) -> dict[str, Any]:
        return {
            "requests": self._requests,
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
            "outcomes": dict(self._outcomes),
            "forgotten": self._requests - len(self._entries),
        }

    def reset(self) -> None:
        """Forget everything but the requests in flight, which still count as such."""
        self._entries.clear()
        self._outcomes.clear()
        self._requests = 0
        self._epoch += 1
        self._max_in_flight = self._in_flight
