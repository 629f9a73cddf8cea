"""The dialect of OpenAI's chat completions, plain and streamed, and of its embeddings."""

from __future__ import annotations

import time
from typing import Any

from .behaviours import document, replies
from .errors import invalid_key, no_such_model, openai_error
from .model import Answer, Ask, Dialect, Plan, Request, Stream, Usage, dump
from .openai_request import read_body

# A stream has one event per token (four characters), as the real one; but not more than this.
MAX_DELTAS = 1000

# Generous, so that a gateway which obeys them does not slow down a load test.
_RATE = {
    "x-ratelimit-limit-requests": "30000",
    "x-ratelimit-limit-tokens": "150000000",
    "x-ratelimit-remaining-requests": "29999",
    "x-ratelimit-remaining-tokens": "149999990",
    "x-ratelimit-reset-requests": "2ms",
    "x-ratelimit-reset-tokens": "0s",
}
_RATE_REACHED = {
    **_RATE,
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "120ms",
}
_GENERAL = {
    "openai-organization": "org-fake",
    "openai-processing-ms": "1",
    "openai-version": "2020-10-01",
}

# status -> message, type, code
_FAILURES: dict[int, tuple[str, str, str | None]] = {
    400: ("Invalid request.", "invalid_request_error", None),
    403: (
        "Country, region, or territory not supported",
        "request_forbidden",
        "unsupported_country_region_territory",
    ),
    429: (
        "Rate limit reached for {model} in organization org-fake on requests per min (RPM):"
        " Limit 30000, Used 30000, Requested 1.",
        "requests",
        "rate_limit_exceeded",
    ),
    500: (
        "The server had an error while processing your request. Sorry about that!",
        "server_error",
        None,
    ),
    503: (
        "The engine is currently overloaded, please try again later.",
        "server_error",
        "server_is_overloaded",
    ),
}


# Requests ---------------------------------------------------------------------------------------


def _route(method: str, path: str) -> str | None:
    if method == "POST" and path.endswith("/chat/completions"):
        return "chat"
    if method == "POST" and path.endswith("/embeddings"):
        return "embeddings"
    if method == "GET" and path.endswith("/models"):
        return "models"
    if method == "GET" and path.endswith("/health"):  # of llama.cpp and vLLM
        return "health"
    return None


def _read(request: Request, operation: str) -> Ask:
    ask = Ask(OPENAI, operation, request)
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        ask.key = key.strip()
    if operation in ("chat", "embeddings"):
        read_body(ask)
        if not ask.model:
            ask.invalid = ask.invalid or "you must provide a model parameter"
    return ask


# Answers ----------------------------------------------------------------------------------------


