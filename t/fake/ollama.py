"""The dialect of Ollama's own API: chat, plain and streamed, and embeddings.

    /api/chat   /api/embed   /api/tags   /api/version

A prompt is too long, or loses its oldest messages, if the request names num_ctx; else it never is.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from typing import Any

from .behaviours import replies, shapes
from .errors import ErrorBody
from .model import (
    Answer,
    Ask,
    Dialect,
    Message,
    Request,
    Stream,
    Tool,
    ToolCall,
    Usage,
    dump,
    tokens,
)

# A stream has one line per token (four characters), but not more than this.
MAX_DELTAS = 1000

_OPERATIONS = {
    ("POST", "chat"): "chat",
    ("POST", "embed"): "embeddings",
    ("GET", "tags"): "models",
    ("GET", "version"): "version",
}
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("num_ctx", "num_predict", "seed", "top_k", "num_keep", "repeat_last_n"), int),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repeat_penalty", "typical_p"), (int, float)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), (int, float)),
    "stop": list,
}

_TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the"
    " prompt, adjust the context length in settings, or use a model with a longer context length"
)
_FAILURES = {
    400: "invalid request",
    401: "unauthorized",
    403: "ollama cloud is disabled: remote inference is unavailable",
    404: "model '{model}' not found",
    429: "you've reached your hourly usage limit, please wait or upgrade to continue",
    500: "llama runner process has terminated: exit status 2",
    503: "server busy, please try again.  maximum pending requests exceeded",
}


class Refused(Exception):
    """Why the server would answer 400."""


# Requests ---------------------------------------------------------------------------------------


def _route(method: str, path: str) -> str | None:
    _, _, name = path.rpartition("/api/")
    return _OPERATIONS.get((method, name)) if f"/api/{name}" in path else None


def _read(request: Request, operation: str) -> Ask:
    ask = Ask(OLLAMA, operation, request)
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        ask.key = key.strip()
    if operation not in ("chat", "embeddings"):
        return ask
    try:
        body = request.json()
    except ValueError:
        ask.invalid = "unexpected EOF"
        return ask
    if not isinstance(body, dict):
        ask.invalid = _mismatch("array", "", "api.ChatRequest")
        return ask
    ask.body = body
    try:
        match body.get("model"):
            case str(model) if model:
                ask.model = model
            case _:
                raise Refused("model is required")
        _read_options(ask, body.get("options") or {})
        (_read_chat if operation == "chat" else _read_inputs)(ask)
    except Refused as reason:
        ask.invalid = str(reason)
    return ask


def _mismatch(found: str, place: str, wanted: str) -> str:
    return (
        f"json: cannot unmarshal {found} into Go struct field ChatRequest.{place} of type {wanted}"
    )


def _read_options(ask: Ask, options: Any) -> None:
    if not isinstance(options, dict):
        raise Refused(_mismatch("array", "options", "map[string]interface {}"))
    for name, value in options.items():
        if name in _TYPES and (isinstance(value, bool) or not isinstance(value, _TYPES[name])):
            raise Refused(f'option "{name}" must be of another type')
    if (limit := options.get("num_predict", -1)) >= 0:
        ask.max_tokens = limit
    match ask.body.get("keep_alive"):
        case None | int() | float():
            pass
        case str(text) if text[-1:] in "smh" and text[:-1].lstrip("-").isdigit():
            pass
        case other:
            raise Refused(f'time: missing unit in duration "{other}"')


def _read_chat(ask: Ask) -> None:
    body = ask.body
    ask.stream = body.get("stream", True) is not False
    if body.get("think") not in (None, True, False, "low", "medium", "high", "max"):
        raise Refused(f"invalid think value: {body['think']!r}")
    match body.get("format"):
        case None | "":
            pass
        case "json":
            ask.schema = {"type": "object"}
        case dict(schema):
            ask.schema = schema
        case _:
            raise Refused('invalid format: expected "json" or a JSON schema')
    ask.messages = [_message(value) for value in body.get("messages") or ()]
    for value in body.get("tools") or ():
        match value:
            case {"type": "function", "function": {"name": str(name), "parameters": dict(schema)}}:
                ask.tools.append(Tool(name, schema))
            case _:
                raise Refused(_mismatch("object", "tools", "api.ToolFunctionParameters"))
    for message in ask.messages:
        ask.prompt_characters += len(message.text)
        if message.role == "user":
            ask.prompt = message.text
    _fit(ask)


def _message(value: Any) -> Message:
    match value:
        case {"role": "system" | "user" | "assistant" | "tool" as role}:
            message = Message(role)
        case _:
            raise Refused("invalid message role")
    match value.get("content"):
        case None:
            pass
        case str(text):
            message.text = text
        case _:
            raise Refused(_mismatch("array", "messages.content", "string"))
    for image in value.get("images") or ():
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise Refused("illegal base64 data at input byte 4") from None
        message.images.append(_data_url(image))
    for call in value.get("tool_calls") or ():
        match call:
            case {"function": {"name": str(name), "arguments": dict(arguments)}}:
                message.tool_calls.append(
                    ToolCall(call.get("id", ""), name, dump(arguments).decode())
                )
            case _:
                place = "messages.tool_calls.function.arguments"
                raise Refused(_mismatch("string", place, "api.ToolCallFunctionArguments"))
    if message.role == "tool":
        message.tool_call_id = value.get("tool_call_id")
        if not isinstance(value.get("tool_name"), str):
            raise Refused("This fake wants tool_name, which templates of some models need.")
    return message


def _data_url(image: str) -> str:
    """As other dialects write it; the type is seen in the data."""
    types = {"iVBOR": "png", "/9j/": "jpeg", "R0lG": "gif", "UklG": "webp"}
    kind = next((t for start, t in types.items() if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{image}"


def _fit(ask: Ask) -> None:
    """Too many messages go, the oldest first, unless the request forbids it."""
    limit = ask.body.get("options", {}).get("num_ctx")
    while limit is not None and tokens(ask.prompt_characters) > limit:
        if ask.body.get("truncate") is False:
            raise Refused(_TOO_LONG)
        if len(ask.messages) <= 1:
            ask.prompt_characters = 4 * limit
            return
        ask.prompt_characters -= len(ask.messages.pop(0).text)


def _read_inputs(ask: Ask) -> None:
    match ask.body.get("input"):
        case str(text):
            ask.inputs = [text]
        case [*texts] if all(isinstance(text, str) for text in texts):
            ask.inputs = texts
        case _:
            raise Refused("invalid input type")
    ask.prompt = ask.inputs[-1] if ask.inputs else ""
    ask.dimensions = ask.body.get("dimensions")
    limit = ask.body.get("options", {}).get("num_ctx")
    for i, text in enumerate(ask.inputs):
        if limit is not None and tokens(len(text)) > limit:
            if ask.body.get("truncate") is False:
                raise Refused("the input length exceeds the context length")
            ask.inputs[i] = text[: 4 * limit]


# Answers ----------------------------------------------------------------------------------------


def _line(ask: Ask, message: dict[str, Any], **more: Any) -> dict[str, Any]:
    created = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
    message = {"role": "assistant", "content": "", **message}
    return {"model": ask.model, "created_at": created, "message": message, "done": False, **more}


def _end(answer: Answer) -> dict[str, Any]:
    """Counts of zero are left out, such as the prompt's when older versions had it in the cache."""
    usage = answer.usage or Usage()
    counts = {"prompt_eval_count": usage.prompt, "eval_count": usage.completion}
    times = dict.fromkeys(("total_duration", "load_duration", "prompt_eval_duration"), 1_000_000)
    reason = "stop" if answer.finish == "tool_calls" else answer.finish
    return {
        "done": True,
        **({"done_reason": reason} if reason else {}),
        **times,
        **{name: count for name, count in counts.items() if count},
        "eval_duration": 1_000_000,
    }


