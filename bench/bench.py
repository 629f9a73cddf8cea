"""Measures what a call costs, always as a ratio against a baseline of the same run.

Machines are shared and noisy: the same loop varies threefold within a minute. So baseline and subject take turns in
short rounds, and what counts is the ratio of their medians; the spread says how far to trust it.

Run by script/bench.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


class Server:
    """A psql session: the backend that is measured, with its warm connection."""

    def __init__(self, psql: str) -> None:
        self.psql = subprocess.Popen([psql, "-XqAt", "-v", "ON_ERROR_STOP=1"], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, text=True, bufsize=1)

    def run(self, sql: str) -> list[str]:
        """Runs statements and returns their output lines."""
        self.psql.stdin.write(sql + "\n\\echo ---\n")
        self.psql.stdin.flush()
        lines: list[str] = []
        while (line := self.psql.stdout.readline()) != "---\n":
            if line == "":
                sys.exit("bench: psql has ended")
            lines.append(line.rstrip("\n"))
        return lines

    def seconds(self, query: str) -> float:
        """How long a query takes, by the server's clock."""
        lines = self.run(f"SELECT clock_timestamp() AS t0 \\gset\n{query};\n"
                         "SELECT extract(epoch FROM clock_timestamp() - :'t0'::timestamptz);")
        return float(lines[-1])


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.rounds = options.rounds
        self.tools = Path(options.tools)
        self.results: list[dict] = []
        self.stub = subprocess.Popen([self.tools / "stub"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self.stub.stdout.readline().split()[1]}"
        self.server = Server(options.psql)
        self.server.run("SET client_min_messages = warning; CREATE EXTENSION llm_gateway;")
        self.models: set[str] = set()

    def model(self, path: str) -> str:
        """The model behind a path of the stub, such as l50/b1024 (see stub.c)."""
        name = path.replace("/", "-") or "now"
        if name not in self.models:
            self.models.add(name)
            base_url = "/".join(filter(None, [self.url, path, "v1"]))
            self.server.run("INSERT INTO llm_providers(name, base_url, api_key, first_byte_timeout) "
                            f"VALUES ('{name}', '{base_url}', 'env:BENCH_API_KEY', '60 s');"
                            f"INSERT INTO llm_models(provider, name, input_price, output_price) VALUES ('{name}', '{name}', 1, 2);")
        return name

    def raw(self, calls: int, path: str = "", prompt: int = 5) -> float:
        """Microseconds a call of the bare libcurl loop."""
        url = "/".join(filter(None, [self.url, path, "v1/chat/completions"]))
        return float(subprocess.run([self.tools / "rawloop", url, str(calls), str(prompt)], check=True,
                                    capture_output=True, text=True).stdout)

    def loop(self, calls: int, path: str = "", prompt: int = 5) -> float:
        """Microseconds a call of llm_complete in one statement."""
        return self.server.seconds(f"SELECT count(llm_complete(repeat('x', {prompt}), model => '{self.model(path)}')) "
                                   f"FROM generate_series(1, {calls})") * 1e6 / calls

    def batch(self, prompts: int, concurrency: int, path: str) -> float:
        """Seconds for a batch of different prompts."""
        return self.server.seconds("SELECT count(*) FILTER (WHERE error_class IS NULL) FROM llm_complete_batch("
                                   f"ARRAY(SELECT g::text FROM generate_series(1, {prompts}) g), "
                                   f"model => '{self.model(path)}', max_concurrency => {concurrency})")

    def compare(self, name: str, what: str, unit: str, baseline: Callable[[], float],
                subject: Callable[[], float], bound: str) -> None:
        """Takes turns, and notes the ratio of the medians."""
        subject()
        pairs = [(baseline(), subject()) for _ in range(self.rounds)]
        base, subj = (statistics.median(column) for column in zip(*pairs))
        ratios = sorted(s / b for b, s in pairs)
        result = {"name": name, "what": what, "unit": unit, "rounds": self.rounds, "baseline": base, "subject": subj,
                  "ratio": subj / base, "ratio_min": ratios[0], "ratio_max": ratios[-1], "bound": bound}
        self.results.append(result)
        print(f"{name:<14}{base:>12.1f}{subj:>12.1f} {unit:<8}{subj / base:>7.2f}  "
              f"{ratios[0]:.2f} .. {ratios[-1]:.2f}   {bound:<8} {what}", flush=True)

    # What is measured

    def call(self) -> None:
        """llm_complete against the bare libcurl loop, no latency"""
        self.compare("call", "a loop of llm_complete / a loop of libcurl", "us/call",
                     lambda: self.raw(2000), lambda: self.loop(2000), "<= 2.0")

    def batch_ideal(self) -> None:
        """2,000 prompts at 50 ms, 200 in flight, against what the latency alone takes"""
        self.compare("batch", "ideal time / a batch of 2,000 at 50 ms, 200 in flight", "ms",
                     lambda: self.batch(2000, 200, "l50") * 1000, lambda: 2000 / 200 * 50.0, ">= 0.9")

    def sizes(self) -> None:
        """per byte: building a prompt and parsing an answer of 100 KB and 10 MB against 1 KB"""
        for label, size, calls in (("100 KB", 100_000, 30), ("10 MB", 10_000_000, 2)):
            for direction in ("prompt", "answer"):
                def cost(n: int, c: int, direction: str = direction) -> float:
                    prompt, path = (n, "") if direction == "prompt" else (5, f"b{n}")
                    return (self.loop(c, path, prompt) - self.loop(c)) * 1000 / n
                self.compare(f"{direction} {label}", f"ns a byte of {direction}: {label} / 10 KB", "ns/byte",
                             lambda cost=cost: cost(10_000, 300), lambda cost=cost, size=size, calls=calls: cost(size, calls),
                             "<= 2")


MEASUREMENTS = {"call": Bench.call, "batch": Bench.batch_ideal, "sizes": Bench.sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measurements", nargs="*", choices=[*MEASUREMENTS, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--psql", required=True)
    parser.add_argument("--tools", required=True)
    options = parser.parse_args()
    bench = Bench(options)
    print(f"{'':<14}{'baseline':>12}{'subject':>12} {'':<8}{'ratio':>7}  {'spread':<14} {'bound':<8}")
    for name in options.measurements or MEASUREMENTS:
        MEASUREMENTS[name](bench)
    if options.json:
        options.json.write_text(json.dumps(bench.results, indent=2) + "\n")


if __name__ == "__main__":
    main()
