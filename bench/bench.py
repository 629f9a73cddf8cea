"""Measures what a call costs, always as a ratio against a baseline of the same run.

Machines are shared and noisy: the same loop varies threefold within a minute. So baseline and subject take turns in
short rounds, and what counts is the ratio of their medians; the spread says how far to trust it.

Run by script/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Server:
    """A psql session: the backend that is measured, with its warm connection."""

    def __init__(self, psql: str, host: str | None = None) -> None:
        self.psql = subprocess.Popen([psql, "-XqAt", "-v", "ON_ERROR_STOP=1", *(["-h", host] if host else [])],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def run(self, sql: str) -> list[str]:
        """Runs statements and returns their output lines."""
        self.psql.stdin.write(sql + ";\n\\echo ---\n")
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


    def cpu_seconds(self, query: str) -> float:
        """The CPU time that its backend needs for a query."""
        used = "split_part(pg_read_file('/proc/self/schedstat'), ' ', 1)::float8 / 1e9"
        return float(self.run(f"SELECT {used} AS used \\gset\n{query};\nSELECT {used} - :used;")[-1])


class Wire:
    """A session that sees each row as it comes, which psql does not."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(f"{os.environ['PGHOST']}/.s.PGSQL.{os.environ['PGPORT']}")
        self.input = self.socket.makefile("rb")
        names = f"user\0{os.environ['PGUSER']}\0database\0{os.environ['PGDATABASE']}\0\0".encode()
        self.socket.sendall(struct.pack("!ii", len(names) + 8, 3 << 16) + names)
        self.finish()

    def message(self) -> bytes:
        """The next message's kind."""
        kind, length = struct.unpack("!ci", self.input.read(5))
        body = self.input.read(length - 4)
        if kind == b"E":
            sys.exit(f"bench: {body.decode()}")
        return kind

    def finish(self) -> None:
        while self.message() != b"Z":
            pass

    def first_row(self, sql: str) -> float:
        """Seconds until the first row is here; the query is read to its end."""
        query = sql.encode() + b"\0"
        start = time.perf_counter()
        self.socket.sendall(b"Q" + struct.pack("!i", len(query) + 4) + query)
        while self.message() != b"D":
            pass
        took = time.perf_counter() - start
        self.finish()
        return took


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.rounds = options.rounds
        self.tools = Path(options.tools)
        self.results: list[dict] = []
        self.stub = subprocess.Popen([self.tools / "stub"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self.stub.stdout.readline().split()[1]}"
        self.server = Server(options.psql)
        self.psql = options.psql
        self.pgbench = Path(options.psql).with_name("pgbench")
        self.admission_host = options.admission_host
        self.rows = options.rows
        # a call's own work; what waiting for the ledger costs is measured apart
        self.server.run("SET client_min_messages = warning; SET llm_gateway.ledger_sync = off;"
                        "CREATE EXTENSION llm_gateway; SELECT llm_add_provider('mock');")
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

    def raw(self, calls: int, path: str = "", prompt: int = 5, first: bool = False) -> float:
        """Microseconds a call of the bare libcurl loop, to its end or to the first bytes of the answer."""
        url = "/".join(filter(None, [self.url, path, "v1/chat/completions"]))
        out = subprocess.run([self.tools / "rawloop", url, str(calls), str(prompt)], check=True,
                             capture_output=True, text=True).stdout
        return float(out.split()[first])

    def loop(self, calls: int, path: str = "", prompt: int = 5) -> float:
        """Microseconds a call of llm_complete in one statement."""
        return self.server.seconds(f"SELECT count(llm_complete(repeat('x', {prompt}), model => '{self.model(path)}')) "
                                   f"FROM generate_series(1, {calls})") * 1e6 / calls

    def loop_cpu(self, model: str, calls: int) -> float:
        """Microseconds of the backend's CPU time a call."""
        return self.server.cpu_seconds(f"SELECT count(llm_complete('xxxxx', model => '{model}')) "
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

    def stream(self) -> None:
        """the first row of llm_stream at its client, against the first bytes in a libcurl reader, of an answer
        that begins after 20 ms and goes on 20 ms later: 1.05 is 1 ms more"""
        wire = Wire()
        wire.first_row("SET llm_gateway.ledger_sync = off; SELECT 1")
        path, calls = "l20/b640/p20", 20
        query = f"SELECT llm_stream('xxxxx', model => '{self.model(path)}')"
        self.compare("stream", "time to the first row of llm_stream / to libcurl's first bytes, after 20 ms", "us",
                     lambda: self.raw(calls, path, first=True),
                     lambda: statistics.mean(wire.first_row(query) for _ in range(calls)) * 1e6, "<= 1.05")

    def transactions(self, sessions: int, statement: str, **env: str) -> float:
        """Transactions a second of that many sessions, one statement to each."""
        script = self.tools / "transaction.sql"
        script.write_text(f"{statement};\n")
        out = subprocess.run([self.pgbench, "-n", "-c", str(sessions), "-j", "2", "-T", "3", "-f", script],
                             check=True, capture_output=True, text=True, env={**os.environ, **env}).stdout
        return float(re.search(r"tps = ([0-9.]+)", out)[1])

    def tps(self, sync: str, sessions: int, model: str) -> float:
        """Calls a second of that many sessions, one call to a transaction."""
        return self.transactions(sessions, f"SELECT llm_complete('x', model => '{model}')",
                                 PGOPTIONS=f"-c llm_gateway.ledger_sync={sync}")

    def ledger_sync(self) -> None:
        """64 sessions at 20 ms: throughput with every call in the ledger when it returns, against without waiting"""
        self.server.run("ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()")
        self.compare("sync", "64 sessions at 20 ms: ledger_sync on / off", "calls/s",
                     lambda: self.tps("off", 64, self.model("l20")), lambda: self.tps("on", 64, self.model("l20")), ">= 0.7")

    def cache(self) -> None:
        """a loop of calls that a kept answer is there for, against calls that are made, of the stub without latency"""
        model = self.model("")
        hit = f"SELECT count(llm_complete('xxxxx', model => '{model}', cache => 'on')) FROM generate_series(1, "
        self.server.run(f"{hit}1)")
        while self.server.run("SELECT count(*) FROM llm_cache") != ["1"]:
            time.sleep(0.01)
        self.compare("cache", "a call that is served from the cache / a call that is made", "us/call",
                     lambda: self.loop(2000), lambda: self.server.seconds(f"{hit}2000)") * 1e6 / 2000, "<= 0.33")

    def breaker(self) -> None:
        """breaker and limiter together (asking for admission and settling it, in a loop that does nothing else), against
        taking two locks that are free: CPU time of one session; then of all processors, with 64 sessions at one endpoint.
        With limits of all kinds, which costs most, and without."""
        server = Server(self.psql, self.admission_host)
        server.run("CREATE FUNCTION bench_admission(int, bool) RETURNS float8 LANGUAGE c AS 'llm_gateway';"
                   "CREATE OR REPLACE FUNCTION bench_lock(int) RETURNS float8 LANGUAGE c AS 'llm_gateway'")
        cores = len(os.sched_getaffinity(0))

        def alone(function: str) -> float:
            return float(server.run(f"SELECT {function}")[0])

        def together(function: str, calls: int) -> float:
            return cores * 1e9 / (calls * self.transactions(64, f"SELECT {function}", PGHOST=self.admission_host))

        for limited, limits in (("false", "no limits"), ("true", "all limits")):
            self.compare("breaker", f"admission of a call, {limits} / two locks that are free", "ns",
                         lambda: alone("bench_lock(200000)"),
                         lambda limited=limited: alone(f"bench_admission(200000, {limited})"), "1000 ns")
            self.compare("breaker 64", f"the same in 64 sessions, {limits}", "ns",
                         lambda: alone("bench_lock(200000)"),
                         lambda limited=limited: together(f"bench_admission(200, {limited})", 200), "10000 ns")

    def budgets(self) -> None:
        """reserving and settling an attempt on five budgets, against taking two locks that are free: CPU time of one
        session; then of all processors, with 64 sessions at the same five. And what it takes to find the account of one."""
        server = Server(self.psql, self.admission_host)
        server.run("CREATE OR REPLACE FUNCTION bench_lock(int) RETURNS float8 LANGUAGE c AS 'llm_gateway';"
                   "CREATE FUNCTION bench_budgets(int) RETURNS float8 LANGUAGE c AS 'llm_gateway';"
                   "CREATE FUNCTION bench_budget_open(int) RETURNS float8 LANGUAGE c AS 'llm_gateway'")
        cores = len(os.sched_getaffinity(0))

        def alone(function: str) -> float:
            return float(server.run(f"SELECT {function}")[0])

        def together(calls: int) -> float:
            return cores * 1e9 / (calls * self.transactions(64, f"SELECT bench_budgets({calls})", PGHOST=self.admission_host))

        self.compare("budgets", "reserve and settle on five budgets / two locks that are free", "ns",
                     lambda: alone("bench_lock(200000)"), lambda: alone("bench_budgets(100000)"), "2000 ns")
        self.compare("budgets 64", "the same in 64 sessions", "ns",
                     lambda: alone("bench_lock(200000)"), lambda: together(200), "20000 ns")
        self.compare("budget", "finding the account of a budget / two locks that are free", "ns",
                     lambda: alone("bench_lock(200000)"), lambda: alone("bench_budget_open(100000)"), "50 ns")

    def route(self) -> None:
        """a routing decision (all but the sending: rules by task, alias, role and tags, candidates, estimates, order, the
        turn among providers) with 50 models of 10 providers and 200 rules, against taking two locks that are free"""
        server = Server(self.psql, self.admission_host)
        server.run(
            "CREATE FUNCTION bench_route(int, text, text, text, jsonb) RETURNS float8 LANGUAGE c AS 'llm_gateway';"
            "CREATE OR REPLACE FUNCTION bench_lock(int) RETURNS float8 LANGUAGE c AS 'llm_gateway';"
            "CREATE ROLE team0; CREATE ROLE team1; CREATE ROLE team2; CREATE ROLE team3; GRANT team0, team1 TO CURRENT_USER;"
            "INSERT INTO llm_providers(name, kind) SELECT 'p' || p, 'mock' FROM generate_series(0, 9) p;"
            "INSERT INTO llm_models(provider, name, quality, input_price, output_price, capabilities) "
            "SELECT 'p' || (m + k) % 10, 'model-' || m, m, m, 4 * m, '{chat,tools,json_schema,temperature}' "
            "FROM generate_series(0, 24) m, generate_series(0, 1) k;"
            "INSERT INTO llm_routing_rules(task, alias, model, rank, role, tags) SELECT "
            "CASE WHEN r % 10 < 6 THEN (ARRAY['coding','creative','analysis','chat','math','lookup'])[1 + r / 10 % 6] END, "
            "CASE WHEN r % 10 IN (6, 7) THEN 'alias-' || r / 10 END, "
            "CASE WHEN r % 3 = 0 THEN 'p' || (r % 25) % 10 || '/' ELSE '' END || 'model-' || r % 25, r, "
            "CASE WHEN r % 4 = 0 THEN 'team' || r / 4 % 4 END, "
            "CASE WHEN r % 5 = 0 THEN jsonb_build_object('team', 'team' || r / 5 % 3, 'n', 1) END FROM generate_series(0, 199) r;"
            # each provider has a breaker and a latency then, each model a mean answer
            "SET llm_gateway.ledger_sync = off; SELECT count(llm_complete('x', model => provider || '/' || name)) "
            "FROM llm_models, generate_series(1, 8)")
        tags = """'{"team": "team0", "n": 1, "ticket": [4711]}'"""

        def decide(arguments: str) -> float:
            return float(server.run(f"SELECT bench_route(20000, {arguments})")[0])

        for what, arguments in (("rules of a task", "'coding', NULL, 'none', NULL"),
                                ("the same by cost", "'coding', NULL, 'cost', NULL"),
                                ("the same by speed", "'coding', NULL, 'speed', NULL"),
                                ("rules of any task, with tags", f"'default', NULL, 'none', {tags}"),
                                ("an alias", "'default', 'alias-3', 'none', NULL"),
                                ("a named model", "'default', 'model-7', 'none', NULL")):
            self.compare("route", f"a routing decision, {what} / two locks that are free", "ns",
                         lambda: float(server.run("SELECT bench_lock(200000)")[0]),
                         lambda arguments=arguments: decide(arguments), "10000 ns")
        server.run("DELETE FROM llm_routing_rules")
        for what, aim in (("all 50 models", "none"), ("all 50 models by cost", "cost")):
            self.compare("route", f"a routing decision, {what} / two locks that are free", "ns",
                         lambda: float(server.run("SELECT bench_lock(200000)")[0]),
                         lambda aim=aim: decide(f"'default', NULL, '{aim}', NULL"), "10000 ns")

    def outage(self) -> None:
        """a model of two providers, one of them dead and its breaker open, against the healthy one alone: the CPU time of
        a session's calls without latency, and what 64 sessions get done at 20 ms"""
        for path in ("", "l20"):
            alone = self.model(path)
            shared = f"shared-{alone}"
            with socket.socket() as nobody:    # bound, and nobody listens
                nobody.bind(("127.0.0.1", 0))
                self.server.run(
                    "INSERT INTO llm_providers(name, base_url, api_key, breaker_cooldown) "
                    f"VALUES ('dead-{alone}', 'http://127.0.0.1:{nobody.getsockname()[1]}/v1', 'env:BENCH_API_KEY', '1 h');"
                    "INSERT INTO llm_models(provider, name, input_price, output_price) "
                    f"SELECT p, '{shared}', 1, 2 FROM unnest(ARRAY['{alone}', 'dead-{alone}']) p")
                state = f"SELECT state FROM llm_provider_status WHERE provider = 'dead-{alone}'"
                while self.server.run(state) != ["open"]:
                    self.server.run(f"SELECT llm_complete('x', model => '{shared}')")
                if path == "":
                    self.compare("outage", "CPU time of a call: one of two providers dead / the healthy one alone", "us/call",
                                 lambda: self.loop_cpu(alone, 2000), lambda: self.loop_cpu(shared, 2000), "<= 1.05")
                else:
                    self.compare("outage 64", "calls a second of 64 sessions at 20 ms: the same", "calls/s",
                                 lambda: self.tps("off", 64, alone), lambda: self.tps("off", 64, shared), ">= 0.95")
                if self.server.run(state) != ["open"]:
                    sys.exit("bench: the dead provider's breaker is not open")

    def worker_pid(self) -> int:
        self.server.run("SELECT llm_complete('x', model => 'mock-economy')")
        while not (lines := self.server.run("SELECT pid FROM llm_worker_status WHERE worker = 'ledger' AND state = 'running'")):
            time.sleep(0.01)
        return int(lines[0])

    def wait_booked(self) -> None:
        while self.server.run("SELECT pending_bytes FROM llm_worker_status WHERE worker = 'ledger'") != ["0"]:
            time.sleep(0.005)

    def drain(self, requests: int = 40_000) -> float:
        """Requests a second that the worker books when that many wait."""
        pid = self.worker_pid()
        self.wait_booked()
        os.kill(pid, signal.SIGSTOP)
        self.server.run(f"SELECT count(llm_complete('x', model => 'mock-economy')) FROM generate_series(1, {requests})")
        start = time.monotonic()
        os.kill(pid, signal.SIGCONT)
        self.wait_booked()
        return requests / (time.monotonic() - start)

    def insert(self, requests: int = 40_000) -> float:
        """Requests a second when one statement copies as many rows of both tables."""
        self.server.run("CREATE TEMP TABLE IF NOT EXISTS r (LIKE llm_requests INCLUDING ALL);"
                        "CREATE TEMP TABLE IF NOT EXISTS a (LIKE llm_attempts INCLUDING ALL);"
                        "TRUNCATE r, a")
        return requests / self.server.seconds(
            f"WITH q AS (INSERT INTO r SELECT * FROM llm_requests ORDER BY request_id DESC LIMIT {requests} RETURNING request_id) "
            "INSERT INTO a SELECT t.* FROM llm_attempts t JOIN q USING (request_id)")

    def ledger_drain(self) -> None:
        """how fast one worker books what waits, against one INSERT ... SELECT of the same rows"""
        self.drain()
        self.compare("drain", "requests a second: worker / INSERT ... SELECT of the same rows", "req/s",
                     self.insert, self.drain, "20000/s")

    def ledger_size(self) -> None:
        """the same with many rows in the ledger (--rows) and without"""
        small = [self.drain() for _ in range(self.rounds)]
        print(f"{'':<14}filling the ledger with {self.rows} rows ...", flush=True)
        self.server.run(
            "WITH q AS (INSERT INTO llm_requests (request_id, created_at, operation, role, role_oid, status, attempts, fallback, "
            "cost_source, provider, model, task, priority, model_tier, prompt_hash, cost_usd, input_tokens, output_tokens) "
            "SELECT g, now() - interval '1 day', 'complete', 'postgres', 10, 'ok', 1, false, 'usage', 'mock', 'mock-economy', "
            f"'default', 'normal', 'economy', '\\x00112233445566778899aabbccddeeff', 0.0001, 10, 10 FROM generate_series(1, {self.rows}) g "
            "RETURNING request_id) INSERT INTO llm_attempts (request_id, attempt, provider, model, started_at, cost_usd, cost_source, "
            "input_tokens, output_tokens) SELECT request_id, 1, 'mock', 'mock-economy', now(), 0.0001, 'usage', 10, 10 FROM q; CHECKPOINT")
        numbers = iter(small)
        self.rounds = len(small)
        self.compare("size", f"requests a second: worker with {self.rows} rows / with few", "req/s",
                     lambda: next(numbers), self.drain, ">= 0.9")


MEASUREMENTS = {"call": Bench.call, "batch": Bench.batch_ideal, "sizes": Bench.sizes, "stream": Bench.stream, "cache": Bench.cache,
                "breaker": Bench.breaker, "route": Bench.route, "budgets": Bench.budgets, "outage": Bench.outage,
                "sync": Bench.ledger_sync, "drain": Bench.ledger_drain, "size": Bench.ledger_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measurements", nargs="*", choices=[*MEASUREMENTS, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the ledger, for size")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--psql", required=True)
    parser.add_argument("--tools", required=True)
    parser.add_argument("--admission-host", required=True)
    options = parser.parse_args()
    bench = Bench(options)
    print(f"{'':<14}{'baseline':>12}{'subject':>12} {'':<8}{'ratio':>7}  {'spread':<14} {'bound':<8}")
    for name in options.measurements or MEASUREMENTS:
        MEASUREMENTS[name](bench)
    if options.json:
        options.json.write_text(json.dumps(bench.results, indent=2) + "\n")


if __name__ == "__main__":
    main()
