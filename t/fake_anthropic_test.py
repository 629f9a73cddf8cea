#!/usr/bin/python3
"""Tests of the fake provider's Anthropic:  python3 t/fake_anthropic_test.py"""

from __future__ import annotations

import json
import sys
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fake_provider_test import KEY, FakeTestCase, Reply  # noqa: E402

ROME = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "tells the weather", "input_schema": ROME}
HEADERS = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}


class Anthropic(FakeTestCase):
    def send(self, body: Any, headers: dict[str, str] = HEADERS) -> Reply:
        with self.fake.client() as connection:
            connection.request("POST", "/v1/messages", json.dumps(body), headers)
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())

    def say(self, model: str, prompt: str = "hello", **body: Any) -> Reply:
        messages = [{"role": "user", "content": prompt}]
        return self.send({"model": model, "max_tokens": 1000, "messages": messages} | body)

    def message(self, model: str, prompt: str = "hello", **body: Any) -> dict[str, Any]:
        """The answer; a stream is put together as Anthropic's SDKs do it."""
        reply = self.say(model, prompt, **body)
        self.assertEqual(reply.status, 200, reply.body)
        return joined(reply.events) if body.get("stream") else reply.json

    def refused(self, status: int, pattern: str, reply: Reply) -> None:
        self.assertEqual((reply.status, reply.json["type"]), (status, "error"))
        self.assertRegex(reply.json["error"]["message"], pattern)

    # Answers --------------------------------------------------------------------------------

    def test_plain_and_streamed(self) -> None:
        for stream in (False, True):
            message = self.message("m", "hello wörld", system="Be brief.", stream=stream)
            self.assertEqual(message["content"], [{"type": "text", "text": "echo: hello wörld"}])
            self.assertEqual((message["stop_reason"], message["role"]), ("end_turn", "assistant"))
            usage = message["usage"]
            self.assertEqual((usage["input_tokens"], usage["output_tokens"]), (5, 5))

    def test_events(self) -> None:
        reply = self.say("m", stream=True)
        self.assertEqual(reply.headers["content-type"], "text/event-stream; charset=utf-8")
        self.assertIn("anthropic-ratelimit-tokens-reset", reply.headers)
        types = [event["type"] for event in reply.events]
        self.assertEqual(
            types,
            ["message_start", "content_block_start", "ping", *["content_block_delta"] * 3]
            + ["content_block_stop", "message_delta", "message_stop"],
        )
        names = [line[7:].decode() for line in reply.body.splitlines() if line[:6] == b"event:"]
        self.assertEqual(names, types)

    def test_usage(self) -> None:
        for stream in (False, True):
            usage = self.message("usage-100-50-30-20+cache-write-10", stream=stream)["usage"]
            self.assertEqual(usage["input_tokens"], 60)
            self.assertEqual(usage["cache_read_input_tokens"], 30)
            self.assertEqual(usage["cache_creation_input_tokens"], 10)
            self.assertEqual(usage["output_tokens"], 50)
            self.assertEqual(usage["output_tokens_details"]["thinking_tokens"], 20)
            self.assertNotIn("usage", self.message("no-usage", stream=stream))

    def test_why_it_stops(self) -> None:
        expected = {
            "length": "max_tokens",
            "refusal": "refusal",
            "content-policy-200": "refusal",
            "finish-pause-turn": "pause_turn",
            "finish-window": "model_context_window_exceeded",
            "tools": "tool_use",
        }
        for model, reason in expected.items():
            for stream in (False, True):
                self.assertEqual(self.message(model, stream=stream)["stop_reason"], reason)
        message = self.message("refusal")
        self.assertEqual(message["content"], [])
        self.assertIn("sorry", message["stop_details"]["explanation"])
        message = self.message("m", max_tokens=2)
        self.assertEqual(message["content"][0]["text"], "echo: he")
        message = self.message("m", "say STOP now", stop_sequences=["STOP"])
        self.assertEqual(message["content"][0]["text"], "echo: say ")
        self.assertEqual(message["stop_reason"], "stop_sequence")
        self.assertEqual(message["stop_sequence"], "STOP")

    def test_tools(self) -> None:
        for stream in (False, True):
            message = self.message("tools-and-text", "Rome", tools=[TOOL], stream=stream)
            text, call = message["content"]
            self.assertEqual(text["text"], "echo: Rome")
            self.assertEqual((call["type"], call["name"]), ("tool_use", "weather"))
            self.assertEqual(call["input"], {"city": "Rome"})
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "sun"}
        messages = [
            {"role": "user", "content": "Rome"},
            {"role": "assistant", "content": message["content"]},
            {"role": "user", "content": [result, {"type": "text", "text": "well?"}]},
        ]
        self.assertEqual(self.say("tools", messages=messages).status, 200)
        messages[2]["content"] = [result]
        message = self.message("tools", messages=messages, tools=[TOOL])
        self.assertEqual(message["content"][0]["text"], "result: sun")

    def test_forced_tool(self) -> None:
        choices = ({"type": "tool", "name": "weather"}, {"type": "any"})
        for stream in (False, True):
            for choice in choices:
                body = {"tools": [TOOL], "tool_choice": choice, "stream": stream}
                (call,) = self.message("m", "Rome", **body)["content"]
                self.assertEqual(call["input"], {"city": "Rome"})
                (call,) = self.message("m", 'as {"city": "Oslo"}', **body)["content"]
                self.assertEqual(call["input"], {"city": "Oslo"})
        for more in ({"model": "claude-opus-5-5"}, {"thinking": {"type": "adaptive"}}):
            body = {"tools": [TOOL], "tool_choice": choices[0]} | more
            self.refused(400, "not supported|may not be", self.say(body.pop("model", "m"), **body))

    def test_thoughts_and_searches(self) -> None:
        body: dict[str, Any] = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
        body["tools"] = [{"type": "web_search_20250305", "name": "web_search"}]
        for stream in (False, True):
            content = self.message("m", stream=stream, **body)["content"]
            self.assertEqual(
                [block["type"] for block in content],
                ["thinking", "server_tool_use", "web_search_tool_result", "text"],
            )
            self.assertTrue(content[0]["signature"])
            self.assertEqual(content[1]["input"], {"query": "example"})

    def test_models(self) -> None:
        with self.fake.client() as connection:
            for path, member in (("/anthropic/v1/models", "has_more"), ("/v1/models", "object")):
                connection.request("GET", path, headers=HEADERS)
                self.assertIn(member, json.loads(connection.getresponse().read()))

    # Errors ---------------------------------------------------------------------------------

    def test_keys(self) -> None:
        without = {k: v for k, v in HEADERS.items() if k != "x-api-key"}
        body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
        self.refused(401, "header is required", self.send(body, without))
        bearer = without | {"authorization": f"Bearer {KEY}"}
        self.assertEqual(self.send(body, bearer).json["error"]["type"], "authentication_error")
        self.refused(401, "invalid x-api-key$", self.say("require-key-other"))
        self.assertEqual(self.say("require-key-" + KEY).status, 200)
        self.refused(401, KEY, self.say("leak-key"))
        self.refused(400, "anthropic-version", self.send(body, {"x-api-key": KEY}))

    def test_errors(self) -> None:
        expected = {
            "status-402": (402, "billing_error"),
            "status-404": (404, "not_found_error"),
            "status-429": (429, "rate_limit_error"),
            "status-500": (500, "api_error"),
            "status-529": (529, "overloaded_error"),
            "context-length": (400, "invalid_request_error"),
            "content-policy": (400, "invalid_request_error"),
            "error-in-200": (200, "api_error"),
            "error-body-anthropic-400-credit": (400, "invalid_request_error"),
        }
        for model, want in expected.items():
            for stream in (False, True):
                reply = self.say(model, stream=stream)
                self.assertEqual((model, reply.status, reply.json["error"]["type"]), (model, *want))
        self.assertIn("retry-after", self.say("status-429").headers)
        self.assertIn(b"cloudflare", self.say("error-body-anthropic-413").body)
        in_stream = {"error-in-stream": "api_error", "overloaded-in-stream": "overloaded_error"}
        for model, type in in_stream.items():
            reply = self.say(model, stream=True)
            self.assertEqual(reply.events[-1]["error"]["type"], type)
            self.assertIn(b"event: error\n", reply.body)
            self.assertEqual(self.say(model).json["error"]["type"], type)

    def test_broken_streams(self) -> None:
        self.assertNotIn(b"message_stop", self.say("no-done", stream=True).body)
        self.assertNotIn(b"stop_reason\":\"", self.say("cut", stream=True).body)
        with self.assertRaises(ValueError):
            _ = self.say("malformed", stream=True).events

    def test_refused_requests(self) -> None:
        def user(content: Any) -> dict[str, Any]:
            return {"role": "user", "content": content}

        use = {"type": "tool_use", "id": "a", "name": "weather", "input": {}}
        called = [user("x"), {"role": "assistant", "content": [use]}]
        result = {"type": "tool_result", "tool_use_id": "a"}
        image = {"type": "image", "source": {"type": "url", "url": "http://example.com/x.png"}}
        bad_data = {"type": "base64", "media_type": "image/png", "data": "%"}
        cases: list[tuple[str, dict[str, Any]]] = [
            ("max_tokens: Field required", {"max_tokens": None}),
            ("max_tokens: Input should", {"max_tokens": 0}),
            ("seed: Extra inputs", {"seed": 1}),
            ("range: 0..1", {"temperature": 1.5}),
            ("non-whitespace", {"stop_sequences": [" "]}),
            ("at least one message", {"messages": []}),
            ('Unexpected role "system"', {"messages": [{"role": "system", "content": "x"}]}),
            ("roles must alternate", {"messages": [user("x"), user("y")]}),
            ("first message", {"messages": [{"role": "assistant", "content": "x"}, user("x")]}),
            ("must end with", {"messages": [user("x"), {"role": "assistant", "content": "y"}]}),
            ("must be non-empty", {"messages": [user([{"type": "text", "text": ""}])]}),
            ("non-empty content", {"messages": [user([])]}),
            ("without `tool_result`", {"messages": [*called, user("y")]}),
            ("unexpected `tool_use_id`", {"messages": [user([result])]}),
            ("come first", {"messages": [*called, user([{"type": "text", "text": "y"}, result])]}),
            ("Only HTTPS", {"messages": [user([image])]}),
            ("base64", {"messages": [user([image | {"source": bad_data}])]}),
            ("while providing tools", {"tool_choice": {"type": "auto"}}),
            ("not found in", {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}),
            ("input_schema.type", {"tools": [TOOL | {"input_schema": {}}]}),
            ("does not support oneOf", {"tools": [TOOL | {"input_schema": ROME | {"anyOf": []}}]}),
            ("must be unique", {"tools": [TOOL, TOOL]}),
            ("name: String", {"tools": [TOOL | {"name": "a b"}]}),
        ]
        for pattern, body in cases:
            with self.subTest(pattern):
                self.refused(400, pattern, self.say("m", **body))
        for junk in (b"", b"[]", b"\xff", b"[" * 100_000):
            with self.fake.client() as connection:
                connection.request("POST", "/v1/messages", junk, HEADERS)
                self.assertEqual(connection.getresponse().status, 400)

    def test_images(self) -> None:
        sources = [
            {"type": "url", "url": "https://example.com/x.png"},
            {"type": "base64", "media_type": "image/png", "data": "AAAA"},
        ]
        content = [{"type": "image", "source": source} for source in sources]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": "what?"}]}]
        message = self.message("m", messages=messages)
        self.assertEqual(message["content"][0]["text"], "echo: what?")


def joined(events: list[Any]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for event in events:
        match event:
            case {"type": "message_start", "message": start}:
                message = start
            case {"type": "content_block_start", "index": index, "content_block": block}:
                assert index == len(message["content"])
                message["content"].append(block | ({"input": ""} if "input" in block else {}))
            case {"type": "content_block_delta", "index": index, "delta": delta}:
                block = message["content"][index]
                kind = delta.pop("type")
                ((key, value),) = delta.items()
                block["input" if kind == "input_json_delta" else key] += value
            case {"type": "content_block_stop", "index": index}:
                block = message["content"][index]
                if "input" in block:
                    block["input"] = json.loads(block["input"])
            case {"type": "message_delta", "delta": delta}:
                message |= delta
                message.setdefault("usage", {}).update(event.get("usage", {}))
                if not message["usage"]:
                    del message["usage"]
            case {"type": "message_stop"}:
                return message
    raise AssertionError("no message_stop")


if __name__ == "__main__":
    unittest.main()
