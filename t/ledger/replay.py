"""What the fake provider said, to a request that is in its journal.

Its answer is a function of the request, so it can be made again: nobody need keep it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from fake import behaviours, faults, openai  # noqa: F401 -- faults registers behaviours
from fake.model import Request


class Usage(NamedTuple):
    """Tokens as a provider counts them: input includes cached, output includes reasoning."""

    input: int
    cached: int
    output: int
    reasoning: int


@dataclass(slots=True)
class Said:
    """`text` is as much of the answer as was meant to go out, up to what cannot be read."""

    status: int | None = None  # None: not one byte
    text: str = ""
    finish: str | None = None
    usage: Usage | None = None
    whole: bool = False  # an answer, up to its end


def said(entry: dict[str, Any]) -> Said:
    """For an entry of the journal whose behaviour is a name, not a script's own response."""
    body = json.dumps(entry["body"]).encode()
    request = Request(entry["method"], entry["path"], "HTTP/1.1", entry["headers"], body)
    ask = openai.OPENAI.read(request, "chat")
    ask.n = entry["n"]
    chain = behaviours.resolve(entry["behaviour"])
    if chain is None:
        raise ValueError(f"request {entry['n']}: behaviour {entry['behaviour']} has no name")
    plan = behaviours.make_plan(ask, chain)
    if not plan.send_head:
        return Said()
    answer = Said(plan.status)
    data = b"".join(plan.parts)
    if plan.status != 200:
        return answer
    if ask.stream:
        _read_stream(data, answer)
    else:
        _read_document(data, answer)
    answer.whole = answer.whole and plan.whole
    return answer


def _read_stream(data: bytes, answer: Said) -> None:
    for event in data.split(b"\n\n"):
        text = event.removeprefix(b"data: ")
        if text == event:
            continue
        if text == b"[DONE]":
            answer.whole = answer.finish is not None
            return
        try:
            value = json.loads(text)
        except ValueError:
            return
        if "error" in value:
            return
        for choice in value["choices"]:
            answer.text += choice["delta"].get("content") or ""
            answer.finish = choice["finish_reason"] or answer.finish
        _read_usage(value, answer)


def _read_document(data: bytes, answer: Said) -> None:
    try:
        value = json.loads(data)
    except ValueError:
        return
    if "error" in value:
        return
    choice = value["choices"][0]
    answer.text = choice["message"]["content"] or ""
    answer.finish, answer.whole = choice["finish_reason"], True
    _read_usage(value, answer)


def _read_usage(value: dict[str, Any], answer: Said) -> None:
    if usage := value.get("usage"):
        answer.usage = Usage(
            usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
            usage["completion_tokens"],
            usage["completion_tokens_details"]["reasoning_tokens"],
        )
