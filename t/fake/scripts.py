"""What a test has ordered for the next requests.

A script is a queue of steps for one model.  A step is the name of a behaviour, or an object:

    behaviour       what to do (default: "default", unless body, chunks or status say otherwise)
    repeat          how many requests it serves: a number (default 1) or "forever"
    text            the answer's text, which max_tokens does not cut
    finish          the answer's finish reason: stop, length, tool_calls, content_filter
    usage           {"prompt", "completion", "cached", "reasoning"}; left out: 0
    status          the HTTP status
    headers         added to the response's; null removes one
    body            the whole body: text, or a JSON value to be encoded
    body_base64     the same, for bytes
    chunks          the body in pieces, each sent as one chunk and in one write; of type
                    text/event-stream, unless a behaviour or headers say otherwise
    delay_ms        before the first byte
    chunk_delay_ms  before each piece
    then            keep, close, half-close, cut (close without the end of the body), reset, stall

The keys from `status` on change the response of the behaviour, if one is named.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from .behaviours import Chain, make_plan, resolve
from .model import Answer, Ask, Framing, Plan, Then, Usage, dump, tokens

ANY = "*"
_KEYS = {
    *("behaviour", "repeat", "text", "finish", "usage", "status", "headers", "body"),
    *("body_base64", "chunks", "delay_ms", "chunk_delay_ms", "then"),
}
_FINISH = ("stop", "length", "tool_calls", "content_filter")
_USAGE = frozenset(("prompt", "completion", "cached", "reasoning"))


@dataclass(slots=True)
class Step:
    name: str
    chain: Chain
    remaining: float = 1
    text: str | None = None
    finish: str | None = None
    usage: Usage | None = None
    status: int | None = None
    headers: dict[str, str | None] | None = None
    body: bytes | None = None
    chunks: list[bytes] | None = None
    delay: float = 0.0
    gap: float = 0.0
    then: Then | None = None
    bare: bool = False  # no behaviour takes part: the step is the whole response

    def plan(self, ask: Ask) -> Plan:
        plan = Plan() if self.bare else make_plan(ask, self.chain, self._adjust)
        if self.bare:
            kind = "application/json" if self.chunks is None else "text/event-stream"
            plan.headers["content-type"] = kind
        if self.status is not None:
            plan.status = self.status
        for name, value in (self.headers or {}).items():
            if value is None:
                plan.headers.pop(name, None)
            else:
                plan.headers[name] = value
        if self.body is not None:
            plan.parts, plan.framing = [self.body], Framing.LENGTH
            # A body that is to be cut must have been promised to be longer.
            plan.promised = len(self.body) + 1 if self._breaks_off else None
        if self.chunks is not None:
            plan.parts, plan.framing, plan.separate = list(self.chunks), Framing.CHUNKED, True
        plan.delay += self.delay
        plan.gap = self.gap or plan.gap
        plan.then = self.then or plan.then
        return plan

    @property
    def _breaks_off(self) -> bool:
        return self.then is not None and not self.then.ends_body

    def _adjust(self, answer: Answer) -> None:
        if self.text is not None:
            answer.text, answer.finish = self.text, "stop"
            if answer.usage:
                answer.usage.completion = tokens(len(self.text))
        if self.finish is not None:
            answer.finish = self.finish
        if self.usage is not None:
            answer.usage = self.usage


def parse_step(value: Any) -> Step:
    """A step from its JSON form.  Raises ValueError: a typing error must not pass as a success."""
    if isinstance(value, str):
        value = {"behaviour": value}
    if not isinstance(value, dict):
        raise ValueError("a step is the name of a behaviour or an object")
    if unknown := value.keys() - _KEYS:
        raise ValueError(f"unknown key of a step: {', '.join(sorted(unknown))}")

    status = number(value, "status")
    if status is not None and not 200 <= status <= 599:
        raise ValueError("status is not from 200 to 599")
    body, chunks = _body(value), _chunks(value)
    name = value.get("behaviour")
    bare = name is None and (body is not None or chunks is not None)
    if name is None:
        name = "explicit" if bare else "default" if status is None else f"status-{int(status)}"
    chain = () if bare else resolve(_text(name, "behaviour"))
    if chain is None:
        raise ValueError(f"unknown behaviour: {name}")
    return Step(
        name=name,
        chain=chain,
        remaining=_repeat(value.get("repeat", 1)),
        text=None if value.get("text") is None else _text(value["text"], "text"),
        finish=_choice(value, "finish", _FINISH),
        usage=_usage(value.get("usage")),
        status=None if status is None else int(status),
        headers=_headers(value.get("headers")),
        body=body,
        chunks=chunks,
        delay=(number(value, "delay_ms") or 0) / 1000,
        gap=(number(value, "chunk_delay_ms") or 0) / 1000,
        then=Then(then) if (then := _choice(value, "then", [t.value for t in Then])) else None,
        bare=bare,
    )


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a string")
    return value


def number(value: dict[str, Any], key: str) -> float | None:
    """A number of an object; may come as a string, since Perl does not keep the two apart."""
    item = value.get(key)
    if item is None:
        return None
    if not isinstance(item, bool):
        try:
            result = float(item)
        except (TypeError, ValueError):
            pass
        else:
            if math.isfinite(result) and result >= 0:
                return result
    raise ValueError(f"{key} is not a number of at least 0")


def _repeat(value: Any) -> float:
    if value == "forever":
        return math.inf
    times = number({"repeat": value}, "repeat") or 0
    if times < 1 or times != int(times):
        raise ValueError('repeat is neither a whole number of at least 1 nor "forever"')
    return times


def _choice(value: dict[str, Any], key: str, allowed: Any) -> str | None:
    item = value.get(key)
    if item is not None and item not in allowed:
        raise ValueError(f"{key} is none of: {', '.join(allowed)}")
    return item


def _usage(value: Any) -> Usage | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() - _USAGE:
        raise ValueError(f"usage is not an object of: {', '.join(sorted(_USAGE))}")
    return Usage(**{key: int(number(value, key) or 0) for key in value})


def _headers(value: Any) -> dict[str, str | None] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("headers is not an object")
    return {k.lower(): None if v is None else str(v) for k, v in value.items()}


def _body(value: dict[str, Any]) -> bytes | None:
    if (encoded := value.get("body_base64")) is not None:
        try:
            return base64.b64decode(_text(encoded, "body_base64"), validate=True)
        except binascii.Error:
            raise ValueError("body_base64 is not base64") from None
    if "body" not in value:
        return None
    return _bytes(value["body"])


def _chunks(value: dict[str, Any]) -> list[bytes] | None:
    chunks = value.get("chunks")
    if chunks is None:
        return None
    if not isinstance(chunks, list):
        raise ValueError("chunks is not a list")
    return [_bytes(chunk) for chunk in chunks]


def _bytes(value: Any) -> bytes:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else dump(value)


class Scripts:
    """The queues, by model.

    A request without a model (a probe) is known by its path, and "*" serves all for which
    there is no queue of their own.  A queue may be bound to paths that begin with `path`, so that
    one fake can play several providers of the same model; such queues come first.
    """

    def __init__(self) -> None:
        self._queues: dict[tuple[str, str], deque[Step]] = {}

    def put(self, model: str, steps: list[Step], path: str = "", append: bool = False) -> int:
        """Set, or lengthen, a queue; returns its length.  No steps: it is gone."""
        queue = self._queues.get((path, model)) if append else None
        queue = queue or deque()
        queue.extend(steps)
        if queue:
            self._queues[path, model] = queue
        else:
            self._queues.pop((path, model), None)
        return len(queue)

    def take(self, path: str, model: str) -> Step | None:
        """The step for this request, which it uses up."""
        if not self._queues:
            return None
        key = self._match(path, model or path)
        if key is None:
            return None
        queue = self._queues[key]
        step = queue[0]
        step.remaining -= 1
        if step.remaining < 1:
            queue.popleft()
            if not queue:
                del self._queues[key]
        return step

    def _match(self, path: str, model: str) -> tuple[str, str] | None:
        fitting = [
            key for key in self._queues if key[1] in (model, ANY) and path.startswith(key[0])
        ]
        # The longest path first, and then the model's own queue before the one for all.
        return max(fitting, key=lambda key: (len(key[0]), key[1] != ANY), default=None)

    def reset(self) -> None:
        self._queues.clear()
