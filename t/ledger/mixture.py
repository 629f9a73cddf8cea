"""What a load is made of: providers, models, and calls drawn at random.

All providers are the same fake, told apart by their path; a model's name is what the fake does.
The faults are at providers of their own, once without and once with retries.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from .wire import literal

PROVIDERS = ("steady", "again")  # "again" is asked again after a failure
ANSWERS = ("metered", "metered+slow-30", "metered+drip-3", "metered+slow-3", "metered+no-usage")
FAULTS = (
    *("metered+status-500", "metered+status-400", "metered+cut", "metered+cut-short"),
    *("metered+malformed", "metered+error-in-stream", "metered+reset-mid", "metered+close-before"),
    "metered+flaky-3",
)
ENDLESS = ("metered+silent", "metered+stall")  # somebody has to end such a call
ENDS = ("cancel", "backend", "statement", "terminate")
LONG = ("metered+slow-150", "metered+drip-25")
UNPRICED = "metered+slow-3"
# Names that callers use, and the models behind them in turn.
ALIASES = {
    "second": ("steady/metered+status-500", "again/metered"),
    "maybe": ("again/metered+flaky-3", "steady/metered+drip-3"),
}

_WORDS = "rose Zürich 東京 ping naïve 42 ledger \U0001f600 'quoted' back\\slash".split(" ")


def setup_sql(base: str) -> str:
    """Makes all that; `base` is what the providers' URLs begin with."""
    names = [*ANSWERS, *FAULTS, *ENDLESS, *LONG]
    sql = []
    for provider in PROVIDERS:
        sql.append(
            "INSERT INTO llm_providers (name, base_url, api_key, breaker_failures) VALUES"
            f" ('{provider}', '{base}/{provider}/v1', 'env:TEST_API_KEY', 1000000)"
        )
        for i, name in enumerate(names):
            # awkward on purpose: most costs end between two nano-dollars
            prices = f"{0.1 + i * 0.037:.3f}7, {1.5 + i * 0.1:.1f}00000001"
            cached = f"{0.01 + i * 0.013:.3f}3" if i % 2 else "NULL"
            if name == UNPRICED:
                prices, cached = "NULL, NULL", "NULL"
            sql.append(
                "INSERT INTO llm_models"
                " (provider, name, input_price, output_price, cached_input_price)"
                f" VALUES ('{provider}', '{name}', {prices}, {cached})"
            )
    sql.append(
        "INSERT INTO llm_error_policies (error_class, provider, max_retries, backoff_ms, fallback)"
        " SELECT c, p, (p = 'again')::int, 5, true FROM unnest('{timeout,network,server_error,"
        "overloaded,malformed}'::text[]) c, unnest('{" + ",".join(PROVIDERS) + "}'::text[]) p"
    )
    for alias, models in ALIASES.items():
        for rank, model in enumerate(models):
            sql.append(
                "INSERT INTO llm_routing_rules (alias, model, rank)"
                f" VALUES ('{alias}', '{model}', {rank})"
            )
    return ";\n".join(sql)


