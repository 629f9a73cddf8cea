"""A session with a PostgreSQL server: simple queries over a Unix socket, nothing more.

psql would do, but for hundreds of processes; and a test that kills backends wants to know exactly
what a client was told before its connection ended.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field

Row = list[str | None]
_PROTOCOL = 3 << 16
_CANCEL = 1234 << 16 | 5678


class Lost(Exception):
    """The connection has ended; `error` is the server's last word, if it had one."""

    def __init__(self, error: dict[str, str] | None = None) -> None:
        super().__init__(error["M"] if error else "connection lost")
        self.error = error


class Failed(Exception):
    """The server answered with an error."""

    def __init__(self, error: dict[str, str]) -> None:
        super().__init__(f"{error['C']}: {error['M']}")
        self.error = error


@dataclass(slots=True)
class Result:
    """Of all statements of one query string; a message is its fields by their letters."""

    rows: list[Row] = field(default_factory=list)
    error: dict[str, str] | None = None
    notices: list[dict[str, str]] = field(default_factory=list)

    @property
    def sqlstate(self) -> str | None:
        return self.error and self.error["C"]


def literal(value: str | None) -> str:
    """As SQL; standard_conforming_strings is on."""
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


class Session:
    """Use `connect`."""

    def __init__(
        self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._path, self._reader, self._writer = path, reader, writer
        self.pid = 0
        self._secret = b""

    @staticmethod
    async def connect(
        directory: str, port: int, database: str, user: str, **settings: str
    ) -> Session:
        """Raises Lost whatever it is that keeps the server from taking us."""
        path = f"{directory}/.s.PGSQL.{port}"
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
        except OSError as error:
            raise Lost from error
        session = Session(path, reader, writer)
        parameters = {"user": user, "database": database, "client_encoding": "UTF8", **settings}
        body = b"".join(f"{k}\0{v}\0".encode() for k, v in parameters.items()) + b"\0"
        writer.write(struct.pack("!ii", len(body) + 8, _PROTOCOL) + body)
        try:
            result = await session._answer()
        except Lost:
            session.close()
            raise
        if result.error or not session.pid:
            session.close()
            raise Lost(result.error)
        return session

    async def query(self, sql: str) -> Result:
        """Raises Lost when the connection ends before the answer does."""
        message = sql.encode() + b"\0"
        try:
            self._writer.write(b"Q" + struct.pack("!i", len(message) + 4) + message)
        except OSError as error:
            raise Lost from error
        return await self._answer()

    async def rows(self, sql: str) -> list[Row]:
        """Of a query that must not fail."""
        result = await self.query(sql)
        if result.error:
            raise Failed(result.error)
        return result.rows

    async def cancel(self) -> None:
        """Asks the server to cancel; returns when it has sent the signal, or cannot."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
            writer.write(struct.pack("!iii", 16, _CANCEL, self.pid) + self._secret)
            await reader.read()
            writer.close()
        except OSError:
            pass

    def close(self) -> None:
        self._writer.close()

    async def _message(self) -> tuple[bytes, bytes]:
        head = await self._reader.readexactly(5)
        kind, length = struct.unpack("!ci", head)
        return kind, await self._reader.readexactly(length - 4)

    async def _answer(self) -> Result:
        result = Result()
        try:
            while True:
                kind, body = await self._message()
                match kind:
                    case b"D":
                        result.rows.append(_row(body))
                    case b"E":
                        result.error = result.error or _fields(body)
                    case b"N":
                        result.notices.append(_fields(body))
                    case b"R" if body != b"\0\0\0\0":
                        raise RuntimeError("the server wants a password")
                    case b"K":
                        self.pid, self._secret = struct.unpack("!i", body[:4])[0], body[4:]
                    case b"Z":
                        return result
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Lost(result.error) from error


def _row(body: bytes) -> Row:
    (count,) = struct.unpack_from("!h", body)
    row: Row = []
    at = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        if length < 0:
            row.append(None)
        else:
            row.append(body[at : at + length].decode())
            at += length
    return row


def _fields(body: bytes) -> dict[str, str]:
    return {
        part[:1].decode(): part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part
    }
