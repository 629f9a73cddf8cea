"""Requests in Anthropic's words, and what Anthropic refuses in them.

Stricter than the real one in one place: it joins messages of one role that follow each other, and
here they are refused, as they were for long, and still are by servers that imitate it.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from .model import Ask, Message, Tool, ToolCall, dump

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_TOOL_ID = re.compile(r"[a-zA-Z0-9_-]+")
_MEDIA_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_KEYS = {
    *("model", "max_tokens", "messages", "system", "metadata", "stop_sequences", "stream"),
    *("temperature", "top_p", "top_k", "tools", "tool_choice", "thinking", "service_tier"),
    *("output_config", "container", "context_management", "mcp_servers", "cache_control"),
}
# These decide for themselves whether they call a tool.
_UNFORCED = ("claude-opus-5-5", "claude-fable", "claude-mythos")


class Refused(Exception):
    """Why the provider would answer 400."""


def read_body(ask: Ask) -> None:
    """Fill the ask from its request's body; a bad one sets `invalid`."""
    try:
        body = ask.request.json()
    except ValueError:
        ask.invalid = "The request body is not valid JSON: expected value: line 1 column 1 (char 0)"
        return
    if not isinstance(body, dict):
        ask.invalid = "Input should be a valid dictionary or object to extract fields from"
        return
    ask.body = body
    match body.get("model"):
        case str(model) if model:
            ask.model = model
    try:
        _read(ask)
    except Refused as reason:
        ask.invalid = str(reason)


def _read(ask: Ask) -> None:
    body = ask.body
    ask.stream = body.get("stream") is True
    if not ask.model:
        raise Refused("model: Field required")
    if ask.request.headers.get("anthropic-version") is None:
        raise Refused("anthropic-version: header is required")
    match body.get("max_tokens"):
        case None:
            raise Refused("max_tokens: Field required")
        case bool() | str() | float():
            raise Refused("max_tokens: Input should be a valid integer")
        case int(limit) if limit < 1:
            raise Refused("max_tokens: Input should be greater than or equal to 1")
        case int(limit):
            ask.max_tokens = limit
    for key in body:
        if key not in _KEYS:
            raise Refused(f"{key}: Extra inputs are not permitted")
    _read_system(ask)
    match body.get("messages"):
        case None:
            raise Refused("messages: Field required")
        case [_, *_] as messages:
            _read_messages(ask, messages)
        case _:
            raise Refused("messages: at least one message is required")
    for message in ask.messages:
        ask.prompt_characters += len(message.text)
        if message.role == "user":
            ask.prompt = message.text
    _read_parameters(body)
    _read_tools(ask)


def _read_system(ask: Ask) -> None:
    match ask.body.get("system", ""):
        case str(text):
            pass
        case list(blocks):
            text = "\n".join(_text(block, f"system.{i}") for i, block in enumerate(blocks))
        case _:
            raise Refused("system: Input should be a valid string")
    if text:
        ask.messages.append(Message("system", text))


def _read_parameters(body: dict[str, Any]) -> None:
    match body.get("temperature"):
        case None:
            pass
        case bool() | str():
            raise Refused("temperature: Input should be a valid number")
        case float(t) | int(t) if not 0 <= t <= 1:
            raise Refused("temperature: range: 0..1")
    match body.get("stop_sequences"):
        case None:
            pass
        case list(stops) if all(isinstance(s, str) for s in stops):
            if not all(s.strip() for s in stops):
                raise Refused("stop_sequences: each stop sequence must contain non-whitespace")
        case _:
            raise Refused("stop_sequences: Input should be a valid list")
    match body.get("metadata"):
        case None | {"user_id": str()}:
            pass
        case _:
            raise Refused("metadata.user_id: Input should be a valid string")


# Messages ---------------------------------------------------------------------------------------


def _text(block: Any, where: str) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            if not text:
                raise Refused(f"{where}: text content blocks must be non-empty")
            return text
    raise Refused(f"{where}: Input should be a valid text block")


def _read_messages(ask: Ask, messages: list[Any]) -> None:
    before = None
    waiting: set[str] = set()  # calls of the message before
    for i, value in enumerate(messages):
        match value:
            case {"role": "user" | "assistant" as role, "content": content, **rest} if not rest:
                pass
            case {"role": "system"}:
                raise Refused(
                    'messages: Unexpected role "system". The Messages API accepts a top-level'
                    ' `system` parameter, not "system" as an input message role.'
                )
            case _:
                raise Refused(f"messages.{i}: Input should be 'user' or 'assistant'")
        if before is None and role != "user":
            raise Refused('messages: first message must use the "user" role')
        if role == before:
            raise Refused(
                'messages: roles must alternate between "user" and "assistant", but found multiple'
                f' "{role}" roles in a row'
            )
        before = role
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not content:
            raise Refused(f"messages.{i}: all messages must have non-empty content")
        if role == "user":
            _read_user(ask, content, f"messages.{i}.content", waiting)
        else:
            waiting = _read_assistant(ask, content, f"messages.{i}.content")
    if before != "user":
        raise Refused(
            "This model does not support assistant message prefill. The conversation must end with"
            " a user message."
        )


