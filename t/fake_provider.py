#!/usr/bin/python3
"""A provider of language models that is not one, for tests: it speaks the providers' wire formats
and every way in which they fail.

    python3 t/fake_provider.py [--port N] [--tls-cert F --tls-key F]
    python3 t/fake_provider.py --list

It prints "PORT n" and "CONTROL n", and lives until its standard input ends or SIGTERM comes.

What a request gets is decided by, in this order: the script that the test has set for its model
(fake/scripts.py), its model name if that names a behaviour ("status-429", "slow-300+cut"; all of
them: --list), and else by default: "echo: " and the last user message, as many tokens of it as
max_tokens allows.  The answer is a function of the request, but for its id and time; its model is
the dated name of the one asked for.  Four characters are a token, rounded up: of all message texts
together for the prompt, of the answer's text for the completion.

Every request is in the journal (fake/journal.py) with what was sent and how it ended.  Scripts and
journal are reached over HTTP (fake/control.py); from Perl, use FakeProvider.pm.

Needs Python 3.11 or later, and nothing but its standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import ipaddress
import os
import resource
import signal
import ssl
import sys
import threading
from collections.abc import Callable

# Tests may run as another user than the owner of the tree: leave no compiled files in it.
sys.dont_write_bytecode = True

from fake import behaviours, server  # noqa: E402


def main() -> None:
    options = _options()
    if options.list:
        print("\n".join(behaviours.listing()))
        return
    _raise_descriptor_limit()
    # The journal grows by millions of long-lived objects, which the collector need not revisit.
    gc.set_threshold(100_000, 50, 1000)
    asyncio.run(_serve(options))


def _options() -> argparse.Namespace:
    summary = "\n\n".join((__doc__ or "").split("\n\n")[:3])
    parser = argparse.ArgumentParser(
        description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--host", type=_loopback, default="127.0.0.1", help="a loopback address (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate, PEM; with --tls-key: TLS")
    parser.add_argument("--tls-key", metavar="FILE", help="its key, PEM")
    parser.add_argument(
        "--journal",
        type=int,
        default=100_000,
        metavar="N",
        help="how many requests the journal remembers (%(default)s)",
    )
    parser.add_argument("--no-stdin", action="store_true", help="live on when standard input ends")
    parser.add_argument("--list", action="store_true", help="print every behaviour and exit")
    options = parser.parse_args()
    if bool(options.tls_cert) != bool(options.tls_key):
        parser.error("--tls-cert and --tls-key go together")
    return options


def _loopback(address: str) -> str:
    """Only those: behind it stands a control port that asks for no password."""
    if not ipaddress.ip_address(address).is_loopback:
        raise ValueError
    return address


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tls = _tls_context(options.tls_cert, options.tls_key) if options.tls_cert else None
    provider = server.Provider(options.host, options.port, tls, options.journal)
    await provider.start()

    print(f"PORT {provider.port}\nCONTROL {provider.control_port}", flush=True)
    # Whoever reads our output shall see its end now, not when we exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not options.no_stdin:
        _watch_stdin(loop, stop.set)
    await stop.wait()


def _watch_stdin(loop: asyncio.AbstractEventLoop, ended: Callable[[], object]) -> None:
    """Call `ended` when standard input ends: with its writer, the parent, however that died.

    A thread, since standard input may be anything, and an event loop cannot watch a file.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(ended)

    threading.Thread(target=watch, daemon=True).start()


def _tls_context(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
