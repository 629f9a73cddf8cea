"""Requests in Gemini's words, and what Google refuses in them.

Like the real one it takes no member that it does not know.  Stricter than that in one place:
contents must alternate, as they had to for long.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from .model import Ask, Message, Tool, ToolCall, dump

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}")
_BODY = {
    *("model", "contents", "systemInstruction", "tools", "toolConfig", "generationConfig"),
    *("safetySettings", "cachedContent", "serviceTier"),
}
_CONFIG = {
    *("candidateCount", "maxOutputTokens", "temperature", "topP", "topK", "seed", "stopSequences"),
    *("presencePenalty", "frequencyPenalty", "responseMimeType", "responseSchema"),
    *("responseJsonSchema", "thinkingConfig", "responseModalities", "mediaResolution"),
    *("responseLogprobs", "logprobs"),
}
# Of OpenAPI's schemas, which "parameters" and "responseSchema" take.
_SCHEMA = {
    *("type", "format", "title", "description", "nullable", "enum", "items", "maxItems"),
    *("minItems", "properties", "required", "minProperties", "maxProperties", "minLength"),
    *("maxLength", "pattern", "example", "anyOf", "propertyOrdering", "default", "minimum"),
    "maximum",
}
_DATA = {"text", "inlineData", "functionCall", "functionResponse", "fileData"}
_THINKING = {"includeThoughts", "thinkingBudget", "thinkingLevel"}

# What Google takes from who has lost the signature of a function call.
NO_SIGNATURE = "skip_thought_signature_validator"


class Refused(Exception):
    """Why the provider would answer 400."""


def signature(name: str) -> str:
    """What comes with a call of that function, and has to come back with it."""
    return base64.b64encode(f"signature of {name}".encode()).decode()


def signs(model: str) -> bool:
    """Whether a model's function calls have signatures and ids."""
    return re.match(r"gemini-[3-9]", model) is not None


def read_body(ask: Ask) -> None:
    """Fill the ask from its request's body; a bad one sets `invalid`."""
    try:
        body = ask.request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        ask.invalid = "Invalid JSON payload received. Unexpected end of string."
        return
    ask.body = body
    try:
        if ask.operation == "embeddings":
            _read_inputs(ask)
        else:
            _read_chat(ask)
    except Refused as reason:
        ask.invalid = str(reason)
    except (AttributeError, IndexError, KeyError, TypeError):
        ask.invalid = "Invalid JSON payload received. Invalid value."


def _only(value: Any, known: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"Invalid value at '{where}' (type.googleapis.com/google.protobuf.Struct).")
    if unknown := value.keys() - known:
        at = f" at '{where}'" if where else ""
        raise Refused(
            f'Invalid JSON payload received. Unknown name "{min(unknown)}"{at}: Cannot find field.'
        )
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise Refused(f"Invalid value at '{where}'.")
    return value


def _read_chat(ask: Ask) -> None:
    body = _only(ask.body, _BODY, "")
    _read_config(ask, body.get("generationConfig", {}))
    if system := body.get("systemInstruction"):
        _only(system, {"role", "parts"}, "system_instruction")
        ask.messages.append(Message("system", "".join(_text(p) for p in system["parts"])))
    contents = _list(body.get("contents", []), "contents")
    if not contents:
        raise Refused("* GenerateContentRequest.contents: contents is not specified")
    calls: list[dict[str, Any]] = []
    for i, content in enumerate(contents):
        where = f"contents[{i}]"
        _only(content, {"role", "parts"}, where)
        if content.get("role") != ("model" if i % 2 else "user"):
            raise Refused("Please ensure that multiturn requests alternate between user and model.")
        parts = _list(content.get("parts", []), f"{where}.parts")
        if not parts:
            raise Refused(
                f"* GenerateContentRequest.{where}.parts: must include at least one parts field"
            )
        read = _model_turn if i % 2 else _user_turn
        calls = read(ask, [_part(p, f"{where}.parts[{j}]") for j, p in enumerate(parts)], calls)
    if calls:
        raise Refused(
            "Please ensure that function response turn comes immediately after a function call"
            " turn."
        )
    for message in ask.messages:
        ask.prompt_characters += len(message.text)
        if message.role == "user":
            ask.prompt = message.text
    _read_tools(ask)


