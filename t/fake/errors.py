"""Error bodies as real providers and servers send them, each under the name of its sender.

They do not depend on the dialect of the request: a gateway meets all of them behind URLs that
claim to be OpenAI's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .model import Ask, Plan, dump


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """`body` is JSON to be sent, or a function of the request that makes it; str: sent as text."""

    status: int
    help: str
    body: Any
    headers: dict[str, str] = field(default_factory=dict)

    def plan(self, ask: Ask) -> Plan:
        body = self.body(ask) if callable(self.body) else self.body
        if isinstance(body, str):
            kind, raw = "text/plain", body.encode()
        else:
            kind, raw = "application/json", dump(body)
        return Plan(self.status, {"content-type": kind, **self.headers}, [raw])


def openai_error(
    message: str, type: str, code: str | int | None = None, param: str | None = None
) -> dict[str, Any]:
    """The shape that OpenAI gave the world."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def invalid_key(ask: Ask) -> dict[str, Any]:
    """OpenAI's 401, which shows a part of the key (or whatever the behaviour wants shown)."""
    if ask.key is None:
        message = "You didn't provide an API key. You need to provide your API key in an"
        return openai_error(f"{message} Authorization header.", "invalid_request_error")
    shown = ask.shown_key or mask(ask.key)
    return openai_error(
        f"Incorrect API key provided: {shown}. You can find your API key at"
        " https://platform.openai.com/account/api-keys.",
        "invalid_request_error",
        "invalid_api_key",
    )


def mask(key: str) -> str:
    return f"{key[:5]}***{key[-2:]}" if len(key) >= 10 else "***"


def no_such_model(ask: Ask) -> dict[str, Any]:
    return openai_error(
        f"The model `{ask.model}` does not exist or you do not have access to it.",
        "invalid_request_error",
        "model_not_found",
    )


def _of_model(text: str, *rest: Any) -> Callable[[Ask], dict[str, Any]]:
    """An OpenAI error whose message names the model."""
    return lambda ask: openai_error(text.format(model=ask.model), *rest)


_SAFE = {"filtered": False, "severity": "safe"}

