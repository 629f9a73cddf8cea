#!/usr/bin/python3
"""Tests of the fake provider itself:  python3 t/fake_provider_test.py"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = Path(__file__).resolve().with_name("fake_provider.py")
KEY = "sk-abcdefghijklmnop"
PATIENCE = 5.0  # seconds after which a test gives up


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of a stream: documents, and "[DONE]"."""
        data = [line[6:] for line in self.body.splitlines() if line.startswith(b"data: ")]
        return [d.decode() if d == b"[DONE]" else json.loads(d) for d in data]

    @property
    def text(self) -> str:
        """The text of a streamed answer."""
        choices = [e["choices"][0] for e in self.events if e != "[DONE]" and e["choices"]]
        return "".join(c["delta"].get("content") or "" for c in choices)


class Fake:
    """A running fake provider."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        lines = self.process.stdout.read().split()  # ends although the process lives
        assert lines[::2] == ["PORT", "CONTROL"], lines
        self.port, self.control_port = int(lines[1]), int(lines[3])

    def stop(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(PATIENCE)

    def control(self, method: str, endpoint: str, body: Any = None, port: int = 0) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.control_port)
        with contextlib.closing(connection):
            connection.request(method, "/_control/" + endpoint, body and json.dumps(body))
            response = connection.getresponse()
            answer = json.loads(response.read())
        if response.status != 200:
            raise ValueError(answer["error"])
        return answer

    def script(self, model: str, *steps: Any, **more: Any) -> Any:
        return self.control("POST", "script", {"model": model, "steps": steps, **more})

    def journal(self) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.control("GET", "journal")
        return result

    def stats(self) -> dict[str, Any]:
        result: dict[str, Any] = self.control("GET", "stats")
        return result

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    @contextlib.contextmanager
    def client(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            yield connection

    def ask(self, model: str, **body: Any) -> Reply:
        with self.client() as connection:
            return ask(connection, model, **body)


def document(model: str, **body: Any) -> bytes:
    prompt = body.pop("prompt", "hello")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    return json.dumps({"model": model, "messages": messages, **body}).encode()


def ask(connection: http.client.HTTPConnection, model: str, **body: Any) -> Reply:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", document(model, **body), headers)
    response = connection.getresponse()
    return Reply(response.status, dict(response.getheaders()), response.read())


def raw_request(model: str, **body: Any) -> bytes:
    content = document(model, **body)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: fake\r\nContent-Length: %d\r\n\r\n"
    return (head % len(content)).encode() + content


def read_all(sock: socket.socket) -> tuple[bytes, str]:
    """What the connection still brings, and how it ends: eof, reset or silence."""
    data = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return data, "reset"
        except TimeoutError:
            return data, "silence"
        if not piece:
            return data, "eof"
        data += piece


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return result


class FakeTestCase(unittest.TestCase):
    fake: Fake

    @classmethod
    def setUpClass(cls) -> None:
        cls.fake = Fake()
        cls.addClassCleanup(cls.fake.stop)

    def setUp(self) -> None:
        self.fake.control("POST", "reset")

    def tearDown(self) -> None:
        self.assertEqual(self.fake.stats()["internal_errors"], 0)

    def raw(self, model: str, patience: float = PATIENCE, **body: Any) -> tuple[bytes, str]:
        with self.fake.connect() as sock:
            sock.settimeout(patience)
            sock.sendall(raw_request(model, **body))
            return read_all(sock)

    def outcome(self) -> Any:
        """The outcome of the last request, which may take a moment to be known."""
        return eventually(lambda: self.fake.journal()[-1]["outcome"])


class Answers(FakeTestCase):
    def test_plain(self) -> None:
        reply = self.fake.ask("m", prompt="hello wörld")
        self.assertEqual(reply.status, 200)
        self.assertEqual(reply.json["choices"][0]["message"]["content"], "echo: hello wörld")
        self.assertEqual(reply.json["choices"][0]["finish_reason"], "stop")
        usage = reply.json["usage"]
        # "Be brief." and the prompt are 20 characters; the answer has 17.
        self.assertEqual((usage["prompt_tokens"], usage["completion_tokens"]), (5, 5))
        self.assertEqual(usage["total_tokens"], 10)
        self.assertTrue(reply.headers["x-request-id"].startswith("req_"))
        self.assertIn("x-ratelimit-remaining-requests", reply.headers)

    def test_stream(self) -> None:
        reply = self.fake.ask("m", stream=True, stream_options={"include_usage": True})
        self.assertEqual(reply.headers["content-type"], "text/event-stream; charset=utf-8")
        *events, last, done = reply.events
        self.assertEqual(reply.text, "echo: hello")
        self.assertEqual(events[0]["choices"][0]["delta"]["role"], "assistant")
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], "stop")
        self.assertTrue(all(e["usage"] is None for e in events))
        self.assertEqual(last["choices"], [])
        self.assertEqual(last["usage"]["completion_tokens"], 3)
        self.assertEqual(done, "[DONE]")
        # Without the option there is no such event.
        events = self.fake.ask("m", stream=True).events
        self.assertFalse(any("usage" in e for e in events))

    def test_max_tokens_is_honoured(self) -> None:
        for limit in ("max_tokens", "max_completion_tokens"):
            choice = self.fake.ask("m", **{limit: 2}).json["choices"][0]
            self.assertEqual(choice["message"]["content"], "echo: he")
            self.assertEqual(choice["finish_reason"], "length")
        reply = self.fake.ask("tokens-100", max_tokens=7).json
        self.assertEqual(reply["usage"]["completion_tokens"], 7)
        reply = self.fake.ask("ignore-max-tokens", max_tokens=2).json
        self.assertEqual(reply["choices"][0]["message"]["content"], "echo: hello")

    def test_other_paths(self) -> None:
        with self.fake.client() as connection:
            for path, status in (("/v1/models", 200), ("/health", 200), ("/v1/nothing", 404)):
                connection.request("GET", path)
                response = connection.getresponse()
                self.assertEqual((path, response.status), (path, status))
                self.assertIsInstance(json.loads(response.read()), dict)
            connection.request("POST", "/eu/openai/v1/chat/completions", document("m"))
            self.assertEqual(connection.getresponse().status, 200)

    def test_bad_requests(self) -> None:
        bodies = (b"", b"{", b"[]", b"\xff", b'{"model":"m"}', b"[" * 100_000)
        with self.fake.client() as connection:
            for body in bodies:
                connection.request("POST", "/v1/chat/completions", body)
                response = connection.getresponse()
                self.assertEqual((body[:9], response.status), (body[:9], 400))
                self.assertIn("message", json.loads(response.read())["error"])
        for junk in (
            b"junk\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"\0" * 100 + b"\r\n\r\n",
        ):
            with self.fake.connect() as sock:
                sock.sendall(junk)
                data, end = read_all(sock)
                self.assertTrue(data.startswith(b"HTTP/1.1 400 "), data)
                self.assertEqual(end, "eof")

    def test_large_and_chunked_requests(self) -> None:
        prompt = "x" * (50 << 20)
        self.fake.script("m", {"text": "ok", "repeat": 2})
        self.assertEqual(self.fake.ask("m", prompt=prompt).status, 200)
        entry = self.fake.journal()[-1]
        self.assertTrue(entry["truncated"])
        self.assertGreater(entry["body_bytes"], 50 << 20)
        with self.fake.client() as connection:
            pieces = iter(
                [document("m", prompt="in pieces")[i : i + 10] for i in range(0, 200, 10)]
            )
            connection.request("POST", "/v1/chat/completions", pieces, encode_chunked=True)
            self.assertEqual(connection.getresponse().status, 200)
        self.assertEqual(self.fake.journal()[-1]["body"]["messages"][1]["content"], "in pieces")

    def test_expect_continue(self) -> None:
        head, _, body = raw_request("m").partition(b"\r\n\r\n")
        with self.fake.connect() as sock:
            sock.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
            self.assertEqual(sock.recv(1000), b"HTTP/1.1 100 Continue\r\n\r\n")
            sock.sendall(body)
            self.assertTrue(sock.recv(12), b"HTTP/1.1 200")

    def test_many_at_once(self) -> None:
        sockets = [self.fake.connect() for _ in range(1000)]
        with contextlib.ExitStack() as stack:
            for sock in sockets:
                stack.enter_context(sock)
                sock.sendall(raw_request("slow-300"))
            for sock in sockets:
                self.assertTrue(sock.recv(12), b"HTTP/1.1 200")
            self.assertEqual(self.fake.stats()["max_in_flight"], 1000)


class Behaviours(FakeTestCase):
    def test_errors(self) -> None:
        expected = {
            "status-429": (429, "rate_limit_exceeded"),
            "status-500": (500, None),
            "status-418": (418, None),
            "context-length": (400, "context_length_exceeded"),
            "content-policy": (400, "content_policy_violation"),
            "error-body-openai-404-model": (404, "model_not_found"),
            "error-body-openai-429-quota": (429, "insufficient_quota"),
            "error-body-llamacpp-context": (400, 400),
            "error-body-llamacpp-batch": (500, 500),
            "error-body-groq-498": (498, "capacity_exceeded"),
            "error-in-200": (200, None),
        }
        for model, (status, code) in expected.items():
            for stream in (False, True):
                reply = self.fake.ask(model, stream=stream)
                self.assertEqual((model, reply.status), (model, status))
                self.assertEqual((model, reply.json["error"]["code"]), (model, code))
        self.assertEqual(self.fake.ask("html-502").status, 502)
        self.assertEqual(self.fake.ask("error-body-vllm-toplevel").json["object"], "error")
        self.assertIn("retry-after", self.fake.ask("status-503+retry-after-1").headers)

    def test_keys(self) -> None:
        reply = self.fake.ask("require-key-other")
        self.assertEqual((reply.status, reply.json["error"]["code"]), (401, "invalid_api_key"))
        self.assertIn("sk-ab***op.", reply.json["error"]["message"])
        self.assertEqual(self.fake.ask("require-key-" + KEY).status, 200)
        self.assertIn(KEY, self.fake.ask("leak-key").json["error"]["message"])

    def test_parameters(self) -> None:
        reply = self.fake.ask("needs-max-completion-tokens", max_tokens=5)
        self.assertEqual(reply.json["error"]["code"], "unsupported_parameter")
        self.assertEqual(self.fake.ask("needs-max-completion-tokens").status, 200)
        self.assertEqual(self.fake.ask("needs-max-tokens", max_completion_tokens=5).status, 400)
        reply = self.fake.ask("refuses-seed+refuses-top_p", top_p=0.5)
        self.assertEqual((reply.status, reply.json["error"]["param"]), (400, "top_p"))
        self.assertEqual(self.fake.ask("refuses-seed+refuses-top_p").status, 200)

    def test_shapes(self) -> None:
        def choice(model: str) -> Any:
            return self.fake.ask(model).json["choices"][0]

        self.assertEqual(choice("length")["finish_reason"], "length")
        self.assertEqual(choice("content-policy-200")["finish_reason"], "content_filter")
        self.assertEqual(choice("empty")["message"]["content"], "")
        self.assertIsNone(choice("refusal")["message"]["content"])
        self.assertTrue(choice("refusal")["message"]["refusal"])
        self.assertEqual(choice("tools-2")["finish_reason"], "tool_calls")
        calls = choice("tools-2")["message"]["tool_calls"]
        self.assertEqual(json.loads(calls[1]["function"]["arguments"])["index"], 1)
        self.assertIn("\0", choice("nul")["message"]["content"])
        self.assertEqual(len(choice("huge-2")["message"]["content"]), 2 << 20)
        usage = self.fake.ask("usage-100-50-30-20").json["usage"]
        self.assertEqual((usage["prompt_tokens"], usage["completion_tokens"]), (100, 50))
        self.assertEqual(usage["prompt_tokens_details"]["cached_tokens"], 30)
        self.assertEqual(usage["completion_tokens_details"]["reasoning_tokens"], 20)
        self.assertNotIn("usage", self.fake.ask("no-usage").json)
        self.assertEqual(self.fake.ask("json-only", stream=True).json["object"], "chat.completion")

    def test_metered(self) -> None:
        usages = [self.fake.ask("metered", prompt=f"hello {i}").json["usage"] for i in range(20)]
        self.assertEqual(len({str(usage) for usage in usages}), 20)
        for usage in usages:
            self.assertGreaterEqual(usage["prompt_tokens"], 100)
            self.assertGreaterEqual(
                usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
            )
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        again = self.fake.ask("metered", prompt="hello 3", **streamed)
        self.assertEqual(again.events[-2]["usage"], usages[3])
        limited = self.fake.ask("metered", prompt="hello 3", max_tokens=1).json["usage"]
        self.assertEqual(limited["completion_tokens"], 1)

    def test_flaky(self) -> None:
        statuses = [self.fake.ask("metered+flaky-3").status for _ in range(7)]
        self.assertEqual(statuses, [200, 200, 500, 200, 200, 500, 200])

    def test_streamed_tools(self) -> None:
        events = self.fake.ask("tools", stream=True).events[:-1]
        deltas = [e["choices"][0]["delta"] for e in events]
        calls = [d["tool_calls"][0] for d in deltas if "tool_calls" in d]
        self.assertEqual(calls[0]["function"]["name"], "get_weather")
        arguments = "".join(c["function"]["arguments"] for c in calls)
        self.assertEqual(json.loads(arguments)["location"], "Paris")

    def test_unusual_but_sound(self) -> None:
        for model in ("chunked-odd", "one-byte", "drip-1", "half-close", "keepalive-comments"):
            reply = self.fake.ask(model, stream=True)
            self.assertEqual((model, reply.text), (model, "echo: hello"))
            self.assertEqual((model, reply.events[-1]), (model, "[DONE]"))
        text = self.fake.ask("unicode-split").json["choices"][0]["message"]["content"]
        reply = self.fake.ask("unicode-split", stream=True)
        self.assertEqual(reply.text, text)
        self.assertIn(b"\r\n\r\n", reply.body)
        self.assertNotIn(b"\n\n", reply.body)

    def test_broken_streams(self) -> None:
        self.assertNotIn(b"[DONE]", self.fake.ask("no-done", stream=True).body)
        cut = self.fake.ask("cut", stream=True)
        self.assertNotIn(b'"finish_reason":"', cut.body)
        self.assertIn(b"echo", cut.body)
        with self.assertRaises(http.client.IncompleteRead):
            self.fake.ask("cut-short", stream=True)
        with self.assertRaises(ValueError):
            _ = self.fake.ask("malformed", stream=True).events
        self.assertIn("error", self.fake.ask("error-in-stream", stream=True).events[-1])
        for stream in (False, True):
            with self.assertRaises(UnicodeDecodeError):
                self.fake.ask("bad-utf8", stream=stream).body.decode()
            self.assertIn(b"[" * 100_000, self.fake.ask("deep-100000", stream=stream).body)

    def test_broken_documents(self) -> None:
        for model in ("cut", "malformed", "html"):
            with self.assertRaises(ValueError):
                _ = self.fake.ask(model).json
        with self.assertRaises(http.client.IncompleteRead):
            self.fake.ask("cut-short")

    def test_connections_that_fail(self) -> None:
        self.assertEqual(self.raw("reset-before"), (b"", "reset"))
        self.assertEqual(self.raw("close-before"), (b"", "eof"))
        for stream in (False, True):
            data, end = self.raw("reset-mid", stream=stream)
            self.assertEqual((data[:12], end), (b"HTTP/1.1 200", "reset"))
            self.assertEqual(self.outcome(), "cut")
            data, end = self.raw("stall", patience=1.0, stream=stream)
            self.assertEqual((data[:12], end), (b"HTTP/1.1 200", "silence"))
        self.assertEqual(self.raw("silent", patience=1.0), (b"", "silence"))

    def test_delays(self) -> None:
        for model, stream, least in (("slow-200", False, 0.2), ("drip-30", True, 0.15)):
            start = time.monotonic()
            self.assertEqual(self.fake.ask(model, stream=stream).status, 200)
            self.assertGreaterEqual(time.monotonic() - start, least)

    def test_every_behaviour_answers_or_fails_by_itself(self) -> None:
        listed = subprocess.run(
            [sys.executable, str(PROGRAM), "--list"], capture_output=True, text=True, check=True
        )
        names = [line.split()[0] for line in listed.stdout.splitlines()]
        self.assertGreater(len(names), 60)
        arguments = {"CODE": "503", "KEY": "secret", "X-Y-C-R": "4-3-2-1", "-N": "-3"}
        models = set()
        with contextlib.ExitStack() as stack:
            for name in names:
                for word, argument in arguments.items():
                    name = name.replace(word, argument)
                models.add(name)
                for stream in (False, True):
                    sock = stack.enter_context(self.fake.connect())
                    sock.sendall(raw_request(name, stream=stream))
            ended = 2 * len(names) - 4  # silent and stall do not
            eventually(lambda: sum(self.fake.stats()["outcomes"].values()) == ended)
        self.assertEqual({entry["behaviour"] for entry in self.fake.journal()}, models)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 3}},
        },
    },
}
STRICT = {
    "type": "object",
    "properties": {"answer": {"type": "string"}, "ok": {"enum": ["yes", "no"]}},
    "required": ["answer", "ok"],
    "additionalProperties": False,
}


def json_schema(schema: Any, strict: bool = False) -> dict[str, Any]:
    inner = {"name": "answer", "schema": schema, "strict": strict}
    return {"type": "json_schema", "json_schema": inner}


class Tasks(FakeTestCase):
    """Models that call tools, write JSON, or make embeddings."""

    def embed(self, model: str, **body: Any) -> Reply:
        with self.fake.client() as connection:
            connection.request("POST", "/v1/embeddings", json.dumps({"model": model, **body}))
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())

    def vectors(self, model: str, *inputs: str, **body: Any) -> list[list[float]]:
        data = self.embed(model, input=inputs, **body).json["data"]
        return [item["embedding"] for item in sorted(data, key=lambda item: item["index"])]

    def test_tool_call(self) -> None:
        reply = self.fake.ask("tools", tools=[WEATHER], prompt="Rome, please")
        (choice,) = reply.json["choices"]
        self.assertEqual(choice["finish_reason"], "tool_calls")
        self.assertIsNone(choice["message"]["content"])
        (call,) = choice["message"]["tool_calls"]
        self.assertEqual(call["function"]["name"], "weather")
        self.assertEqual(
            json.loads(call["function"]["arguments"]), {"city": "Rome, please", "days": 3}
        )
        # An object in the prompt is taken as it is.
        reply = self.fake.ask("tools", tools=[WEATHER], prompt='call it with {"city": "Oslo"}!')
        (call,) = reply.json["choices"][0]["message"]["tool_calls"]
        self.assertEqual(call["function"]["arguments"], '{"city":"Oslo"}')

    def test_tool_result(self) -> None:
        calls = [
            {"id": id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}
            for id in ("a", "b")
        ]
        messages = [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "a", "content": "rain"},
            {"role": "tool", "tool_call_id": "b", "content": "sun"},
        ]
        reply = self.fake.ask("tools-2", tools=[WEATHER], messages=messages)
        self.assertEqual(reply.json["choices"][0]["message"]["content"], "result: rain; sun")
        # In the wrong order, or not all of them, they are refused.
        for wrong in (messages[:3], messages[:1] + messages[2:], [*messages, messages[3]]):
            self.assertEqual(self.fake.ask("tools", messages=wrong).status, 400)
        (entry, *_) = self.fake.control("GET", "journal?asked=1")
        asked = entry["asked"]
        self.assertEqual(asked["tools"][0]["name"], "weather")
        roles = [message["role"] for message in asked["messages"]]
        self.assertEqual(roles, ["user", "assistant", "tool", "tool"])
        self.assertEqual(
            asked["messages"][1]["tool_calls"][0], {"id": "a", "name": "weather", "arguments": {}}
        )
        self.assertEqual(asked["messages"][3], {"role": "tool", "text": "sun", "tool_call_id": "b"})

    def test_images(self) -> None:
        def content(url: str) -> list[Any]:
            return [
                {"type": "text", "text": "what is it?"},
                {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
            ]

        for url in ("https://example.com/a.png", "data:image/png;base64,iVBORw0="):
            self.assertEqual(self.fake.ask("m", prompt=content(url)).status, 200)
        for url in ("ftp://a.b", "data:image/png;base64,iVBOR", "data:text/plain;base64,aaaa"):
            self.assertEqual(self.fake.ask("m", prompt=content(url)).status, 400)

    def test_json(self) -> None:
        reply = self.fake.ask("json", response_format=json_schema(STRICT, strict=True))
        text = reply.json["choices"][0]["message"]["content"]
        self.assertEqual(json.loads(text), {"answer": "hello", "ok": "yes"})
        loose = {"type": "object", "properties": {"a": {"type": "string", "minLength": 9}}}
        self.assertEqual(self.fake.ask("json", response_format=json_schema(loose)).status, 200)
        strict = json_schema(loose, strict=True)
        self.assertEqual(self.fake.ask("json", response_format=strict).status, 400)

    def test_embeddings(self) -> None:
        cat, cats, tax = self.vectors("m", "a black cat", "a black cat sleeps", "income tax")
        self.assertEqual(len(cat), 16)
        self.assertAlmostEqual(sum(x * x for x in cat), 1, places=5)

        def close(a: list[float], b: list[float]) -> float:
            return sum(x * y for x, y in zip(a, b))

        self.assertGreater(close(cat, cats), close(cat, tax))
        self.assertEqual(self.vectors("m", "a black cat"), [cat])
        self.assertEqual(self.vectors("embed-shuffled", "a black cat", "income tax"), [cat, tax])
        self.assertEqual(len(self.vectors("m", "x", dimensions=3)[0]), 3)
        usage = self.embed("m", input="a black cat").json["usage"]
        self.assertEqual(usage, {"prompt_tokens": 3, "total_tokens": 3})
        self.assertEqual(self.fake.journal()[-1]["body"]["input"], "a black cat")

    def test_embeddings_that_are_wrong(self) -> None:
        self.assertEqual(len(self.vectors("embed-short", "x", "y")), 1)
        self.assertEqual([len(v) for v in self.vectors("embed-ragged", "x", "y")], [16, 15])
        self.assertIn(b"NaN", self.embed("embed-nan", input=["x"]).body)
        for wrong in ({}, {"input": []}, {"input": [""]}, {"input": [1]}, {"input": ["x"] * 2049}):
            self.assertEqual(self.embed("m", **wrong).status, 400)
        self.assertEqual(self.embed("status-500", input="x").status, 500)


class Azure(FakeTestCase):
    CLASSIC = "/openai/deployments/m/chat/completions"

    def post(self, path: str, **body: Any) -> Reply:
        with self.fake.client() as connection:
            connection.request("POST", path, document("m", **body), {"api-key": KEY})
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())

    def test_two_styles(self) -> None:
        for path in (self.CLASSIC + "?api-version=2024-10-21", "/azure/openai/v1/chat/completions"):
            reply = self.post(path)
            self.assertEqual(reply.json["choices"][0]["message"]["content"], "echo: hello")
            self.assertIn("prompt_filter_results", reply.json)
            reply = self.post(path, stream=True)
            self.assertEqual(reply.events[0]["choices"], [])
            self.assertEqual(reply.text, "echo: hello")
        self.assertEqual(self.post(self.CLASSIC).status, 404)
        self.assertEqual({entry["model"] for entry in self.fake.journal()}, {"m"})

    def test_errors(self) -> None:
        self.fake.script("m", "content-policy", "require-key-other", "status-429", "status-404")
        path = self.CLASSIC + "?api-version=2024-10-21"
        replies = [self.post(path) for _ in range(4)]
        self.assertEqual([reply.status for reply in replies], [400, 401, 429, 404])
        error = replies[0].json["error"]
        self.assertEqual(error["innererror"]["code"], "ResponsibleAIPolicyViolation")
        self.assertEqual(replies[2].headers["retry-after-ms"], "120")
        self.assertEqual(replies[3].json["error"]["code"], "DeploymentNotFound")


class Gemini(FakeTestCase):
    HELLO = {"role": "user", "parts": [{"text": "hello"}]}

    def post(self, model: str, method: str = "generateContent", **body: Any) -> Reply:
        if method != "batchEmbedContents":
            body.setdefault("contents", [self.HELLO])
        with self.fake.client() as connection:
            path = f"/v1beta/models/{urllib.parse.quote(model, safe='')}:{method}"
            connection.request("POST", path, json.dumps(body), {"x-goog-api-key": KEY})
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())

    def stream(self, model: str, **body: Any) -> list[Any]:
        reply = self.post(model, "streamGenerateContent?alt=sse", **body)
        self.assertEqual(reply.headers["content-type"], "text/event-stream")
        self.assertTrue(reply.body.endswith(b"\r\n\r\n"))
        return reply.events

    def calls(self, reply: Any) -> list[dict[str, Any]]:
        return [p for p in reply["candidates"][0]["content"]["parts"] if "functionCall" in p]

    def error(self, model: str, **body: Any) -> tuple[int, str]:
        reply = self.post(model, **body)
        return reply.status, reply.json.get("error", {}).get("status", "")

    def test_plain(self) -> None:
        system = {"parts": [{"text": "Be brief."}]}
        reply = self.post("m", systemInstruction=system).json
        (candidate,) = reply["candidates"]
        self.assertEqual(candidate["content"]["parts"], [{"text": "echo: hello"}])
        self.assertEqual(candidate["content"]["role"], "model")
        self.assertEqual(candidate["finishReason"], "STOP")
        usage = reply["usageMetadata"]
        self.assertEqual((usage["promptTokenCount"], usage["candidatesTokenCount"]), (4, 3))
        reply = self.post("m", generationConfig={"maxOutputTokens": 2}).json
        self.assertEqual(reply["candidates"][0]["finishReason"], "MAX_TOKENS")
        self.assertEqual(self.fake.journal()[-1]["model"], "m")

    def test_stream(self) -> None:
        *chunks, last = self.stream("usage-9-5-4-2")
        texts = [c["candidates"][0]["content"]["parts"][0] for c in chunks]
        self.assertEqual("".join(p["text"] for p in texts if not p.get("thought")), "echo: hello")
        self.assertTrue(texts[0]["thought"])
        self.assertFalse(any("finishReason" in c["candidates"][0] for c in chunks))
        self.assertNotIn("candidatesTokenCount", chunks[0]["usageMetadata"])
        self.assertEqual(last["candidates"][0]["finishReason"], "STOP")
        usage = {k: v for k, v in last["usageMetadata"].items() if k.endswith("Count")}
        self.assertEqual(
            usage,
            {
                "promptTokenCount": 9,
                "candidatesTokenCount": 3,
                "thoughtsTokenCount": 2,
                "cachedContentTokenCount": 4,
                "totalTokenCount": 14,
            },
        )
        # Without alt=sse it would be another format.
        self.assertEqual(self.post("m", "streamGenerateContent").status, 400)

    def test_tools(self) -> None:
        parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
        declaration = {"name": "weather", "parametersJsonSchema": parameters}
        tools = [{"functionDeclarations": [declaration]}]
        for model, signed in (("tools-2", False), ("gemini-3.5-flash", True)):
            self.fake.script("gemini-3.5-flash", "tools-2", "tools-2", "tools-2", "tools-2")
            first, second = calls = self.calls(self.post(model, tools=tools).json)
            self.assertEqual(first["functionCall"]["args"], {"city": "hello"})
            self.assertEqual("id" in first["functionCall"], signed)
            self.assertEqual("thoughtSignature" in first, signed)
            self.assertNotIn("thoughtSignature", second)

            results = [
                {"functionResponse": {**p["functionCall"], "response": {"output": text}}}
                for p, text in zip(calls, ("rain", "sun"), strict=True)
            ]
            for result in results:
                del result["functionResponse"]["args"]
            turns = [self.HELLO, {"role": "model", "parts": calls}]
            turns.append({"role": "user", "parts": results})
            reply = self.post(model, tools=tools, contents=turns).json
            text = reply["candidates"][0]["content"]["parts"][0]["text"]
            self.assertEqual(text, "result: rain; sun")
            turns[2] = {"role": "user", "parts": results[:1]}
            self.assertEqual(self.post(model, tools=tools, contents=turns).status, 400)
        del first["thoughtSignature"]
        turns[2] = {"role": "user", "parts": results}
        self.assertIn("thought_signature", self.post(model, contents=turns).body.decode())
        self.assertEqual(len(self.calls(self.stream("tools-2", tools=tools)[0])), 2)

    def test_requests_that_are_refused(self) -> None:
        image = {"inlineData": {"mimeType": "image/png", "data": "iVBORw0="}}
        self.assertEqual(self.post("m", contents=[{"role": "user", "parts": [image]}]).status, 200)
        image["inlineData"]["data"] = "iVBOR"
        loose = {"type": "object", "additionalProperties": False}
        mime = {"responseMimeType": "application/json"}
        json_mode = {**mime, "responseJsonSchema": loose}
        self.assertEqual(self.post("m", generationConfig=json_mode).status, 200)
        for wrong in (
            {"contents": []},
            {"contents": [{"role": "model", "parts": [{"text": "x"}]}]},
            {"contents": [self.HELLO, self.HELLO]},
            {"contents": [{"role": "user", "parts": []}]},
            {"contents": [{"role": "user", "parts": [{"text": "x"}, {"text": ""}]}]},
            {"contents": [{"role": "user", "parts": [image]}]},
            {"messages": []},
            {"generationConfig": {"max_tokens": 1}},
            {"generationConfig": {"maxOutputTokens": 0}},
            {"generationConfig": {"topK": "x"}},
            {"generationConfig": {"responseJsonSchema": loose}},
            {"generationConfig": {**mime, "responseSchema": loose}},
            {"generationConfig": {"stopSequences": list("abcdef")}},
            {"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}},
            {"tools": [{"functionDeclarations": [{"name": "f", "parameters": loose}]}]},
        ):
            self.assertEqual((wrong, self.error("m", **wrong)), (wrong, (400, "INVALID_ARGUMENT")))

    def test_errors(self) -> None:
        for model, expected in {
            "status-401": (400, "INVALID_ARGUMENT"),
            "status-404": (404, "NOT_FOUND"),
            "status-429": (429, "RESOURCE_EXHAUSTED"),
            "status-504": (504, "DEADLINE_EXCEEDED"),
            "context-length": (400, "INVALID_ARGUMENT"),
            "error-body-gemini-429-day": (429, "RESOURCE_EXHAUSTED"),
            "error-in-200": (200, "INTERNAL"),
        }.items():
            self.assertEqual((model, self.error(model)), (model, expected))
        reasons = {"content-policy-200": "SAFETY", "finish-OTHER": "OTHER"}
        for model, reason in {**reasons, "refusal": "PROHIBITED_CONTENT"}.items():
            reply = self.post(model).json
            self.assertEqual(reply["candidates"][0]["finishReason"], reason)
            self.assertEqual(self.stream(model)[-1]["candidates"][0]["finishReason"], reason)
        self.assertIn("promptFeedback", self.stream("prompt-blocked")[0])
        self.assertIn(KEY, self.post("leak-key").body.decode())
        with self.fake.client() as connection:
            connection.request("POST", "/v1beta/models/m:generateContent", "{}")
            self.assertEqual(connection.getresponse().status, 403)

    def test_embeddings(self) -> None:
        def requests(n: int, **more: Any) -> list[Any]:
            content = {"parts": [{"text": "a black cat"}]}
            return [{"model": "models/m", "content": content, **more}] * n

        reply = self.post("m", "batchEmbedContents", requests=requests(2, outputDimensionality=3))
        self.assertEqual([len(e["values"]) for e in reply.json["embeddings"]], [3, 3])
        for wrong in ([], requests(101), requests(1, model="models/other"), requests(1, x=1)):
            self.assertEqual(self.post("m", "batchEmbedContents", requests=wrong).status, 400)

    def test_models(self) -> None:
        with self.fake.client() as connection:
            connection.request("GET", "/v1beta/models?pageSize=1", headers={"x-goog-api-key": KEY})
            self.assertEqual(len(json.loads(connection.getresponse().read())["models"]), 1)


class Ollama(FakeTestCase):
    def post(self, model: str, path: str = "/api/chat", **body: Any) -> Reply:
        if path == "/api/chat":
            body.setdefault("messages", [{"role": "user", "content": "hello"}])
        with self.fake.client() as connection:
            connection.request("POST", path, json.dumps({"model": model, **body}))
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())

    def lines(self, model: str, **body: Any) -> list[Any]:
        reply = self.post(model, **body)
        self.assertEqual(reply.headers["content-type"], "application/x-ndjson")
        return [json.loads(line) for line in reply.body.splitlines()]

    def test_plain_and_streamed(self) -> None:
        reply = self.post("m", stream=False).json
        self.assertEqual(reply["message"], {"role": "assistant", "content": "echo: hello"})
        self.assertEqual((reply["done"], reply["done_reason"]), (True, "stop"))
        self.assertEqual((reply["prompt_eval_count"], reply["eval_count"]), (2, 3))
        *lines, last = self.lines("m", think=True)  # streamed unless told not to
        self.assertEqual("".join(line["message"]["content"] for line in lines), "echo: hello")
        self.assertEqual(lines[0]["message"]["thinking"], "Let ")
        self.assertEqual([line["done"] for line in lines], [False] * len(lines))
        self.assertEqual((last["done"], last["message"]["content"]), (True, ""))
        *_, last = self.lines("m", options={"num_predict": 2})
        self.assertEqual((last["done_reason"], last["eval_count"]), ("length", 2))
        *_, last = self.lines("usage-0-5-0-0+no-finish")
        self.assertFalse(last.keys() & {"prompt_eval_count", "done_reason"})

    def test_tools(self) -> None:
        reply = self.post("tools", tools=[WEATHER], stream=False).json
        (call,) = reply["message"]["tool_calls"]
        self.assertEqual(call["function"]["arguments"], {"city": "hello", "days": 3})
        self.assertEqual(reply["done_reason"], "stop")
        lines = self.lines("tools-2+no-tool-ids", tools=[WEATHER])
        calls = [line["message"]["tool_calls"][0] for line in lines[:-1]]
        self.assertEqual([set(call) for call in calls], [{"function"}] * 2)
        messages = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "rain", "tool_name": "weather"},
        ]
        reply = self.post("tools", messages=messages, stream=False).json
        self.assertEqual(reply["message"]["content"], "result: rain")

    def test_context(self) -> None:
        messages = [{"role": "user", "content": "x" * 40}, {"role": "user", "content": "last"}]
        body = {"messages": messages, "stream": False, "options": {"num_ctx": 5}}
        reply = self.post("m", **body).json
        self.assertEqual(reply["message"]["content"], "echo: last")
        self.assertEqual(reply["prompt_eval_count"], 1)
        self.assertEqual(self.post("m", truncate=False, **body).status, 400)

    def test_errors(self) -> None:
        for model, status in {
            "status-503": 503,
            "status-404": 404,
            "context-length": 400,
            "require-key-x": 401,
            "error-body-ollama-429-weekly": 429,
            "error-in-200": 200,
        }.items():
            reply = self.post(model)
            self.assertEqual((model, reply.status), (model, status))
            self.assertIsInstance(reply.json["error"], str)
        self.assertEqual(set(self.lines("error-in-stream")[-1]), {"error"})
        tool = {"name": "f", "arguments": "{}"}
        for wrong in (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
            {"messages": [{"role": "user", "content": "x", "images": ["iVBOR"]}]},
            {"messages": [{"role": "assistant", "tool_calls": [{"function": tool}]}]},
            {"messages": [{"role": "developer", "content": "x"}]},
            {"options": {"top_k": 0.5}},
            {"options": {"stop": "x"}},
            {"keep_alive": "5"},
            {"think": "hard"},
            {"format": "yaml"},
        ):
            self.assertEqual((wrong, self.post("m", **wrong).status), (wrong, 400))

    def test_embeddings(self) -> None:
        reply = self.post("m", "/api/embed", input=["x", "y"], dimensions=3).json
        self.assertEqual([len(v) for v in reply["embeddings"]], [3, 3])
        self.assertEqual(reply["prompt_eval_count"], 1)
        body = {"input": "x" * 40, "options": {"num_ctx": 5}, "truncate": False}
        self.assertEqual(self.post("m", "/api/embed", **body).status, 400)
        self.assertEqual(self.post("m", "/api/embed", input=[1]).status, 400)


class Scripts(FakeTestCase):
    def test_steps_in_turn(self) -> None:
        self.fake.script(
            "status-500",
            {"behaviour": "status-429", "headers": {"retry-after": "1"}},
            {"text": "scripted", "usage": {"prompt": 7}, "repeat": "2"},
        )
        reply = self.fake.ask("status-500")
        self.assertEqual((reply.status, reply.headers["retry-after"]), (429, "1"))
        for _ in range(2):
            reply = self.fake.ask("status-500")
            self.assertEqual(reply.json["choices"][0]["message"]["content"], "scripted")
            self.assertEqual(reply.json["usage"]["prompt_tokens"], 7)
        # The script is used up: the name speaks again.
        self.assertEqual(self.fake.ask("status-500").status, 500)
        behaviours = [entry["behaviour"] for entry in self.fake.journal()]
        self.assertEqual(behaviours, ["status-429", "default", "default", "status-500"])

    def test_which_script(self) -> None:
        self.fake.script("*", {"status": 503, "repeat": "forever"})
        self.fake.script("m", "status-429")
        self.fake.script("m", "default", append=True)
        self.fake.script("m", "status-400", path="/eu")
        with self.fake.client() as connection:
            connection.request("POST", "/eu/v1/chat/completions", document("m"))
            response = connection.getresponse()
            response.read()
            self.assertEqual(response.status, 400)
            statuses = [ask(connection, "m").status for _ in range(4)]
            self.assertEqual(statuses, [429, 200, 503, 503])
            connection.request("GET", "/v1/models")
            self.assertEqual(connection.getresponse().status, 503)

    def test_explicit_responses(self) -> None:
        self.fake.script(
            "m",
            {"status": 418, "headers": {"X-Test": "yes"}, "body": {"a": [1]}},
            {"body": "text", "headers": {"content-type": "text/plain"}, "then": "close"},
            {"body_base64": "AP8="},
            {"chunks": ["data: one\n\n", "data: two\n\n"], "chunk_delay_ms": 20},
            {"chunks": ["data: one\n\n"], "then": "reset"},
            {"chunks": ["data: one\n\n"], "then": "cut"},
        )
        reply = self.fake.ask("m")
        self.assertEqual((reply.status, reply.headers["x-test"]), (418, "yes"))
        self.assertEqual(reply.json, {"a": [1]})
        self.assertEqual(self.fake.ask("m").body, b"text")
        self.assertEqual(self.fake.ask("m").body, b"\x00\xff")
        self.assertEqual(self.fake.ask("m").body, b"data: one\n\ndata: two\n\n")
        self.assertEqual(self.raw("m")[1], "reset")
        with self.assertRaises(http.client.IncompleteRead):
            self.fake.ask("m")

    def test_mistakes_are_told(self) -> None:
        for step in (
            "staus-429",
            "slow-N",
            7,
            {"behavior": "cut"},
            {"repeat": 0},
            {"then": "explode"},
            {"status": 99},
            {"delay_ms": "soon"},
            {"usage": {"tokens": 1}},
            {"body_base64": "?"},
        ):
            with self.subTest(step=step), self.assertRaises(ValueError):
                self.fake.script("m", "default", step)
        self.assertEqual(self.fake.ask("m").status, 200)


class JournalAndConnections(FakeTestCase):
    def test_entry(self) -> None:
        self.fake.ask("m", temperature=0.5)
        (entry,) = self.fake.journal()
        self.assertEqual((entry["n"], entry["model"], entry["status"]), (1, "m", 200))
        self.assertEqual(entry["path"], "/v1/chat/completions")
        self.assertEqual(entry["headers"]["authorization"], f"Bearer {KEY}")
        self.assertEqual(entry["body"]["temperature"], 0.5)
        self.assertEqual(entry["outcome"], "delivered")
        self.assertLess(abs(entry["time"] - time.time()), PATIENCE)
        self.assertEqual(self.fake.control("GET", "journal?since=1"), [])

    def test_keep_alive(self) -> None:
        with self.fake.client() as connection:
            for model in ("m", "drip-1", "status-500", "m"):
                ask(connection, model, stream=True)
        self.assertEqual(len({entry["connection"] for entry in self.fake.journal()}), 1)
        self.fake.ask("m")
        self.assertEqual(len({entry["connection"] for entry in self.fake.journal()}), 2)

    def test_two_requests_in_one_packet(self) -> None:
        with self.fake.connect() as sock:
            sock.sendall(raw_request("slow-10") + raw_request("m"))
            eventually(lambda: self.fake.stats()["outcomes"].get("delivered") == 2)
        self.assertEqual([e["model"] for e in self.fake.journal()], ["slow-10", "m"])

    def test_client_that_leaves_is_noticed(self) -> None:
        for model in ("silent", "stall", "slow-5000", "drip-5000", "huge-50"):
            with self.subTest(model=model):
                sock = self.fake.connect()
                sock.sendall(raw_request(model, stream=True))
                eventually(lambda: self.fake.stats()["in_flight"])
                time.sleep(0.05)
                left = time.time()
                sock.close()
                self.assertEqual(self.outcome(), "client_closed")
                noticed = self.fake.journal()[-1]["ended"]
                self.assertLess(noticed - left, 2.0)
        self.assertEqual(self.fake.stats()["in_flight"], 0)

    def test_reset_forgets(self) -> None:
        self.fake.script("m", "status-500")
        self.fake.ask("other")
        self.fake.control("POST", "reset")
        self.assertEqual(self.fake.journal(), [])
        self.assertEqual(self.fake.stats()["requests"], 0)
        self.assertEqual(self.fake.ask("m").status, 200)


class Outages(FakeTestCase):
    def test_down_and_up(self) -> None:
        with self.fake.client() as idle, self.fake.connect() as busy:
            ask(idle, "m")
            busy.sendall(raw_request("slow-100"))
            eventually(lambda: self.fake.stats()["in_flight"])
            self.fake.control("POST", "down")
            self.assertRaises(ConnectionRefusedError, self.fake.connect)
            self.assertEqual(idle.sock.recv(1), b"")
            data, end = read_all(busy)
            self.assertEqual((data[:12], end), (b"HTTP/1.1 200", "eof"))
        self.fake.control("POST", "up")
        self.assertEqual(self.fake.ask("m").status, 200)

    def test_down_for_a_time(self) -> None:
        self.fake.control("POST", "down", {"for_ms": 100})
        self.assertRaises(ConnectionRefusedError, self.fake.connect)
        self.assertTrue(eventually(lambda: self.fake.stats()["listening"]))
        self.assertEqual(self.fake.ask("m").status, 200)

    def test_down_with_reset(self) -> None:
        with self.fake.connect() as sock:
            sock.sendall(raw_request("silent"))
            eventually(lambda: self.fake.stats()["in_flight"])
            self.fake.control("POST", "down", {"reset": True})
            self.assertEqual(read_all(sock), (b"", "reset"))
        self.assertEqual(self.outcome(), "cut")

    def test_control_on_the_main_port(self) -> None:
        self.assertEqual(self.fake.control("GET", "stats", port=self.fake.port)["requests"], 0)
        self.assertEqual(self.fake.journal(), [])


class Process(unittest.TestCase):
    def test_ends_with_its_parent(self) -> None:
        fake = Fake()
        with fake.connect() as sock:
            sock.sendall(raw_request("silent"))
            fake.stop()
        self.assertEqual(fake.process.returncode, 0)

    def test_ends_by_sigterm(self) -> None:
        fake = Fake("--no-stdin")
        assert fake.process.stdin
        fake.process.stdin.close()
        with self.assertRaises(subprocess.TimeoutExpired):
            fake.process.wait(0.2)
        fake.process.send_signal(signal.SIGTERM)
        fake.stop()
        self.assertEqual(fake.process.returncode, 0)

    def test_only_loopback(self) -> None:
        command = [sys.executable, str(PROGRAM), "--host", "0.0.0.0"]
        refused = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        self.assertEqual(refused.returncode, 2)

    def test_tls(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            certificate, key = f"{directory}/cert.pem", f"{directory}/key.pem"
            subject = ["-subj", "/CN=fake", "-addext", "subjectAltName=IP:127.0.0.1"]
            algorithm = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
            files = ["-keyout", key, "-out", certificate]
            subprocess.run(
                ["openssl", "req", "-x509", "-nodes", *algorithm, *subject, *files],
                check=True,
                capture_output=True,
            )
            fake = Fake("--tls-cert", certificate, "--tls-key", key)
            self.addCleanup(fake.stop)
            context = ssl.create_default_context(cafile=certificate)
        client = http.client.HTTPSConnection("127.0.0.1", fake.port, context=context)
        with contextlib.closing(client):
            for model in ("m", "drip-1", "one-byte", "half-close"):
                self.assertEqual(ask(client, model, stream=True).text, "echo: hello")
            with self.assertRaises((ConnectionError, ssl.SSLError, http.client.IncompleteRead)):
                ask(client, "reset-mid")
        sock = context.wrap_socket(fake.connect(), server_hostname="127.0.0.1")
        sock.sendall(raw_request("silent"))
        eventually(lambda: fake.stats()["in_flight"])
        sock.close()
        eventually(lambda: fake.journal()[-1]["outcome"])
        last = fake.journal()[-1]
        self.assertEqual((last["outcome"], last["tls"]), ("client_closed", True))


def load_tests(
    loader: unittest.TestLoader, tests: unittest.TestSuite, pattern: str | None
) -> unittest.TestSuite:
    """Those of dialects that have files of their own, too."""
    for path in sorted(PROGRAM.parent.glob("fake_*_test.py")):
        if path.name != Path(__file__).name:
            tests.addTests(loader.loadTestsFromName(path.stem))
    return tests


if __name__ == "__main__":
    unittest.main()
