"""Behaviours of models that call tools, write JSON, or make embeddings."""

from __future__ import annotations

from .behaviours import problem, replies, shapes
from .contents import literal, sample
from .model import Answer, Ask, Plan, ToolCall, dump

# Tools ------------------------------------------------------------------------------------------


@shapes("tools", "calls the first tool offered; told its results, quotes them in 'result: ...'")
def _tools(ask: Ask, answer: Answer) -> None:
    _tools_n(ask, answer, "1")


@shapes("tools-N", "N parallel tool calls, of the tools offered in turn; then as tools")
def _tools_n(ask: Ask, answer: Answer, count: str) -> None:
    results = []
    for message in reversed(ask.messages):
        if message.role != "tool":
            break
        results.insert(0, message.text)
    if results:
        said = ask.answer("result: " + "; ".join(results))
        answer.text, answer.usage, answer.finish = said.text, said.usage, said.finish
        return
    answer.text, answer.finish = None, "tool_calls"
    answer.tool_calls = [_call(ask, i) for i in range(min(int(count), 128))]


@shapes("tools-and-text", "a tool call after some text")
def _tools_and_text(ask: Ask, answer: Answer) -> None:
    text = answer.text
    _tools_n(ask, answer, "1")
    answer.text = text if answer.tool_calls else answer.text


@shapes("tools-broken", "a tool call whose arguments are cut JSON")
def _tools_broken(ask: Ask, answer: Answer) -> None:
    _tools_n(ask, answer, "1")
    answer.tool_calls = [c._replace(arguments='{"location":"Par') for c in answer.tool_calls]


@shapes("tools-empty", "a tool call whose arguments are empty")
def _tools_empty(ask: Ask, answer: Answer) -> None:
    _tools_n(ask, answer, "1")
    answer.tool_calls = [c._replace(arguments="") for c in answer.tool_calls]


def _call(ask: Ask, i: int) -> ToolCall:
    """Its arguments are the JSON object in the prompt, or such as the tool's schema wants."""
    name, arguments = "get_weather", {"location": "Paris", "index": i}
    if ask.tools:
        tool = ask.tools[i % len(ask.tools)]
        if any(ask.tool_choice == t.name for t in ask.tools):
            tool = next(t for t in ask.tools if t.name == ask.tool_choice)
        name = tool.name
        arguments = literal(ask.prompt)
        if arguments is None:
            arguments = sample({"type": "object", **tool.parameters}, ask.prompt)
    return ToolCall(f"call_fake{ask.n:08d}{i:02d}", name, dump(arguments).decode())


# JSON -------------------------------------------------------------------------------------------


@shapes("json", "the JSON object in the prompt, or one that fits the request's schema")
def _json(ask: Ask, answer: Answer) -> None:
    value = literal(ask.prompt)
    if value is None:
        value = sample(ask.schema or {"type": "object"}, ask.prompt)
    said = ask.answer(dump(value).decode())
    answer.text, answer.usage, answer.finish = said.text, said.usage, said.finish


# Embeddings -------------------------------------------------------------------------------------


@shapes("embed-short", "one embedding less than asked for")
def _embed_short(ask: Ask, answer: Answer) -> None:
    del answer.vectors[-1:]


@shapes("embed-long", "one embedding more than asked for")
def _embed_long(ask: Ask, answer: Answer) -> None:
    answer.vectors += answer.vectors[-1:]


@shapes("embed-ragged", "the last embedding is shorter than the others (an only one: empty)")
def _embed_ragged(ask: Ask, answer: Answer) -> None:
    for vector in answer.vectors[-1:]:
        del vector[-1 if len(answer.vectors) > 1 else 0 :]


@shapes("embed-nan", "NaN, which is no JSON, in the last embedding")
def _embed_nan(ask: Ask, answer: Answer) -> None:
    for vector in answer.vectors[-1:]:
        vector[-1] = float("nan")


@shapes("embed-text", "a text instead of a number in the last embedding")
def _embed_text(ask: Ask, answer: Answer) -> None:
    for vector in answer.vectors[-1:]:
        vector[-1] = "0.5"


@shapes("embed-shuffled", "embeddings not in order, but numbered")
def _embed_shuffled(ask: Ask, answer: Answer) -> None:
    answer.shuffled = True


_REFUSED = {"poison": "invalid", "flood": "context_length", "curse": "content_policy"}


@replies("embed-refuses", "400 for all inputs if one is poison, a flood (too long) or a curse")
def _embed_refuses(ask: Ask) -> Plan | None:
    for word, name in _REFUSED.items():
        if any(word in text for text in ask.inputs):
            ask.invalid = "One of the inputs is poison."
            return problem(ask, name)
    return None
