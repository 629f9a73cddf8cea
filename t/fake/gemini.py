"""The dialect of Google's Gemini API: generateContent, plain and streamed, and its embeddings.

    /v1beta/models/MODEL:generateContent, :streamGenerateContent?alt=sse, :batchEmbedContents
    /v1beta/models

Models of generation 3 and later give their function calls ids and signatures, and want the latter
back.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import parse_qs, unquote

from .behaviours import document, faults, replies, shapes
from .errors import ErrorBody
from .gemini_request import read_body, signature, signs
from .model import Answer, Ask, Dialect, Framing, Plan, Request, Stream, Usage, dump

# A stream has one event per token (four characters), but not more than this.
MAX_DELTAS = 1000

_METHOD = re.compile(r"(?:/.*)?/v1(?:beta|alpha)?/(?:models|tunedModels)/([^/]+):(\w+)")
_MODELS = re.compile(r"(?:/.*)?/v1(?:beta|alpha)/models|/gemini(?:/.*)?/v1/models")
_OPERATIONS = {
    "generateContent": "chat",
    "streamGenerateContent": "chat",
    "batchEmbedContents": "embeddings",
}
_FINISH = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "content_filter": "SAFETY",
}

# HTTP status -> status, message
_FAILURES = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    403: ("PERMISSION_DENIED", "Your API key was reported as leaked. Please use another API key."),
    404: (
        "NOT_FOUND",
        "models/{model} is not found for API version v1beta, or is not supported for"
        " generateContent. Call ModelService.ListModels to see the list of available models and"
        " their supported methods.",
    ),
    429: ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    499: ("CANCELLED", "The operation was cancelled."),
    500: (
        "INTERNAL",
        "An internal error has occurred. Please retry or report in"
        " https://developers.generativeai.google/guide/troubleshooting",
    ),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
}


# Requests ---------------------------------------------------------------------------------------


def _route(method: str, path: str) -> str | None:
    if method == "GET" and _MODELS.fullmatch(path):
        return "models"
    match = _METHOD.fullmatch(path)
    return _OPERATIONS.get(match[2]) if match and method == "POST" else None


def _read(request: Request, operation: str) -> Ask:
    ask = Ask(GEMINI, operation, request)
    ask.key = request.headers.get("x-goog-api-key")
    if match := _METHOD.fullmatch(request.path):
        ask.model = unquote(match[1])
        if match[2] == "streamGenerateContent":
            ask.stream = True
            if parse_qs(request.query).get("alt") != ["sse"]:
                ask.invalid = "This fake streams only with alt=sse."
        read_body(ask)
    if ask.key is None:
        ask.invalid = (
            "Method doesn't allow unregistered callers (callers without established identity)."
            " Please use API Key or other form of API consumer identity to call this API."
        )
    return ask


# Answers ----------------------------------------------------------------------------------------


def _common(ask: Ask) -> dict[str, Any]:
    return {"modelVersion": ask.model, "responseId": f"fake{ask.n:018d}"}


def _usage(usage: Usage) -> dict[str, Any]:
    """Thoughts are counted apart; a count of zero is left out."""
    counts = {
        "promptTokenCount": usage.prompt,
        "candidatesTokenCount": usage.completion - usage.reasoning,
        "totalTokenCount": usage.prompt + usage.completion,
        "cachedContentTokenCount": usage.cached,
        "thoughtsTokenCount": usage.reasoning,
    }
    details = [{"modality": "TEXT", "tokenCount": usage.prompt}]
    return {k: v for k, v in counts.items() if v} | {"promptTokensDetails": details}


def _calls(ask: Ask, answer: Answer) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for call in answer.tool_calls:
        function: dict[str, Any] = {"name": call.name}
        if call.arguments:
            function["args"] = _object(call.arguments)
        part: dict[str, Any] = {"functionCall": function}
        if signs(ask.model):
            function["id"] = call.id
            if not parts:
                part["thoughtSignature"] = signature(call.name)
        parts.append(part)
    return parts


def _object(arguments: str) -> Any:
    """There is no half of an object: what is broken is told as a text."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _thoughts(ask: Ask, answer: Answer) -> list[dict[str, Any]]:
    """Only who asks for them is shown some; and who is counted some, for tests."""
    config = ask.body.get("generationConfig", {}).get("thinkingConfig", {})
    if config.get("includeThoughts") or (answer.usage and answer.usage.reasoning):
        return [{"text": "Let me think.", "thought": True}]
    return []


def _end(answer: Answer) -> dict[str, Any]:
    if answer.refusal is not None:
        return {"finishReason": "PROHIBITED_CONTENT", "finishMessage": answer.refusal, "index": 0}
    return {"finishReason": _FINISH.get(answer.finish, answer.finish), "index": 0}