def _read_user(ask: Ask, content: list[Any], where: str, waiting: set[str]) -> None:
    said = Message("user")
    for i, block in enumerate(content):
        match block:
            case {"type": "tool_result", "tool_use_id": str(id)}:
                if said.text or said.images:
                    raise Refused(f"{where}: tool_result blocks must come first")
                if id not in waiting:
                    raise Refused(
                        f"{where}.{i}: unexpected `tool_use_id` found in `tool_result` blocks:"
                        f" {id}. Each `tool_result` block must have a corresponding `tool_use`"
                        " block in the previous message."
                    )
                waiting.discard(id)
                ask.messages.append(Message("tool", _result(block, where), tool_call_id=id))
            case {"type": "image", "source": source}:
                said.images.append(_image(source, f"{where}.{i}.image.source"))
            case _:
                said.text += _text(block, f"{where}.{i}")
    if waiting:
        raise Refused(
            f"{where}: `tool_use` ids were found without `tool_result` blocks immediately after:"
            f" {', '.join(sorted(waiting))}. Each `tool_use` block must have a corresponding"
            " `tool_result` block in the next message."
        )
    if said.text or said.images:
        ask.messages.append(said)


def _result(block: dict[str, Any], where: str) -> str:
    match block.get("content", []):
        case str(text):
            return text
        case list(blocks):
            return "".join(_text(b, where) for b in blocks)
    raise Refused(f"{where}: Input should be a valid list")


def _image(source: Any, where: str) -> str:
    match source:
        case {"type": "url", "url": str(url)}:
            if url.startswith("https://"):
                return url
            raise Refused(f"{where}.url: Only HTTPS URLs are supported.")
        case {"type": "base64", "media_type": str(kind), "data": str(data)}:
            if kind not in _MEDIA_TYPES:
                raise Refused(f"{where}.base64.media_type: Input should be 'image/jpeg', ...")
            try:
                base64.b64decode(data, validate=True)
            except binascii.Error:
                raise Refused(f"{where}.base64: invalid base64 data") from None
            return f"data:{kind};base64,{data}"
    raise Refused(f"{where}: Input tag does not match any of the expected tags")


def _read_assistant(ask: Ask, content: list[Any], where: str) -> set[str]:
    said = Message("assistant")
    for i, block in enumerate(content):
        match block:
            case {"type": "tool_use", "id": str(id), "name": str(name), "input": dict(arguments)}:
                if not _TOOL_ID.fullmatch(id):
                    raise Refused(f"{where}.{i}.tool_use.id: String should match pattern")
                said.tool_calls.append(ToolCall(id, name, dump(arguments).decode()))
            case {"type": "tool_use"}:
                raise Refused(f"{where}.{i}.tool_use.input: Input should be a valid dictionary")
            case _:
                said.text += _text(block, f"{where}.{i}")
    ask.messages.append(said)
    return {call.id for call in said.tool_calls}


# Tools ------------------------------------------------------------------------------------------


def _read_tools(ask: Ask) -> None:
    for i, value in enumerate(ask.body.get("tools", ())):
        match value:
            case {"type": str(kind), "name": str()} if kind != "custom":
                continue  # one that runs at the provider
            case {"name": str(name), "input_schema": dict(schema), **rest}:
                unknown = rest.keys() - {"type", "description", "strict", "cache_control"}
            case _:
                raise Refused(f"tools.{i}.custom.input_schema: Field required")
        if unknown:
            raise Refused(f"tools.{i}.custom.{min(unknown)}: Extra inputs are not permitted")
        if not _TOOL_NAME.fullmatch(name):
            raise Refused(f"tools.{i}.custom.name: String should match pattern")
        if schema.get("type") != "object":
            raise Refused(f"tools.{i}.custom.input_schema.type: Input should be 'object'")
        if schema.keys() & {"oneOf", "allOf", "anyOf"}:
            raise Refused(
                f"tools.{i}.custom.input_schema: input_schema does not support oneOf, allOf, or"
                " anyOf at the top level"
            )
        if any(tool.name == name for tool in ask.tools):
            raise Refused("tools: Tool names must be unique.")
        ask.tools.append(Tool(name, schema))
    _read_tool_choice(ask)


def _read_tool_choice(ask: Ask) -> None:
    match ask.body.get("tool_choice"):
        case None:
            return
        case {"type": "auto" | "none" as choice}:
            ask.tool_choice = choice
        case {"type": "any"}:
            ask.tool_choice = "required"
        case {"type": "tool", "name": str(name)}:
            if not any(tool.name == name for tool in ask.tools):
                raise Refused(f"tool_choice.tool.name: Tool '{name}' not found in provided tools")
            ask.tool_choice = name
        case _:
            raise Refused("tool_choice: Input tag does not match any of the expected tags")
    if not ask.tools and not ask.body.get("tools"):
        raise Refused("tool_choice: tool_choice may only be specified while providing tools")
    if ask.tool_choice in ("auto", "none"):
        return
    if ask.model.startswith(_UNFORCED):
        raise Refused('tool_choice: type "tool" and "any" are not supported for this model.')
    if ask.body.get("thinking", {"type": "disabled"}).get("type") != "disabled":
        raise Refused("Thinking may not be enabled when tool_choice forces tool use.")
