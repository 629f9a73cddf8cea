"""The dialect of Azure OpenAI: OpenAI's bodies behind other URLs, another header and a filter.

    /openai/deployments/DEPLOYMENT/chat/completions?api-version=V     the model is in the path
    /azure/openai/v1/chat/completions                                 the model is in the body

Groq has /openai/v1, too, so the second one is Azure's only below /azure.
"""

from __future__ import annotations

import json
import re
from typing import Any

from . import openai
from .errors import ERRORS
from .model import Answer, Ask, Dialect, Request, Stream, dump
from .openai_request import read_body

_OPERATIONS = {"chat/completions": "chat", "embeddings": "embeddings"}
_CLASSIC = re.compile(r".*/openai/deployments/([^/]+)/(.+)")
_V1 = re.compile(r"/azure(?:/.*)?/openai/v1/(.+)")
_VERSION = re.compile(r"api-version=(\d{4}-\d\d-\d\d(?:-preview)?)")

_SAFE = {"filtered": False, "severity": "safe"}
_RESULTS = {"hate": _SAFE, "self_harm": _SAFE, "sexual": _SAFE, "violence": _SAFE}
_PROMPT_RESULTS = [{"prompt_index": 0, "content_filter_results": _RESULTS}]
_FILTERED = {**_RESULTS, "violence": {"filtered": True, "severity": "medium"}}

_DENIED = (
    "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a"
    " valid key for an active subscription and use a correct regional API endpoint for your"
    " resource."
)
_NO_DEPLOYMENT = (
    "The API deployment for this resource does not exist. If you created the deployment within"
    " the last 5 minutes, please wait a moment and try again."
)
_TOO_FAST = (
    "Requests to the ChatCompletions_Create Operation under Azure OpenAI API have exceeded call"
    " rate limit of your current OpenAI S0 pricing tier. Please retry after 1 second."
)

# status -> code, message
_FAILURES = {
    401: ("401", _DENIED),
    403: ("AuthenticationTypeDisabled", "Key based authentication is disabled for this resource."),
    404: ("DeploymentNotFound", _NO_DEPLOYMENT),
    429: ("429", _TOO_FAST),
    500: ("InternalServerError", "The server had an error processing your request."),
    503: ("ServiceUnavailable", "The service is temporarily unable to process your request."),
}

# What Azure says where OpenAI says when a limit is reset: nothing.
_RATE = {
    "x-ratelimit-limit-requests": "30000",
    "x-ratelimit-limit-tokens": "150000000",
    "x-ratelimit-remaining-requests": "29999",
    "x-ratelimit-remaining-tokens": "149999990",
}


def _route(method: str, path: str) -> str | None:
    if match := _CLASSIC.fullmatch(path):
        return _OPERATIONS.get(match[2]) if method == "POST" else None
    if match := _V1.fullmatch(path):
        if method == "GET" and match[1] == "models":
            return "models"
        return _OPERATIONS.get(match[1]) if method == "POST" else None
    if method == "GET" and path.endswith("/openai/models"):
        return "models"
    return None


def _read(request: Request, operation: str) -> Ask:
    ask = Ask(AZURE, operation, request)
    ask.key = request.headers.get("api-key")
    classic = _CLASSIC.fullmatch(request.path)
    if operation in ("chat", "embeddings"):
        read_body(ask)
        if classic:
            ask.model = classic[1]
        elif not ask.model:
            ask.invalid = "you must provide a model parameter"
    if not _V1.fullmatch(request.path) and not _VERSION.fullmatch(request.query):
        ask.invalid = "Missing required query parameter: api-version"
    return ask


# Answers ----------------------------------------------------------------------------------------


def _whole(ask: Ask, answer: Answer) -> bytes:
    document = json.loads(openai.OPENAI.whole(ask, answer))
    document["prompt_filter_results"] = _PROMPT_RESULTS
    for choice in document["choices"]:
        choice["content_filter_results"] = _FILTERED if _is_filtered(answer) else _RESULTS
    return dump(document)


def _stream(ask: Ask, answer: Answer) -> Stream:
    """OpenAI's, after an event without choices that says what the filter thinks of the prompt."""
    stream = openai.OPENAI.stream(ask, answer)
    first: dict[str, Any] = {"choices": [], "created": 0, "id": "", "model": "", "object": ""}
    first["prompt_filter_results"] = _PROMPT_RESULTS
    safe = dump(_RESULTS)
    body = [_judged(event, safe if i else b"{}") for i, event in enumerate(stream.body)]
    results = dump(_FILTERED) if _is_filtered(answer) else b"{}"
    tail = [_judged(event, results) for event in stream.tail]
    return Stream([openai.OPENAI.event(dump(first)), *body], tail, stream.marker)


def _judged(event: bytes, results: bytes) -> bytes:
    """The event, with what the filter thinks of its choice, if it has one."""
    logprobs = b',"logprobs":null'
    return event.replace(logprobs, b',"content_filter_results":%b%b' % (results, logprobs), 1)


def _is_filtered(answer: Answer) -> bool:
    return answer.finish == "content_filter"


def _info(ask: Ask) -> bytes:
    """What is deployed is not told to who has only a key, but what could be."""
    models = [
        {"id": name, "object": "model", "status": "succeeded", "capabilities": {"inference": True}}
        for name in ("gpt-4o-2024-08-06", "text-embedding-3-small-1")
    ]
    return dump({"object": "list", "data": models})


def _headers(ask: Ask, status: int) -> dict[str, str]:
    general = {
        "apim-request-id": f"{ask.n:032x}",
        "x-ms-region": "Sweden Central",
        "x-request-id": f"{ask.n:032x}",
    }
    if ask.operation in ("chat", "embeddings") and status == 200:
        return general | _RATE
    if status == 429:
        return general | {"retry-after": "1", "x-ms-retry-after-ms": "120", "retry-after-ms": "120"}
    return general


# Errors -----------------------------------------------------------------------------------------


def _failure(ask: Ask, status: int) -> bytes:
    if status in _FAILURES or status >= 500:
        code, message = _FAILURES.get(status, _FAILURES[500])
        return dump({"error": {"code": code, "message": message}})
    return openai.OPENAI.failure(ask, status)


def _problem(ask: Ask, name: str) -> tuple[int, bytes]:
    match name:
        case "auth":
            shown = f"{ask.shown_key}: " if ask.shown_key else ""
            return 401, dump({"error": {"code": "401", "message": shown + _DENIED}})
        case "model_not_found":
            return 404, _failure(ask, 404)
        case "content_policy":
            return 400, dump(ERRORS["azure-content"].body)
        case "invalid" if ask.invalid and "api-version" in ask.invalid:
            return 404, dump({"error": {"code": "404", "message": "Resource not found"}})
        case "server":
            return 500, _failure(ask, 500)
        case _:
            return openai.OPENAI.problem(ask, name)


AZURE = Dialect(
    name="azure",
    stream_type="text/event-stream; charset=utf-8",
    comment=b": ping\n\n",
    route=_route,
    read=_read,
    whole=_whole,
    stream=_stream,
    info=_info,
    event=openai.OPENAI.event,
    headers=_headers,
    failure=_failure,
    problem=_problem,
    embed=openai.OPENAI.embed,
)
