"""What the fake says where more than an echo is wanted: arguments, JSON of a schema, vectors.

All of it is a function of the request.
"""

from __future__ import annotations

import functools
import json
import random
import zlib
from typing import Any

from .model import Answer, Ask, Usage, tokens

# The dimensions of an embedding, where the request names none.
DIMENSIONS = 16

_MAX_DEPTH = 20


def literal(text: str) -> Any:
    """The first JSON object within the text; None: there is none."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            return decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
    return None


def sample(schema: Any, text: str) -> Any:
    """A value that fits the JSON schema, if that is not too clever; texts and numbers are drawn
    from `text`."""
    return _sample(schema, text, schema, 0)


def _sample(schema: Any, text: str, root: Any, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return text
    match schema:
        case {"$ref": str(path)} if path.startswith("#/"):
            return _sample(_resolve(root, path), text, root, depth + 1)
        case {"const": value} | {"enum": [value, *_]}:
            return value
        case {"anyOf": [first, *_]} | {"oneOf": [first, *_]} | {"allOf": [first, *_]}:
            return _sample(first, text, root, depth + 1)
    match _type(schema):
        case "object":
            properties = schema.get("properties") or {}
            return {k: _sample(v, text, root, depth + 1) for k, v in properties.items()}
        case "array":
            item = _sample(schema.get("items", {}), text, root, depth + 1)
            return [item] * max(1, int(schema.get("minItems", 1)))
        case "integer":
            return int(_clamp(len(text), schema))
        case "number":
            return _clamp(len(text) + 0.5, schema)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return text[: schema.get("maxLength")].ljust(schema.get("minLength", 0), "x")


def _type(schema: dict[str, Any]) -> str:
    match schema.get("type"):
        case str(name) | [str(name), *_]:
            return name.lower()
        case _:
            return "object" if "properties" in schema else "string"


def _clamp(value: float, schema: dict[str, Any]) -> float:
    value = max(value, schema.get("minimum", value))
    return min(value, schema.get("maximum", value))


def _resolve(root: Any, path: str) -> Any:
    value = root
    for key in path[2:].split("/"):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def embedding(ask: Ask) -> Answer:
    """A vector of length 1 for each input; inputs that share words have vectors close together."""
    dimensions = ask.dimensions or DIMENSIONS
    answer = Answer(None, Usage(prompt=tokens(sum(map(len, ask.inputs)))))
    answer.vectors = [vector(text, dimensions) for text in ask.inputs]
    return answer


def vector(text: str, dimensions: int) -> list[Any]:
    words = text.lower().split() or [""]
    total = [sum(column) for column in zip(*(_word(word, dimensions) for word in words))]
    length = sum(x * x for x in total) ** 0.5 or 1.0
    return [round(x / length, 7) for x in total]


@functools.lru_cache(maxsize=4096)
def _word(word: str, dimensions: int) -> tuple[float, ...]:
    draw = random.Random(zlib.crc32(word.encode("utf-8", "surrogatepass")))
    return tuple(draw.uniform(-1, 1) for _ in range(dimensions))
