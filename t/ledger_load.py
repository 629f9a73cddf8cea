#!/usr/bin/python3
"""Loads a server's ledger with calls and disturbances, and audits it against the fake provider.

    ledger_load.py setup --port P --url http://127.0.0.1:N       providers and models
    ledger_load.py load  --port P --records FILE [...]           calls; what clients were told
    ledger_load.py audit --port P --control C --records FILE...  clients, journal and ledger agree?

Each prints one JSON object.  From Perl: ledger_load() in LlmGateway.pm.

Needs Python 3.11 or later, and nothing but its standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import getpass
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

# Tests may run as another user than the owner of the tree: leave no compiled files in it.
sys.dont_write_bytecode = True

from ledger import audit, load, mixture  # noqa: E402
from ledger.wire import Session  # noqa: E402


def main() -> None:
    options = _options()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    command = {"setup": _setup, "load": _load, "audit": _audit}[options.command]
    json.dump(asyncio.run(command(options)), sys.stdout)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--host", required=True, help="the directory of the server's socket")
    common.add_argument("--port", type=int, required=True)
    common.add_argument("--database", default="postgres")
    common.add_argument("--user", default=getpass.getuser())

    setup = commands.add_parser("setup", parents=[common])
    setup.add_argument("--url", required=True, help="of the fake provider, without a path")

    calls = commands.add_parser("load", parents=[common])
    calls.add_argument("--records", type=Path, required=True, help="for what clients were told")
    calls.add_argument("--sessions", type=int, default=64)
    calls.add_argument("--calls", type=int, default=4000)
    calls.add_argument("--seconds", type=float, default=3600, help="no call begins later")
    calls.add_argument("--sync", choices=("on", "off", "mixed"), default="on")
    calls.add_argument("--seed", type=int, default=1)
    calls.add_argument("--crash", action="store_true", help="the server will go down meanwhile")

    check = commands.add_parser("audit", parents=[common])
    check.add_argument("--control", type=int, required=True, help="the fake's control port")
    check.add_argument("--records", type=Path, nargs="+", required=True)
    check.add_argument("--since", type=int, default=0, help="only requests with a higher id")
    check.add_argument("--journal-since", type=int, default=0, help="only entries after this one")
    check.add_argument("--killed", action="store_true", help="processes of the server were killed")
    return parser.parse_args()


async def _setup(options: argparse.Namespace) -> dict[str, Any]:
    session = await Session.connect(options.host, options.port, options.database, options.user)
    await session.rows(mixture.setup_sql(options.url))
    session.close()
    return {}


async def _load(options: argparse.Namespace) -> dict[str, Any]:
    names = (field.name for field in dataclasses.fields(load.Options))
    report = await load.run(load.Options(**{name: getattr(options, name) for name in names}))
    told = report.as_json()
    options.records.write_text(json.dumps(told.pop("records")))
    return told


async def _audit(options: argparse.Namespace) -> dict[str, Any]:
    session = await Session.connect(options.host, options.port, options.database, options.user)
    records = [
        load.Record(**record)
        for path in options.records
        for record in json.loads(path.read_text())
    ]
    findings: list[str] = []
    # The journal last, so that everything in the ledger is in it.
    books = await audit.read_books(session, options.since, records, findings)
    url = f"http://127.0.0.1:{options.control}/_control/journal?since={options.journal_since}"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as response:
        await audit.read_journal(session, json.load(response), books)
    session.close()
    checker = audit.Audit(books, options.killed)
    findings += checker.run()
    return {"findings": findings, "counts": checker.counts}


if __name__ == "__main__":
    main()