def _common(ask: Ask, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-fake{ask.n:012d}",
        "object": kind,
        "created": int(time.time()),
        # OpenAI answers with the dated name of what was asked for by its alias.
        "model": f"{ask.model}-2025-08-07",
        "service_tier": "default",
        "system_fingerprint": "fp_fake",
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _whole(ask: Ask, answer: Answer) -> bytes:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text,
        "refusal": answer.refusal,
        "annotations": [],
    }
    if answer.tool_calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in answer.tool_calls
        ]
    document = _common(ask, "chat.completion")
    document["choices"] = [
        {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
    ]
    if answer.usage:
        document["usage"] = _usage(answer.usage)
    return dump(document)


def _embed(ask: Ask, answer: Answer) -> bytes:
    data = [
        {"object": "embedding", "index": i, "embedding": vector}
        for i, vector in enumerate(answer.vectors)
    ]
    if answer.shuffled:
        data.reverse()
    document = {"object": "list", "data": data, "model": ask.model}
    if answer.usage:
        document["usage"] = {
            "prompt_tokens": answer.usage.prompt,
            "total_tokens": answer.usage.prompt,
        }
    return dump(document)


def _stream(ask: Ask, answer: Answer) -> Stream:
    """Events are put together from one rendered frame: a long answer has a thousand of them."""
    common = _common(ask, "chat.completion.chunk")
    start = b"data: " + dump(common)[:-1]
    usage_null = b',"usage":null' if ask.stream_usage else b""
    end = usage_null + b',"obfuscation":"%b"}\n\n'

    def event(delta: dict[str, Any], finish: bytes = b"null") -> bytes:
        choice = b',"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]'
        rendered = dump(delta)
        # OpenAI pads its events so that their sizes do not give away the tokens.
        padding = b"x" * (-len(rendered) % 16)
        return b"%b%b%b" % (start, choice % (rendered, finish), end % padding)

    first: dict[str, Any] = {"role": "assistant", "content": None if answer.text is None else ""}
    if not answer.tool_calls:
        first["refusal"] = None
    body = [event(first)]
    for field, text in (("content", answer.text), ("refusal", answer.refusal)):
        body.extend(event({field: piece}) for piece in _pieces(text or ""))
    for index, call in enumerate(answer.tool_calls):
        function = {"name": call.name, "arguments": ""}
        opening = {"index": index, "id": call.id, "type": "function", "function": function}
        body.append(event({"tool_calls": [opening]}))
        for piece in _pieces(call.arguments):
            fragment = {"index": index, "function": {"arguments": piece}}
            body.append(event({"tool_calls": [fragment]}))

    tail = [event({}, dump(answer.finish))]
    if ask.stream_usage and answer.usage:
        usage = dump(_usage(answer.usage))
        tail.append(b'%b,"choices":[],"usage":%b,"obfuscation":""}\n\n' % (start, usage))
    return Stream(body, tail, b"data: [DONE]\n\n")


def _pieces(text: str) -> list[str]:
    size = max(4, -(-len(text) // MAX_DELTAS))
    return [text[i : i + size] for i in range(0, len(text), size)]


def _event(document: bytes) -> bytes:
    return b"data: " + document + b"\n\n"


_MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-5", "gpt-5-mini", "gpt-5-nano")


def _info(ask: Ask) -> bytes:
    if ask.operation == "health":
        return dump({"status": "ok"})
    models = [
        {"id": name, "object": "model", "created": 1754524800, "owned_by": "system"}
        for name in _MODELS
    ]
    return dump({"object": "list", "data": models})


def _headers(ask: Ask, status: int) -> dict[str, str]:
    """Rate limits are told where a model was reached, so not with a 401 or a 404."""
    general = {"x-request-id": f"req_{ask.n:032x}", **_GENERAL}
    if ask.operation in ("chat", "embeddings") and status in (200, 400, 429):
        return general | (_RATE_REACHED if status == 429 else _RATE)
    return general


# Errors -----------------------------------------------------------------------------------------


def _failure(ask: Ask, status: int) -> bytes:
    if status == 404:
        return dump(no_such_model(ask))
    fallback = _FAILURES[500 if status >= 500 else 400]
    message, type, code = _FAILURES.get(status, fallback)
    return dump(openai_error(message.format(model=ask.model), type, code))


def _problem(ask: Ask, name: str) -> tuple[int, bytes]:
    match name:
        case "auth":
            return 401, dump(invalid_key(ask))
        case "model_not_found":
            return 404, dump(no_such_model(ask))
        case "context_length":
            message = (
                "This model's maximum context length is 8192 tokens. However, your messages"
                " resulted in 13392 tokens. Please reduce the length of the messages."
            )
            code, param = "context_length_exceeded", "messages"
            return 400, dump(openai_error(message, "invalid_request_error", code, param))
        case "content_policy":
            message = "Your request was rejected as a result of our safety system."
            code = "content_policy_violation"
            return 400, dump(openai_error(message, "invalid_request_error", code))
        case "invalid":
            return 400, dump(openai_error(ask.invalid or "", "invalid_request_error"))
        case _:
            return 500, _failure(ask, 500)


def _unsupported(ask: Ask, present: str, wanted: str | None = None) -> Plan | None:
    if present not in ask.body:
        return None
    message = f"Unsupported parameter: '{present}' is not supported with this model."
    if wanted:
        message += f" Use '{wanted}' instead."
    error = openai_error(message, "invalid_request_error", "unsupported_parameter", present)
    return document(ask, 400, dump(error))


@replies("needs-max-completion-tokens", "400 unsupported_parameter if max_tokens is present")
def _needs_max_completion_tokens(ask: Ask) -> Plan | None:
    return _unsupported(ask, "max_tokens", "max_completion_tokens")


@replies("needs-max-tokens", "400 unsupported_parameter if max_completion_tokens is present")
def _needs_max_tokens(ask: Ask) -> Plan | None:
    return _unsupported(ask, "max_completion_tokens", "max_tokens")


@replies("refuses-KEY", "400 unsupported_parameter if the body has a member KEY")
def _refuses(ask: Ask, key: str) -> Plan | None:
    return _unsupported(ask, key)


OPENAI = Dialect(
    name="openai",
    stream_type="text/event-stream; charset=utf-8",
    comment=b": ping\n\n",
    route=_route,
    read=_read,
    whole=_whole,
    stream=_stream,
    info=_info,
    event=_event,
    headers=_headers,
    failure=_failure,
    problem=_problem,
    embed=_embed,
)
