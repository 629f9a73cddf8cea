"""The registry of behaviours, and how one request becomes a plan.

A behaviour has a name and up to three functions, each acting at one point of an answer's life:

    shapes(ask, answer, *args)      changes what is said
    replies(ask, *args) -> Plan     says something else instead; None: after all not
    faults(ask, plan, *args)        changes how it goes out

A name is a template: an upper-case word in it stands for an argument, so that "slow-N" is called as
"slow-500".  Names joined by "+" act together, as in "slow-300+status-503".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .contents import embedding
from .model import Answer, Ask, Framing, Plan

Shape = Callable[..., None]
Reply = Callable[..., Plan | None]
Fault = Callable[..., None]

_ARGUMENTS = {"CODE": r"([2-5]\d\d)", "KEY": r"(.+)"}
_NUMBER = r"(\d{1,9})"


@dataclass(slots=True)
class Behaviour:
    name: str
    help: str
    pattern: re.Pattern[str]
    shape: Shape | None = None
    reply: Reply | None = None
    fault: Fault | None = None


# A behaviour with its arguments, and a combination of such.
Use = tuple[Behaviour, tuple[str, ...]]
Chain = tuple[Use, ...]

REGISTRY: dict[str, Behaviour] = {}


def _entry(name: str, help: str) -> Behaviour:
    behaviour = REGISTRY.get(name)
    if behaviour is None:
        pattern = re.sub("[A-Z]+", lambda word: _ARGUMENTS.get(word[0], _NUMBER), name)
        behaviour = REGISTRY[name] = Behaviour(name, help, re.compile(pattern))
    return behaviour


def shapes(name: str, help: str = "") -> Callable[[Shape], Shape]:
    """Register a function that changes what is said."""

    def register(function: Shape) -> Shape:
        _entry(name, help).shape = function
        return function

    return register


def replies(name: str, help: str = "") -> Callable[[Reply], Reply]:
    """Register a function that replies in the model's stead."""

    def register(function: Reply) -> Reply:
        _entry(name, help).reply = function
        return function

    return register


def faults(name: str, help: str = "") -> Callable[[Fault], Fault]:
    """Register a function that changes how the bytes go out."""

    def register(function: Fault) -> Fault:
        _entry(name, help).fault = function
        return function

    return register


@functools.lru_cache(maxsize=4096)
def resolve(name: str) -> Chain | None:
    """The behaviours that `name` calls for, or None if it, or a part of it, names none."""
    chain: list[Use] = []
    for part in name.split("+"):
        if exact := REGISTRY.get(part):
            if exact.pattern.groups:
                return None  # the template itself, without its arguments
            chain.append((exact, ()))
            continue
        for behaviour in REGISTRY.values():
            if match := behaviour.pattern.fullmatch(part):
                chain.append((behaviour, match.groups()))
                break
        else:
            return None
    return tuple(chain)


def make_plan(ask: Ask, chain: Chain, adjust: Callable[[Answer], None] | None = None) -> Plan:
    """What `ask` gets under `chain`; `adjust` changes the answer before its behaviours do."""
    plan = None
    for behaviour, args in chain:
        if behaviour.reply and (plan := behaviour.reply(ask, *args)):
            break
    if plan is None:
        if ask.invalid is not None:
            plan = problem(ask, "invalid")
        elif ask.operation not in ("chat", "embeddings"):
            plan = document(ask, 200, ask.dialect.info(ask))
        else:
            answer = ask.answer() if ask.operation == "chat" else embedding(ask)
            if adjust:
                adjust(answer)
            for behaviour, args in chain:
                if behaviour.shape:
                    behaviour.shape(ask, answer, *args)
            plan = render(ask, answer)
    for behaviour, args in chain:
        if behaviour.fault:
            behaviour.fault(ask, plan, *args)
    return plan


def render(ask: Ask, answer: Answer) -> Plan:
    """The ordinary way of giving an answer: streamed if that was asked for, else one document."""
    if ask.operation == "embeddings" and ask.dialect.embed:
        return document(ask, 200, ask.dialect.embed(ask, answer))
    if not ask.stream:
        return document(ask, 200, ask.dialect.whole(ask, answer))
    body, tail, marker = ask.dialect.stream(ask, answer)
    return Plan(
        headers={"content-type": ask.dialect.stream_type, **ask.dialect.headers(ask, 200)},
        parts=[*body, *tail, marker] if marker else [*body, *tail],
        tail=len(tail) + bool(marker),
        marked=bool(marker),
        framing=Framing.CHUNKED,
    )


def document(ask: Ask, status: int, body: bytes) -> Plan:
    """A JSON document with the dialect's headers."""
    headers = {"content-type": "application/json", **ask.dialect.headers(ask, status)}
    return Plan(status, headers, [body])


def problem(ask: Ask, name: str) -> Plan:
    """An error by its name, in the dialect's words."""
    return document(ask, *ask.dialect.problem(ask, name))


def listing() -> Iterable[str]:
    """Every behaviour with its line of help, for --list."""
    width = max(map(len, REGISTRY))
    return (f"{b.name:<{width}}  {b.help}" for _, b in sorted(REGISTRY.items()))
