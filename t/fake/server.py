"""Sockets, connections, and the playing of plans.

A connection is an asyncio.Protocol rather than a pair of streams: it is told at once when the
client goes away, whatever it is just doing, and an answer without delays is written from within
the callback that read the request, without a task.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import sys
import traceback
from collections.abc import Coroutine
from typing import Any, cast

from . import (  # noqa: F401 -- registers behaviours
    anthropic,
    azure,
    control,
    faults,
    gemini,
    journal,
    ollama,
    openai,
    tasks,
)
from .behaviours import make_plan, resolve
from .http1 import BadRequest, RequestReader, reusable, writes
from .model import Dialect, Plan, Request, Then, dump
from .scripts import Scripts

# The first whose `route` knows a path speaks for it: those with narrower paths come first.
DIALECTS: tuple[Dialect, ...] = (
    anthropic.ANTHROPIC,
    azure.AZURE,
    gemini.GEMINI,
    ollama.OLLAMA,
    openai.OPENAI,
)

BACKLOG = 4096
_LINGER_RST = struct.pack("ii", 1, 0)  # close() sends RST rather than FIN
_RST_DELAY = 0.01  # seconds: time for the client to read what came before the RST


class Listener:
    """A listening socket that can go down and come up again on the same port.

    While it is down a second socket, bound but not listening, keeps the port: connections are
    refused, and no other process is given it.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._keeper = self._bind(host, port)
        self.host, self.port = self._keeper.getsockname()[:2]
        self._server: asyncio.Server | None = None
        self._opening = asyncio.Lock()

    @staticmethod
    def _bind(host: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        return bound

    @property
    def listening(self) -> bool:
        return self._server is not None

    async def open(self, connection: Any) -> None:
        async with self._opening:
            if self._server is None:
                sock = self._bind(self.host, self.port)
                loop = asyncio.get_running_loop()
                self._server = await loop.create_server(
                    connection, sock=sock, ssl=self._tls, backlog=BACKLOG
                )

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


class Provider:
    """The fake provider: its two listeners and all its state."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, journal_size: int) -> None:
        self.journal = journal.Journal(journal_size)
        self.scripts = Scripts()
        self.connections: set[Connection] = set()
        self.connections_total = 0
        self.max_connections = 0
        self.internal_errors = 0
        self._main = Listener(host, port, tls)
        self._control = Listener(host, 0)
        self._up_timer: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return int(self._main.port)

    @property
    def control_port(self) -> int:
        return int(self._control.port)

    async def start(self) -> None:
        await self._main.open(lambda: Connection(self))
        await self._control.open(lambda: Connection(self, control_only=True))

    # Outages ------------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        return self._main.listening

    def down(self, for_seconds: float | None, reset: bool) -> None:
        """Refuse connections.  Idle ones are closed; busy ones end their answer, or are reset."""
        self._cancel_timer()
        self._main.close()
        for connection in list(self.connections):
            if reset:
                connection.reset()
            elif connection.idle:
                connection.close()
        if for_seconds is not None:
            loop = asyncio.get_running_loop()
            self._up_timer = loop.call_later(for_seconds, self._open)

    async def up(self) -> None:
        self._cancel_timer()
        await self._main.open(lambda: Connection(self))

    def _open(self) -> None:
        self._opening = asyncio.get_running_loop().create_task(self.up())

    def _cancel_timer(self) -> None:
        if self._up_timer is not None:
            self._up_timer.cancel()
            self._up_timer = None

    # Bookkeeping --------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> int:
        self.connections.add(connection)
        self.connections_total += 1
        self.max_connections = max(self.max_connections, len(self.connections))
        return self.connections_total

    def stats(self) -> dict[str, Any]:
        return {
            **self.journal.stats(),
            "connections": len(self.connections),
            "max_connections": self.max_connections,
            "connections_total": self.connections_total,
            "listening": self.listening,
            "internal_errors": self.internal_errors,
        }

    async def reset(self) -> None:
        """As new, but for the connections, which stay, and the numbers that they bear."""
        self.journal.reset()
        self.scripts.reset()
        self.max_connections = len(self.connections)
        self.internal_errors = 0
        await self.up()

    # Answers ------------------------------------------------------------------------------------

    def plan(self, entry: journal.Entry) -> Plan:
        """What the request of that entry gets; the entry is told."""
        request = entry.request
        path = request.path
        for dialect in DIALECTS:
            if operation := dialect.route(request.method, path):
                break
        else:
            entry.behaviour = "not-found"
            body = dump({"error": {"message": f"No route: {request.method} {path}", "code": None}})
            return Plan(404, {"content-type": "application/json"}, [body])
        entry.dialect, entry.operation = dialect, operation
        ask = dialect.read(request, operation)
        ask.n, entry.model = entry.n, ask.model
        if step := self.scripts.take(path, ask.model):
            entry.behaviour = step.name
            return step.plan(ask)
        chain = resolve(ask.model)
        entry.behaviour = "default" if chain is None else ask.model
        return make_plan(ask, chain or ())


class Connection(asyncio.Protocol):
    """One client connection, which carries one request at a time."""

    def __init__(self, provider: Provider, control_only: bool = False) -> None:
        self._provider = provider
        self._control_only = control_only
        self._reader = RequestReader()
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._number = 0
        self._tls = False
        self._entry: journal.Entry | None = None  # the request being answered
        self._latest: journal.Entry | None = None  # the last that was answered
        self._busy = False
        self._playing: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None

    # What asyncio calls -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # "Written" shall mean: with the kernel.
        self._transport.set_write_buffer_limits(high=0)
        self._tls = transport.get_extra_info("sslcontext") is not None
        if not self._control_only:
            self._number = self._provider.opened(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if not self._busy:
            self._advance()

    def eof_received(self) -> bool | None:
        # A client that closes its side is gone: no HTTP client waits for an answer after that.
        self._client_left()
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._client_left()
        self._provider.connections.discard(self)
        if self._drained is not None and not self._drained.done():
            self._drained.cancel()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # Requests -----------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self._busy and self._reader.idle

    def close(self) -> None:
        self._transport.close()

    def reset(self) -> None:
        """RST; an answer in progress counts as cut."""
        self._end(journal.CUT)
        if self._latest is not None:
            self._latest.reset = True
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)
        self._transport.abort()

    def _advance(self) -> None:
        """Answer whatever requests are there, until one takes time."""
        while not self._busy and not self._transport.is_closing():
            try:
                request = self._reader.next()
            except BadRequest as error:
                self._refuse(error)
                return
            if request is None:
                if self._reader.wants_continue:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return
            self._busy = True
            try:
                self._answer(request)
            except Exception as error:
                self._failed(error)

    def _refuse(self, error: BadRequest) -> None:
        headers = {"content-type": "application/json"}
        plan = Plan(error.status, headers, [dump({"error": {"message": str(error)}})])
        for piece in writes(plan, keep_alive=False):
            self._transport.write(piece)
        self._transport.close()

    def _answer(self, request: Request) -> None:
        connection = request.headers.get("connection", "").lower()
        if request.version == "HTTP/1.0":
            keep_alive = "keep-alive" in connection
        else:
            keep_alive = "close" not in connection
        if request.path.startswith(control.PREFIX) or self._control_only:
            self._start(self._control(request, keep_alive))
            return

        entry = self._entry = self._provider.journal.begin(self._number, request, self._tls)
        plan = self._provider.plan(entry)
        if plan.send_head:
            entry.status = plan.status
        if not plan.immediate:
            self._start(self._play(plan, keep_alive))
            return
        for piece in writes(plan, keep_alive):
            self._write(piece)
        if self._transport.get_write_buffer_size():
            self._start(self._play(None, reusable(plan, keep_alive)))
        else:
            self._finish(reusable(plan, keep_alive))

    async def _control(self, request: Request, keep_alive: bool) -> None:
        status, value = await control.handle(self._provider, request)
        plan = Plan(status, {"content-type": "application/json"}, [dump(value)])
        for piece in writes(plan, keep_alive):
            self._transport.write(piece)
        self._finish(keep_alive)
        self._advance()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on in a task, which ends when the client leaves."""

        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                self._failed(error)

        self._playing = asyncio.get_running_loop().create_task(work)
        self._playing.add_done_callback(done)

    def _failed(self, error: BaseException) -> None:
        """A bug of the fake, which is told and counted, and ends no more than this connection."""
        self._provider.internal_errors += 1
        traceback.print_exception(error, file=sys.stderr)
        self.reset()

    # Answers ------------------------------------------------------------------------------------

    def _write(self, piece: bytes) -> None:
        self._transport.write(piece)
        if self._entry is not None:
            self._entry.sent += len(piece)

    async def _play(self, plan: Plan | None, keep_alive: bool) -> None:
        """Answer in good time; without a plan all is written, and need only reach the kernel."""
        then = Then.KEEP
        await self._flushed()
        if plan is not None:
            then = plan.then
            await self._send(plan, keep_alive)
            keep_alive = reusable(plan, keep_alive)
        if then is Then.STALL:
            return  # until the client leaves
        if then is Then.RESET:
            if plan is not None and plan.send_head:
                await asyncio.sleep(_RST_DELAY)
            self.reset()
            return
        whole = then is not Then.CUT and (plan is None or plan.whole)
        if then is Then.HALF_CLOSE and self._transport.can_write_eof():
            self._transport.write_eof()
            self._end(journal.DELIVERED if whole else journal.CUT)
            return  # stays busy: no request is read after FIN
        self._finish(keep_alive and then is Then.KEEP, journal.DELIVERED if whole else journal.CUT)
        self._advance()

    async def _send(self, plan: Plan, keep_alive: bool) -> None:
        if plan.delay:
            await asyncio.sleep(plan.delay)
        for i, piece in enumerate(writes(plan, keep_alive)):
            # The head goes out at once; a write of its own needs the loop to turn in between.
            await asyncio.sleep(plan.gap if i else 0)
            self._write(piece)
            await self._flushed()

    async def _flushed(self) -> None:
        if self._transport.get_write_buffer_size():
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def _finish(self, keep_alive: bool, outcome: str = journal.DELIVERED) -> None:
        self._end(outcome)
        self._busy, self._playing = False, None
        if not keep_alive or not (self._control_only or self._provider.listening):
            self._transport.close()

    def _end(self, outcome: str) -> None:
        if self._entry is not None:
            self._provider.journal.end(self._entry, outcome)
            self._latest, self._entry = self._entry, None

    def _client_left(self) -> None:
        self._end(journal.CLIENT_CLOSED)
        if self._playing is not None:
            self._playing.cancel()
            self._playing = None
        if not self._transport.is_closing():
            self._transport.abort()