def _whole(ask: Ask, answer: Answer) -> bytes:
    parts = _thoughts(ask, answer)
    if answer.text is not None:
        parts.append({"text": answer.text})
    parts += _calls(ask, answer)
    candidate = {"content": {"parts": parts, "role": "model"}} if parts else {}
    result = {"candidates": [candidate | _end(answer)], **_common(ask)}
    if answer.usage:
        result["usageMetadata"] = _usage(answer.usage)
    return dump(result)


def _stream(ask: Ask, answer: Answer) -> Stream:
    """Only the last chunk has the reason to finish, and counts the output."""
    so_far = {"usageMetadata": _usage(Usage(answer.usage.prompt))} if answer.usage else {}

    def chunk(parts: list[dict[str, Any]]) -> bytes:
        candidate = {"content": {"parts": parts, "role": "model"}, "index": 0}
        return _event(dump({"candidates": [candidate], **so_far, **_common(ask)}))

    body = [chunk([part]) for part in _thoughts(ask, answer)]
    body += [chunk([{"text": piece}]) for piece in _pieces(answer.text or "")]
    if calls := _calls(ask, answer):
        body.append(chunk(calls))
    last: dict[str, Any] = {"content": {"parts": [{"text": ""}], "role": "model"}}
    usage = {"usageMetadata": _usage(answer.usage)} if answer.usage else {}
    tail = _event(dump({"candidates": [last | _end(answer)], **usage, **_common(ask)}))
    return Stream(body, [tail], b"")


