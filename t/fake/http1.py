"""HTTP/1.1 on the wire: bytes in, requests out; a plan in, bytes out.

Written by hand because faults need control of every byte, which no HTTP library gives.
"""

from __future__ import annotations

import functools
import itertools
import string
import time
from collections.abc import Iterator
from email.utils import formatdate
from http import HTTPStatus

from .model import Framing, Plan, Request

MAX_HEAD = 1 << 20
MAX_BODY = 1 << 28
_HEX = frozenset(string.hexdigits.encode())
# Sizes of odd chunks: small and coprime, so that boundaries wander through every event.
_ODD_SIZES = (1, 7, 2, 31, 3, 113, 5)


class BadRequest(Exception):
    """What cannot be a request.  The connection ends with `status`, since its framing is lost."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RequestReader:
    """Cuts a connection's bytes into requests.

    `feed` bytes, then call `next` until it returns None.  After a None, `wants_continue` says
    whether the client now waits for "100 Continue"; reading it clears it.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0  # no end of head before this offset
        self._request: Request | None = None  # head read, body still to come
        self._need = 0  # bytes of body; -1: chunked
        self._chunks = bytearray()
        self._in_trailer = False
        self._expects = False

    def feed(self, data: bytes) -> None:
        self._buffer += data

    @property
    def idle(self) -> bool:
        """Whether the connection is between requests, with no byte of the next one."""
        return self._request is None and not self._buffer

    @property
    def wants_continue(self) -> bool:
        expects, self._expects = self._expects, False
        return expects

    def next(self) -> Request | None:
        """The next whole request, or None if it takes more bytes.  Raises BadRequest."""
        request = self._request or self._head()
        if request is None:
            return None
        self._request = request
        body = self._chunked() if self._need < 0 else self._counted()
        if body is None:
            return None
        request.body = body
        self._request, self._expects = None, False
        return request

    def _head(self) -> Request | None:
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):  # allowed before a request line
            del buffer[:2]
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end < 0:
            self._scanned = len(buffer)
            if self._scanned > MAX_HEAD:
                raise BadRequest(431, "the head of the request is too large")
            return None
        line, *fields = buffer[:end].decode("latin-1").split("\r\n")
        del buffer[: end + 4]
        self._scanned = 0

        try:
            method, target, version = line.split(" ")
        except ValueError:
            raise BadRequest(400, "malformed request line") from None
        if version not in ("HTTP/1.1", "HTTP/1.0"):
            raise BadRequest(505 if version.startswith("HTTP/") else 400, "unknown HTTP version")
        headers: dict[str, str] = {}
        for item in fields:
            name, colon, value = item.partition(":")
            if not colon or not name or name != name.strip():
                raise BadRequest(400, "malformed header")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value

        self._need = self._length(headers)
        self._expects = headers.get("expect", "").lower() == "100-continue"
        return Request(method, target, version, headers)

    @staticmethod
    def _length(headers: dict[str, str]) -> int:
        if encoding := headers.get("transfer-encoding"):
            if encoding.lower() != "chunked":
                raise BadRequest(501, "unknown transfer encoding")
            return -1
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise BadRequest(400, "malformed content length")
        if len(length) > 18 or int(length) > MAX_BODY:
            raise BadRequest(413, "the body of the request is too large")
        return int(length)

    def _counted(self) -> bytes | None:
        if len(self._buffer) < self._need:
            return None
        body = bytes(self._buffer[: self._need])
        del self._buffer[: self._need]
        return body

    def _chunked(self) -> bytes | None:
        buffer = self._buffer
        while (end := buffer.find(b"\r\n", 0, MAX_HEAD)) >= 0:
            if self._in_trailer:
                del buffer[: end + 2]
                if end == 0:
                    body = bytes(self._chunks)
                    self._chunks, self._in_trailer = bytearray(), False
                    return body
                continue
            digits = bytes(buffer[:end]).partition(b";")[0].strip()
            if not 0 < len(digits) <= 8 or not _HEX.issuperset(digits):
                raise BadRequest(400, "malformed chunk")
            size = int(digits, 16)
            if len(self._chunks) + size > MAX_BODY:
                raise BadRequest(413, "the body of the request is too large")
            if size == 0:
                del buffer[: end + 2]
                self._in_trailer = True
                continue
            start, stop = end + 2, end + 2 + size
            if len(buffer) < stop + 2:
                return None
            if buffer[stop : stop + 2] != b"\r\n":
                raise BadRequest(400, "malformed chunk")
            self._chunks += buffer[start:stop]
            del buffer[: stop + 2]
        if len(buffer) >= MAX_HEAD:
            raise BadRequest(400, "malformed chunk")
        return None