def _text(part: Any) -> str:
    return str(_only(part, {"text"}, "parts").get("text", ""))


def _part(part: Any, where: str) -> dict[str, Any]:
    _only(part, _DATA | {"thought", "thoughtSignature"}, where)
    if len(part.keys() & _DATA) != 1:
        raise Refused(
            f"* GenerateContentRequest.{where}.data: required oneof field 'data' must have one"
            " initialized field"
        )
    return dict(part)


def _model_turn(ask: Ask, parts: list[Any], _: list[Any]) -> list[dict[str, Any]]:
    """The calls that are made in it."""
    message = Message("assistant")
    calls: list[dict[str, Any]] = []
    for j, part in enumerate(parts):
        match part:
            case {"text": str(text)}:
                message.text += text
            case {"functionCall": {"name": str(name), "args": dict(args), **rest}}:
                _only(rest, {"id"}, "function_call")
                if signs(ask.model):
                    _check_signature(part, name, first=not calls, position=j)
                calls.append(part["functionCall"])
                message.tool_calls.append(
                    ToolCall(str(rest.get("id", "")), name, dump(args).decode())
                )
            case _:
                raise Refused("Invalid part of a turn of the model.")
    ask.messages.append(message)
    return calls


def _check_signature(part: dict[str, Any], name: str, first: bool, position: int) -> None:
    """Of calls in parallel only the first has one."""
    given = part.get("thoughtSignature")
    if given is None and first:
        raise Refused(
            "Function call is missing a thought_signature in functionCall parts. This is required"
            " for tools to work correctly, and missing thought_signature may lead to degraded model"
            f" performance. Additional data, function call `default_api:{name}`, position"
            f" {position}."
        )
    if given not in (None, NO_SIGNATURE, signature(name)):
        raise Refused("Corrupted thought signature.")