def _pieces(text: str) -> list[str]:
    size = max(4, -(-len(text) // MAX_DELTAS))
    return [text[i : i + size] for i in range(0, len(text), size)]


def _event(document: bytes) -> bytes:
    return b"data: " + document + b"\r\n\r\n"


def _embed(ask: Ask, answer: Answer) -> bytes:
    """Only newer models say what they counted."""
    result: dict[str, Any] = {"embeddings": [{"values": vector} for vector in answer.vectors]}
    if answer.usage and ask.model.startswith("gemini-embedding-2"):
        result["usageMetadata"] = {"promptTokenCount": answer.usage.prompt}
    return dump(result)


def _info(ask: Ask) -> bytes:
    models = [
        {
            "name": f"models/{name}",
            "version": "001",
            "inputTokenLimit": 1048576,
            "outputTokenLimit": 65536,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }
        for name in ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-3.5-flash")
    ]
    if size := parse_qs(ask.request.query).get("pageSize"):
        return dump({"models": models[: int(size[0])], "nextPageToken": "fake"})
    return dump({"models": models})


def _headers(ask: Ask, status: int) -> dict[str, str]:
    """Nothing is told of limits."""
    return {"server": "scaffolding on HTTPServer2", "server-timing": "gfet4t7; dur=1"}


# Errors -----------------------------------------------------------------------------------------


def _error(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message, "status": status}
    if details:
        error["details"] = list(details)
    return {"error": error}


def _detail(type: str, **members: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/google.rpc.{type}", **members}


def _failure(ask: Ask, status: int) -> bytes:
    fallback = _FAILURES[500 if status >= 500 else 400]
    word, message = _FAILURES.get(status, fallback)
    return dump(_error(status, word, message.format(model=ask.model)))


def _blocked(ask: Ask) -> bytes:
    usage = _usage(ask.usage(""))
    return dump(
        {
            "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
            "usageMetadata": usage,
            **_common(ask),
        }
    )


def _problem(ask: Ask, name: str) -> tuple[int, bytes]:
    match name:
        case "auth":
            return 400, dump(_bad_key(ask))
        case "invalid" if ask.key is None:
            return 403, dump(_error(403, "PERMISSION_DENIED", ask.invalid or ""))
        case "invalid":
            return 400, dump(_error(400, "INVALID_ARGUMENT", ask.invalid or ""))
        case "model_not_found":
            return 404, _failure(ask, 404)
        case "context_length":
            message = (
                "The input token count (13392) exceeds the maximum number of tokens allowed (8192)."
            )
            return 400, dump(_error(400, "INVALID_ARGUMENT", message))
        case "content_policy":
            return 200, _blocked(ask)
        case _:
            return 500, _failure(ask, 500)


def _bad_key(ask: Ask) -> dict[str, Any]:
    """400, not 401."""
    message = f"API key not valid. Please pass a valid API key. {ask.shown_key}".strip()
    info = _detail(
        "ErrorInfo",
        reason="API_KEY_INVALID",
        domain="googleapis.com",
        metadata={"service": "generativelanguage.googleapis.com"},
    )
    localized = _detail("LocalizedMessage", locale="en-US", message=message)
    return _error(400, "INVALID_ARGUMENT", message, info, localized)


_CURRENT = (
    "You exceeded your current quota, please check your plan and billing details. For more"
    " information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits."
)
_HELP = _detail(
    "Help",
    links=[
        {
            "description": "Learn more about Gemini API quotas",
            "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
        }
    ],
)


def _exhausted(message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return _error(429, "RESOURCE_EXHAUSTED", message, *details)


def _quota(id: str, limit: str, delay: str) -> dict[str, Any]:
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
        "quotaId": id,
        "quotaDimensions": {"location": "global", "model": "gemini-2.5-flash"},
        "quotaValue": limit,
    }
    message = (
        f"{_CURRENT}\n* Quota exceeded for metric: {violation['quotaMetric']}, limit: {limit},"
        f" model: gemini-2.5-flash\nPlease retry in {delay}."
    )
    failure = _detail("QuotaFailure", violations=[violation])
    return _exhausted(message, _HELP, failure, _detail("RetryInfo", retryDelay=delay))


_PER_DAY = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
_PER_MINUTE = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"

_ERRORS = {
    "gemini-400-key": ErrorBody(400, "Google: wrong key, by its status a bad request", _bad_key),
    "gemini-400-location": ErrorBody(
        400,
        "Google: not from here",
        _error(400, "FAILED_PRECONDITION", "User location is not supported for the API use."),
    ),
    "gemini-403-billing": ErrorBody(
        403,
        "Google: a project without billing",
        _error(
            403,
            "PERMISSION_DENIED",
            "This API method requires billing to be enabled. Please enable billing on project #1 by"
            " visiting https://console.developers.google.com/billing/enable?project=1 then retry.",
            _detail("ErrorInfo", reason="BILLING_DISABLED", domain="googleapis.com"),
        ),
    ),
    "gemini-429-minute": ErrorBody(
        429, "Google: too fast; the delay is in the body", _quota(_PER_MINUTE, "10", "0.12s")
    ),
    "gemini-429-day": ErrorBody(
        429,
        "Google: the day's quota is used up, whatever delay is told",
        _quota(_PER_DAY, "20", "18s"),
    ),
    "gemini-429-zero": ErrorBody(
        429, "Google: a model that the account does not have", _quota(_PER_MINUTE, "0", "18s")
    ),
    "gemini-429-plan": ErrorBody(
        429, "Google: no more for a time that it does not tell", _exhausted(_CURRENT, _HELP)
    ),
    "gemini-429-credit": ErrorBody(
        429,
        "Google: no money left",
        _exhausted(
            "Your prepayment credits are depleted. Please go to AI Studio at"
            " https://ai.studio/projects to manage your project and billing."
        ),
    ),
    "gemini-503-array": ErrorBody(
        503,
        "Google: an error in an array, as of a stream without alt=sse",
        [_error(503, "UNAVAILABLE", "The model is overloaded. Please try again later.")],
    ),
}

for _name, _body in _ERRORS.items():
    replies(f"error-body-{_name}", _body.help)(_body.plan)


# Behaviours -------------------------------------------------------------------------------------


@shapes("finish-KEY", "KEY as the provider's reason to finish")
def _finish(ask: Ask, answer: Answer, reason: str) -> None:
    answer.finish = reason


@replies("prompt-blocked", "200, but the prompt is refused and there is no answer (Google)")
def _prompt_blocked(ask: Ask) -> Plan | None:
    if ask.dialect is not GEMINI:
        return None
    if not ask.stream:
        return document(ask, 200, _blocked(ask))
    headers = {"content-type": GEMINI.stream_type, **_headers(ask, 200)}
    return Plan(headers=headers, parts=[_event(_blocked(ask))], framing=Framing.CHUNKED)


@faults("bare-error-in-stream", "half-way an error, as bare JSON on lines of its own (Google)")
def _bare_error_in_stream(ask: Ask, plan: Plan) -> None:
    error = json.dumps(json.loads(_failure(ask, 503)), indent=2).encode()
    if ask.stream:
        plan.parts[plan.middle() :] = [error + b"\r\n"]
        plan.tail, plan.marked = 0, False
    else:
        plan.parts = [error]


@faults("stop-everywhere", "a reason to finish in every chunk, as Google's first models gave it")
def _stop_everywhere(ask: Ask, plan: Plan) -> None:
    plan.parts = [
        p.replace(b'},"index":0}', b'},"finishReason":"STOP","index":0}') for p in plan.parts
    ]


GEMINI = Dialect(
    name="gemini",
    stream_type="text/event-stream",
    comment=b": ping\r\n\r\n",
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
