"""The values passed between the parts of the fake provider.

A request becomes an `Ask` (what the client wants, free of any dialect), the ask an `Answer` (what
is said), the answer a `Plan` (which bytes go out, when, and how it ends).  Behaviours intervene at
these three points and nowhere else, so that they work for every dialect and combine freely.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dump(value: Any) -> bytes:
    """JSON as providers send it: compact, and in UTF-8 rather than escapes.

    A lone surrogate (legal in a request as an escape) has no UTF-8 form; it stays an escape.
    """
    text = _encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def tokens(characters: int) -> int:
    """The fake's only tokenizer: four characters (code points) are a token, rounded up."""
    return (characters + 3) // 4


@dataclass(slots=True)
class Request:
    """One HTTP request, whole.  Header names are lower-case; repeated ones joined with a comma."""

    method: str
    target: str
    version: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    def json(self) -> Any:
        """The parsed body; raises ValueError whatever is wrong with it."""
        try:
            return json.loads(self.body)
        except RecursionError:
            raise ValueError("nested too deep") from None


@dataclass(slots=True)
class Usage:
    """Tokens as OpenAI counts them: prompt includes cached, completion includes reasoning.

    `written` of the prompt went into the cache, where a provider tells that.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    written: int = 0


class ToolCall(NamedTuple):
    id: str
    name: str
    arguments: str  # JSON text


class Tool(NamedTuple):
    """A tool that is offered; `parameters` is a JSON schema."""

    name: str
    parameters: dict[str, Any]


@dataclass(slots=True)
class Message:
    """A message of any dialect; `role` is system, user, assistant or tool (a tool's result)."""

    role: str
    text: str = ""
    images: list[str] = field(default_factory=list)  # URLs, those with data included
    tool_calls: list[ToolCall] = field(default_factory=list)
    tool_call_id: str | None = None  # of a result, where the dialect has such ids

    def as_json(self) -> dict[str, Any]:
        calls = [c._asdict() | {"arguments": json.loads(c.arguments)} for c in self.tool_calls]
        said = {
            "role": self.role,
            "text": self.text,
            "images": self.images,
            "tool_calls": calls,
            "tool_call_id": self.tool_call_id,
        }
        return {key: value for key, value in said.items() if value not in (None, [])}


@dataclass(slots=True)
class Answer:
    """What is said; `finish` is stop, length, tool_calls or content_filter in any dialect."""

    text: str | None
    usage: Usage | None
    finish: str = "stop"
    refusal: str | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    vectors: list[list[Any]] = field(default_factory=list)  # by input, of an embedding request
    shuffled: bool = False  # where the dialect numbers the vectors: not in order


@dataclass(slots=True)
class Ask:
    """What a request wants.  `invalid` holds the reason if the provider would refuse it."""

    dialect: Dialect
    operation: str
    request: Request
    n: int = 0
    model: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    prompt_characters: int = 0
    max_tokens: int | None = None
    stream: bool = False
    stream_usage: bool = False
    messages: list[Message] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    tool_choice: str | None = None  # auto, none, required, or a tool's name
    schema: Any = None  # that the answer must fit
    inputs: list[str] = field(default_factory=list)  # of an embedding request
    dimensions: int | None = None
    key: str | None = None
    shown_key: str = ""
    invalid: str | None = None

    def answer(self, text: str | None = None) -> Answer:
        """`text`, or by default an echo of the prompt, cut where max_tokens says."""
        if text is None:
            text = "echo: " + self.prompt
        finish = "stop"
        if self.max_tokens is not None and tokens(len(text)) > self.max_tokens:
            text, finish = text[: 4 * self.max_tokens], "length"
        return Answer(text, self.usage(text), finish)

    def asked(self) -> dict[str, Any]:
        """What was read, for the journal: the same for all dialects.  What is not there is left
        out, and arguments are decoded."""
        messages = [message.as_json() for message in self.messages]
        said = {
            "operation": self.operation,
            "model": self.model,
            "key": self.key,
            "messages": messages,
            "tools": [tool._asdict() for tool in self.tools],
            "tool_choice": self.tool_choice,
            "schema": self.schema,
            "max_tokens": self.max_tokens,
            "stream": self.stream,
            "inputs": self.inputs,
            "dimensions": self.dimensions,
            "invalid": self.invalid,
        }
        return {key: value for key, value in said.items() if value not in (None, [])}

    def usage(self, text: str) -> Usage:
        return Usage(prompt=tokens(self.prompt_characters), completion=tokens(len(text)))


class Framing(enum.Enum):
    """How the client learns where the body ends."""

    LENGTH = "content-length"
    CHUNKED = "chunked"
    CHUNKED_ODD = "chunked, as legal and as unusual as can be"
    UNTIL_CLOSE = "until close"


class Then(enum.Enum):
    """What happens once the planned bytes are out.

    KEEP and CLOSE end the body as its framing wants it; CUT, RESET and STALL leave that end out.
    """

    KEEP = "keep"
    CLOSE = "close"
    HALF_CLOSE = "half-close"
    CUT = "cut"
    RESET = "reset"
    STALL = "stall"

    @property
    def ends_body(self) -> bool:
        return self in (Then.KEEP, Then.CLOSE, Then.HALF_CLOSE)


@dataclass(slots=True)
class Plan:
    """How a response goes out.

    `parts` are the pieces of the body (for a stream: one per event).  The last `tail` of them end
    the answer (finish reason, usage, end marker), and the last one is the end marker if `marked`.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    tail: int = 0
    marked: bool = False
    framing: Framing = Framing.LENGTH
    promised: int | None = None  # Content-Length, where it is not the truth
    delay: float = 0.0  # seconds before the first byte
    gap: float = 0.0  # seconds before each part
    separate: bool = False  # a write for each part, even without a gap
    write_size: int = 0  # bytes per write; 0: as the parts are
    send_head: bool = True  # False: not one byte is sent
    whole: bool = True  # False: the answer was cut on purpose
    then: Then = Then.KEEP

    @property
    def immediate(self) -> bool:
        """Whether it goes out in one write, at once, and nothing comes after."""
        timed = self.delay or self.gap or self.separate or self.write_size
        return not timed and self.then is Then.KEEP

    def truncate(self, share: float) -> None:
        """Keep the first `share` of the answer, not its tail; the framing still promises all."""
        self.promised = sum(map(len, self.parts))
        if len(self.parts) > 1:
            del self.parts[max(1, int((len(self.parts) - self.tail) * share)) :]
        elif self.parts:
            self.parts[0] = self.parts[0][: int(len(self.parts[0]) * share)]
        self.whole, self.marked, self.tail = False, False, 0

    def middle(self) -> int:
        """The index of the part half-way through the answer proper."""
        return max(1, (len(self.parts) - self.tail) // 2)


class Stream(NamedTuple):
    """A streamed answer as events: those with content, those that end it, and the end marker."""

    body: list[bytes]
    tail: list[bytes]
    marker: bytes


class Dialect(NamedTuple):
    """A wire format, as a table of pure functions.

    route     method, path -> operation ("chat", "embeddings", "models", …), or None if the path
              is not ours
    read      request, operation -> ask; never raises, a bad request sets `invalid`
    whole     the answer as one JSON document
    stream    the answer as events
    info      the JSON document for any other operation than chat and embeddings
    event     one JSON document as an event of a stream
    headers   the headers that come with that status
    failure   the JSON body of a plain HTTP error of that status
    problem   status and JSON body of an error by its name: invalid, auth, model_not_found,
              context_length, content_policy, server
    embed     the answer's vectors as one JSON document, if the provider makes embeddings
    """

    name: str
    stream_type: str
    comment: bytes  # an event that clients must skip, if the format has one
    route: Callable[[str, str], str | None]
    read: Callable[[Request, str], Ask]
    whole: Callable[[Ask, Answer], bytes]
    stream: Callable[[Ask, Answer], Stream]
    info: Callable[[Ask], bytes]
    event: Callable[[bytes], bytes]
    headers: Callable[[Ask, int], dict[str, str]]
    failure: Callable[[Ask, int], bytes]
    problem: Callable[[Ask, str], tuple[int, bytes]]
    embed: Callable[[Ask, Answer], bytes] | None = None