@dataclass
class Call:
    """One statement to be made, and what is to happen to it."""

    tokens: list[str]  # one; a batch has several
    prompts: list[str]
    model: str
    form: str  # scalar, detail, batch, chat, stream, or glance: the first row of a stream only
    block: str  # none, rollback, commit or savepoint: the transaction around it
    fate: str  # none, or who ends it: cancel, backend, statement, deadline, terminate
    after: float = 0.0  # seconds until then
    system: str | None = None
    max_tokens: int | None = None
    repeated: list[int] = field(default_factory=list)  # of a batch: prompts that come twice
    priority: str | None = None
    timeout: int | None = None  # ms
    concurrency: int | None = None  # of a batch
    history: list[str] = field(default_factory=list)  # of a chat: what was said before, in turn
    tools: str | None = None  # of a chat: JSON, as the server prints it

    def booked(self, prompt: str) -> str:
        """As the ledger has it: of a chat, the messages."""
        if self.form != "chat":
            return prompt
        said = [*self.history, prompt]
        messages = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(said)]
        return json.dumps(messages, ensure_ascii=False)

    def characters(self, prompt: str) -> int | None:
        """That count as input, if they are not those of the prompt and system_prompt."""
        if self.form != "chat":
            return None
        said = [*self.history, prompt, self.system or "", self.tools or ""]
        return sum(map(len, said))

    def sql(self) -> str:
        arguments = [f"model => {literal(self.model or None)}"]
        if self.priority is not None:
            arguments.append(f"priority => {literal(self.priority)}")
        if self.system is not None:
            arguments.append(f"system_prompt => {literal(self.system)}")
        if self.max_tokens is not None:
            arguments.append(f"max_tokens => {self.max_tokens}")
        timeout = int(self.after * 1000) if self.fate == "deadline" else self.timeout
        if timeout is not None:
            arguments.append(f"timeout_ms => {timeout}")
        if self.concurrency is not None:
            arguments.append(f"max_concurrency => {self.concurrency}")
        if self.tools is not None:
            arguments.append(f"tools => {literal(self.tools)}")
        more = ", ".join(arguments)
        if self.form == "batch":
            prompts = [*self.prompts, *(self.prompts[i] for i in self.repeated)]
            array = f"ARRAY[{', '.join(map(literal, prompts))}]"
            return (
                "SELECT response, request_id, cost_usd, attempts, error_class, cached"
                f" FROM llm_complete_batch({array}, {more}) ORDER BY idx"
            )
        prompt = literal(self.booked(self.prompts[0]))
        more = f"{prompt}, {more}, tags => '{{\"token\": \"{self.tokens[0]}\"}}'"
        match self.form:
            case "detail" | "chat":
                function = "llm_chat" if self.form == "chat" else "llm_complete_detail"
                return (
                    "SELECT response, request_id, cost_usd, attempts, error_class, cached"
                    f" FROM {function}({more})"
                )
            case "stream" | "glance":
                limit = " LIMIT 1" if self.form == "glance" else ""
                return f"SELECT llm_stream({more}){limit}"
        return f"SELECT llm_complete({more})"


class Mixture:
    """Draws calls.  `crash`: many that take their time, so that an end of the server meets them."""

    def __init__(self, seed: int, crash: bool) -> None:
        self._random = random.Random(seed)
        self._crash = crash
        self._run = f"{self._random.getrandbits(32):08x}"
        self._count = 0

    def draw(self) -> Call:
        draw = self._random
        block = draw.choices(("none", "rollback", "commit", "savepoint"), (50, 34, 8, 8))[0]
        kind = draw.choices(
            ("answer", "fault", "endless", "race", "deadline", "alias", "batch", "long"),
            (45, 20, 3, 12, 1, 5, 4, 40) if self._crash else (63, 14, 8, 3, 2, 4, 6, 0),
        )[0]
        form = draw.choice(("scalar", "detail"))
        provider = draw.choice(PROVIDERS)
        fate, after, repeated = "none", 0.0, []
        system = draw.choice((None, None, None, "Be brief.", "Réponds en français."))
        prompts = [self._prompt()]
        match kind:
            case "answer":
                model = f"{provider}/{draw.choice(ANSWERS)}"
            case "long":
                model = f"{provider}/{draw.choice(LONG)}"
            case "fault":
                model = f"{provider}/{draw.choice(FAULTS)}"
            case "endless":
                model = f"{provider}/{draw.choice(ENDLESS)}"
                fate = draw.choices(ENDS, (4, 4, 3, 1))[0]
                after = draw.uniform(0.02, 0.2)
            case "race":
                model = f"{provider}/{draw.choice(('metered+slow-30', 'metered+drip-3'))}"
                fate = draw.choices(ENDS, (4, 4, 3, 1))[0]
                after = draw.uniform(0.005, 0.08)
            case "deadline":
                model = f"{provider}/{draw.choice(ENDLESS)}"
                fate, after = "deadline", draw.uniform(0.05, 0.2)
            case "alias":
                model = draw.choice(tuple(ALIASES))
            case "batch":
                form = "batch"
                model = f"{provider}/{draw.choice((*ANSWERS, 'metered+flaky-3'))}"
                prompts += [self._prompt() for _ in range(draw.randrange(1, 8))]
                repeated = [draw.randrange(len(prompts))]
        return Call(
            tokens=[prompt.split(" ", 1)[0] for prompt in prompts],
            prompts=prompts,
            model=model,
            form=form,
            block=block,
            fate=fate,
            after=after,
            system=system,
            max_tokens=draw.randrange(2, 600) if draw.random() < 0.2 else None,
            repeated=repeated,
        )

    def _prompt(self) -> str:
        self._count += 1
        return words(self._random, f"token-{self._run}-{self._count:06d}")


def words(draw: random.Random, token: str) -> str:
    """A prompt."""
    return " ".join([token, *draw.choices(_WORDS, k=draw.randrange(40))])
