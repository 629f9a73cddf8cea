"""The endpoints by which a test steers the fake; JSON in, JSON out.

    POST /_control/script   {"model": M, "steps": [...], "path": P, "append": false}
                            the next requests for model M ("*": for any) get these steps
    GET  /_control/journal  ?since=N: the requests after number N; &asked=1: each with what its
                            dialect read in it
    GET  /_control/stats    counts, since the last reset
    POST /_control/reset    forget journal, scripts and counts; up, if down
    POST /_control/down     {"for_ms": N, "reset": false}: refuse connections; idle ones are
                            closed, busy ones finish, or with "reset" get RST
    POST /_control/up

They answer on the main port too, but only on the control port while that is down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .model import Request
from .scripts import number, parse_step

if TYPE_CHECKING:
    from .server import Provider

PREFIX = "/_control/"


async def handle(provider: Provider, request: Request) -> tuple[int, Any]:
    """Status and answer; whatever is wrong with the request is said, and changes nothing."""
    try:
        match request.method, request.path.removeprefix(PREFIX):
            case "POST", "script":
                return 200, {"ok": True, "steps": _script(provider, _body(request))}
            case "GET", "journal":
                options = parse_qs(request.query)
                since = options.get("since", ["0"])[-1]
                return 200, provider.journal.since(int(since), asked="asked" in options)
            case "GET", "stats":
                return 200, provider.stats()
            case "POST", "reset":
                await provider.reset()
            case "POST", "down":
                body = _body(request)
                milliseconds = number(body, "for_ms")
                seconds = None if milliseconds is None else milliseconds / 1000
                provider.down(seconds, reset=bool(body.get("reset")))
            case "POST", "up":
                await provider.up()
            case _:
                return 404, {"error": f"no such endpoint: {request.method} {request.path}"}
    except ValueError as error:
        return 400, {"error": str(error)}
    return 200, {"ok": True}


def _body(request: Request) -> dict[str, Any]:
    if not request.body:
        return {}
    body = request.json()
    if not isinstance(body, dict):
        raise ValueError("the body is not an object")
    return body


def _script(provider: Provider, body: dict[str, Any]) -> int:
    if unknown := body.keys() - {"model", "steps", "path", "append"}:
        raise ValueError(f"unknown key of a script: {', '.join(sorted(unknown))}")
    model, steps, path = body.get("model"), body.get("steps"), body.get("path") or ""
    if not isinstance(model, str) or not isinstance(path, str):
        raise ValueError("model or path is not a string")
    if not isinstance(steps, list):
        raise ValueError("steps is not a list")
    parsed = [parse_step(step) for step in steps]
    return provider.scripts.put(model, parsed, path, append=bool(body.get("append")))