def writes(plan: Plan, keep_alive: bool) -> Iterator[bytes]:
    """The response to `plan`, as the pieces in which it is to be written."""
    if not plan.send_head:
        return iter(())
    head = _head(plan, keep_alive)
    if plan.write_size:
        raw = b"".join((head, *_framed(plan)))
        return (raw[i : i + plan.write_size] for i in range(0, len(raw), plan.write_size))
    if plan.gap or plan.separate:
        return itertools.chain((head,), _framed(plan))
    return iter((b"".join((head, *_framed(plan))),))


def reusable(plan: Plan, keep_alive: bool) -> bool:
    """Whether the connection can carry another request after that plan."""
    return keep_alive and plan.framing is not Framing.UNTIL_CLOSE


def _head(plan: Plan, keep_alive: bool) -> bytes:
    lines = [_status_line(plan.status), *(f"{k}: {v}" for k, v in plan.headers.items())]
    if plan.status in (204, 304):
        pass  # such a response has no body, and says so by its status alone
    elif plan.framing is Framing.LENGTH:
        if "content-length" not in plan.headers:
            length = sum(map(len, plan.parts)) if plan.promised is None else plan.promised
            lines.append(f"content-length: {length}")
    elif plan.framing is not Framing.UNTIL_CLOSE:
        lines.append("transfer-encoding: chunked")
    if not reusable(plan, keep_alive):
        lines.append("connection: close")
    if "date" not in plan.headers:
        lines.append(_date(int(time.time())))
    return "\r\n".join((*lines, "", "")).encode("utf-8", "surrogateescape")


@functools.lru_cache(maxsize=64)
def _status_line(status: int) -> str:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Status"
    return f"HTTP/1.1 {status} {reason}"


@functools.lru_cache(maxsize=2)
def _date(second: int) -> str:
    return "date: " + formatdate(second, usegmt=True)


def _framed(plan: Plan) -> Iterator[bytes]:
    """The body; its end goes out with the last part."""
    if plan.status in (204, 304):
        return iter(())
    if plan.framing is Framing.CHUNKED:
        return _chunks(plan)
    if plan.framing is Framing.CHUNKED_ODD:
        return _odd_chunks(plan)
    return iter(plan.parts)


def _chunks(plan: Plan) -> Iterator[bytes]:
    last = len(plan.parts) - 1
    end = b"0\r\n\r\n" if plan.then.ends_body else b""
    for i, part in enumerate(plan.parts):
        chunk = b"%x\r\n%b\r\n" % (len(part), part) if part else b""
        yield chunk + end if i == last else chunk
    if last < 0:
        yield end


def _odd_chunks(plan: Plan) -> Iterator[bytes]:
    """Leading zeros, upper-case digits, extensions, trailers, and no respect for events."""
    raw, at = b"".join(plan.parts), 0
    for n, size in enumerate(itertools.cycle(_ODD_SIZES)):
        if at >= len(raw):
            break
        part = raw[at : at + size]
        extension = (b"", b";x", b' ; name="a;b"')[n % 3]
        yield b"%04X%b\r\n%b\r\n" % (len(part), extension, part)
        at += size
    if plan.then.ends_body:
        yield b"000;last\r\nx-trailer: one\r\nX-Trailer: two\r\n\r\n"
