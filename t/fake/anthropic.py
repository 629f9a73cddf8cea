"""The dialect of Anthropic's messages, plain and streamed.

Its models are listed only below /anthropic, as OpenAI's have the same path.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

from .anthropic_request import read_body
from .behaviours import faults, replies, shapes
from .contents import literal, sample
from .errors import ErrorBody
from .model import Answer, Ask, Dialect, Plan, Request, Stream, Tool, ToolCall, Usage, dump, tokens

# A stream has one event per token (four characters), but not more than this.
MAX_DELTAS = 1000

# status -> type, message
_FAILURES = {
    400: ("invalid_request_error", "Invalid request."),
    402: ("billing_error", "There is an issue with your billing or payment information."),
    403: ("permission_error", "Your API key does not have permission to use the resource."),
    404: ("not_found_error", "Not found"),
    409: ("conflict_error", "The request conflicts with the current state of the resource."),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: (
        "rate_limit_error",
        "This request would exceed your organization's rate limit of 4,000 requests per minute.",
    ),
    500: ("api_error", "Internal server error"),
    504: ("timeout_error", "Request timed out"),
    529: ("overloaded_error", "Overloaded"),
}

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


# Requests ---------------------------------------------------------------------------------------


def _route(method: str, path: str) -> str | None:
    if method == "POST" and path.endswith("/v1/messages"):
        return "chat"
    if method == "GET" and re.fullmatch(r"/anthropic(/.*)?/v1/models", path):
        return "models"
    return None


def _read(request: Request, operation: str) -> Ask:
    ask = Ask(ANTHROPIC, operation, request)
    ask.key = request.headers.get("x-api-key")
    if operation == "chat":
        read_body(ask)
        if (tool := _forced(ask)) and tool.name.startswith("answer"):
            ask.schema = tool.parameters
    if ask.key is None:
        ask.invalid = "x-api-key header is required"
    return ask


# Answers ----------------------------------------------------------------------------------------


def _content(ask: Ask, answer: Answer) -> tuple[list[dict[str, Any]], str, str | None]:
    """Blocks, why the model stops, and which stop sequence did it.

    A tool's input is JSON text here.
    """
    blocks: list[dict[str, Any]] = []
    finish, text, calls, stop = answer.finish, answer.text or "", answer.tool_calls, None
    if answer.refusal is not None:
        finish = "content_filter"
    if ask.body.get("thinking", {}).get("type", "disabled") != "disabled":
        thought = {"thinking": "Let me think.", "signature": "EqQBCgIYAhIM"}
        blocks.append({"type": "thinking", **thought})
    for tool in ask.body.get("tools", ()):
        if tool.get("type", "custom") != "custom":
            blocks += _server_tool(ask, tool["name"])
    if (tool := _forced(ask)) and not calls and finish in ("stop", "length"):
        arguments, finish = _answer(ask, tool, text, finish)
        calls, text = [ToolCall(f"toolu_fake{ask.n:08d}", tool.name, arguments)], ""
    for sequence in ask.body.get("stop_sequences") or ():
        if sequence in text:
            text, stop = text[: text.index(sequence)], sequence
    if text:
        blocks.append({"type": "text", "text": text})
    for call in calls:
        blocks.append(
            {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}
        )
    reason = "stop_sequence" if stop else _STOP_REASONS.get(finish, finish)
    return blocks, reason, stop


def _server_tool(ask: Ask, name: str) -> list[dict[str, Any]]:
    """The blocks of a tool that ran at the provider."""
    id = f"srvtoolu_fake{ask.n:08d}"
    found = [{"type": "web_search_result", "url": "https://example.com/", "title": "Example"}]
    return [
        {"type": "server_tool_use", "id": id, "name": name, "input": '{"query":"example"}'},
        {"type": "web_search_tool_result", "tool_use_id": id, "content": found},
    ]


def _forced(ask: Ask) -> Tool | None:
    """The tool that has to be called, whatever else the model would say; of several, the last."""
    if ask.tool_choice == "required":
        return ask.tools[-1] if ask.tools else None
    return next((tool for tool in ask.tools if tool.name == ask.tool_choice), None)


def _answer(ask: Ask, tool: Tool, text: str, finish: str) -> tuple[str, str]:
    """The forced tool's input: the text if it is JSON, maybe cut; or the JSON in the prompt."""
    if text.startswith("{"):
        return text, "length" if finish == "length" else "tool_calls"
    value = literal(ask.prompt)
    if value is None:
        value = sample(tool.parameters, ask.prompt)
    elif "value" not in value and list(tool.parameters.get("properties", ())) == ["value"]:
        value = {"value": value}
    arguments = dump(value).decode()
    if ask.max_tokens is not None and tokens(len(arguments)) > ask.max_tokens:
        return arguments[: 4 * ask.max_tokens], "length"
    return arguments, "tool_calls"