def _user_turn(ask: Ask, parts: list[Any], calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers every call, in order, before anything else is said."""
    results = [part["functionResponse"] for part in parts if "functionResponse" in part]
    if len(results) != len(calls):
        raise Refused(
            "Please ensure that the number of function response parts is equal to the number of"
            " function call parts of the function call turn."
        )
    for call, result in zip(calls, results, strict=True):
        match _only(result, {"id", "name", "response"}, "function_response"):
            case {"name": str(name), "response": dict(response)} if name == call["name"]:
                text = response.get("output", response)
                text = text if isinstance(text, str) else dump(text).decode()
                ask.messages.append(Message("tool", text, tool_call_id=result.get("id")))
            case _:
                raise Refused("Please ensure that function responses match their function calls.")
        if result.get("id") != call.get("id"):
            raise Refused("Please ensure that function response ids match those of the calls.")
    message = Message("user")
    for part in parts:
        match part:
            case {"text": str(text)} if text or len(parts) == 1:
                message.text += text
            case {"inlineData": {"mimeType": str(kind), "data": str(data)}}:
                _check_image(kind, data)
                message.images.append(f"data:{kind};base64,{data}")
            case {"functionResponse": _}:
                pass
            case {"fileData": _}:
                raise Refused("Unsupported file URI.")
            case _:
                raise Refused("Unable to process input: empty or invalid part.")
    if len(parts) > len(results):
        ask.messages.append(message)
    return []


def _check_image(kind: str, data: str) -> None:
    if kind not in ("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"):
        raise Refused(f"Unsupported MIME type: {kind}")
    try:
        if base64.b64decode(data, validate=True):
            return
    except binascii.Error:
        pass
    raise Refused("Base64 decoding failed")


def _read_config(ask: Ask, config: Any) -> None:
    _only(config, _CONFIG, "generation_config")
    if (limit := config.get("maxOutputTokens")) is not None:
        if not isinstance(limit, int) or limit < 1:
            raise Refused(
                "* GenerateContentRequest.generation_config.max_output_tokens: must be positive"
            )
        ask.max_tokens = limit
    if len(_list(config.get("stopSequences", []), "generation_config.stop_sequences")) > 5:
        raise Refused("The number of stop sequences is more than the limit of 5.")
    if config.get("topK", 1) < 1:
        raise Refused("top_k must be positive")
    if config.get("candidateCount", 1) != 1:
        raise Refused("Only one candidate can be specified in the current model")
    thinking = _only(
        config.get("thinkingConfig", {}), _THINKING, "generation_config.thinking_config"
    )
    if "thinkingBudget" in thinking and "thinkingLevel" in thinking:
        raise Refused("You can only set one of thinking budget and thinking level.")
    if schema := config.get("responseSchema"):
        check_schema(schema, "generation_config.response_schema")
    schema = config.get("responseJsonSchema", schema)
    if config.get("responseMimeType", "text/plain") == "application/json":
        ask.schema = schema or {"type": "object"}
    elif schema:
        raise Refused("Response schema needs a response mime type of 'application/json'.")


def check_schema(schema: Any, where: str) -> None:
    """Raise Refused unless it is one of OpenAPI's, as far as Google takes those."""
    _only(schema, _SCHEMA, where)
    for name, value in schema.get("properties", {}).items():
        check_schema(value, f"{where}.properties[{name}].value")
    if "items" in schema:
        check_schema(schema["items"], f"{where}.items")


def _read_tools(ask: Ask) -> None:
    for i, tool in enumerate(_list(ask.body.get("tools", []), "tools")):
        _only(
            tool,
            {"functionDeclarations", "googleSearch", "codeExecution", "urlContext"},
            f"tools[{i}]",
        )
        for j, value in enumerate(tool.get("functionDeclarations", [])):
            where = f"tools[{i}].function_declarations[{j}]"
            _only(value, {"name", "description", "parameters", "parametersJsonSchema"}, where)
            if not _NAME.fullmatch(value.get("name", "")):
                raise Refused(f"* GenerateContentRequest.{where}.name: Invalid function name.")
            if "parameters" in value:
                check_schema(value["parameters"], f"{where}.parameters")
            parameters = value.get("parametersJsonSchema", value.get("parameters", {}))
            ask.tools.append(Tool(value["name"], parameters))
    if ask.tools and ask.schema and re.match("gemini-[12]", ask.model):
        raise Refused(
            "Function calling with a response mime type: 'application/json' is unsupported"
        )
    match ask.body.get("toolConfig"):
        case None:
            return
        case {"functionCallingConfig": {"mode": "AUTO" | "NONE" as mode, **rest}} if not rest:
            ask.tool_choice = mode.lower()
        case {"functionCallingConfig": {"mode": "ANY", **rest}}:
            names = _only(rest, {"allowedFunctionNames"}, "tool_config").get("allowedFunctionNames")
            ask.tool_choice = names[0] if names else "required"
            if not {tool.name for tool in ask.tools}.issuperset(names or ()):
                raise Refused("Allowed function names are not among the function declarations.")
        case _:
            raise Refused("Invalid value at 'tool_config'.")
    if not ask.tools:
        raise Refused("Function calling config is set without function_declarations.")


def _read_inputs(ask: Ask) -> None:
    requests = _list(_only(ask.body, {"requests"}, "").get("requests"), "requests")
    if not 1 <= len(requests) <= 100:
        raise Refused(
            "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch"
        )
    for i, value in enumerate(requests):
        where = f"requests[{i}]"
        _only(value, {"model", "content", "taskType", "title", "outputDimensionality"}, where)
        if value.get("model") not in (f"models/{ask.model}", ask.model):
            raise Refused(
                "* BatchEmbedContentsRequest.requests: the model of each request must match the"
                " model of the batch"
            )
        ask.inputs.append(
            "".join(_text(p) for p in _only(value["content"], {"parts", "role"}, where)["parts"])
        )
    ask.prompt = ask.inputs[-1]
    ask.dimensions = requests[-1].get("outputDimensionality")
