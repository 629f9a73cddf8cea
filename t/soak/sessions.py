"""Sessions that call in every way, and what they were told."""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass

from ledger.load import Load, Options
from ledger.mixture import Call, words
from ledger.wire import Lost, Result, Session

from .providers import ALIASES, MODELS

DEFAULT_TIMEOUT = 6000  # ms; of calls that name none
# A call has ended so many seconds after its time-out, on a machine that is busy with other things.
SLACK = 10.0

# As the server prints it, since it counts as input.
TOOLS = (
    '[{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object",'
    ' "properties": {"id": {"type": "integer"}}}, "description": "Looks up a ticket."}}]'
)
_MODELS = (
    *(*MODELS, "large", *ALIASES),
    *(f"{provider}/{model}" for model, providers in MODELS.items() for provider in providers),
)
_PRIORITIES = (None, None, None, "critical", "high", "normal", "low")
_CLASSES = {
    *("rate_limit", "auth", "timeout", "network", "server_error", "overloaded", "malformed"),
    *("quota", "unavailable", "all_failed"),
}
# SQLSTATEs of class LG that the weather can lead to; LG005 where the only provider is disabled.
_HONEST = {"LG002", "LG003", "LG004", "LG009", "LG010", "LG012"}


class Mixture:
    """What one session calls.  Its prompts tell its number."""

    def __init__(self, seed: str, number: int) -> None:
        self._random = random.Random(f"{seed}/{number}")
        self._run = f"{self._random.getrandbits(24):06x}{number:02x}"
        self._count = 0
        # those of even number live on, so that one can see whether they grow
        self._mortal = number % 2 == 1

    def draw(self) -> Call:
        rng = self._random
        form = rng.choices(
            ("scalar", "detail", "batch", "stream", "glance", "chat"), (30, 22, 10, 17, 3, 18)
        )[0]
        fate = rng.choices(
            ("none", "cancel", "backend", "statement", "deadline", "terminate"),
            (84, 5, 2, 4, 4, 1 if self._mortal else 0),
        )[0]
        prompts = [self._prompt() for _ in range(rng.randrange(2, 9) if form == "batch" else 1)]
        return Call(
            tokens=[prompt.split(" ", 1)[0] for prompt in prompts],
            prompts=prompts,
            model=rng.choice(_MODELS),
            form=form,
            block=rng.choices(("none", "rollback", "commit", "savepoint"), (70, 14, 8, 8))[0],
            fate=fate,
            after=rng.uniform(0.002, 0.3) if fate != "none" else 0.0,
            system=rng.choice((None, None, None, "Be brief.", "Réponds en français.")),
            max_tokens=rng.randrange(2, 600) if rng.random() < 0.15 else None,
            repeated=[rng.randrange(len(prompts))] if form == "batch" else [],
            priority=rng.choice(_PRIORITIES),
            timeout=rng.randrange(300, 4000) if rng.random() < 0.2 else None,
            concurrency=rng.choice((None, 2, 4)) if form == "batch" else None,
            history=["Hello.", "Good morning."] if form == "chat" and rng.random() < 0.5 else [],
            tools=TOOLS if form == "chat" and rng.random() < 0.4 else None,
        )

    def _prompt(self) -> str:
        self._count += 1
        return words(self._random, f"token-{self._run}-{self._count:06d}")


@dataclass
class Size:
    """Of a backend that lives on."""

    descriptors: int
    bytes: int


class SoakLoad(Load):
    """Adds time limits, time to think, and a look at how large backends are."""

    pause_between_sums = 15.0

    def __init__(self, options: Options, seed: str) -> None:
        super().__init__(options)
        self._mixtures = [Mixture(seed, n) for n in range(options.sessions)]
        self._half = time.monotonic() + options.seconds / 2
        self.sizes: dict[int, list[Size]] = {}  # by session: half-way, at the end
        self.worst = 0.0  # seconds after its time-out that a call took

    def draw(self, number: int) -> Call:
        return self._mixtures[number].draw()

    async def before(self, session: Session, number: int) -> None:
        if number not in self.sizes and number % 2 == 0 and time.monotonic() > self._half:
            self.sizes[number] = [await _size(session)]
        await asyncio.sleep(random.expovariate(10))

    async def after(self, session: Session, number: int) -> None:
        if number in self.sizes:
            self.sizes[number].append(await _size(session))

    async def query(self, session: Session, call: Call) -> Result:
        limit = (call.timeout or DEFAULT_TIMEOUT) / 1000
        if call.concurrency:
            limit *= -(-len(call.prompts) // call.concurrency)
        if call.fate != "none":
            limit = min(limit, call.after)
        start = time.monotonic()
        try:
            async with asyncio.timeout(limit + 6 * SLACK):
                result = await session.query(call.sql())
        except TimeoutError:
            self.report.faults.append(
                f"{call.tokens[0]}: hangs, {call.form} to {call.model or 'any'}: "
                + await self.activity(session.pid)
            )
            raise Lost from None
        late = time.monotonic() - start - limit
        self.worst = max(self.worst, late)
        if late > SLACK:
            self.report.faults.append(
                f"{call.tokens[0]}: ended {late:.1f} s after its {limit:.1f} s, {call.form} to"
                f" {call.model or 'any'}, {call.fate}: {result.error}"
            )
        self._honest(call, result)
        return result

    def _honest(self, call: Call, result: Result) -> None:
        """Whether an error may be, and says all that it should; and an answer is the echo."""
        error = result.error
        if error:
            ended = call.fate in ("cancel", "backend", "statement") and error["C"] == "57014"
            honest = error["C"] in _HONEST or (error["C"] == "LG005" and "/" in call.model)
            if not ended and not (honest and error.get("D") and error.get("H")):
                self.report.faults.append(f"{call.tokens[0]}: {call.form}, {call.fate}: {error}")
            return
        if call.form == "glance":
            return
        if call.form in ("scalar", "stream"):
            answers: list[list[str | None]] = [["".join(row[0] or "" for row in result.rows), None]]
        else:
            answers = [[row[0], row[4]] for row in result.rows]
        for prompt, (text, error_class) in zip(call.prompts, answers, strict=False):
            echo = f"echo: {prompt}"[: 4 * call.max_tokens if call.max_tokens else None]
            if error_class is None and text != echo:
                self.report.faults.append(f"{call.tokens[0]}: {call.form}: {text!r} for {prompt!r}")
            honest = error_class in _CLASSES or (error_class == "no_candidate" and "/" in call.model)
            if error_class is not None and not (honest and text is None):
                self.report.faults.append(f"{call.tokens[0]}: {call.form}: {error_class} {text!r}")

    def lost(self, call: Call, error: Lost) -> None:
        if call.fate != "terminate" or (error.error and error.error["C"] != "57P01"):
            self.report.faults.append(f"{call.tokens[0]}: connection lost: {error}")


async def _size(session: Session) -> Size:
    rows = await session.rows("SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts")
    return Size(len(os.listdir(f"/proc/{session.pid}/fd")), int(rows[0][0] or 0))