def _thinking(ask: Ask, answer: Answer) -> str:
    if ask.body.get("think") or (answer.usage and answer.usage.reasoning):
        return "Let me think."
    return ""


def _calls(answer: Answer) -> list[dict[str, Any]]:
    calls = []
    for i, call in enumerate(answer.tool_calls):
        function: dict[str, Any] = {"index": i, "name": call.name}
        if call.arguments:
            function["arguments"] = _object(call.arguments)
        calls.append(({"id": call.id} if call.id else {}) | {"function": function})
    return calls


def _object(arguments: str) -> Any:
    """There is no half of an object: what is broken is told as a text."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _whole(ask: Ask, answer: Answer) -> bytes:
    message: dict[str, Any] = {"content": answer.text or answer.refusal or ""}
    if thinking := _thinking(ask, answer):
        message["thinking"] = thinking
    if answer.tool_calls:
        message["tool_calls"] = _calls(answer)
    return dump(_line(ask, message, **_end(answer)))


def _stream(ask: Ask, answer: Answer) -> Stream:
    messages: list[dict[str, Any]] = [{"thinking": p} for p in _pieces(_thinking(ask, answer))]
    messages += [{"content": p} for p in _pieces(answer.text or answer.refusal or "")]
    messages += [{"tool_calls": [call]} for call in _calls(answer)]
    body = [_event(dump(_line(ask, message))) for message in messages]
    return Stream(body, [_event(dump(_line(ask, {}, **_end(answer))))], b"")


def _pieces(text: str) -> list[str]:
    size = max(4, -(-len(text) // MAX_DELTAS))
    return [text[i : i + size] for i in range(0, len(text), size)]


def _event(document: bytes) -> bytes:
    return document + b"\n"


def _embed(ask: Ask, answer: Answer) -> bytes:
    result = {"model": ask.model, "embeddings": answer.vectors, "total_duration": 1_000_000}
    if answer.usage and answer.usage.prompt:
        result["prompt_eval_count"] = answer.usage.prompt
    return dump(result)


def _info(ask: Ask) -> bytes:
    if ask.operation == "version":
        return dump({"version": "0.12.6"})
    models = [
        {"name": name, "model": name, "modified_at": "2025-10-01T00:00:00Z", "size": 2019393189}
        for name in ("llama3.2:latest", "nomic-embed-text:latest")
    ]
    return dump({"models": models})


def _headers(ask: Ask, status: int) -> dict[str, str]:
    return {}


# Errors -----------------------------------------------------------------------------------------


def _error(message: str) -> dict[str, Any]:
    return {"error": message}


def _failure(ask: Ask, status: int) -> bytes:
    message = _FAILURES.get(status, _FAILURES[500 if status >= 500 else 400])
    return dump(_error(message.format(model=ask.model)))


def _problem(ask: Ask, name: str) -> tuple[int, bytes]:
    match name:
        case "auth":
            return 401, dump(_error(f"unauthorized {ask.shown_key}".strip()))
        case "model_not_found":
            return 404, _failure(ask, 404)
        case "context_length":
            return 400, dump(_error(_TOO_LONG))
        case "content_policy":  # it has none
            return 400, _failure(ask, 400)
        case "invalid":
            return 400, dump(_error(ask.invalid or ""))
        case _:
            return 500, _failure(ask, 500)


_ERRORS = {
    "ollama-400-tools": ErrorBody(
        400,
        "Ollama: the model cannot call tools",
        _error("registry.ollama.ai/library/gemma3:latest does not support tools"),
    ),
    "ollama-429-weekly": ErrorBody(
        429,
        "ollama.com: what a plan gives for a week is used up",
        _error(
            "you (fake) have reached your weekly usage limit, upgrade for higher limits:"
            " https://ollama.com/upgrade"
        ),
    ),
    "ollama-500-context": ErrorBody(
        500,
        "Ollama: input too long, in some versions a failure of the server",
        _error("the input length exceeds the context length"),
    ),
    "ollama-500-memory": ErrorBody(
        500,
        "Ollama: the model does not fit",
        _error("model requires more system memory (9.6 GiB) than is available (7.1 GiB)"),
    ),
}

for _name, _body in _ERRORS.items():
    replies(f"error-body-{_name}", _body.help)(_body.plan)


# Behaviours -------------------------------------------------------------------------------------


@shapes("no-tool-ids", "tool calls without ids, as of Ollama's older versions")
def _no_tool_ids(ask: Ask, answer: Answer) -> None:
    answer.tool_calls = [call._replace(id="") for call in answer.tool_calls]


@shapes("no-finish", "no reason to finish, as of Ollama's older versions")
def _no_finish(ask: Ask, answer: Answer) -> None:
    if ask.dialect is OLLAMA:
        answer.finish = ""


OLLAMA = Dialect(
    name="ollama",
    stream_type="application/x-ndjson",
    comment=b"",
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
