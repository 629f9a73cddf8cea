"""Requests in OpenAI's words, and what OpenAI refuses in them.

Strict where a gateway could go wrong: the order of tool calls and results, the subset of JSON
schema that "strict" wants, image parts, inputs of embeddings.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from .model import Ask, Message, Tool, ToolCall

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Refused(Exception):
    """Why the provider would answer 400."""


def read_body(ask: Ask) -> None:
    """Fill the ask from its request's body; a bad one sets `invalid`."""
    try:
        body = ask.request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        ask.invalid = "We could not parse the JSON body of your request."
        return
    ask.body = body
    match body.get("model"):
        case str(model) if model:
            ask.model = model
    try:
        if ask.operation == "embeddings":
            _read_inputs(ask)
        else:
            _read_chat(ask)
    except Refused as reason:
        ask.invalid = str(reason)


def _read_chat(ask: Ask) -> None:
    body = ask.body
    ask.stream = body.get("stream") is True
    match body.get("stream_options"):
        case {"include_usage": True}:
            ask.stream_usage = True
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if isinstance(limit, int) and not isinstance(limit, bool):
        ask.max_tokens = limit
        if limit < 1:
            raise Refused(f"Invalid 'max_tokens': integer below minimum value, got {limit}.")
    match body.get("messages"):
        case [_, *_] as messages:
            ask.messages = [_message(message) for message in messages]
        case _:
            raise Refused("Missing required parameter: 'messages'.")
    for message in ask.messages:
        ask.prompt_characters += len(message.text)
        if message.role == "user":
            ask.prompt = message.text
    _check_calls(ask.messages)
    _read_tools(ask)
    _read_format(ask)


# Messages ---------------------------------------------------------------------------------------


def _message(value: Any) -> Message:
    if not isinstance(value, dict):
        raise Refused("Invalid type for 'messages': expected an object.")
    role = _ROLES.get(value.get("role"))
    if role is None:
        raise Refused(f"Invalid value: '{value.get('role')}'. Supported values are: 'system', …")
    message = Message(role)
    match value.get("content"):
        case str(text):
            message.text = text
        case [_, *_] as parts:
            for part in parts:
                _part(message, part)
        case None if role == "assistant":
            pass
        case _:
            raise Refused("Invalid value for 'content': expected a string, got null.")
    if "tool_calls" in value:
        if role != "assistant":
            raise Refused(f"Unknown parameter: 'tool_calls' of a message of '{role}'.")
        message.tool_calls = [_call(call) for call in value["tool_calls"]]
        if not message.tool_calls:
            raise Refused("Invalid 'tool_calls': empty array.")
    elif role == "assistant" and value.get("content") is None:
        raise Refused("Invalid value for 'content': expected a string, got null.")
    if role == "tool":
        if not isinstance(value.get("tool_call_id"), str):
            raise Refused("Missing required parameter: 'tool_call_id'.")
        message.tool_call_id = value["tool_call_id"]
    return message


def _part(message: Message, part: Any) -> None:
    match part:
        case {"type": "text", "text": str(text)}:
            message.text += text
        case {"type": "image_url", "image_url": {"url": str(url), **rest}} if (
            message.role == "user"
        ):
            detail = rest.pop("detail", "auto")
            if rest or detail not in ("auto", "low", "high"):
                raise Refused("Unknown parameter of 'image_url'.")
            _check_image(url)
            message.images.append(url)
        case _:
            raise Refused(f"Invalid content part of a message of '{message.role}'.")


def _check_image(url: str) -> None:
    if url.startswith(("https://", "http://")):
        return
    match = re.fullmatch(r"data:image/(png|jpeg|gif|webp);base64,(.+)", url)
    try:
        if match and base64.b64decode(match[2], validate=True):
            return
    except binascii.Error:
        pass
    raise Refused("Invalid base64 image_url.")


def _call(value: Any) -> ToolCall:
    match value:
        case {
            "id": str(id),
            "type": "function",
            "function": {"name": str(name), "arguments": str(arguments)},
        }:
            return ToolCall(id, name, arguments)
    raise Refused("Invalid 'tool_calls'.")


def _check_calls(messages: list[Message]) -> None:
    """Each call has its result before anything else is said, and each result its call."""
    open_calls: set[str] = set()
    for message in messages:
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise Refused(
                    "Invalid parameter: messages with role 'tool' must be a response to a"
                    " preceding message with 'tool_calls'."
                )
            open_calls.remove(message.tool_call_id)
            continue
        if open_calls:
            break
        open_calls = {call.id for call in message.tool_calls}
    if open_calls:
        raise Refused(
            "An assistant message with 'tool_calls' must be followed by tool messages responding"
            f" to each 'tool_call_id': {', '.join(sorted(open_calls))}"
        )