def _usage(usage: Usage) -> dict[str, Any]:
    """Here the input is without what came from the cache, or went there."""
    return {
        "input_tokens": usage.prompt - usage.cached - usage.written,
        "cache_creation_input_tokens": usage.written,
        "cache_read_input_tokens": usage.cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.written,
            "ephemeral_1h_input_tokens": 0,
        },
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        "service_tier": "standard",
    }


def _details(answer: Answer, reason: str) -> dict[str, Any] | None:
    if reason != "refusal":
        return None
    return {"type": "refusal", "category": None, "explanation": answer.refusal}


def _message(ask: Ask) -> dict[str, Any]:
    return {
        "id": f"msg_fake{ask.n:012d}",
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _whole(ask: Ask, answer: Answer) -> bytes:
    message = _message(ask)
    blocks, reason, stop = _content(ask, answer)
    for block in blocks:
        if "input" in block:
            block["input"] = _object(block["input"])
    message |= {"content": blocks, "stop_reason": reason, "stop_sequence": stop}
    if details := _details(answer, reason):
        message["stop_details"] = details
    if answer.usage:
        message["usage"] = _usage(answer.usage)
    return dump(message)


def _object(arguments: str) -> Any:
    """Without a stream there is no half of an object: what is broken is told as a text."""
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments


def _stream(ask: Ask, answer: Answer) -> Stream:
    start = _message(ask)
    if answer.usage:
        start["usage"] = _usage(answer.usage) | {"output_tokens": min(1, answer.usage.completion)}
    body = [_sse("message_start", message=start)]
    blocks, reason, stop = _content(ask, answer)
    for i, block in enumerate(blocks):
        body += _block(i, block)
        if i == 0:
            body.insert(2, _PING)
    delta: dict[str, Any] = {"stop_reason": reason, "stop_sequence": stop}
    if details := _details(answer, reason):
        delta["stop_details"] = details
    more = {"usage": _usage(answer.usage)} if answer.usage else {}
    tail = [_sse("message_delta", delta=delta, **more)]
    return Stream(body, tail, _sse("message_stop"))


def _block(index: int, block: dict[str, Any]) -> list[bytes]:
    """One block as events: its beginning without its content, pieces of that, and its end."""
    match block:
        case {"type": "text", "text": text}:
            opening = block | {"text": ""}
            deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(text)]
        case {"type": "thinking", "thinking": thought, "signature": signature}:
            opening = block | {"thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(thought)]
            deltas.append({"type": "signature_delta", "signature": signature})
        case {"type": "tool_use" | "server_tool_use", "input": arguments}:
            opening = block | {"input": {}}
            deltas = [
                {"type": "input_json_delta", "partial_json": piece}
                for piece in ("", *_pieces(arguments))
            ]
        case _:
            opening, deltas = block, []
    return [
        _sse("content_block_start", index=index, content_block=opening),
        *(_sse("content_block_delta", index=index, delta=delta) for delta in deltas),
        _sse("content_block_stop", index=index),
    ]


def _pieces(text: str) -> list[str]:
    size = max(4, -(-len(text) // MAX_DELTAS))
    return [text[i : i + size] for i in range(0, len(text), size)]


def _sse(type: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (type.encode(), dump({"type": type, **members}))


_PING = _sse("ping")


def _event(document: bytes) -> bytes:
    name = b"error" if b'"type":"error"' in document else b"content_block_delta"
    return b"event: %b\ndata: %b\n\n" % (name, document)


def _info(ask: Ask) -> bytes:
    models = [
        {"type": "model", "id": name, "display_name": name, "created_at": "2025-09-29T00:00:00Z"}
        for name in ("claude-opus-5", "claude-sonnet-4-5-20250929", "claude-haiku-4-5-20251001")
    ]
    ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"], "has_more": False}
    return dump({"data": models, **ends})


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def _headers(ask: Ask, status: int) -> dict[str, str]:
    """Rate limits are told where a model was reached."""
    headers = {"request-id": f"req_fake{ask.n:020d}", "anthropic-organization-id": "org-fake"}
    if ask.operation != "chat" or status not in (200, 429):
        return headers
    reached = status == 429
    limits = {"requests": 4_000, "tokens": 2_400_000, "input-tokens": 2_000_000}
    limits["output-tokens"] = 400_000
    for name, limit in limits.items():
        gone = limit if reached and name == "requests" else 1
        headers[f"anthropic-ratelimit-{name}-limit"] = str(limit)
        headers[f"anthropic-ratelimit-{name}-remaining"] = str(limit - gone)
        headers[f"anthropic-ratelimit-{name}-reset"] = _timestamp(1 if reached else 0)
    return headers | ({"retry-after": "1"} if reached else {})


# Errors -----------------------------------------------------------------------------------------


def _error(type: str, message: str, n: int = 0) -> dict[str, Any]:
    error = {"type": type, "message": message}
    return {"type": "error", "error": error, "request_id": f"req_fake{n:020d}"}


def _failure(ask: Ask, status: int) -> bytes:
    fallback = _FAILURES[500 if status >= 500 else 400]
    type, message = _FAILURES.get(status, fallback)
    if status == 404:
        message = f"model: {ask.model}"
    return dump(_error(type, message, ask.n))


def _problem(ask: Ask, name: str) -> tuple[int, bytes]:
    def refuse(message: str) -> tuple[int, bytes]:
        return 400, dump(_error("invalid_request_error", message, ask.n))

    match name:
        case "auth":
            message = "invalid x-api-key" + (f": {ask.shown_key}" if ask.shown_key else "")
            return 401, dump(_error("authentication_error", message, ask.n))
        case "invalid" if ask.key is None:
            return 401, dump(_error("authentication_error", ask.invalid or "", ask.n))
        case "invalid":
            return refuse(ask.invalid or "")
        case "model_not_found":
            return 404, _failure(ask, 404)
        case "context_length":
            return refuse("prompt is too long: 213392 tokens > 200000 maximum")
        case "content_policy":
            return refuse("Output blocked by content filtering policy")
        case _:
            return 500, _failure(ask, 500)


def _bad(message: str) -> dict[str, Any]:
    return _error("invalid_request_error", message)


_ERRORS = {
    "anthropic-400-credit": ErrorBody(
        400,
        "Anthropic: no money left, by the type an ordinary bad request",
        _bad(
            "Your credit balance is too low to access the Anthropic API. Please go to Plans &"
            " Billing to upgrade or purchase credits."
        ),
    ),
    "anthropic-400-spend": ErrorBody(
        400,
        "Anthropic: a limit on spending is reached, by the type an ordinary bad request",
        _bad(
            "You have reached your specified workspace API usage limits. You will regain access on"
            " 2026-12-01 at 00:00 UTC."
        ),
    ),
    "anthropic-400-window": ErrorBody(
        400,
        "Anthropic: prompt and max_tokens together are too long",
        _bad(
            "input length and `max_tokens` exceed context limit: 195000 + 8192 > 200000, decrease"
            " input length or `max_tokens` and try again"
        ),
    ),
    "anthropic-413": ErrorBody(
        413,
        "Anthropic: more than 32 MB, from Cloudflare, not in JSON",
        "<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>\r\n<center>"
        "<h1>413 Request Entity Too Large</h1></center>\r\n<hr><center>cloudflare</center>\r\n"
        "</body>\r\n</html>\r\n",
        {"content-type": "text/html", "server": "cloudflare"},
    ),
    "anthropic-429-acceleration": ErrorBody(
        429,
        "Anthropic: load that rises too fast, without Retry-After",
        _error("rate_limit_error", "This request would exceed your account's rate limit."),
    ),
    "anthropic-529": ErrorBody(
        529, "Anthropic: overloaded, a status of its own", _error("overloaded_error", "Overloaded")
    ),
}

for _name, _body in _ERRORS.items():
    replies(f"error-body-{_name}", _body.help)(_body.plan)


# Behaviours -------------------------------------------------------------------------------------


@shapes("cache-write-N", "usage: N of the prompt tokens went into the cache, where that is told")
def _cache_write(ask: Ask, answer: Answer, count: str) -> None:
    if answer.usage:
        answer.usage.written = min(int(count), answer.usage.prompt - answer.usage.cached)


@shapes("finish-pause-turn", "the model pauses: an answer that is to be continued (Anthropic)")
def _pause_turn(ask: Ask, answer: Answer) -> None:
    answer.finish = "pause_turn"


@shapes("finish-window", "cut by the context window (Anthropic)")
def _window(ask: Ask, answer: Answer) -> None:
    answer.finish = "model_context_window_exceeded"


@faults("overloaded-in-stream", "an overloaded_error half-way, as Anthropic sends it after a 200")
def _overloaded_in_stream(ask: Ask, plan: Plan) -> None:
    error = dump(_error("overloaded_error", "Overloaded", ask.n))
    if ask.stream:
        plan.parts[plan.middle() :] = [ask.dialect.event(error)]
        plan.tail, plan.marked = 0, False
    else:
        plan.parts = [error]


ANTHROPIC = Dialect(
    name="anthropic",
    stream_type="text/event-stream; charset=utf-8",
    comment=_PING,
    route=_route,
    read=_read,
    whole=_whole,
    stream=_stream,
    info=_info,
    event=_event,
    headers=_headers,
    failure=_failure,
    problem=_problem,
)