ERRORS: dict[str, ErrorBody] = {
    "openai-401": ErrorBody(401, "OpenAI: wrong key, shown in part", invalid_key),
    "openai-404-model": ErrorBody(404, "OpenAI: no such model", no_such_model),
    "openai-429-rate": ErrorBody(
        429,
        "OpenAI: rate limit, 'try again in 120ms'",
        _of_model(
            "Rate limit reached for {model} in organization org-fake on requests per min (RPM):"
            " Limit 500, Used 500, Requested 1. Please try again in 120ms.",
            "requests",
            "rate_limit_exceeded",
        ),
        {
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "120ms",
        },
    ),
    "openai-429-quota": ErrorBody(
        429,
        "OpenAI: 429 that is no rate limit: no money left",
        openai_error(
            "You exceeded your current quota, please check your plan and billing details.",
            "insufficient_quota",
            "insufficient_quota",
        ),
    ),
    "openai-429-credit": ErrorBody(
        429,
        "OpenAI: the same since 2026: the code says credit_balance_exhausted",
        openai_error(
            "Your credit balance is exhausted. Add credits to continue.",
            "insufficient_quota",
            "credit_balance_exhausted",
        ),
    ),
    "openai-503-slow-down": ErrorBody(
        503,
        "OpenAI: sudden load, code slow_down",
        openai_error(
            "The request rate rose too fast. Please slow down.", "server_error", "slow_down"
        ),
    ),
    "llamacpp-context": ErrorBody(
        400,
        "llama.cpp: prompt too long; the code is an integer",
        {
            "error": {
                "code": 400,
                "message": "request (13392 tokens) exceeds the available context size"
                " (8192 tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 13392,
                "n_ctx": 8192,
            }
        },
    ),
    "llamacpp-batch": ErrorBody(
        500,
        "llama.cpp: a text to embed is longer than its physical batch",
        {
            "error": {
                "code": 500,
                "message": "input (901 tokens) is too large to process. increase the physical batch"
                " size (current batch size: 512)",
                "type": "server_error",
            }
        },
    ),
    "llamacpp-no-embeddings": ErrorBody(
        501,
        "llama.cpp: started without --embeddings",
        {
            "error": {
                "code": 501,
                "message": "This server does not support embeddings. Start it with `--embeddings`",
                "type": "not_supported_error",
            }
        },
    ),
    "llamacpp-image": ErrorBody(
        500,
        "llama.cpp: an image for a model that sees none",
        {
            "error": {
                "code": 500,
                "message": "image input is not supported - hint: if this is unexpected, you may need"
                " to provide the mmproj",
                "type": "server_error",
            }
        },
    ),
    "llamacpp-schema": ErrorBody(
        400,
        "llama.cpp: a JSON schema that it cannot make a grammar of",
        {
            "error": {
                "code": 400,
                "message": "Unable to generate parser for this template. Automatic parser generation"
                " failed: JSON schema error at #: unrecognized type frobnicate",
                "type": "invalid_request_error",
            }
        },
    ),
    "llamacpp-loading": ErrorBody(
        503,
        "llama.cpp: the model is being loaded",
        {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}},
    ),
    "vllm-404": ErrorBody(
        404,
        "vLLM: no such model; the code is an integer",
        _of_model("The model `{model}` does not exist.", "NotFoundError", 404),
    ),
    "vllm-toplevel": ErrorBody(
        400,
        "vLLM: prompt too long; no error object, the message is at the top",
        {
            "object": "error",
            "message": "This model's maximum context length is 4096 tokens. However, you"
            " requested 5000 tokens. Please reduce the length of the messages.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
    ),
    "moonshot-429-quota": ErrorBody(
        429,
        "Moonshot: no money left",
        openai_error(
            "Your account org-fake is suspended, please check your plan and billing details.",
            "exceeded_current_quota_error",
        ),
    ),
    "scaleway-quota": ErrorBody(
        429,
        "Scaleway: INSUFFICIENT QUOTA, which there is a rate limit",
        {
            "status": 429,
            "error": "INSUFFICIENT QUOTA",
            "message": "You exceeded your current limit of concurrent requests.",
        },
    ),
    "fastapi-detail": ErrorBody(400, "FastAPI: detail is a string", {"detail": "Bad Request"}),
    "fastapi-validation": ErrorBody(
        422,
        "FastAPI: detail is a list",
        {
            "detail": [
                {"loc": ["body", "messages"], "msg": "Field required", "type": "missing"},
            ]
        },
    ),
    "string-error": ErrorBody(
        404,
        "error is a string, as Ollama sends it",
        lambda ask: {"error": f"model '{ask.model}' not found"},
    ),
    "groq-413": ErrorBody(
        413,
        "Groq: larger than a minute's tokens; type and code are those of a rate limit",
        _of_model(
            "Request too large for model `{model}` in organization `org_fake` service tier"
            " `on_demand` on tokens per minute (TPM): Limit 6000, Requested 7423, please reduce"
            " your message size and try again.",
            "tokens",
            "rate_limit_exceeded",
        ),
    ),
    "groq-429": ErrorBody(
        429,
        "Groq: rate limit, 'try again in 1.289s', Retry-After 2",
        _of_model(
            "Rate limit reached for model `{model}` in organization `org_fake` on tokens per"
            " minute (TPM): Limit 6000, Used 5900, Requested 229. Please try again in 1.289s.",
            "tokens",
            "rate_limit_exceeded",
        ),
        {"retry-after": "2"},
    ),
    "groq-498": ErrorBody(
        498,
        "Groq: flex tier at capacity, a status of its own",
        openai_error("Flex tier capacity exceeded.", "server_error", "capacity_exceeded"),
    ),
    "azure-content": ErrorBody(
        400,
        "Azure OpenAI: the prompt was filtered; innererror says why",
        {
            "error": {
                "message": "The response was filtered due to the prompt triggering Azure"
                " OpenAI's content management policy. Please modify your prompt and retry.",
                "type": None,
                "param": "prompt",
                "code": "content_filter",
                "status": 400,
                "innererror": {
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": {
                        "hate": _SAFE,
                        "jailbreak": {"detected": True, "filtered": True},
                        "self_harm": _SAFE,
                        "sexual": _SAFE,
                        "violence": _SAFE,
                    },
                },
            }
        },
        {"x-ms-region": "Sweden Central", "apim-request-id": "fake"},
    ),
    "plain-text": ErrorBody(
        503,
        "a load balancer: text, not JSON",
        "upstream connect error or disconnect/reset before headers. reset reason: overflow",
    ),
}