# Tools and schemas ------------------------------------------------------------------------------


def _read_tools(ask: Ask) -> None:
    body = ask.body
    for i, value in enumerate(body.get("tools", ())):
        match value:
            case {"type": "function", "function": {"name": str(name), **rest}}:
                parameters = rest.pop("parameters", {})
                unknown = rest.keys() - {"description", "strict"}
            case _:
                raise Refused(f"Missing required parameter: 'tools[{i}].function'.")
        if unknown or not _NAME.fullmatch(name) or not isinstance(parameters, dict):
            raise Refused(f"Invalid 'tools[{i}].function'.")
        if rest.get("strict"):
            check_strict(parameters, f"function '{name}'")
        ask.tools.append(Tool(name, parameters))
    if "tools" in body and not ask.tools:
        raise Refused("Invalid 'tools': empty array.")
    match body.get("tool_choice"):
        case None:
            return
        case "auto" | "none" | "required" as choice:
            ask.tool_choice = choice
        case {"type": "function", "function": {"name": str(name)}} if any(
            tool.name == name for tool in ask.tools
        ):
            ask.tool_choice = name
        case _:
            raise Refused("Invalid value for 'tool_choice'.")
    if not ask.tools:
        raise Refused("Invalid value for 'tool_choice': it is only allowed with 'tools'.")


def _read_format(ask: Ask) -> None:
    match ask.body.get("response_format"):
        case None | {"type": "text"}:
            pass
        case {"type": "json_object"}:
            ask.schema = {"type": "object"}
        case {"type": "json_schema", "json_schema": {"name": str(name), "schema": schema, **rest}}:
            if rest.keys() - {"strict", "description"} or not _NAME.fullmatch(name):
                raise Refused("Invalid 'response_format.json_schema'.")
            if rest.get("strict"):
                check_strict(schema, f"response_format '{name}'")
            ask.schema = schema
        case _:
            raise Refused("Invalid 'response_format'.")


_STRICT_KEYS = {
    *("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf"),
    *("$schema", "$ref", "$defs", "definitions", "description", "title", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems"),
    "maxItems",
}


def check_strict(schema: Any, what: str) -> None:
    """Raise Refused unless the schema is in the subset that `"strict": true` takes."""
    if not isinstance(schema, dict) or schema.get("type") != "object" or "anyOf" in schema:
        raise Refused(f"Invalid schema for {what}: schema must be of type 'object'.")
    _check_strict(schema, what)


def _check_strict(schema: Any, what: str) -> None:
    if not isinstance(schema, dict) or not schema:
        raise Refused(f"Invalid schema for {what}: schema must have a 'type' key.")
    if unknown := schema.keys() - _STRICT_KEYS:
        raise Refused(f"Invalid schema for {what}: '{min(unknown)}' is not permitted.")
    kind = schema.get("type")
    if "object" in (kind if isinstance(kind, list) else [kind]):
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is not False:
            raise Refused(
                f"Invalid schema for {what}: 'additionalProperties' is required to be supplied"
                " and to be false."
            )
        if set(schema.get("required", ())) != set(properties):
            raise Refused(
                f"Invalid schema for {what}: 'required' is required to be supplied and to be an"
                " array including every key in properties."
            )
    for key in ("properties", "$defs", "definitions"):
        for value in schema.get(key, {}).values():
            _check_strict(value, what)
    for value in schema.get("anyOf", ()):
        _check_strict(value, what)
    if "items" in schema:
        _check_strict(schema["items"], what)


# Embeddings -------------------------------------------------------------------------------------


def _read_inputs(ask: Ask) -> None:
    body = ask.body
    match body.get("input"):
        case str(text):
            ask.inputs = [text]
        case [_, *_] as texts if all(isinstance(text, str) for text in texts):
            ask.inputs = texts
        case _:
            raise Refused("Invalid value for 'input': expected a string or an array of strings.")
    if len(ask.inputs) > 2048:
        raise Refused("Invalid 'input': array too long. Expected at most 2048 elements.")
    if not all(ask.inputs):
        raise Refused("Invalid 'input': input cannot be an empty string.")
    ask.prompt = ask.inputs[-1]
    ask.dimensions = body.get("dimensions")
    match ask.dimensions:
        case None:
            pass
        case int(n) if n > 0 and not isinstance(n, bool):
            pass
        case _:
            raise Refused("Invalid value for 'dimensions'.")
    if body.get("encoding_format", "float") != "float":
        raise Refused("This fake only makes floats.")
