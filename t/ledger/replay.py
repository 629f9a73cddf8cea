"""What the fake provider said, to a request that is in its journal.

Its answer is a function of the request, so it can be made again: nobody need keep it.  What is made
again is read as a client of that dialect reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fake import behaviours, server
from fake.model import Ask, Request


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
    counted: Usage | None = None  # the usage that was told before the end, of what there was then
    whole: bool = False  # an answer, up to its end
    unread: int = 0  # characters of a body that came at once, and is no answer


def asked(entry: dict[str, Any]) -> Ask | None:
    """What the request wanted, if it wanted an answer."""
    body = json.dumps(entry["body"]).encode()
    target = f"{entry['path']}?{entry['query']}" if entry["query"] else entry["path"]
    request = Request(entry["method"], target, "HTTP/1.1", entry["headers"], body)
    for dialect in server.DIALECTS:
        if operation := dialect.route(request.method, request.path):
            if operation != "chat":
                return None
            ask = dialect.read(request, operation)
            ask.n = entry["n"]
            return ask
    return None


def said(entry: dict[str, Any], ask: Ask | None = None) -> Said:
    """For an entry of the journal whose behaviour is a name, not a script's own response."""
    ask = ask or asked(entry)
    chain = behaviours.resolve(entry["behaviour"])
    if chain is None or ask is None:
        raise ValueError(f"request {entry['n']}: behaviour {entry['behaviour']} has no name")
    plan = behaviours.make_plan(ask, chain)
    if not plan.send_head:
        return Said()
    answer = Said(plan.status)
    data = b"".join(plan.parts)
    if plan.status != 200:
        return answer
    read = _READERS[ask.dialect.name]
    for document in _events(data, ask.dialect.stream_type) if ask.stream else [data]:
        try:
            # [DONE] of OpenAI's
            value = None if document == b"[DONE]" else json.loads(document)
        except ValueError:
            break
        if (value and "error" in value) or read(value, answer, ask.stream):
            break
    answer.whole = answer.whole and plan.whole
    if not answer.whole and plan.headers["content-type"] != ask.dialect.stream_type:
        answer.unread = len(data.decode("utf-8", "replace"))
    return answer


def _events(data: bytes, kind: str) -> list[bytes]:
    if kind == "application/x-ndjson":
        return data.splitlines()
    return [line.removeprefix(b"data: ") for line in re.findall(rb"(?m)^data: .*?(?=\r?$)", data)]


# Readers: of one document, or of one event of a stream (None: the end marker); true: it was the last.


def _openai(value: dict[str, Any] | None, answer: Said, stream: bool) -> bool:
    if value is None:
        answer.whole = answer.finish is not None
        return True
    for choice in value["choices"]:
        said = choice["delta" if stream else "message"]
        answer.text += said.get("content") or ""
        answer.finish = choice["finish_reason"] or answer.finish
    if usage := value.get("usage"):
        answer.usage = Usage(
            usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
            usage["completion_tokens"],
            usage["completion_tokens_details"]["reasoning_tokens"],
        )
    answer.whole = not stream
    return not stream


_ANTHROPIC_REASONS = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def _anthropic(value: dict[str, Any] | None, answer: Said, stream: bool) -> bool:
    assert value is not None
    match value:
        case {"type": "message_start", "message": message}:
            answer.counted = _anthropic_usage(message)
        case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}:
            answer.text += text
        case {"type": "message_stop"}:
            answer.whole = answer.finish is not None
            return True
        case {"type": "message_delta", "delta": {"stop_reason": reason}, **rest}:
            answer.finish = _ANTHROPIC_REASONS[reason]
            answer.usage = _anthropic_usage(rest)
        case {"type": "message", "content": blocks, "stop_reason": reason, **rest}:
            answer.text = "".join(b["text"] for b in blocks if b["type"] == "text")
            answer.finish, answer.whole = _ANTHROPIC_REASONS[reason], True
            answer.usage = _anthropic_usage(rest)
            return True
    return False


def _anthropic_usage(value: dict[str, Any]) -> Usage | None:
    usage = value.get("usage")
    if not usage:
        return None
    cached, written = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    return Usage(
        usage["input_tokens"] + cached + written,
        cached,
        usage["output_tokens"],
        usage["output_tokens_details"]["thinking_tokens"],
    )


_GEMINI_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"}


def _gemini(value: dict[str, Any] | None, answer: Said, stream: bool) -> bool:
    assert value is not None
    candidate = value["candidates"][0]
    for part in candidate["content"]["parts"]:
        if not part.get("thought"):
            answer.text += part.get("text") or ""
    usage = None
    if counts := value.get("usageMetadata"):
        thoughts = counts.get("thoughtsTokenCount", 0)
        usage = Usage(
            counts.get("promptTokenCount", 0),
            counts.get("cachedContentTokenCount", 0),
            counts.get("candidatesTokenCount", 0) + thoughts,
            thoughts,
        )
    if reason := candidate.get("finishReason"):
        answer.finish, answer.whole = _GEMINI_REASONS[reason], True
        answer.usage = usage
    else:
        answer.counted = usage
    return answer.whole


def _ollama(value: dict[str, Any] | None, answer: Said, stream: bool) -> bool:
    assert value is not None
    answer.text += value["message"]["content"]
    if value["done"]:
        answer.finish, answer.whole = value["done_reason"], True
        if value.get("prompt_eval_count"):
            answer.usage = Usage(value["prompt_eval_count"], 0, value.get("eval_count", 0), 0)
    return answer.whole


_READERS: dict[str, Callable[[dict[str, Any] | None, Said, bool], bool]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "ollama": _ollama,
}
